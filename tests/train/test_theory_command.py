"""``orthora theory``: what it says of the layers is what training on them does."""

import io
import json
import math
import statistics

import pytest
import torch
from conftest import PAD, UNK, make_model
from rich.console import Console

from orthora.adapters import adapt, products_of, slots_of
from orthora.config import TrainConfig, build, read_toml
from orthora.config.theory import TheoryConfig
from orthora.linalg.theory import gap_factor
from orthora.methods import compose, names
from orthora.train.optimizers import make_optimizer
from orthora.train.probing import probe
from orthora.train.rollouts import Row
from orthora.train.theory import _errors, _factors, _slots, run_theory, theory
from orthora.train.theory_checks import Scene, moved_by_kl
from orthora.train.theory_findings import STATEMENTS, as_json, lines, table
from orthora.train.theory_policy import Policy
from orthora.train.theory_steps import (
    ADAMW,
    DESCENT,
    EPS,
    Start,
    optimizers,
    travel_by_factors,
    travel_in_full,
)

METHODS = ["pissa", "rlpo"]
SMALL = {
    "prompts_per_step": 3,
    "group_size": 4,
    "mini_batch_prompts": 3,
    "rank": 2,
    "max_response_tokens": 32,
    "eval_problems": 0,
    "threads": 1,
    "dynamic_sampling": False,
    "weight_decay": 0.0,
    "grad_clip": 1e9,
    "updates": 3,
}
FEW = {"methods": ["pissa"], "target_modules": ["down_proj"], "updates": 1}

pytestmark = pytest.mark.xdist_group("theory")  # one worker makes what all look at


def settings(**changes) -> dict:
    return read_toml("tiny") | SMALL | changes


@pytest.fixture(scope="module")
def checked():
    return theory(settings(methods=METHODS))


@pytest.fixture(scope="module")
def found(checked):
    return checked[1]


@pytest.mark.slow
def test_the_preset_as_it_is():
    conditions, found = theory("tiny")
    assert conditions.layers == 21
    assert len({one.method for one in found}) == 8
    assert all(one.holds for one in found if one.optimizer != ADAMW)


def of(found, statement, method=None, optimizer=None):
    return [
        one
        for one in found
        if one.statement == statement
        and method in (None, one.method)
        and optimizer in (None, one.optimizer)
    ]


def test_under_gradient_descent_every_statement_holds_in_every_layer(found):
    assert {one.statement for one in found} == set(STATEMENTS)
    for one in found:
        if one.optimizer != ADAMW:
            assert one.holds, one
    for statement in ("A.1", "5.2 factor", "5.2 scaled"):
        assert len(of(found, statement)) == 21 * len(METHODS)
    assert len(of(found, "5.2 gap", optimizer=DESCENT)) == 21 * len(METHODS)
    assert len(of(found, "4.1", "pissa", DESCENT)) == 21
    assert {one.method for one in of(found, "5.3")} == {"rlpo"}


def test_one_layers_kl_is_its_fisher_information_along_the_step(found):
    """The KL is measured, the Fisher matrix differentiated: neither knows of the other."""
    for one in of(found, "Zhu layer", optimizer=DESCENT):
        assert one.margin == pytest.approx(1.0, abs=0.01), one
        assert one.detail["kl"] == pytest.approx(one.detail["quadratic_kl"], rel=0.02)
    margins = [one.margin for one in of(found, "Zhu layer", "rlpo", DESCENT)]
    assert statistics.median(abs(margin - 1) for margin in margins) < 1e-3
    for one in of(found, "Zhu step"):
        assert one.detail["kl"] == pytest.approx(one.detail["quadratic_kl"], rel=0.3)
        assert 0 < one.detail["smallest_fisher"] < one.detail["largest_fisher"]


def test_the_step_of_adamw_is_a_runs_first_update(found):
    """TRL's trainer in float32 moves the weights as far as the closed form says."""
    config = {key: value for key, value in settings(out="-").items() if key != "updates"}
    for one in probe(config, METHODS, rollouts=1, trials=1):
        (step,) = of(found, "Zhu step", one.method, ADAMW)
        assert step.number == pytest.approx(one.first_update_norm, rel=1e-3)


