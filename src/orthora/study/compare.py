"""Fair comparisons of a study's arms: paired by seed, with intervals and exact tests.

Three views. *Tuned*: every arm at the learning rate that the selection score picks; for each seed
it is picked on the other seeds, so that luck of a seed is not counted twice. *Shared*: all arms at
one rate. *Sweep*: the mean over all rates of the study.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from orthora.stats import holm, sign_flip_p, t_interval
from orthora.study.arms import Arm
from orthora.study.results import Record, Results

LEVEL = 0.95
COLLAPSED = 0.5
"""Share of the base model's score below which a run has collapsed."""
BySeed = Mapping[int, Fraction]
View = Literal["tuned", "shared", "sweep"]


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: of the values; NaN of none.
        low: lower bound; NaN with fewer than two seeds.
        high: upper bound.
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


def estimate(values: Sequence[float | Fraction], level: float = LEVEL) -> Estimate:
    """Mean with Student's t interval over seeds."""
    numbers = np.array([float(value) for value in values], dtype=np.float64)
    if len(numbers) < 2:
        mean = float(numbers[0]) if len(numbers) else math.nan
        return Estimate(mean, math.nan, math.nan, len(numbers))
    low, high = t_interval(numbers, level=level)
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


@dataclass(frozen=True)
class Paired:
    """Difference of two arms over the seeds that both have.

    Attributes:
        arm: label of the first.
        than: label of the second, which is subtracted.
        alone: mean with its own 95 % interval.
        jointly: mean with an interval such that all of its family hold together with 95 %
            (Bonferroni).
        p: exact two-sided sign-flip test over seeds; at least 2^(1 - seeds).
        p_holm: corrected for the family's comparisons by Holm's method.
    """

    arm: str
    than: str
    alone: Estimate
    jointly: Estimate
    p: float
    p_holm: float

    @property
    def sign(self) -> int:
        """1 or -1 where the joint interval is clear of 0, else 0."""
        if not self.jointly.known:
            return 0
        return (self.jointly.low > 0) - (self.jointly.high < 0)

    def within(self, margin: float) -> bool:
        """Whether the joint interval lies inside the margin."""
        return self.jointly.known and -margin < self.jointly.low and self.jointly.high < margin


@dataclass(frozen=True)
class Tuned:
    """An arm at its own best rates.

    Attributes:
        scores: reported score by seed, at the rate that the other seeds pick.
        records: the cells with these scores.
        rate: that all seeds together pick.
        picks: how many seeds were scored at each rate.
    """

    scores: BySeed
    records: Mapping[int, Record]
    rate: float
    picks: Mapping[float, int]


