"""The watchdog in a run: warns, ends, goes back; and a kill changes nothing."""

import json
import math
from pathlib import Path

import pytest

import orthora
from orthora.config import read_toml
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
    with pytest.warns(UserWarning, match=r"going back to before it"):
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


def test_going_back_needs_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="save_every above 0"):
        orthora.train(settings(tmp_path / "run", save_every=0, watch_action="rollback"))
