"""Watches a run's rows, and acts: a warning, an end, or a return to before the trouble."""

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orthora import store
from orthora.config import TrainConfig
from orthora.failures import NotFinite, TrainingFailed
from orthora.train import checkpoints
from orthora.train.world import World
from orthora.watch import BY_KIND, Alarm, Rule, alarms, rules_of

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

    Raises:
        ValueError: if the file of events is corrupt.
    """

    def __init__(self, config: TrainConfig, world: World, out: Path) -> None:
        self._config, self._world, self._out = config, world, out
        target = config.kl_target if config.schedule == "adaptive-kl" else None
        self._rules = rules_of(config.watch, target)
        self.events = world.from_main(read_events(out))
        self._begun = False

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
            ValueError: after the first step, if a rule names a kind of module that there is not.
        """
        new = self._untold() if not self._begun else ()
        if not self._begun:
            self._check_kinds(rows[-1])
        self._begun = True
        found = self._world.from_main(alarms(self._rules, rows, new))
        if not found:
            return
        action = self._action
        self._remember(found, action)
        text = "; ".join(map(str, found))
        if action == "stop":
            goes_on = ", or go on from the last checkpoint regardless: --watch-action warn --resume"
            raise Stopped(
                f"watchdog: {text}; begin anew with a lower {self._remedy}"
                f"{goes_on * bool(self._config.save_every)}"
            )
        if action == "rollback":
            self._warn(f"{text}; {self._way_back(found[0])}")
            raise RollBack(found[0])
        self._warn(text)

    def broken(self, error: NotFinite, step: int) -> Alarm:
        """What a step that broke the policy is to a run that rolls back.

        Args:
            error: that ended the step.
            step: that it ended, which has no row.

        Raises:
            NotFinite: the same, where the action is another, no rollback is left, or there are
                several processes, of which one alone may have met it.
        """
        if self._action != "rollback" or self._world.size > 1:
            raise error
        alarm = Alarm(step, step, "not finite", "loss", math.nan)
        self._remember([alarm], "rollback")
        self._warn(f"step {step}: {error}; {self._way_back(alarm)}")
        return alarm

    def _untold(self) -> list[Rule]:
        """Rules that have not been told of: those that a resumed run has anew may hold already."""
        told = {event["rule"] for event in self.events}
        return [rule for rule in self._rules if str(rule) not in told]

    @property
    def _action(self) -> str:
        action = self._config.watch_action
        spent = action == "rollback" and self._rollbacks >= self._config.watch_rollbacks
        return "stop" if spent else action

    @property
    def _remedy(self) -> str:
        if self._config.schedule == "adaptive-kl":
            return "kl_target"
        return "learning rate or schedule 'adaptive-kl'"

    def _remember(self, found: Sequence[Alarm], action: str) -> None:
        for number, alarm in enumerate(found):
            self.events.append(asdict(alarm) | {"action": "warn" if number else action})
            self.events[-1]["lr_scale"] = self.lr_scale
        if self._world.main:
            write_events(self._out, self.events)

    def _warn(self, text: str) -> None:
        if self._world.main:
            warnings.warn(f"watchdog: {text}; {self._out}", stacklevel=4)

    def _way_back(self, alarm: Alarm) -> str:
        """Where a rollback leads, in words; on the first process."""
        if not self._world.main:
            return ""
        left = [
            marker["step"]
            for folder, marker in _markers(self._out)
            if not _bad(marker, alarm.since, self.lr_scale)
        ]
        where = f"step {max(left)}" if left else "the start, as no checkpoint is older"
        return f"going back to {where}, with {self.lr_scale:g} of the learning rate"

    def _check_kinds(self, row: dict[str, Any]) -> None:
        """Raises ValueError for a rule on a kind of module that the run has not."""
        for rule in self._rules:
            if rule.metric.startswith(BY_KIND) and rule.metric not in row:
                begin = rule.metric.partition("/")[0]
                known = [key for key in row if key.startswith(f"{begin}/")]
                raise ValueError(
                    f"watch rule {str(rule)!r} names no metric of this run; it has: "
                    f"{', '.join(known) or f'no {begin} by kind of module'}"
                )

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
    """What the watchdog saw and did.

    Raises:
        ValueError: naming the line that is none of its events.
    """
    file = out / EVENTS
    events = store.read_metrics(file) if file.is_file() else []
    for number, event in enumerate(events, start=1):
        known = isinstance(event, dict) and event.get("action") in ("warn", "stop", "rollback")
        kinds = {"step": int, "since": int, "lr_scale": int | float, "rule": str}
        if not known or not all(isinstance(event.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"{file}, line {number} is no event of a watchdog; remove that line")
    return events


def write_events(out: Path, events: Sequence[dict[str, Any]]) -> None:
    """Leave them in the run folder, where there are any."""
    lines = (json.dumps(store.finite(event)) for event in events)
    if events or (out / EVENTS).exists():
        store.write_atomic(out / EVENTS, "".join(f"{line}\n" for line in lines))


def _forget(out: Path, since: int, lr_scale: float) -> None:
    """Delete checkpoints from ``since`` on that another learning rate led to."""
    for folder, marker in _markers(out):
        if _bad(marker, since, lr_scale):
            shutil.rmtree(folder)


def _bad(marker: dict[str, Any], since: int, lr_scale: float) -> bool:
    return marker["step"] >= since and marker.get("lr_scale") != lr_scale


def _markers(out: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All sound checkpoints with their markers; a damaged one is passed over by itself."""
    files = (out / "checkpoints").glob(f"checkpoint-*/{checkpoints.MARKER}")
    return [
        (path.parent, json.loads(path.read_text(encoding="utf-8")))
        for path in files
        if not checkpoints.damage(path.parent)
    ]


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
