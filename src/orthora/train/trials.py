"""Learning rates of one method, tried one after the other from the same rollouts and start."""

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthora import models
from orthora.config import TrainConfig, build
from orthora.failures import NotFinite
from orthora.methods import compose
from orthora.train.collect import Rollout
from orthora.train.control import Setting
from orthora.train.loading import load_parts
from orthora.train.optimizers import set_learning_rate
from orthora.train.rewards import OwnReward
from orthora.train.snapshot import Snapshot
from orthora.train.steering import Steering
from orthora.train.trainer import Metrics, RLVRTrainer
from orthora.train.world import World

LEAST = 1e-12
"""Nats per token; below it a KL is rounding."""
_NEAR = 1.15  # of the KL asked for; rollouts vary by more
_DOUBTFUL = 1e-8  # nats; below it a step of float32 is compared with a smaller one
_LEAP = 30.0  # factor that one trial may change the learning rate by
_LOWER = 4.0  # the factor between the two, at which the KL is a sixteenth, but for rounding


@dataclass(frozen=True)
class Probe:
    """What one step of a method does, from a start that all methods share.

    Attributes:
        method: name.
        learning_rate: of the first trial.
        first_update_norm: ``|dW|_F`` over all adapted weights after its first optimizer update;
            None where the update is no product of factors.
        update_norms: the same after all updates of the step, in all (``all``, for ``full`` too) and
            by module type.
        kl: k3 KL of the step in nats per token, mean over the rollouts; infinite where the step
            broke the policy.
        kl_by_rollout: of each; empty where it did.
        matched_learning_rate: at which a step's KL is within 15 % of the one asked for; None where
            no trial came near it.
        matched_kl: measured there.
        trials: (learning rate, KL) of all of them.
    """

    method: str
    learning_rate: float
    first_update_norm: float | None
    update_norms: dict[str, float]
    kl: float
    kl_by_rollout: list[float]
    matched_learning_rate: float | None
    matched_kl: float | None
    trials: list[tuple[float, float]]


class _Undoing(Steering):
    """Takes every step back, and sets the next one's learning rate as told."""

    def __init__(self, config: TrainConfig, following: Callable[[Metrics], float]) -> None:
        super().__init__(config)
        self._following = following
        self._snapshot: Snapshot | None = None
        self._dense = compose(config.method).export == "merged"

    def begin(self, model: Any, optimizer: Any) -> None:
        self._snapshot = Snapshot(model, optimizer)

    def end(self, row: Metrics, scheduler: Any) -> Metrics:
        assert self._snapshot is not None, "begun"
        if self._dense:
            row["update_norm"] = self._snapshot.distance()
        self._snapshot.restore()
        lr = self._following(row)
        self.setting = Setting(lr)
        set_learning_rate(scheduler, lr)
        return {}


def following_rate(
    trials: Sequence[tuple[float, float]], target: float, bounds: tuple[float, float]
) -> float | None:
    """The learning rate to try next; None once a trial is near enough.

    For small steps the KL grows with the square of the learning rate. Two trials say with which
    power it grows here; a bracket of the target, once there is one, is never left.

    Args:
        trials: (learning rate, KL) so far, at least one.
        target: KL to meet.
        bounds: smallest and largest learning rate.
    """
    known = sorted((lr, max(kl, LEAST) if math.isfinite(kl) else math.inf) for lr, kl in trials)
    nearest = min(known, key=lambda trial: abs(math.log(trial[1] / target)))
    if max(nearest[1] / target, target / nearest[1]) <= _NEAR:
        return None
    below = [trial for trial in known if trial[1] < target]
    above = [trial for trial in known if trial[1] >= target]
    low, high = (below[-1] if below else None), (above[0] if above else None)
    if low and high and low[0] < high[0]:
        if math.isinf(high[1]):
            return math.sqrt(low[0] * high[0])
        share = math.log(target / low[1]) / math.log(high[1] / low[1])
        share = min(max(share, 0.1), 0.9)
        return low[0] ** (1 - share) * high[0] ** share
    lr, kl = low or high or nearest
    leap = math.sqrt(target / kl) if math.isfinite(kl) else 1 / _LEAP
    return min(max(lr * min(max(leap, 1 / _LEAP), _LEAP), bounds[0]), bounds[1])


class _Replay:
    """Hands the same rollouts out again and again, in place of the collector."""

    def __init__(self, collector: Any, rollouts: Sequence[Rollout]) -> None:
        self.stream = collector.stream
        self._rollouts = itertools.cycle(rollouts)

    def collect(self) -> Rollout:
        return next(self._rollouts)


class _Matched(Exception):
    """The KL asked for was met, or the trials are spent."""


