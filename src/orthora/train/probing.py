"""What one training step would do, before training: for every method, from the same rollouts.

At the start every method's policy is the base's, so all are given the same rollouts. A step is
trained as in a run, measured, and taken back; then once more with another learning rate, until the
KL it causes is the one asked for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from orthora.config import TrainConfig, build
from orthora.train.collect import Rollout
from orthora.train.rewards import OwnReward
from orthora.train.trials import LEAST, Probe, Trials

_LEAST_RISE = 4.0  # of the KL from a quarter of the rate; without rounding it is sixteen


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
        one = Trials(config, method, target_kl, rollouts, trials, reward, first).made(drawn)
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
    if one.kl < LEAST:
        raise ValueError(f"{where} moves the policy by {one.kl:.1g} nats, rounding; raise it")
    for lr, kl in one.trials[1:]:
        if one.kl < _LEAST_RISE * kl:
            raise ValueError(
                f"{where} moves the policy by {one.kl:.2g} nats, at {lr:g} by {kl:.2g}: this is "
                "rounding, not the step; probe with dtype 'float32', or at a higher learning rate"
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