class Comparisons:
    """Everything that tables and verdicts need, of one study's results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.cells: dict[str, dict[float, dict[int, Record]]] = {}
        self.arms: dict[str, Arm] = {}
        for record in results.records:
            self.arms[record.arm.label] = record.arm
            by_rate = self.cells.setdefault(record.arm.label, {})
            by_rate.setdefault(record.cell.rate, {})[record.cell.seed] = record
        self.tuned = {label: self._tune(label) for label in self.arms}

    @property
    def rates(self) -> list[float]:
        """All fixed learning rates, rising."""
        return sorted({rate for label in self.fixed for rate in self.cells[label]})

    @property
    def fixed(self) -> list[str]:
        """Labels of the arms with fixed learning rates."""
        return [arm.label for arm in self.arms.values() if not arm.adaptive]

    def _score(self, record: Record | None, name: str) -> Fraction | None:
        return record.scores.get(name) if record else None

    def at(self, label: str, rate: float, name: str | None = None) -> dict[int, Fraction]:
        """Scores of an arm at a rate, by seed."""
        by_seed = self.cells.get(label, {}).get(rate, {})
        found = {
            seed: self._score(record, name or self.results.reported)
            for seed, record in sorted(by_seed.items())
        }
        return {seed: score for seed, score in found.items() if score is not None}

    def _tune(self, label: str) -> Tuned:
        """Pick a rate for each seed by the others' selection scores."""
        select = self.results.selected
        table = {rate: self.at(label, rate, select) for rate in sorted(self.cells[label])}
        table = {rate: scores for rate, scores in table.items() if scores}
        scores: dict[int, Fraction] = {}
        records: dict[int, Record] = {}
        picks: Counter[float] = Counter()
        for seed in sorted({seed for by_seed in table.values() for seed in by_seed}):
            rate = _pick(table, without=seed)
            record = self.cells[label][rate].get(seed)
            score = self._score(record, self.results.reported)
            if record is not None and score is not None:
                scores[seed], records[seed] = score, record
                picks[rate] += 1
        return Tuned(scores, records, _pick(table) if table else math.nan, picks)

    def reference_of(self, label: str) -> str | None:
        """The arm that an arm is compared with: the reference in the same settings, or at all."""
        arm = self.arms[label]
        name = self.results.spec.reference
        plain = [one.label for one in self.arms.values() if one.method == name and not one.rest]
        same = [o.label for o in self.arms.values() if o.method == name and o.rest == arm.rest]
        for candidate in (*same, *plain):
            if candidate != label:
                return candidate
        return None

    def shared_rate(self, label: str) -> float:
        """The reference's own best rate, at which papers compare."""
        reference = self.reference_of(label) or label
        return self.tuned[reference].rate

    def best_shared_rate(self) -> float:
        """The fixed rate with the best mean selection score; all arms with fixed rates have it."""
        means = {}
        for rate in self.rates:
            scores = [self.at(label, rate, self.results.selected) for label in self.fixed]
            if scores and all(scores):
                values = [float(np.mean([*map(float, one.values())])) for one in scores]
                means[rate] = float(np.mean(values))
        return max(means, key=lambda rate: means[rate]) if means else math.nan

    def scores(self, label: str, view: View, rate: float = math.nan) -> BySeed:
        """Reported scores of an arm by seed, in a view.

        Args:
            label: of the arm.
            view: which.
            rate: of the shared view.
        """
        if view == "tuned":
            return self.tuned[label].scores
        if view == "shared":
            return self.at(label, rate)
        by_rate = [self.at(label, rate) for rate in self.cells[label]]
        whole = set.intersection(*(set(one) for one in by_rate)) if by_rate else set()
        return {
            seed: sum((one[seed] for one in by_rate), Fraction(0)) / len(by_rate)
            for seed in sorted(whole)
        }

    def family(self, pairs: Sequence[tuple[str, str]], view: View) -> list[Paired]:
        """Paired differences of a family of comparisons, corrected for how many they are.

        In the shared view a pair is compared at the second's own best rate.
        """
        differences = []
        for arm, than in pairs:
            rate = self.tuned[than].rate
            one, other = self.scores(arm, view, rate), self.scores(than, view, rate)
            differences.append([one[seed] - other[seed] for seed in sorted({*one} & {*other})])
        ps = [sign_flip_p(values) if values else 1.0 for values in differences]
        joint = 1 - (1 - LEVEL) / max(1, len(pairs))
        return [
            Paired(arm, than, estimate(values), estimate(values, joint), p, adjusted)
            for (arm, than), values, p, adjusted in zip(
                pairs, differences, ps, holm(ps), strict=True
            )
        ]

    def against_reference(self, view: View) -> list[Paired]:
        """Every arm against its reference."""
        pairs = [(label, than) for label in self.arms if (than := self.reference_of(label))]
        return self.family(pairs, view)

    def collapsed(self, record: Record) -> bool | None:
        """Whether a run ended below half of the base model's score, or training ended it."""
        if record.by_training:
            return True
        base = self.results.base.get(self.results.reported)
        score = self._score(record, self.results.reported)
        return None if base is None or score is None else float(score) < COLLAPSED * base

    def collapse_counts(self, label: str, rate: float | None = None) -> tuple[int, int]:
        """Runs of an arm that collapsed, and runs that are known, at a rate or at all."""
        records = [
            record
            for at, by_seed in self.cells[label].items()
            if rate is None or at == rate
            for record in by_seed.values()
        ]
        known = [fate for record in records if (fate := self.collapsed(record)) is not None]
        return sum(known), len(known)


def _pick(table: Mapping[float, BySeed], without: int | None = None) -> float:
    """The rate with the best mean over seeds, one seed left out; of equal ones the lowest.

    Where that seed is the only one, it picks for itself.
    """
    means = {}
    for rate, scores in table.items():
        left = [score for seed, score in scores.items() if seed != without]
        if left:
            means[rate] = sum(left, Fraction(0)) / len(left)
    if not means:
        return _pick(table)
    return max(sorted(means), key=lambda rate: means[rate])
