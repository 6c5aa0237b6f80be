"""Sampling: the distribution, the log-probabilities, and that nothing but the key matters."""

import math

import pytest
import torch
from conftest import EOS, PAD, VOCAB, make_model
from transformers import GenerationConfig

from orthora import sampling
from orthora.sampling import Response, Sampling, Vocabulary, sample, vocabulary_of

PROMPTS = [[5, 9, 11], [7], [4, 4, 8, 20, 33, 12], [13, 6]]
WORDS = Vocabulary((EOS,), PAD)
KINDS = ["qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gpt2", "phi3", "qwen3_moe"]


def drawn(model, prompts=PROMPTS, *, samples=3, how=None, words=WORDS, first=0):
    how = how or Sampling(12, seed=3)
    keys = [[first + i * samples + s for s in range(samples)] for i in range(len(prompts))]
    found = {(i, s): r for i, s, r in sample(model, prompts, keys, how, words)}
    assert len(found) == len(prompts) * samples
    return found


def same(a: dict[tuple[int, int], Response], b: dict[tuple[int, int], Response]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k].ids, b[k].ids) for k in a)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_one_pass_over_the_whole_sequence(kind):
    """For left-padded prompts of unequal length, absolute positions, sliding windows, experts."""
    model = make_model(kind)
    for (i, _), response in drawn(model, how=Sampling(12, temperature=0.7, seed=3)).items():
        sequence = torch.tensor([PROMPTS[i] + response.ids.tolist()])
        logits = model(sequence).logits[0].double() / 0.7
        start = len(PROMPTS[i]) - 1
        logps = torch.log_softmax(logits, -1)[start:-1]
        expected = logps.gather(1, response.ids.long()[:, None]).squeeze(1)
        torch.testing.assert_close(response.logps.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_who_shares_the_batch_does_not_matter(batch):
    model = make_model("qwen2")
    assert same(drawn(model, how=Sampling(12, seed=3, batch=batch)), drawn(model))


def test_other_prompts_do_not_matter_but_the_key_does():
    model = make_model("qwen2")
    everything = drawn(model)
    alone = drawn(model, [PROMPTS[2]], first=6)
    assert all(torch.equal(alone[0, s].ids, everything[2, s].ids) for s in range(3))
    others = drawn(model, [PROMPTS[2]], first=100)
    assert any(not torch.equal(others[0, s].ids, everything[2, s].ids) for s in range(3))
    assert not same(drawn(model, how=Sampling(12, seed=4)), everything)


def test_the_global_random_state_is_neither_used_nor_moved():
    model = make_model("qwen2")
    torch.manual_seed(1)
    first = drawn(model)
    before = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert same(first, drawn(model))
    torch.manual_seed(1)
    drawn(model)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "how",
    [
        Sampling(1, seed=0),
        Sampling(1, temperature=2.0, seed=0),
        pytest.param(Sampling(1, top_k=5, seed=0), marks=pytest.mark.slow),
        pytest.param(Sampling(1, top_p=0.6, seed=0), marks=pytest.mark.slow),
        Sampling(1, temperature=0.8, top_k=20, top_p=0.9, seed=0),
    ],
    ids=str,
)
def test_first_tokens_follow_the_distribution(how):
    """20,000 draws against the probabilities: a chi-square test at 1e-6."""
    model = make_model("qwen2")
    n, prompt = 20_000, PROMPTS[0]
    rows = drawn(model, [prompt], samples=n, how=how, words=Vocabulary((), PAD)).values()
    counts = torch.zeros(VOCAB, dtype=torch.float64)
    for row in rows:
        counts[int(row.ids[0])] += 1
    logits = model(torch.tensor([prompt])).logits[0, -1].double() / how.temperature
    if how.top_k:
        logits[logits < logits.topk(how.top_k).values[-1]] = -math.inf
    p = torch.softmax(logits, -1)
    if how.top_p < 1:
        values, order = p.sort(descending=True)
        outside = values.cumsum(0) - values >= how.top_p
        p[order[outside]] = 0
        p /= p.sum()
    assert not counts[p == 0].any()
    likely = p * n >= 5
    expected, found = p[likely] * n, counts[likely]
    statistic = float(((found - expected) ** 2 / expected).sum())
    degrees = int(likely.sum())
    assert statistic < degrees + 5 * math.sqrt(2 * degrees) + 15


def test_the_log_probabilities_are_of_the_whole_distribution_whatever_the_nucleus():
    model = make_model("qwen2")
    how = Sampling(4, top_p=0.5, top_k=3, seed=1)
    for (i, _), response in drawn(model, how=how).items():
        logits = model(torch.tensor([PROMPTS[i]])).logits[0, -1]
        expected = torch.log_softmax(logits, -1)[int(response.ids[0])]
        assert float(response.logps[0]) == pytest.approx(float(expected), abs=1e-5)


def test_greedy_is_transformers_greedy():
    model = make_model("qwen2")
    settings = GenerationConfig(
        max_new_tokens=10, do_sample=False, eos_token_id=EOS, pad_token_id=PAD
    )
    for (i, _), response in drawn(model, samples=1, how=Sampling(10, temperature=0.0)).items():
        expected = model.generate(torch.tensor([PROMPTS[i]]), generation_config=settings)
        assert response.ids.tolist() == expected[0, len(PROMPTS[i]) :].tolist()


def test_responses_end_at_the_first_end_token_and_nowhere_else():
    model = make_model("qwen2")
    ends = Vocabulary((EOS, 9, 17), PAD)
    rows = drawn(model, samples=40, how=Sampling(6, temperature=1.5, seed=1), words=ends).values()
    for row in rows:
        inside = torch.isin(row.ids, torch.tensor(ends.ends))
        assert not inside[:-1].any()
        assert bool(inside[-1]) == row.ended
        assert row.ended or len(row.ids) == 6
        assert len(row.logps) == len(row.ids)
    assert {row.ended for row in rows} == {True, False}


def test_the_model_keeps_its_mode_also_after_an_error():
    model = make_model("qwen2").train()
    drawn(model)
    assert model.training
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        drawn(model)
    assert model.training


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        drawn(make_model("qwen2"), [[5], []])


def test_end_tokens_come_from_tokenizer_and_generation_config():
    model = make_model("qwen2")
    model.generation_config.eos_token_id = [7, EOS]

    class Tokens:
        eos_token_id, pad_token_id = EOS, PAD

    assert vocabulary_of(model, Tokens()) == Vocabulary((EOS, 7), PAD)


@pytest.mark.parametrize("number", [1 - 2**-26, 1 - 2**-53, 0.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_a_number_next_to_one_draws_a_token_that_has_a_probability(number, top_k, monkeypatch):
    """Rounded to float32 it is 1: the last token of the vocabulary, which here is impossible."""
    numbers = lambda _, alive: torch.full((len(alive),), number, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(sampling._Streams, "next", numbers)
    model = make_model("qwen2")
    real = model.forward

    def impossible(**kwargs):
        output = real(**kwargs)
        output.logits[..., -8:] = -1e4
        return output

    model.forward = impossible
    for row in drawn(model, how=Sampling(12, seed=3, top_k=top_k)).values():
        assert bool((row.ids < VOCAB - 8).all())
        assert bool(row.logps.isfinite().all())
        assert bool((row.logps > -100).all())
