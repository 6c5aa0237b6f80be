"""The watchdog in a run: warns, ends, goes back; and a kill changes nothing."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

import orthora
from orthora.config import TrainConfig, build, read_toml
from orthora.train import checkpoints
from orthora.train.watchdog import read_events

SMALL = {
    "prompts_per_step": 4,
    "dynamic_sampling": False,
    "group_size": 4,
    "mini_batch_prompts": 2,
    "rank": 2,
    "max_response_tokens": 24,
    "eval_problems": 0,
    "threads": 1,
    "save_every": 1,
    "keep_checkpoints": 9,
}


def settings(out: Path, **changes) -> dict:
    return read_toml("tiny") | SMALL | {"out": str(out)} | changes


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def values_of(out: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in rows_of(out)]


def trainer_at(step: int, config: dict) -> SimpleNamespace:
    """All that rotation asks of a trainer."""
    state = SimpleNamespace(global_step=2 * step)
    settings = build(TrainConfig, config)
    return SimpleNamespace(_config=settings, state=state, updates_per_step=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without a watchdog, and the distance from the base at which the others bark."""
    out = tmp_path_factory.mktemp("plain") / "run"
    orthora.train(settings(out, steps=4, watch=[]), progress=False)
    rows = rows_of(out)
    return out, (rows[1]["delta_norm"] + rows[2]["delta_norm"]) / 2


def test_a_warning_names_metric_and_step_and_changes_nothing(plain, tmp_path):
    out = tmp_path / "run"
    rule = f"delta_norm > {plain[1]:.9g}"
    with pytest.warns(UserWarning, match=r"watchdog: step 3: delta_norm is .* \(delta_norm > "):
        orthora.train(settings(out, steps=4, watch=[rule]), progress=False)
    assert values_of(out) == values_of(plain[0])
    (event,) = read_events(out)
    assert (event["step"], event["metric"], event["action"]) == (3, "delta_norm", "warn")
    assert not (plain[0] / "events.jsonl").exists()


def test_a_stop_keeps_the_last_good_checkpoint_and_says_why(plain, tmp_path):
    out = tmp_path / "run"
    config = settings(out, steps=4, watch=[f"delta_norm > {plain[1]:.9g}"], watch_action="stop")
    with pytest.raises(ValueError, match=r"watchdog: step 3: .*adaptive-kl"):
        orthora.train(config, progress=False)
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "failed"
    assert "watchdog" in result["reason"]
    kept = checkpoints.latest(out / "checkpoints")
    assert kept is not None
    assert checkpoints.step_of(kept) == 2


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_rollback_goes_on_before_the_trouble_with_a_smaller_learning_rate(
    schedule, plain, tmp_path
):
    out = tmp_path / "run"
    first = rows_of(plain[0])
    near = (first[0]["delta_norm"] + first[1]["delta_norm"]) / 2
    limit, expected = (plain[1], 3) if schedule == "constant" else (near, 2)
    rule = f"delta_norm > {limit:.9g}"
    config = settings(
        out, steps=4, watch=[rule], watch_action="rollback", watch_lr_factor=0.1, schedule=schedule
    )
    with pytest.warns(UserWarning, match=r"going back to step [12], with 0.1 of"):
        result = orthora.train(config, progress=False)
    assert result.status == "finished"
    rows = rows_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["delta_norm"] for row in rows) <= limit
    (event,) = read_events(out)
    assert (event["action"], event["since"]) == ("rollback", event["step"])
    assert (event["step"], event["lr_scale"]) == (expected, 0.1)
    if schedule == "constant":
        assert values_of(out)[:2] == values_of(plain[0])[:2]
        assert [row["lr"] for row in rows] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    else:  # the half cosine goes on where it was, ten times lower; two updates a step
        whole = [5e-4 * (1 + math.cos(math.pi * (2 * n - 1) / 8)) for n in (1, 2, 3, 4)]
        scale = [1, 0.1, 0.1, 0.1]
        assert [row["lr"] for row in rows] == pytest.approx(
            [a * b for a, b in zip(whole, scale, strict=True)]
        )