class Trials:
    """Learning rates of one method, tried one after the other from the same start.

    Args:
        config: as of `probe`.
        method: name.
        target: KL to meet; None for the first method, that sets it.
        rollouts: per trial.
        trials: at most.
        reward: own one.
        reference: others are to be matched to it; where its KL may be rounding, a lower rate says.
    """

    def __init__(
        self,
        config: TrainConfig,
        method: str,
        target: float | None,
        rollouts: int,
        trials: int,
        reward: OwnReward | str | None,
        reference: bool,
    ) -> None:
        changes = {
            "method": method, "steps": rollouts * (trials + 1), "schedule": "constant",
            "warmup_steps": 0, "min_lr_ratio": 0.0, "save_every": 0, "eval_problems": 0,
            "eval_task": None, "eval_data": None, "eval_base": False, "kl_update_share": 1.0,
            "kl_base_share": 0.0, "watch": (), "watch_action": "warn", "learning_rate_match": None,
            "geometry": True, "head_rank": 0, "start": None,
        }  # fmt: skip
        self._config = build(TrainConfig, config.model_dump() | changes)
        if not self._config.learning_rate:
            raise ValueError("a probe steps at the config's learning rate; set one above 0")
        self._target, self._rollouts, self._most, self._reward = target, rollouts, trials, reward
        self._reference = reference
        self._first: list[Metrics] = []
        self._kls: list[float] = []
        self._tried: list[tuple[float, float]] = []

    def made(self, drawn: list[Rollout]) -> Probe:
        """Try until the target is met or the trials are spent; fills ``drawn`` where it is empty.

        A trial that breaks the policy is followed by one with a fresh model.
        """
        lr: float | None = self._config.learning_rate
        while lr is not None:
            with tempfile.TemporaryDirectory() as folder:
                trainer = self._trainer(lr, Path(folder))
                if not drawn:
                    drawn += _drawn(trainer.collector, self._rollouts)
                trainer.collector = _Replay(trainer.collector, drawn)  # pyright: ignore[reportAttributeAccessIssue]
                try:
                    trainer.train()
                except _Matched:
                    lr = None
                except NotFinite:
                    self._first = self._first if self._tried else []
                    lr = self._after(self._rate, math.inf)
        return _summed(self._config.method, self._first, self._tried, self._target)

    def _trainer(self, lr: float, folder: Path) -> RLVRTrainer:
        config = build(TrainConfig, self._config.model_dump() | {"learning_rate": lr})
        parts = load_parts(config, self._reward, models.pick_device(config.device))
        trainer = RLVRTrainer(config, parts, World(), folder, lambda row: None)
        trainer.steering = _Undoing(config, self._following)
        self._rate, self._kls = lr, []
        return trainer

    def _following(self, row: Metrics) -> float:
        """The learning rate of the next step.

        Raises:
            _Matched: if there is none.
        """
        if not self._tried:
            self._first.append(row)
        self._kls.append(row["kl_update_k3"])
        if len(self._kls) < self._rollouts:
            return self._rate
        lr = self._after(self._rate, math.fsum(self._kls) / self._rollouts)
        if lr is None:
            raise _Matched
        self._rate, self._kls = lr, []
        return lr

    def _after(self, lr: float, kl: float) -> float | None:
        """Note a trial; the learning rate of the next one, None if there is none."""
        self._tried.append((lr, kl))
        if self._target is None:
            doubtful = self._config.dtype != "float32" or kl < _DOUBTFUL
            again = self._reference and doubtful and len(self._tried) == 1
            return lr / _LOWER if again else None
        if len(self._tried) == self._most:
            return None
        return following_rate(self._tried, self._target, self._config.kl_lr_bounds)


def _drawn(collector: Any, rollouts: int) -> list[Rollout]:
    """The rollouts that all methods are given.

    Raises:
        ValueError: if none has a signal.
    """
    found = [collector.collect() for _ in range(rollouts)]
    if not any(group.has_signal for rollout in found for group in rollout.groups):
        raise ValueError(
            "no group of the rollouts has a signal: all answers are right, or all wrong; use "
            "problems nearer to the model's level, or more rollouts"
        )
    return found


def _summed(
    method: str, first: Sequence[Metrics], tried: list[tuple[float, float]], target: float | None
) -> Probe:
    """What the first trial did, and the trial nearest to the target."""

    def mean(key: str) -> float | None:
        values = [row[key] for row in first if row.get(key) is not None]
        return sum(values) / len(values) if values else None

    kinds = [key for key in (first[0] if first else {}) if key.startswith("update_norm")]
    matched = None
    if target is None:
        matched = tried[0]
    else:
        near = [t for t in tried if math.isfinite(t[1]) and t[1] > 0]
        best = min(near, key=lambda t: abs(math.log(t[1] / target)), default=None)
        if best and max(best[1] / target, target / best[1]) <= _NEAR:
            matched = best
    return Probe(
        method=method,
        learning_rate=tried[0][0],
        first_update_norm=mean("first_update_norm"),
        update_norms={key.partition("/")[2] or "all": mean(key) or 0.0 for key in kinds},
        kl=tried[0][1],
        kl_by_rollout=[row["kl_update_k3"] for row in first],
        matched_learning_rate=matched[0] if matched else None,
        matched_kl=matched[1] if matched else None,
        trials=tried,
    )