def test_parts_make_the_whole(found):
    for method in METHODS:
        for optimizer in (DESCENT, ADAMW):
            (step,) = of(found, "Zhu step", method, optimizer)
            parts = [one.number for one in of(found, "Zhu layer", method, optimizer)]
            assert step.number == pytest.approx(math.hypot(*parts))
    one, other = (of(found, name, "rlpo", DESCENT) for name in ("5.3", "Zhu layer"))
    assert [x.number for x in one] == pytest.approx([x.number for x in other])


def test_what_is_called_a_theorem(found):
    assert {one.kind for one in of(found, "4.1", optimizer=ADAMW)} == {"measured"}
    assert {one.kind for one in of(found, "5.2 gap", "pissa", DESCENT)} == {"same argument"}
    assert {one.kind for one in of(found, "5.2 gap", "rlpo", DESCENT)} == {"theorem"}
    gaps = of(found, "5.2 gap", optimizer=ADAMW)
    assert {(one.kind, one.bound, one.holds) for one in gaps} == {("measured", None, None)}
    assert all(one.number > 0 for one in gaps)


def shown(found) -> list[list[str]]:
    console = Console(width=80, file=io.StringIO())
    console.print(table(found, "title"))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "│" in line]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip()]


def test_the_table_says_what_the_json_says(found):
    rows = {(row[0], row[1]): row for row in shown(found)}
    told = as_json(found)["lines"]
    assert len(rows) == len({(line["statement"], line["method"]) for line in told})
    for line in told:
        row = rows[line["statement"], line["method"]]
        number, margin, holds = row[5:] if line["optimizer"] == ADAMW else row[2:5]
        assert number == f"{line['number']:.3g}"
        assert margin == ("" if line["worst_margin"] is None else f"{line['worst_margin']:.3g}")
        mark = {"theorem": "", "same argument": "*", "leading order": "~", "measured": "?"}
        held = f"{round(line['share'] * line['layers'])}/{line['layers']}" if margin else ""
        assert holds == held + mark[line["kind"]]


def test_lines_sum_up_the_layers(found):
    told = as_json(found)
    assert len(told["layers"]) == len(found)
    for line in lines(found):
        group = of(found, line.statement, line.method, line.optimizer)
        assert line.layers == len(group)
        if line.share is not None:
            assert line.share == sum(one.holds for one in group) / len(group)
            worst = min if STATEMENTS[line.statement].lower else max
            assert line.worst_margin == worst(one.margin for one in group)


def test_the_command_writes_what_it_prints_and_repeats_itself(tmp_path, capsys):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        run_theory(build(TheoryConfig, settings(json_out=str(path), **FEW)))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    captured = capsys.readouterr()
    told = json.loads(paths[0].read_text())
    assert told["conditions"]["layers"] == 3
    assert f"({told['conditions']['tokens']} tokens)" in captured.out
    assert captured.out.count("5.2 gap") == 4  # row and legend, twice
    assert captured.err.splitlines()[1:3] == ["pissa: done", "base: 3 layers, 12 responses, " + (
        f"{told['conditions']['tokens']} tokens"
    )]  # fmt: skip
    with pytest.raises(ValueError, match=r"one\.json exists; choose another file"):
        run_theory(build(TheoryConfig, settings(json_out=str(paths[0]), **FEW)))


def test_gradient_descent_has_a_rate_of_its_own_and_large_steps_are_told_from_small_ones():
    conditions, found = theory(settings(gradient_rate=3.0, **FEW))
    assert (conditions.gradient_rate, conditions.learning_rate) == (3.0, 1e-3)
    (small,) = of(theory(settings(**FEW))[1], "Zhu step", "pissa", DESCENT)
    (large,) = of(found, "Zhu step", "pissa", DESCENT)
    assert large.number == pytest.approx(3000 * small.number, rel=0.5)
    assert max(one.detail["second_order"] for one in of(found, "4.1", optimizer=DESCENT)) > 0.01
    assert not all(one.holds for one in of(found, "Zhu layer", optimizer=DESCENT))


