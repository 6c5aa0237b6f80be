"""KL estimates against exact values, and on a share of a rollout's groups."""

import itertools
import json
import math
from contextlib import nullcontext

import pytest
import torch
from conftest import VOCAB, adamw_steps, make_model
from trl.trainer.utils import add_fused_lm_head

import orthora
from orthora.config import TrainConfig, build, read_toml
from orthora.train.measure import kl_sums
from orthora.train.rollouts import Row
from orthora.train.scoring import Scorer
from orthora.train.updates import spread


def row(ids, old):
    return Row(0, (1, 4), torch.as_tensor(ids, dtype=torch.int32), old, None, None, 0.0, True)


def test_kl_sums_by_hand():
    one = row([7, 8], torch.zeros(2))
    sums = kl_sums("update", [one], [torch.tensor([0.5, 0.0])])
    assert sums["update_tokens"] == 2
    assert sums["update_k1"] == pytest.approx(-0.5)
    assert sums["update_k3"] == pytest.approx(math.expm1(0.5) - 0.5)
    assert kl_sums("base", [], []) == {"base_tokens": 0.0, "base_k1": 0.0, "base_k3": 0.0}


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_estimators_are_the_exact_kl_in_expectation(kind):
    """All responses of two tokens, weighted by their probability, against sums over the vocabulary.

    Both k1 and k3 are unbiased for KL(rollout policy || updated policy), token by token.
    """
    model = orthora.adapt(make_model(kind), "rlpo", rank=4, alpha=4.0)
    base = model.get_base_model()
    add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
    scorer = Scorer(model, nullcontext, torch.device("cpu"), 0, fold=False, share=True)
    every = [row(pair, None) for pair in itertools.product(range(VOCAB), repeat=2)]
    chunks = [every[i : i + 256] for i in range(0, len(every), 256)]

    def distributions():
        """Of the first token (V,), and of the second after each first one (V, V), in float64."""
        prompts = torch.tensor([[1, 4, first] for first in range(VOCAB)])
        with torch.no_grad():
            logits = base(input_ids=prompts).logits.double().log_softmax(-1)
        return logits[0, 1], logits[:, 2]

    before, old = distributions(), scorer.logps(chunks, shared=False)
    adamw_steps(model, learning_rate=3e-2)
    after, new = distributions(), scorer.logps(chunks, shared=False)

    def kl(p, q):
        return (p.exp() * (p - q)).sum(-1)

    exact = kl(before[0], after[0]) + before[0].exp() @ kl(before[1], after[1])
    assert exact > 1e-2  # there is something to estimate
    expected = {"k1": 0.0, "k3": 0.0}
    for one, p, q in zip(every, old, new, strict=True):
        one.old = p
        sums = kl_sums("update", [one], [q])
        for key in expected:
            expected[key] += math.exp(float(p.double().sum())) * sums[f"update_{key}"]
    assert expected["k1"] == pytest.approx(float(exact), rel=1e-4)
    assert expected["k3"] == pytest.approx(float(exact), rel=1e-4)


SMALL = {
    "prompts_per_step": 8, "group_size": 4, "mini_batch_prompts": 2, "micro_batch": 4,
    "eval_problems": 0, "threads": 1, "method": "pissa", "dynamic_sampling": False, "steps": 3,
}  # fmt: skip


def metrics(tmp_path, name, **changes):
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / name)} | changes
    orthora.train(config, progress=False)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_share_of_the_groups_changes_the_measurement_and_nothing_else(tmp_path):
    whole, half, none = (
        metrics(tmp_path, f"share-{share}", kl_update_share=share, kl_base_share=share)
        for share in (1.0, 0.5, 0.0)
    )
    for all_of_it, part, nothing in zip(whole, half, none, strict=True):
        for key in ("loss", "grad_norm", "update_norm", "pass_rate", "length", "entropy"):
            assert all_of_it[key] == part[key] == nothing[key]
        for key in ("kl_update_k3", "kl_base_k3"):
            if all_of_it["step"] > 1 or "base" not in key:
                assert 0 < part[key] != all_of_it[key]
                assert all_of_it[key] / 4 < part[key] < all_of_it[key] * 4
            assert nothing[key] is None
        assert part["kl_update_max"] <= all_of_it["kl_update_max"]
        assert "kl_update_max" not in nothing


def test_shares_average_to_the_whole():
    """Steps that begin at each place in turn see every group once."""
    for total, count in ((8, 2), (16, 4), (9, 3), (128, 1)):
        seen = [spread(total, count, step) for step in range(1000)]
        assert all(len(one) == count for one in seen)
        counts = torch.bincount(torch.tensor(seen).flatten(), minlength=total)
        assert int(counts.max() - counts.min()) <= 4


def test_what_steers_must_be_measured(tmp_path):
    table = read_toml("tiny") | {"out": str(tmp_path / "run"), "kl_update_share": 0.0}
    with pytest.raises(ValueError, match="kl_update_share above 0"):
        build(TrainConfig, table | {"schedule": "adaptive-kl"})
    with pytest.raises(ValueError, match=r"kl_update_p99.*kl_update_share"):
        build(TrainConfig, table | {"watch": ("kl_update_p99 > 1",)})
    build(TrainConfig, table)  # the rules of 'default' judge what there is
