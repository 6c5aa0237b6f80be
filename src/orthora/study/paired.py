"""Differences of two arms, paired by seed, and arms at their own best rates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from orthora.study.estimates import Array, Estimate
from orthora.study.results import Record

BySeed = Mapping[int, Fraction]
View = Literal["tuned", "shared", "sweep"]


@dataclass(frozen=True)
class Paired:
    """Difference of two arms over the seeds that both have.

    Attributes:
        arm: label of the first.
        than: label of the second, which is subtracted.
        plain: mean with its own 95 % t interval over seeds, as if the rates had been given.
        alone: the same mean with an interval that allows for the pick of the rate. Tuned: from the
            lowest lower bound of the first arm less the second at any of its rates, to the highest
            upper bound of the first at any of its rates less the second. Shared: at the level for
            all rates together.
        jointly: the same, such that all of the family hold together with 95 % (Bonferroni).
        p: two-sided test by exchange of the arms within seeds, picks repeated (shared: times the
            number of rates); exact up to 12 seeds, and then never below 2^(1 - seeds), beyond them
            by 20,000 random exchanges. NaN for tuned arms that were not tried at the same rates.
        p_holm: corrected for the family's comparisons by Holm's method.
        lower: whether it may be lower than what was seen: the second arm's best rate is an end of
            those tried, and it may have a better one (tuned only).
        higher: the same of the first arm.
    """

    arm: str
    than: str
    plain: Estimate
    alone: Estimate
    jointly: Estimate
    p: float
    p_holm: float
    lower: bool = False
    higher: bool = False

    @property
    def judged(self) -> Estimate:
        """``alone``, open on the side on which an arm's sweep has not found its best rate."""
        return self.alone.opened(self.lower, self.higher)

    @property
    def judged_jointly(self) -> Estimate:
        """``jointly``, open in the same way."""
        return self.jointly.opened(self.lower, self.higher)


@dataclass(frozen=True)
class Tuned:
    """An arm at its own best rates.

    Attributes:
        scores: reported score by seed, at the rate that the other seeds pick.
        records: the cells with these scores.
        rate: that all seeds together pick; NaN where nothing is known.
        picks: how many seeds were scored at each rate.
    """

    scores: BySeed
    records: Mapping[int, Record]
    rate: float
    picks: Counter[float]


def pick(table: Mapping[float, BySeed], without: int | None = None) -> float:
    """The rate with the best mean over seeds, one seed left out; of equal ones the lowest.

    Where that seed is the only one, it picks for itself.
    """
    means = {}
    for rate, scores in table.items():
        left = [score for seed, score in scores.items() if seed != without]
        if left:
            means[rate] = sum(left, Fraction(0)) / len(left)
    if not means:
        return pick(table)
    return max(sorted(means), key=lambda rate: means[rate])


def less(one: BySeed, other: BySeed) -> list[Fraction]:
    """Differences over the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted({*one} & {*other})]


def floats(values: Sequence[Fraction]) -> Array:
    """Fractions as float64."""
    return np.array([*map(float, values)])
