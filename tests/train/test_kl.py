"""KL estimates against exact values, and on a share of a rollout's responses."""

import itertools
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import VOCAB, adamw_steps, make_model
from trl.trainer.utils import add_fused_lm_head

import orthora
from orthora.config import TrainConfig, build, read_toml
from orthora.train.loading import load_parts
from orthora.train.measure import kl_sums
from orthora.train.meter import Meter
from orthora.train.rollouts import Row
from orthora.train.scoring import Scorer
from orthora.train.subsample import SPREAD, SPREAD_TO_BASE, chances, start_of, systematic
from orthora.train.trainer import RLVRTrainer
from orthora.train.updates import Sample, Shape, plan_updates
from orthora.train.world import World


def row(ids, old):
    return Row(0, (1, 4), torch.as_tensor(ids, dtype=torch.int32), old, None, None, 0.0, True)


def test_kl_sums_by_hand():
    one = row([7, 8], torch.zeros(2))
    sums = kl_sums("update", Sample([[one]], [1.0], 2), [torch.tensor([0.5, 0.0])])
    assert sums["update_tokens"] == 2
    assert sums["update_k1"] == pytest.approx(-0.5)
    assert sums["update_k3"] == pytest.approx(math.expm1(0.5) - 0.5)
    tenfold = kl_sums("update", Sample([[one]], [10.0], 20), [torch.tensor([0.5, 0.0])])
    assert tenfold == pytest.approx({key: 10 * value for key, value in sums.items()})
    assert kl_sums("base", Sample([], [], 0), []) == {
        "base_tokens": 0.0,
        "base_k1": 0.0,
        "base_k3": 0.0,
    }


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_estimators_are_the_exact_kl_in_expectation(kind):
    """All responses of two tokens, weighted by their probability, against sums over the vocabulary.

    Both k1 and k3 are unbiased for KL(rollout policy || updated policy), token by token.
    """
    model = orthora.adapt(make_model(kind), "rlpo", rank=4, alpha=4.0)
    base = model.get_base_model()
    add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
    cpu = torch.device("cpu")
    scorer = Scorer(model, nullcontext, cpu, 0, fold=False, share=True)
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
        sums = kl_sums("update", Sample([[one]], [1.0], 2), [q])
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


def test_a_share_of_the_responses_changes_the_measurement_and_nothing_else(tmp_path):
    whole, half, none = (
        metrics(tmp_path, f"share-{share}", kl_update_share=share, kl_base_share=share)
        for share in (1.0, 0.5, 0.0)
    )
    for all_of_it, part, nothing in zip(whole, half, none, strict=True):
        for key in ("loss", "grad_norm", "update_norm", "pass_rate", "length", "entropy"):
            assert all_of_it[key] == part[key] == nothing[key]
        for key in ("kl_update_k3", "kl_base_k3"):
            if all_of_it["step"] > 1 or "base" not in key:
                assert part[key] != all_of_it[key]
                assert part[key] == pytest.approx(all_of_it[key], rel=0.5)
            assert nothing[key] is None
        assert part["kl_update_max"] <= all_of_it["kl_update_max"]
        assert "kl_update_max" not in nothing


SIZES = {
    "equal": [1.0] * 12,
    "unequal": [0.1, 3.0, 0.7, 0.0, 1.1, 8.0, 0.2, 0.9, 2.0, 0.0, 40.0, 1.0],
    "nothing known": [0.0] * 12,
    "one counts": [0.0] * 11 + [5.0],
}


@pytest.mark.parametrize("spread", [SPREAD, SPREAD_TO_BASE, 1.0])
@pytest.mark.parametrize("count", [1, 3, 11, 12])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_a_sample_is_of_its_size_and_estimates_a_sum_without_bias(sizes, count, spread):
    """Over all places to start."""
    likely = chances(sizes, count, spread)
    assert sum(likely) == pytest.approx(count)
    assert all(0 < chance <= 1 for chance in likely)
    values = [math.sin(i) + 2 for i in range(12)]
    places = 20_000
    mean = 0.0
    for k in range(places):
        chosen = systematic(likely, (k + 0.5) / places)
        assert len(chosen) == count
        mean += sum(values[i] / likely[i] for i in chosen) / places
    assert mean == pytest.approx(sum(values), rel=1e-3)


