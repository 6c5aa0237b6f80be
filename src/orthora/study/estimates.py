"""Means over seeds with intervals, and tests by exchange of two arms within seeds."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orthora.stats import t_interval

Array = NDArray[Any]
LEVEL = 0.95
FEWEST = 3
"""Seeds without which nothing is called clear."""


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
        return not math.isnan(self.low)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is clear of 0, else 0."""
        return self.above(0) - self.below(0)

    def above(self, bound: float) -> bool:
        """Whether the interval lies above a bound."""
        return self.known and self.seeds >= FEWEST and self.low > bound

    def below(self, bound: float) -> bool:
        """Whether the interval lies below a bound."""
        return self.known and self.seeds >= FEWEST and self.high < bound

    def beyond(self, margin: float) -> bool:
        """Whether the interval lies outside the margin."""
        return self.above(margin) or self.below(-margin)

    def within(self, margin: float) -> bool:
        """Whether the interval lies inside the margin."""
        return self.above(-margin) and self.high < margin

    def opened(self, below: bool, above: bool) -> "Estimate":
        """The same, if it is known, without the lower or the upper bound."""
        if not self.known:
            return self
        return self._replace(
            low=-math.inf if below else self.low, high=math.inf if above else self.high
        )


def estimate(values: Sequence[float | Fraction], level: float = LEVEL) -> Estimate:
    """Mean with Student's t interval over seeds."""
    numbers = np.array([float(value) for value in values], dtype=np.float64)
    if len(numbers) < 2:
        mean = float(numbers[0]) if len(numbers) else math.nan
        return Estimate(mean, math.nan, math.nan, len(numbers))
    low, high = t_interval(numbers, level=level)
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


_EXACT, _DRAWS = 12, 20_000
_TIE = 1e-9


def exchange_p(statistic: Callable[[Array], Array], seeds: int) -> float:
    """Share of the exchanges of two arms within seeds that are as extreme as what was seen.

    Args:
        statistic: of exchanges (k, seeds) of 0 and 1, one number each; exchanging all seeds turns
            its sign.
        seeds: how many.

    Returns:
        Two-sided p: of all 2^seeds exchanges up to 12 seeds; of 20,000 random ones beyond, what was
        seen counted among them. NaN where cells are missing.
    """
    if seeds <= _EXACT:
        flips = (np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1
    else:
        flips = np.random.default_rng(0).integers(0, 2, (_DRAWS, seeds))
        flips[0] = 0
    sums = np.abs(statistic(flips))
    if np.isnan(sums).any():  # cells are missing
        return math.nan
    return float(np.mean(sums >= sums[0] - _TIE))


def retuned(flips: Array, one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """Difference of the tuned means after each exchange, the rates picked anew.

    Exchanged are whole columns, every rate of a seed; both arms have the same rates.
    """
    tables = [np.stack(arm) for arm in (one, other)]
    swap = flips[:, None, None, :].astype(bool)
    first = np.where(swap, tables[1], tables[0])
    second = np.where(swap, tables[0], tables[1])
    return _tuned_means(first) - _tuned_means(second)


def _tuned_means(tables: Array) -> Array:
    """Mean over seeds of the reported score at the rate that the other seeds pick.

    Args:
        tables: (k, 2, rates, seeds): selection and reported scores.
    """
    select, report = tables[:, 0], tables[:, 1]
    seeds = select.shape[-1]
    others = select.sum(axis=-1, keepdims=True) - select if seeds > 1 else select
    others = np.where(np.isnan(others), -np.inf, np.round(others, 12))
    picks = others.argmax(axis=1)  # the first of equal ones: the lowest rate
    return np.take_along_axis(report, picks[:, None, :], axis=1)[:, 0].mean(axis=-1)
