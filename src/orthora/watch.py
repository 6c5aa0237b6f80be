"""Rules over a run's metrics that tell of a collapse, before the reward does where they can.

A rule is text: ``METRIC > VALUE`` or ``METRIC < VALUE``. With ``x`` after the value it is relative
to the metric's own median over the steps before (``grad_norm > 10x``), and with ``for N`` it must
hold on N steps in a row. When a rule fires is a pure function of the rows. A step that adaptive-kl
has taken back says nothing of the policy: the KL and the norms of its updates do not count.
"""

import difflib
import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

WINDOW = 20  # steps, before those that a relative rule judges, that it compares with
SETTLED = 5  # of them must be known
WATCHED = (
    "kl_update_k1", "kl_update_k3", "kl_update_p99", "kl_update_max", "kl_base_k1", "kl_base_k3",
    "grad_norm", "grad_norm_max", "entropy", "truncated", "length", "pass_rate", "reward",
    "reward_std", "penalty", "loss", "head_energy", "update_norm", "delta_norm", "stable_rank",
    "condition", "clip_low", "clip_high", "clip_dual", "groups_without_signal", "sampling_gap",
    "undone", "lr",
)  # fmt: skip
"""Metrics that rules may name."""

SIGNED = ("kl_update_k1", "kl_base_k1", "reward", "penalty", "loss")
"""Those that may be negative, of which a multiple of the median says nothing."""
BY_KIND = ("grad_norm/", "update_norm/")
"""What metrics by kind of module begin with."""
NOT_FINITE = "not_finite"
"""Key of a row's list of metrics that were NaN or infinite, which JSON can't hold."""
_TAKEN_BACK = ("kl_update_", "update_norm")

FAR = 10.0
"""Multiple of the KL of an update, in runs that learn well, at which ``default`` barks."""
_HEALTHY = 2e-3  # nats per token

DEFAULT = (
    f"kl_update_k3 > {FAR * _HEALTHY:g} for 2",
    "kl_base_k1 > 1.0",
    "grad_norm > 10x for 2",
    "entropy > 3x for 2",
    "length > 2x for 3",
    "truncated > 0.5 for 3",
    "pass_rate < 0.5x for 3",
)
"""Rules of ``default``; docs/watchdog.md has how often they cry wolf."""

_FORM = re.compile(r"\s*([A-Za-z_0-9/.]+)\s*([<>])\s*([-+0-9.eE]+)\s*(x?)(?:\s+for\s+([0-9]+))?\s*")


@dataclass(frozen=True)
class Rule:
    """One condition on a metric.

    Attributes:
        metric: of the rows.
        above: whether more than ``value`` is the alarm, or less.
        value: threshold, or factor of the median.
        relative: whether it is a factor.
        steps: in a row.
    """

    metric: str
    above: bool
    value: float
    relative: bool = False
    steps: int = 1

    def __str__(self) -> str:
        text = f"{self.metric} {'>' if self.above else '<'} {self.value:g}"
        text += "x" if self.relative else ""
        return text + (f" for {self.steps}" if self.steps > 1 else "")

    def fires(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last ``steps`` rows all break it; where a value is missing, it does not.

        A value that is not a number breaks every rule.
        """
        if len(rows) < self.steps:
            return False
        threshold: float | None = self.value
        if self.relative:
            values = map(self.value_in, rows[-WINDOW - self.steps : -self.steps])
            known = [value for value in values if value is not None and math.isfinite(value)]
            settled = len(known) >= SETTLED
            threshold = self.value * statistics.median(known) if settled else None
        return all(self._breaks(self.value_in(row), threshold) for row in rows[-self.steps :])

    def value_in(self, row: Mapping[str, Any]) -> float | None:
        """The metric of a step; None where it is not known, NaN where it was no number."""
        if row.get("undone") and self.metric.startswith(_TAKEN_BACK):
            return None
        return math.nan if self.metric in row.get(NOT_FINITE, ()) else row.get(self.metric)

    def _breaks(self, value: float | None, threshold: float | None) -> bool:
        if value is None:
            return False
        if not math.isfinite(value):
            return True
        if threshold is None:
            return False
        return value > threshold if self.above else value < threshold


@dataclass(frozen=True)
class Alarm:
    """A rule that fired.

    Attributes:
        step: last of the steps that broke it.
        since: first of them.
        rule: as text.
        metric: that it names.
        value: at ``step``; NaN if it was no number.
    """

    step: int
    since: int
    rule: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.metric} is {self.value:.3g} ({self.rule})"


def parse(text: str) -> tuple[Rule, ...]:
    """One rule, or those of ``default``.

    Raises:
        ValueError: for an unknown metric, naming near ones, or another form.
    """
    if text.strip() == "default":
        return tuple(rule for one in DEFAULT for rule in parse(one))
    found = _FORM.fullmatch(text)
    try:
        value = float(found[3]) if found else math.nan
    except ValueError:
        value = math.nan
    if found is None or not math.isfinite(value):
        raise ValueError(
            f"watch rule {text!r} is not of the form 'METRIC > VALUE', 'METRIC < VALUEx for N' "
            "(x: times the metric's median so far), or 'default'"
        )
    metric = found[1]
    if metric not in WATCHED and not (metric.startswith(BY_KIND) and metric.rpartition("/")[2]):
        near = difflib.get_close_matches(metric, WATCHED, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(WATCHED)}"
        raise ValueError(f"watch rule {text!r} names no metric of a step; {hint}")
    steps = int(found[5] or 1)
    if steps < 1:
        raise ValueError(f"watch rule {text!r} must hold for at least 1 step")
    return (Rule(metric, found[2] == ">", value, found[4] == "x", steps),)


def rules_of(texts: Sequence[str], kl_target: float | None = None) -> list[Rule]:
    """The rules of a run.

    Args:
        texts: as in its config.
        kl_target: of adaptive-kl, None without it; ``default`` barks at ten times that KL.

    Raises:
        ValueError: see `parse`.
    """
    rules = [(text.strip() == "default", rule) for text in texts for rule in parse(text)]
    return [
        replace(rule, value=FAR * kl_target)
        if default and rule.metric == "kl_update_k3" and kl_target is not None
        else rule
        for default, rule in rules
    ]


def alarms(
    rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]], new: Collection[Rule] = ()
) -> list[Alarm]:
    """The rules that the last row makes fire; one that keeps firing is told once.

    Args:
        rules: to check.
        rows: of all steps so far, in order.
        new: rules that may have held before, and were not told.
    """
    return [
        Alarm(
            step=int(rows[-1]["step"]),
            since=int(rows[-rule.steps]["step"]),
            rule=str(rule),
            metric=rule.metric,
            value=float(value),
        )
        for rule in rules
        if rule.fires(rows) and (rule in new or not rule.fires(rows[:-1]))
        if (value := rule.value_in(rows[-1])) is not None
    ]
