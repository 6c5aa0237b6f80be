"""adaptive-kl: the law as a pure function, and the trainer that follows it."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import orthora
from orthora.config import read_toml
from orthora.train.control import Law, Setting, decide, law_of
from orthora.train.optimizers import set_learning_rate
from orthora.train.snapshot import Snapshot

LAW = Law(target=2e-3)


def follow(law: Law, lr: float, gain, steps: int) -> list[Setting]:
    """Settings over the steps of a plant with KL = gain(step) * lr^2."""
    settings = [Setting(lr)]
    for step in range(1, steps + 1):
        kl = gain(step) * settings[-1].lr ** 2
        settings.append(decide(law, settings[-1], kl, step).setting)
    return settings


@pytest.mark.parametrize("rule", ["sqrt", "step"])
@pytest.mark.parametrize("start", [3e-5, 1e-3, 3e-3])
def test_a_steady_plant_is_brought_to_its_target_and_held(rule, start):
    law = replace(LAW, rule=rule, undo=0.0)
    best = 1e-3
    lrs = [s.lr for s in follow(law, start, lambda _: law.target / best**2, 30)]
    if rule == "sqrt":
        assert lrs[-1] == pytest.approx(best, rel=1e-9)
    else:  # within its dead band, in KL
        assert 0.5 <= (lrs[-1] / best) ** 2 <= 2.0
    distances = [abs(math.log(lr / best)) for lr in lrs]
    assert all(b <= a + 1e-12 for a, b in pairwise(distances))  # never past it
    assert lrs[-1] == pytest.approx(lrs[-2], rel=1e-12)


def test_a_step_of_the_plant_is_followed_at_the_rate_that_smoothing_and_clip_allow():
    """After KL / lr^2 grows fourfold the learning rate halves; a step closes half of the gap."""
    law = replace(LAW, undo=0.0, max_change=10.0)
    settings = follow(law, 1e-3, lambda step: 2e3 if step <= 5 else 8e3, 12)
    gains = [2e-3 / s.lr**2 for s in settings]  # of which each was the right learning rate
    assert gains[5:10] == pytest.approx([2e3, 5e3, 6.5e3, 7.25e3, 7.625e3])
    clipped = follow(replace(law, max_change=1.1), 1e-3, lambda s: 2e3 if s <= 5 else 8e3, 12)
    assert clipped[6].lr == pytest.approx(1e-3 / 1.1)


def test_without_smoothing_one_measurement_is_enough():
    law = replace(LAW, smoothing=0.0, max_change=1e3, undo=0.0)
    assert follow(law, 3e-5, lambda _: 2e3, 1)[1].lr == pytest.approx(1e-3)


def test_a_step_that_goes_too_far_is_undone_and_the_next_is_as_long_as_it_should_have_been():
    found = decide(LAW, Setting(1e-3, -1.0), 10 * LAW.target * 1.0001, 3)
    assert found.undo
    assert found.setting.lr == pytest.approx(1e-3 / math.sqrt(10.001))
    assert found.setting.gain is None  # what went before says nothing of here
    assert not decide(LAW, Setting(1e-3), 10 * LAW.target, 3).undo
    far = decide(LAW, Setting(1e-3), 1e9, 3)
    assert far.undo
    assert far.setting.lr == pytest.approx(1e-4)
    kept = decide(replace(LAW, undo=0.0), Setting(1e-3), 1e9, 3)
    assert not kept.undo
    assert kept.setting.lr == pytest.approx(1e-3 / 1.3)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
@pytest.mark.parametrize("rule", ["sqrt", "step"])
def test_a_kl_that_is_no_number_lowers_the_learning_rate_and_never_enters_the_mean(kl, rule):
    found = decide(replace(LAW, rule=rule), Setting(1e-3, 7.0), kl, 3)
    assert found.undo
    assert found.setting == Setting(1e-4, None)
    kept = decide(replace(LAW, rule=rule, undo=0.0), Setting(1e-3, 7.0), kl, 3)
    assert not kept.undo
    assert kept.setting == Setting(1e-3 / 1.3, None)


def test_nothing_measured_and_nothing_follows():
    setting = Setting(1e-3, 7.0)
    assert decide(LAW, setting, None, 3).setting == setting


def test_a_step_too_small_to_change_a_number_is_followed_by_a_larger_one():
    found = decide(LAW, Setting(1e-9, None), 0.0, 3)
    assert found.setting == Setting(1.3e-9, None)
    assert not found.undo


@pytest.mark.parametrize("kl", [0.0, 1e-12, LAW.target, 9 * LAW.target])
def test_without_a_signal_the_setting_is_held_whatever_the_kl(kl):
    setting = Setting(1e-3, 7.0)
    assert decide(LAW, setting, kl, 3, signal=False).setting == setting
    assert decide(LAW, setting, kl, 3).setting != setting


@pytest.mark.parametrize("kl", [11 * LAW.target, math.nan])
def test_what_goes_too_far_without_a_signal_is_undone_all_the_same(kl):
    assert decide(LAW, Setting(1e-3), kl, 3, signal=False) == decide(LAW, Setting(1e-3), kl, 3)


def test_steps_undone_at_the_lowest_learning_rate_are_counted_until_one_is_not():
    law = replace(LAW, bounds=(1e-3, 1e-1))
    setting, stuck = Setting(5e-3), []
    for kl in (1.0, 1.0, 1.0, 1e-3, 1.0):
        setting = decide(law, setting, kl, 1).setting
        stuck.append(setting.stuck)
    assert stuck == [0, 1, 2, 0, 0]  # the fourth step raised the rate


@pytest.mark.parametrize("rule", ["sqrt", "step"])
def test_what_a_rollback_leaves_of_the_rate_is_what_the_law_then_holds(rule):
    config = orthora.TrainConfig(
        **(read_toml("tiny") | SMALL | {"out": "x", "kl_rule": rule, "kl_undo": 0.0})
    )
    full, half = law_of(config), law_of(config, 0.5)
    assert full is not None
    assert half is not None
    assert half.target == full.target / 4
    whole = follow(full, 1e-3, lambda _: 2e3, 40)[-1].lr
    assert follow(half, 5e-4, lambda _: 2e3, 40)[-1].lr == pytest.approx(whole / 2)


def test_the_bounds_hold_and_say_so():
    law = replace(LAW, bounds=(5e-4, 2e-3))
    up = follow(law, 1e-3, lambda _: 1e-6, 10)
    assert up[-1].lr == 2e-3
    assert decide(law, up[-1], 1e-12, 11).saturated
    down = follow(law, 1e-3, lambda _: 4e3, 10)
    assert down[-1].lr == pytest.approx(math.sqrt(2e-3 / 4e3))
    assert decide(law, Setting(5e-4), 1.9e-2, 2) == replace(
        decide(law, Setting(5e-4), 1.9e-2, 2), saturated=True
    )


def test_the_target_falls_by_a_half_cosine_to_its_floor():
    law = Law(target=2e-3, floor=0.1, steps=101)
    assert law.target_at(1) == pytest.approx(2e-3)
    assert law.target_at(51) == pytest.approx(2e-3 * 0.55)
    assert law.target_at(101) == law.target_at(500) == pytest.approx(2e-4)
    assert LAW.target_at(1) == LAW.target_at(99) == 2e-3
    settings = follow(replace(law, undo=0.0), 1e-3, lambda _: 2e3, 100)
    assert settings[-1].lr == pytest.approx(1e-3 * math.sqrt(0.1), rel=0.02)


def test_groups_keep_their_ratios_through_scheduler_and_state():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1e-3, 2e-3)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    set_learning_rate(scheduler, 3e-4)
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([3e-4, 6e-4])
    assert scheduler.get_last_lr() == pytest.approx([3e-4, 6e-4])
    other = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    other.load_state_dict(scheduler.state_dict())
    assert other.base_lrs == scheduler.base_lrs


# In a run

SMALL = {
    "prompts_per_step": 8,
    "group_size": 4,
    "mini_batch_prompts": 4,
    "rank": 2,
    "max_response_tokens": 24,
    "eval_problems": 0,
    "dynamic_sampling": False,
    "schedule": "adaptive-kl",
    "threads": 1,
}


def run(out: Path, **changes) -> list[dict]:
    config = read_toml("tiny") | SMALL | {"out": str(out)} | changes
    orthora.train(config, progress=False)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_rows_show_the_law_at_work(tmp_path):
    rows = run(tmp_path / "run", steps=5, learning_rate=1e-3, method="pissa", kl_target=1e-3)
    law, setting = Law(target=1e-3, steps=5), Setting(1e-3)
    for row in rows:
        assert row["lr"] == pytest.approx(setting.lr, rel=1e-12)
        found = decide(law, setting, row["kl_update_k3"], row["step"])
        assert row["undone"] == found.undo
        assert row["kl_target"] == 1e-3
        setting = found.setting
    assert len({row["lr"] for row in rows}) >= 3


def test_a_first_step_that_breaks_the_policy_is_taken_back(tmp_path):
    """PiSSA at thirty times a good learning rate; undone until the step is short enough."""
    steps = 4
    wild = run(tmp_path / "wild", steps=steps, learning_rate=1e-2, method="pissa")
    assert wild[0]["undone"]
    assert wild[0]["kl_update_k3"] > 10 * 2e-3
    last = [row for row in wild if not row["undone"]]
    assert last
    assert all(row["kl_update_k3"] <= 10 * 2e-3 for row in last)
    kept = run(tmp_path / "kept", steps=steps, learning_rate=1e-2, method="pissa", kl_undo=0)
    assert not any(row["undone"] for row in kept)
    # taken back to the base exactly: the second rollout is at distance 0 of it
    config = {"kl_base_share": 1.0, "steps": 2, "learning_rate": 1e-2, "method": "pissa"}
    rows = run(tmp_path / "base", **config)
    assert rows[0]["undone"]
    assert abs(rows[1]["kl_base_k3"]) < 1e-9


def test_a_step_that_is_taken_back_has_moved_nothing(tmp_path):
    rows = run(tmp_path / "run", steps=2, learning_rate=1e-2, method="pissa")
    assert rows[0]["undone"]
    assert rows[0]["first_update_norm"] > 0
    moved = {key: rows[0][key] for key in rows[0] if key.startswith(("update_norm", "delta_norm"))}
    assert moved
    assert set(moved.values()) == {0.0}


def test_rollouts_without_a_signal_leave_the_learning_rate_alone(tmp_path):
    """Or it climbs by 1.3 a step, until the first rollout with a signal destroys the policy."""
    config = read_toml("tiny") | SMALL | {"steps": 3, "learning_rate": 1e-3, "patience": 0}
    out = tmp_path / "run"
    orthora.train(config | {"out": str(out)}, reward=lambda *_: 1.0, progress=False)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["groups_without_signal"] for row in rows] == [1.0] * 3
    assert [row["lr"] for row in rows] == [1e-3] * 3


def test_a_run_whose_steps_all_go_too_far_ends(tmp_path):
    config = {"learning_rate": 3e-2, "method": "pissa", "kl_lr_bounds": (3e-2, 0.1), "watch": []}
    with pytest.raises(ValueError, match=r"5 steps in a row .*0.03.* lower kl_lr_bounds"):
        run(tmp_path / "run", steps=9, **config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["ended_by_training"]) == ("failed", True)


@pytest.mark.parametrize("method", ["pissa", "adalora", "rlpo+dora+lora-plus", "full"])
def test_a_snapshot_puts_everything_back(method):
    from orthora import models
    from orthora.adapters import adapt, after_update, upkeep_state
    from orthora.methods import compose
    from orthora.train.optimizers import make_optimizer

    config = orthora.TrainConfig(
        **(read_toml("tiny") | SMALL | {"out": "x", "method": method, "learning_rate": 1e-2})
    )
    base = models.load_model("tiny", "float32", "cpu")
    model = adapt(base, method, rank=2, alpha=4, total_updates=20)
    optimizer = make_optimizer(model, compose(method), config)
    ids = torch.randint(3, 15, (4, 12), generator=torch.Generator().manual_seed(0))

    def update(n: int) -> None:
        for i in range(n):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            after_update(model, i + 1)

    def state() -> list[torch.Tensor]:
        tensors = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            for value in optimizer.state.get(p, {}).values():
                tensors.append(torch.as_tensor(value).clone())
        return tensors + [t.clone() for t in upkeep_state(model)[0].values()]

    for warm in (0, 3):
        update(warm)
        before, snapshot = state(), Snapshot(model, optimizer)
        update(3)
        changed = state()
        assert len(changed) != len(before) or any(
            not torch.equal(a, b) for a, b in zip(changed, before, strict=True)
        )
        snapshot.restore()
        after = state()
        assert len(after) == len(before)
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"kl_target": 0}, "kl_target"),
        ({"kl_target": -1e-3}, "kl_target"),
        ({"warmup_steps": 3}, "warmup_steps = 0"),
        ({"min_lr_ratio": 0.1}, "kl_target_floor"),
        ({"kl_undo": 3.9}, "kl_undo"),
        ({"kl_target": 1.5}, "kl_target"),
        ({"kl_rule": "step", "kl_max_change": 2.1}, "kl_rule 'sqrt'"),
        ({"kl_rule": "step", "kl_smoothing": 0.3}, "kl_smoothing needs"),
        ({"schedule": "constant", "kl_target": 1e-3}, "kl_target needs schedule 'adaptive-kl'"),
        ({"schedule": "cosine", "kl_undo": 0}, "kl_undo needs schedule 'adaptive-kl'"),
        ({"schedule": "constant", "min_lr_ratio": 0.1}, "needs schedule 'cosine'"),
        ({"learning_rate": 0}, "kl_lr_bounds"),
        ({"learning_rate": 1.0}, "kl_lr_bounds"),
        ({"kl_lr_bounds": (1e-2, 1e-3)}, "larger learning rate first"),
        ({"kl_max_change": 1.0}, "kl_max_change"),
    ],
)
def test_what_fights_the_law_is_refused_with_the_remedy(tmp_path, changes, remedy):
    with pytest.raises(ValueError, match=remedy):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