# Against training itself, on models of several families


def config_of(method: str, **changes) -> TrainConfig:
    fields = {"model": "-", "out": "-", "data": "-", "method": method, "rank": 2, "alpha": 4}
    fields |= {"learning_rate": 1e-3, "micro_batch": 3, "max_response_tokens": 16}
    return build(TrainConfig, fields | {"overlong_buffer": 0} | changes)


def rows_for(tokens: int = 9) -> list[Row]:
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(UNK + 1, 40, (count,), generator=generator, dtype=torch.int32)

    made = []
    for group in range(2):
        prompt = tuple(ids(4 + group).tolist())
        for k, advantage in enumerate((1.2, -0.4, -0.8)):
            made.append(Row(group, prompt, ids(tokens - k), None, None, None, advantage, True))
    return made


def policy_for(kind: str, config: TrainConfig) -> tuple[Policy, object, Start]:
    model = adapt(make_model(kind), config.method, rank=config.rank, alpha=config.alpha)
    slots = slots_of(model)
    base = make_model(kind).double().requires_grad_(False)
    policy = Policy(base, slots, rows_for(), config, PAD)
    scale = compose(config.method).scale(config.rank, config.alpha)
    return policy, model, Start(config.method, _factors(slots), scale)


def scene_of(policy: Policy, start: Start) -> Scene:
    layers = [str(i) for i in range(len(start.factors))]
    rates = {DESCENT: 1e-4, ADAMW: 1e-3}
    return Scene(policy, layers, policy.gradients(policy.weights), rates, 1, {})


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("method", ["milora", "lora"])
def test_gradients_and_fisher_information_in_other_families(kind, method):
    policy, model, start = policy_for(kind, config_of(method))
    scene = scene_of(policy, start)
    for errors in _errors(scene, model, start):
        assert max(errors.values()) < 1e-4
    with torch.no_grad():
        for slot in slots_of(model):
            slot.factors()[1].add_(0.01 * gaussian_like(slot.factors()[1]))
    assert all(0 < max(one.values()) < 1e-4 for one in _errors(scene, model, start))
    for one in moved_by_kl(scene, start, DESCENT):
        if one.statement == "Zhu layer":
            assert one.margin == pytest.approx(1.0, abs=0.02), one


def test_the_models_float32_parts_are_taken_in_float64():
    policy, _, _ = policy_for("qwen2", config_of("lora"))
    direction = [1e-9 * W / W.norm() for W in policy.weights]
    kl = policy.kl([W + dW for W, dW in zip(policy.weights, direction, strict=True)])
    F = policy.fisher({i: dW / dW.norm() for i, dW in enumerate(direction)})
    assert kl == pytest.approx(1e-18 * float(F.sum()) / 2, rel=1e-3)


@pytest.mark.parametrize("name", [DESCENT, ADAMW])
@pytest.mark.parametrize("method", ["pissa", "lora", "rlpo+rslora"])
def test_updates_of_factors_are_those_of_training_the_real_layers(name, method):
    policy, model, start = policy_for("qwen2", config_of(method))
    make = optimizers(config_of(method), 1e-2)[name]
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        policy.backward(model)
        optimizer.step()
    moved = travel_by_factors(policy, start, make, 3).moved
    for product, dW in zip(products_of(model), moved, strict=True):
        real = (product.X @ product.Y).double()
        assert float((real - dW).norm()) < 2e-3 * float(dW.norm())


@pytest.mark.parametrize("name", [DESCENT, ADAMW])
def test_updates_of_whole_weights_are_those_of_training_them(name):
    policy, model, _ = policy_for("qwen2", config_of("lora"))
    base = make_model("qwen2")
    keys = [slot.key for slot in slots_of(model)]
    trained = dict(base.named_parameters())
    before = [trained[key].detach().clone() for key in keys]
    make = optimizers(config_of("lora"), 1e-2)[name]
    optimizer = make([trained[key] for key in keys])
    for _ in range(3):
        policy.backward(base)
        optimizer.step()
    travel = travel_in_full(policy, make, 3)
    for key, W, dW in zip(keys, before, travel.moved, strict=True):
        assert float((trained[key].detach() - W - dW).norm()) < 5e-3 * float(dW.norm())


