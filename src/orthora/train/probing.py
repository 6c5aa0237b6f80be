"""What one training step would do, before training: for every method, from the same rollouts.

At the start every method's policy is the base's, so all are given the same rollouts. A step is
trained as in a run, measured, and taken back; then once more with another learning rate, until the
KL it causes is the one asked for.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

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

_NEAR = 1.15  # of the KL asked for; rollouts vary by more
_LEAST = 1e-12  # nats; below it the KL is rounding
_DOUBTFUL = 1e-8  # nats; below it a step of float32 is compared with a smaller one
_LEAP = 30.0  # factor that one trial may change the learning rate by
_LOWER, _LEAST_RISE = 4.0, 4.0  # at a lower rate the KL is a sixteenth, but for rounding


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
    known = sorted((lr, max(kl, _LEAST) if math.isfinite(kl) else math.inf) for lr, kl in trials)
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


def probe(
    config: TrainConfig | dict[str, Any] | str | Path,
    methods: Sequence[str],
    *,
    target_kl: float | None = None,
    rollouts: int = 2,
    trials: int = 6,
    told: Callable[[Probe], None] | None = None,
    reward: OwnReward | str | None = None,
    matching: bool = True,
) -> list[Probe]:
    """One training step of each method from the same rollouts, and the learning rate that matches.

    Nothing is kept of the training: every step is taken back, bit for bit.

    Args:
        config: of the run that is planned; its method is ignored.
        methods: to compare; the first is the one that the others are matched to.
        target_kl: nats per token that a step is to cause; None takes what the first method causes
            at the config's learning rate.
        rollouts: drawn once from the base policy; a trial's KL is the mean over them.
        trials: learning rates to try per method, at most.
        told: called with each method's findings as they come.
        reward: own one, as of `orthora.train`.
        matching: the KL is to be matched, so that the first method's must be more than rounding;
            norms can be compared without.

    Returns:
        One `Probe` per method, in order.

    Raises:
        ValueError: a bad config, as `orthora.train`; rollouts without any signal; a target that is
            not positive; a step of the first method that breaks the policy, or that moves it by
            rounding alone.
    """
    config = build(TrainConfig, config)
    if target_kl is not None and not target_kl > 0:
        raise ValueError(f"the KL to match must be above 0, got {target_kl:g}")
    if rollouts < 1 or trials < 1 or not methods:
        raise ValueError("a probe needs at least 1 rollout, 1 trial and 1 method")
    found: list[Probe] = []
    drawn: list[Rollout] = []
    for method in methods:
        first = target_kl is None and matching
        one = _Trials(config, method, target_kl, rollouts, trials, reward, first).made(drawn)
        if first:
            _check_reference(one)
            target_kl = one.kl
        found.append(one)
        if told:
            told(one)
    return found


def _check_reference(one: Probe) -> None:
    """What the first method's step does can be matched.

    Raises:
        ValueError: if it is no number, nothing, or rounding.
    """
    where = f"a step of {one.method} at learning rate {one.learning_rate:g}"
    if not math.isfinite(one.kl):
        raise ValueError(f"{where} breaks the policy, whose scores are not finite; lower it")
    if one.kl < _LEAST:
        raise ValueError(f"{where} moves the policy by {one.kl:.1g} nats, rounding; raise it")
    for lr, kl in one.trials[1:]:
        if one.kl < _LEAST_RISE * kl:
            raise ValueError(
                f"{where} moves the policy by {one.kl:.2g} nats, at {lr:g} by {kl:.2g}: this is "
                "rounding, not the step; probe with dtype 'float32', or at a higher learning rate"
            )


class _Trials:
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


def table(found: Sequence[Probe]) -> Table:
    """For the terminal: norms and KL of a step beside those of the first method."""
    first = found[0]
    shown = Table(
        "Method",
        "|dW|, 1 update",
        "ratio",
        "|dW|, step",
        "ratio",
        "KL",
        "ratio",
        Column("lr at equal KL", no_wrap=True, min_width=9),
        title=f"One step at learning rate {first.learning_rate:g}; ratios to {first.method}",
        title_justify="left",
    )
    for one in found:
        matched = one.matched_learning_rate
        shown.add_row(
            one.method,
            *_beside(one.first_update_norm, first.first_update_norm),
            *_beside(one.update_norms.get("all"), first.update_norms.get("all")),
            *_beside(one.kl, first.kl),
            "not found" if matched is None else f"{matched:.2e}",
        )
    return shown


def _beside(value: float | None, reference: float | None) -> tuple[str, str]:
    """A value, and its ratio to the first method's."""
    if value is None:
        return "", ""
    return f"{value:.3g}", f"{value / reference:.2f}x" if reference else ""


def as_json(found: Sequence[Probe]) -> list[dict[str, Any]]:
    """Probes as plain values."""
    return [asdict(one) for one in found]