def test_without_a_checkpoint_before_the_trouble_the_run_starts_anew(tmp_path):
    """And is then the run that would have begun with the smaller learning rate."""
    out, small = tmp_path / "run", tmp_path / "small"
    common = {"steps": 2, "method": "pissa", "watch": ["kl_update_k3 > 0.02"]}
    config = settings(
        out, learning_rate=1e-2, watch_action="rollback", watch_lr_factor=0.01, **common
    )
    with pytest.warns(UserWarning, match="watchdog: step 1"):
        orthora.train(config, progress=False)
    orthora.train(settings(small, learning_rate=1e-4, **common), progress=False)
    for one, other in zip(values_of(out), values_of(small), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_after_the_last_rollback_the_next_alarm_ends_the_run(tmp_path):
    config = settings(
        tmp_path / "run", steps=2, watch=["lr > 0"], watch_action="rollback", watch_rollbacks=2
    )
    with (
        pytest.warns(UserWarning, match="going back"),
        pytest.raises(ValueError, match="watchdog: step 1: lr"),
    ):
        orthora.train(config, progress=False)
    actions = [event["action"] for event in read_events(tmp_path / "run")]
    assert actions == ["rollback", "rollback", "stop"]


@pytest.mark.parametrize(
    "killed_after",
    [
        "rollback written",
        pytest.param("rollback done", marks=pytest.mark.slow),
        pytest.param("two steps more", marks=pytest.mark.slow),
    ],
)
def test_a_kill_around_a_rollback_leaves_no_trace(killed_after, plain, tmp_path, monkeypatch):
    from orthora.train import watchdog

    rule = f"delta_norm > {plain[1]:.9g}"
    changes = {"steps": 5, "watch": [rule], "watch_action": "rollback", "watch_lr_factor": 0.1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with pytest.warns(UserWarning, match="going back"):
        orthora.train(settings(whole, **changes), progress=False)

    class Killed(BaseException):
        pass

    real_back, real_check = watchdog.Watchdog.roll_back, watchdog.Watchdog.check

    def roll_back(self, alarm, rows):
        if killed_after == "rollback written":
            raise Killed
        found = real_back(self, alarm, rows)
        if killed_after == "rollback done":
            raise Killed
        return found

    def check(self, rows):
        real_check(self, rows)
        if killed_after == "two steps more" and self.events and len(rows) == 4:
            raise Killed

    monkeypatch.setattr(watchdog.Watchdog, "roll_back", roll_back)
    monkeypatch.setattr(watchdog.Watchdog, "check", check)
    with pytest.warns(UserWarning, match="going back"), pytest.raises(Killed):
        orthora.train(settings(broken, **changes), progress=False)
    monkeypatch.undo()
    (broken / "result.json").unlink()
    orthora.train(settings(broken, **changes), resume=True, progress=False)
    assert values_of(broken) == values_of(whole)
    assert read_events(broken) == read_events(whole)


def test_after_a_rollback_adaptive_kl_holds_what_is_left_of_the_learning_rate(tmp_path):
    """The target falls with the square: or the law would take the rate back up."""
    out = tmp_path / "run"
    rule = "kl_update_k3 > 5e-4"
    config = settings(
        out, steps=5, watch=[rule], watch_action="rollback", watch_lr_factor=0.1,
        schedule="adaptive-kl", kl_target=2e-3,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"kl_update_k3 is .*going back to"):
        orthora.train(config, progress=False)
    rows, (event,) = rows_of(out), read_events(out)
    after = rows[event["since"] - 1 :]
    assert [row["kl_target"] for row in after] == pytest.approx([2e-5] * len(after))
    assert max(row["lr"] for row in after) < 3e-4
    assert max(row["kl_update_k3"] for row in after) < 2e-4


def test_a_checkpoint_from_before_the_longest_rule_stays(plain, tmp_path):
    """Or an alarm would go back to the start, and throw the run away."""
    out = tmp_path / "run"
    rules = ["lr > 0 for 4", "entropy > 9"]
    config = settings(out, steps=4, keep_checkpoints=1, watch=rules, watch_action="rollback")
    config["watch_rollbacks"] = 1
    with (
        pytest.warns(UserWarning, match="going back to the start, as no checkpoint is older"),
        pytest.raises(ValueError, match="watchdog: step 4"),
    ):
        orthora.train(config, progress=False)
    steps = {
        checkpoints.step_of(path.parent)
        for path in (out / "checkpoints").glob(f"*/{checkpoints.MARKER}")
    }
    assert steps == {3}
    for back, left in ((None, {9}), (7, {9, 7}), (6, {9, 5}), (4, {9, 3}), (0, {9}), (9, {9})):
        folder = tmp_path / f"kept {back}"
        for step in (1, 3, 5, 7, 9):
            path = folder / f"checkpoint-{2 * step}"
            path.mkdir(parents=True)
            marker = {"step": step, "config": {}, "upkeep": {}, "files": {}}
            (path / checkpoints.MARKER).write_text(json.dumps(marker))
        checkpoints.rotate(folder, 1, back)
        found = {checkpoints.step_of(path.parent) for path in folder.glob("*/*")}
        assert found == left


def test_a_step_that_breaks_the_policy_is_rolled_back_too(tmp_path):
    """PiSSA at a rate at which the loss is no number."""
    out, small = tmp_path / "run", tmp_path / "small"
    common = {"steps": 2, "method": "pissa", "watch": ["entropy > 99"]}
    config = settings(
        out, learning_rate=1e4, watch_action="rollback", watch_lr_factor=1e-8, **common
    )
    with pytest.warns(UserWarning, match="not finite.*going back to the start"):
        orthora.train(config, progress=False)
    orthora.train(settings(small, learning_rate=1e-4, **common), progress=False)
    for one, other in zip(values_of(out), values_of(small), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    (event,) = read_events(out)
    assert (event["action"], event["value"]) == ("rollback", None)


def test_a_stopped_run_goes_on_when_it_is_told_to_warn(plain, tmp_path):
    out = tmp_path / "run"
    config = settings(out, steps=4, watch=[f"delta_norm > {plain[1]:.9g}"], watch_action="stop")
    with pytest.raises(ValueError, match="--watch-action warn --resume"):
        orthora.train(config, progress=False)
    with pytest.warns(UserWarning, match="watchdog: step 3"):
        orthora.train(config | {"watch_action": "warn"}, resume=True, progress=False)
    assert values_of(out) == values_of(plain[0])
    with pytest.raises(ValueError, match="is finished"):
        orthora.train(config | {"learning_rate": 1e-2}, resume=True, progress=False)


def test_on_resume_rules_and_saving_may_be_others_and_are_minded(plain, tmp_path):
    out = tmp_path / "run"
    config = settings(out, steps=6, save_every=3, watch=["lr > 0 for 4"], watch_action="stop")
    with pytest.raises(ValueError, match="watchdog: step 4"):
        orthora.train(config, progress=False)
    typo = config | {"watch": ["grad_norm/q_prj > 20x"]}
    with pytest.raises(ValueError, match="names no metric of this run"):
        orthora.train(typo, resume=True, progress=False)
    (out / "result.json").unlink()
    none = {"watch": [], "watch_action": "rollback", "steps": 6}  # a run without rules saves, too
    assert checkpoints._way_back(trainer_at(4, config | none)) == 4
    other = {"watch": ["lr > 1e-9 for 2"], "watch_action": "warn", "save_every": 1}
    with pytest.warns(UserWarning, match=r"watchdog: step 4: lr is .*for 2") as caught:
        orthora.train(config | other, resume=True, progress=False)
    assert sum("watchdog" in str(one.message) for one in caught) == 1  # it holds at 5, too
    steps = {
        checkpoints.step_of(path.parent)
        for path in (out / "checkpoints").glob(f"*/{checkpoints.MARKER}")
    }
    assert steps == {3, 4, 5, 6}


def test_a_rule_on_a_kind_of_module_that_there_is_not_ends_the_first_step(tmp_path):
    config = settings(tmp_path / "run", steps=2, watch=["grad_norm/q_prj > 20x"])
    with pytest.raises(ValueError, match=r"names no metric of this run; it has: .*grad_norm/q_pro"):
        orthora.train(config, progress=False)


@pytest.mark.parametrize("line", ["{}", "[1]", '{"action": "rollback"}', '{"action": "bark"}', "x"])
def test_a_damaged_file_of_events_is_one_line(line, tmp_path):
    good = {"action": "warn", "step": 2, "since": 2, "lr_scale": 1.0, "rule": "lr > 0"}
    (tmp_path / "events.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(ValueError, match=r"events.jsonl, line 2 is n.* remove that line"):
        read_events(tmp_path)


@pytest.mark.parametrize("key", ["lr_scale", "setting", "drawn"])
def test_a_damaged_marker_is_one_line(key, tmp_path):
    out = tmp_path / "run"
    config = settings(out, steps=2, watch=["lr > 0 for 2"], watch_action="stop")
    with pytest.raises(ValueError, match="watchdog"):
        orthora.train(config, progress=False)
    (file,) = (out / "checkpoints").glob(f"*/{checkpoints.MARKER}")
    marker = json.loads(file.read_text())
    marker[key] = {"unknown": 1}
    if key != "setting":
        del marker[key]
    file.write_text(json.dumps(marker))
    with pytest.raises(ValueError, match=r"is not whole .*; delete .* to go on"):
        orthora.train(config | {"watch_action": "warn"}, resume=True, progress=False)


def test_going_back_needs_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="save_every above 0"):
        orthora.train(settings(tmp_path / "run", save_every=0, watch_action="rollback"))
