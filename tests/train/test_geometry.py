"""What a step did to the weights, against the weights themselves in float64."""

import json
import math

import pytest
import torch
from conftest import make_model

import orthora
from orthora.adapters import has_products, merge_fidelity, merged_parameters, products_of
from orthora.adapters.products import factors_of
from orthora.config import read_toml
from orthora.train.geometry import Geometry
from orthora.train.measure import kl_quantiles
from orthora.train.rollouts import Row
from orthora.train.updates import Sample
from orthora.train.world import World

METHODS = ["lora", "rlpo", "pissa", "olora", "geora", "dct", "rlmo+rslora", "pissa+lora-plus"]


def moved(method: str, kind: str = "qwen2", seed: int = 0, size: float = 0.01):
    """An adapted model and what its adapter was; every factor has moved."""
    torch.manual_seed(seed)
    model = orthora.adapt(make_model(kind), method, rank=4, alpha=8)
    before = factors_of(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn_like(p))
    return model, before


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.double().clone() for name, value in merged_parameters(model)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_products_are_the_change_of_the_merged_weights(method, kind):
    model, before = moved(method, kind)
    base = {n: p.double() for n, p in make_model(kind).named_parameters()}
    after = weights(model)
    for product in products_of(model):
        key = product.slot.key
        change = after[key] - base[key]
        change = change.mT if product.slot.transposed else change
        torch.testing.assert_close((product.X @ product.Y).double(), change, rtol=0, atol=2e-6)
        assert product.norm() == pytest.approx(float(change.norm()), rel=1e-4)
        assert product.spectral_norm() == pytest.approx(
            float(torch.linalg.matrix_norm(change, 2)), rel=1e-4
        )
        V = torch.linalg.svd(base[key].mT if product.slot.transposed else base[key])[2][:3].mT
        expected = float((change @ V).norm() ** 2 / change.norm() ** 2)
        assert product.energy_in(V) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    then = products_of(model, before)  # and so is a step from an earlier moment
    if method != "lora":
        return
    for step, whole in zip(then, products_of(model), strict=True):
        torch.testing.assert_close(step.X @ step.Y, whole.X @ whole.Y, rtol=0, atol=1e-6)


def test_a_small_step_from_large_factors_is_measured_without_cancellation():
    """PiSSA's factors are large, an update of 1e-6 is lost in B A of float32."""
    model, before = moved("pissa", size=1e-6)
    for step, (A0, B0) in zip(products_of(model, before), before, strict=True):
        A, B = (f.double() for f in step.slot.factors())
        exact = 2.0 * (B @ A - B0.double() @ A0.double())
        assert step.norm() == pytest.approx(float(exact.norm()), rel=1e-4)


@pytest.mark.parametrize("method", ["rlpo+dora", "adalora", "vera", "miss", "ia3", "ln", "full"])
def test_structures_without_a_product_have_none(method):
    model = orthora.adapt(make_model("qwen2"), method, rank=2, alpha=4)
    assert not has_products(model)


def test_merge_fidelity_by_hand():
    model, _ = moved("rlpo", size=1e-3)
    found = merge_fidelity(model)
    dot = true = real = changed = entries = 0.0
    for product in products_of(model):
        W = product.slot.weight()
        delta = product.X @ product.Y
        merged, base = (W + delta).bfloat16().double(), W.bfloat16().double()
        dot += float(((merged - base) * delta.double()).sum())
        true += float(delta.double().square().sum())
        real += float((merged - base).square().sum())
        changed += float((merged != base).sum())
        entries += delta.numel()
    assert found["cosine"] == pytest.approx(dot / math.sqrt(true * real), rel=1e-6)
    assert found["norm_ratio"] == pytest.approx(math.sqrt(real / true), rel=1e-6)
    assert found["changed"] == pytest.approx(changed / entries)
    assert 0.0 < found["changed"] < 1.0
    exact = merge_fidelity(model, torch.float64)
    assert exact["cosine"] == pytest.approx(1.0, abs=1e-6)
    untouched = orthora.adapt(make_model("qwen2"), "rlpo", rank=4, alpha=8)
    assert merge_fidelity(untouched) == {"cosine": 0.0, "norm_ratio": 0.0, "changed": 0.0}