def test_one_updates_gap_is_the_gradient_that_the_factors_do_not_see():
    policy, _, start = policy_for("qwen2", config_of("pissa"))
    make, s, eta = optimizers(config_of("pissa"), 1e-6)[DESCENT], start.scale, 1e-6
    travels = travel_by_factors(policy, start, make, 1), travel_in_full(policy, make, 1)
    for i, (G, (A, B)) in enumerate(
        zip(policy.gradients(policy.weights), start.factors, strict=True)
    ):
        gap = travels[0].moved[i] - travels[1].moved[i]
        unseen = eta * (G - s**2 * (G @ A.mT @ A + B @ B.mT @ G))
        assert float((gap - unseen).norm()) < 1e-4 * float(unseen.norm())
        assert float(gap.norm()) <= eta * float(G.norm()) * gap_factor(A, B, s) * (1 + 1e-4)
        assert travels[0].largest[i] == pytest.approx(float(G.norm()))


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.1},
        {"entropy_bonus": 0.01},
        {"loss": "grpo"},
        {"ratio": "sequence"},
        {"temperature": 0.7},
    ],
)
def test_the_loss_is_the_configs(changes):
    config = config_of("lora", **changes)
    policy, _, _ = policy_for("qwen2", config)
    plain, _, _ = policy_for("qwen2", config_of("lora"))
    away = [W + 0.01 * gaussian_like(W) for W in policy.weights]
    one, other = policy.gradients(away)[0], plain.gradients(away)[0]
    assert float((one - other).norm()) > 1e-3 * float(one.norm())
    if "beta" in changes:  # at the base itself the KL to it has no slope
        one, other = (p.gradients(p.weights)[0] for p in (policy, plain))
        torch.testing.assert_close(one, other)


def gaussian_like(W):
    return torch.randn(W.shape, generator=torch.Generator().manual_seed(1), dtype=W.dtype)


def test_the_eps_is_that_of_training():
    _, model, _ = policy_for("qwen2", config_of("lora"))
    assert make_optimizer(model, compose("lora"), config_of("lora")).defaults["eps"] == EPS


# Bad input


@pytest.mark.parametrize("name", ["ia3", "ln", "full", "rlpo+dora", "vera", "lora-plus", "lora-fa"])
def test_methods_without_plain_factors_are_one_line(name):
    with pytest.raises(ValueError, match=r"about plain factors A and B.*choose initialisations"):
        build(TheoryConfig, settings(methods=["lora", name]))


def test_every_initialisation_is_taken_and_rslora_with_it():
    plain = names("initialisation")
    assert build(TheoryConfig, settings(methods=plain)).methods == plain
    with_scale = [f"{name}+rslora" for name in ("rlpo", "pissa")]
    assert build(TheoryConfig, settings(methods=with_scale)).methods == with_scale


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 999}, "999.*at most 128"),
        ({"learning_rate": 0.0}, "set one above 0"),
        ({"gradient_rate": 0.0}, "gradient_rate.*greater than 0"),
        ({"updates": 0}, "updates.*greater than or equal to 1.*0"),
        ({"update": 5}, "unknown config key 'update'. Did you mean 'updates'"),
        ({"methods": []}, "methods"),
        ({"methods": ["pisa"]}, "'pisa'.*'pissa'"),
        ({"methods": ["lora", "lora"]}, "'lora' twice"),
        ({"engine": "vllm"}, "engine 'vllm'.*leave engine out"),
        ({"max_response_tokens": 1}, "no group of the mini-batch has a signal.*nearer"),
        ({"target_modules": ["lm_head"]}, "output head"),
    ],
)
def test_bad_input_is_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        theory(settings() | changes)
    assert "\n" not in str(error.value)


def test_fused_experts_are_refused():
    model = adapt(make_model("qwen3_moe"), "lora", rank=2)
    with pytest.raises(ValueError, match=r"fused expert.*target_modules"):
        _slots(model)
