"""Watches a run's rows, and acts: a warning, an end, or a return to before the trouble."""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orthora import store
from orthora.config import TrainConfig
from orthora.failures import TrainingFailed
from orthora.train import checkpoints
from orthora.train.world import World
from orthora.watch import Alarm, alarms, parse

EVENTS = "events.jsonl"


class Stopped(TrainingFailed):
    """A rule ended the run."""


class RollBack(Exception):
    """A rule sends the run back to before it fired.

    Attributes:
        alarm: of the rule.
    """

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(str(alarm))
        self.alarm = alarm


class Watchdog:
    """Checks every row by the config's rules; what happened stays in the run folder.

    Args:
        config: rules and action.
        world: the processes; the first one decides.
        out: run folder; events that are there were before.
    """

    def __init__(self, config: TrainConfig, world: World, out: Path) -> None:
        self._config, self._world, self._out = config, world, out
        self._rules = [rule for text in config.watch for rule in parse(text)]
        self.events = world.from_main(read_events(out))

    @property
    def lr_scale(self) -> float:
        """What rollbacks have left of the learning rate."""
        return self._config.watch_lr_factor**self._rollbacks

    @property
    def _rollbacks(self) -> int:
        return sum(event["action"] == "rollback" for event in self.events)

    def check(self, rows: Sequence[dict[str, Any]]) -> None:
        """Look at the last row; every process must call it.

        Raises:
            Stopped: by action ``stop``, or when there are no rollbacks left.
            RollBack: by action ``rollback``.
        """
        found = self._world.from_main(alarms(self._rules, rows))
        if not found:
            return
        action = self._config.watch_action
        if action == "rollback" and self._rollbacks >= self._config.watch_rollbacks:
            action = "stop"
        for number, alarm in enumerate(found):
            self.events.append(asdict(alarm) | {"action": "warn" if number else action})
            self.events[-1]["lr_scale"] = self.lr_scale
        text = "; ".join(map(str, found))
        if self._world.main:
            write_events(self._out, self.events)
            if action != "stop":
                back = ", going back to before it" if action == "rollback" else ""
                warnings.warn(f"watchdog: {text}{back}", stacklevel=2)
        if action == "stop":
            raise Stopped(
                f"watchdog: {text}; lower the learning rate, try schedule 'adaptive-kl', or set "
                "watch_action 'warn' to go on regardless"
            )
        if action == "rollback":
            raise RollBack(found[0])

    def roll_back(self, alarm: Alarm, rows: list[dict[str, Any]]) -> Path | None:
        """Forget everything since the last checkpoint before the trouble; that checkpoint.

        Args:
            alarm: what sent the run back.
            rows: cut to the checkpoint's step.
        """
        with self._world.together():
            if self._world.main:
                _forget(self._out, alarm.since, self.lr_scale)
        checkpoint = checkpoints.latest(self._out / "checkpoints")
        step = checkpoints.step_of(checkpoint) if checkpoint else 0
        del rows[step:]
        with self._world.together():
            if self._world.main:
                cut_metrics(self._out / "metrics.jsonl", step)
        return checkpoint


def last_good(out: Path) -> Path | None:
    """The checkpoint that a resumed run goes on from; events after it are forgotten.

    A rollback that a kill cut short is finished first.
    """
    events = read_events(out)
    back = [number for number, event in enumerate(events) if event["action"] == "rollback"]
    if back:
        _forget(out, events[back[-1]]["since"], events[back[-1]]["lr_scale"])
    checkpoint = checkpoints.latest(out / "checkpoints")
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    kept = [event for event in events if event["action"] == "rollback" or event["step"] <= step]
    write_events(out, kept)
    return checkpoint


def read_events(out: Path) -> list[dict[str, Any]]:
    """What the watchdog saw and did."""
    file = out / EVENTS
    return store.read_metrics(file) if file.is_file() else []


def write_events(out: Path, events: Sequence[dict[str, Any]]) -> None:
    """Leave them in the run folder, where there are any."""
    lines = (json.dumps(store.finite(event)) for event in events)
    if events or (out / EVENTS).exists():
        store.write_atomic(out / EVENTS, "".join(f"{line}\n" for line in lines))


def _forget(out: Path, since: int, lr_scale: float) -> None:
    """Delete checkpoints from ``since`` on that another learning rate led to."""
    for path in (out / "checkpoints").glob(f"checkpoint-*/{checkpoints.MARKER}"):
        if checkpoints.damage(path.parent):
            continue  # it is passed over by itself
        marker = json.loads(path.read_text(encoding="utf-8"))
        if marker["step"] >= since and marker["lr_scale"] != lr_scale:
            shutil.rmtree(path.parent)


def cut_metrics(metrics: Path, step: int) -> None:
    """Keep the rows up to a step.

    Raises:
        ValueError: if there are fewer.
    """
    lines = metrics.read_text().splitlines(keepends=True)[:step] if metrics.is_file() else []
    if len(lines) < step:
        raise ValueError(
            f"{metrics} has {len(lines)} rows and the checkpoint stands after step {step}; put "
            "the file back, or choose another out"
        )
    store.write_atomic(metrics, "".join(lines))