def test_chances_are_proportional_up_to_one():
    assert chances([1.0, 1.0, 1.0, 1.0], 2) == pytest.approx([0.5] * 4)
    bounded = chances([0.0, 0.0, 0.0, 1e6], 2)  # the mean's fifth keeps the small ones in
    assert bounded == pytest.approx([1 / 3] * 3 + [1.0])
    small, large = chances([1.0, 3.0, 1.0, 3.0, 2.0], 1)[:2]
    assert large / small == pytest.approx((0.8 * 3 + 0.4) / (0.8 + 0.4))
    small, large = chances([1.0, 3.0, 1.0, 3.0, 2.0], 1, SPREAD_TO_BASE)[:2]
    assert large / small == pytest.approx((0.4 * 3 + 1.2) / (0.4 + 1.2))
    assert chances(SIZES["unequal"], 3, 1.0) == pytest.approx([0.25] * 12)


def test_the_places_to_start_fill_the_interval():
    starts = sorted(start_of(step) for step in range(1, 1001))
    gaps = [b - a for a, b in pairwise([0.0, *starts, 1.0])]
    assert max(gaps) < 3e-3


def test_a_step_is_taken_back_on_all_the_evidence(tmp_path):
    """Not on a sample of it, which may be one response that the update moved most."""
    steered = {"schedule": "adaptive-kl", "learning_rate": 0.03, "steps": 1}
    whole, part = (
        metrics(tmp_path, f"share-{share}", kl_update_share=share, **steered)[0]
        for share in (1.0, 0.1)
    )
    assert whole["undone"] == 1
    assert part["kl_update_k3"] == whole["kl_update_k3"]
    assert part["kl_update_max"] == whole["kl_update_max"]


def test_what_steers_must_be_measured(tmp_path):
    table = read_toml("tiny") | {"out": str(tmp_path / "run"), "kl_update_share": 0.0}
    with pytest.raises(ValueError, match="kl_update_share above 0"):
        build(TrainConfig, table | {"schedule": "adaptive-kl"})
    with pytest.raises(ValueError, match=r"kl_update_p99.*kl_update_share"):
        build(TrainConfig, table | {"watch": ("kl_update_p99 > 1",)})
    build(TrainConfig, table)  # the rules of 'default' judge what there is


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_every_process_counts_its_tokens_for_the_kl_to_the_base(size, tmp_path):
    """One without a response in the sample, too: the sum is over all tokens."""
    table = read_toml("tiny") | SMALL | {"out": str(tmp_path / "run"), "kl_base_share": 0.0625}
    config = TrainConfig(**table)
    parts = load_parts(config, None, "cpu")
    trainer = RLVRTrainer(config, parts, World(), tmp_path / "checkpoints", lambda row: None)
    generator = torch.Generator().manual_seed(0)
    rows = [
        replace(row(torch.randint(0, 5, (9,), generator=generator).tolist(), None), group=i // 4)
        for i in range(32)
    ]
    for one in rows:
        one.old = -torch.rand(9, generator=generator)
    counted, drawn = 0.0, []
    for rank in range(size):
        shape = Shape(4, 4, 1, 2, 4, rank, size)
        plan = plan_updates(rows, trainer._objective, shape, shared=False)
        trainer._meter = Meter()
        trainer._score_beforehand(plan)
        counted += trainer._meter._to_base["base_tokens"]
        drawn.append(len(plan.sample(0.0625, 0).rows))
    assert counted == 32 * 9
    assert sum(drawn) == 2
    assert size == 1 or 0 in drawn