def test_the_metrics_are_those_of_the_products():
    config = orthora.TrainConfig(**(read_toml("tiny") | {"rank": 4, "out": "x"}))
    torch.manual_seed(0)
    model = orthora.adapt(make_model("qwen2"), "rlpo", rank=4, alpha=8)
    geometry = Geometry(model, config)
    geometry.begin()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.01 * torch.randn_like(p))
    geometry.after_update()
    row = geometry.metrics()
    whole = math.hypot(*(p.norm() for p in products_of(model)))
    assert row["update_norm"] == pytest.approx(whole, rel=1e-6)
    assert row["delta_norm"] == pytest.approx(whole, rel=1e-6)
    assert row["first_update_norm"] == pytest.approx(whole, rel=1e-6)
    kinds = [value for key, value in row.items() if key.startswith("update_norm/")]
    assert len(kinds) == 7
    assert math.hypot(*kinds) == pytest.approx(whole, rel=1e-6)
    # A0 is the head subspace itself, and has not moved: the whole update reads its inputs there
    assert row["head_energy"] == pytest.approx(1.0, abs=1e-5)
    assert row["condition"] == pytest.approx(1.0, abs=1e-4)
    assert 1.0 <= row["stable_rank"] <= 4.0
    tail = orthora.adapt(make_model("qwen2"), "rlmo", rank=4, alpha=8)
    other = Geometry(tail, config)
    other.begin()
    with torch.no_grad():
        for name, p in tail.named_parameters():
            if "lora_B" in name:
                p.add_(0.01)
    assert other.metrics()["head_energy"] < 1e-6


def test_measuring_changes_nothing_and_the_result_sums_it_up(tmp_path):
    small = {"prompts_per_step": 4, "group_size": 4, "mini_batch_prompts": 2, "rank": 2,
             "max_response_tokens": 24, "eval_problems": 0, "threads": 1, "steps": 2,
             "dynamic_sampling": False, "method": "pissa"}  # fmt: skip
    rows = {}
    for on in (True, False):
        out = tmp_path / str(on)
        config = read_toml("tiny") | small | {"out": str(out), "geometry": on}
        result = orthora.train(config, progress=False)
        rows[on] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert result.merge_fidelity is not None
        assert (result.first_update_norm is not None) is on
    for with_it, without in zip(rows[True], rows[False], strict=True):
        for key, value in without.items():
            assert key.startswith("seconds") or with_it[key] == value
        assert with_it["update_norm"] > 0
        assert without["kl_update_p50"] <= without["kl_update_p99"] <= without["kl_update_max"]
    assert rows[True][0]["first_update_norm"] < rows[True][0]["update_norm"] * 1.5


class Two(World):
    """Two processes that hold the same."""

    def gather(self, value):
        return [value, value]


def test_quantiles_by_sorting_and_alike_over_processes():
    torch.manual_seed(0)
    old, new = torch.randn(5001) * 0.1, torch.randn(5001) * 0.1
    row = Row(0, (1,), torch.zeros(5001, dtype=torch.int32), old, None, None, 0.0, True)
    d = new.double() - old.double()
    k3 = (d.expm1() - d).sort().values
    whole = Sample([[row]], [1.0], 5001)
    one = kl_quantiles(whole, [new], World())
    assert one["kl_update_max"] == float(k3[-1])
    assert one["kl_update_p50"] == float(k3[2500])
    assert one["kl_update_p99"] == float(k3[math.ceil(0.99 * 5001) - 1])
    two = kl_quantiles(whole, [new], Two(0, 2))
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=0.02)
    assert kl_quantiles(Sample([], [], 0), [], World()) == {}


@pytest.mark.parametrize("world", [World(), Two(0, 2)])
@pytest.mark.parametrize("length", [40, 6000])
def test_quantiles_count_a_row_as_often_as_its_weight_says(world, length):
    torch.manual_seed(1)
    pairs = [(-torch.rand(length), -torch.rand(length)) for _ in range(2)]
    rows = [
        Row(0, (1,), torch.zeros(length, dtype=torch.int32), old, None, None, 0.0, True)
        for old, _ in pairs
    ]
    weighted = Sample([rows], [1.0, 3.0], 4 * length)
    repeated = Sample([[rows[0]], [rows[1]] * 3], [1.0] * 4, 4 * length)
    one = kl_quantiles(weighted, [new for _, new in pairs], world)
    other = kl_quantiles(repeated, [pairs[0][1], *[pairs[1][1]] * 3], World())
    for key, value in other.items():
        assert one[key] == pytest.approx(value, rel=0.02 if world.size > 1 else 1e-12)
