"""Statistics of evaluations: unbiased pass@k, and intervals over problems.

The unit of an interval is the problem: a problem's samples are averaged first, and problems are
resampled. Spread over training seeds is a different matter, for which no function here stands in.
"""

from collections.abc import Iterable
from math import comb

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4_000_000
"""Resampled values held at one time (32 MB)."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate without bias the chance that at least one of k samples is correct.

    Counts the k-subsets of the n samples that hold no correct one, in exact integers:
    ``1 - C(n - c, k) / C(n, k)``.

    Args:
        n: samples drawn for the problem.
        c: correct ones among them.
        k: size of the hypothetical draw.

    Returns:
        The estimate, in [0, 1]. Average it over problems. ``k = 1`` gives ``c / n``.

    Raises:
        ValueError: k or c exceeds n, c is negative, or n or k is below 1. With fewer samples than k
            there is no unbiased estimate.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    if n < 1 or k < 1:
        raise ValueError(f"n is {n} and k is {k}; both must be at least 1")
    if not 0 <= c <= n:
        raise ValueError(f"c is {c}; correct samples must lie between 0 and n = {n}")
    if k > n:
        raise ValueError(f"k is {k} but only n = {n} samples were drawn; draw more or lower k")
    return (comb(n, k) - comb(n - c, k)) / comb(n, k)


def bootstrap_interval(
    values: Iterable[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Bound the mean over problems by the percentile bootstrap.

    Args:
        values: one number per problem, e.g. the share of its samples that are correct, or the
            difference of two systems on it (which makes the bootstrap a paired one).
        level: nominal coverage, in (0, 1).
        draws: resamples of the problems.
        seed: of the resampling; equal arguments give equal bounds.

    Returns:
        Lower and upper bound. One value gives an interval without width, which says nothing about
        other problems. With few problems (30, say) coverage falls a few points short of nominal.

    Raises:
        ValueError: no values, a value that is not finite, a level outside (0, 1), or draws below 1.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    data = _finite(values)
    _check_level(level)
    if draws < 1:
        raise ValueError(f"draws is {draws}; pass at least 1, e.g. 10_000")
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    rows = max(1, _BLOCK // data.size)
    for start in range(0, draws, rows):
        size = (min(rows, draws - start), data.size)
        means[start : start + size[0]] = data[generator.integers(data.size, size=size)].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(values: Iterable[float]) -> NDArray[np.float64]:
    data = np.asarray(list(values), dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"values have shape {data.shape}; pass one number for each problem")
    if not np.isfinite(data).all():
        where = np.flatnonzero(~np.isfinite(data)).tolist()
        raise ValueError(f"values {where[:5]} are not finite; drop or repair those problems first")
    return data


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; pass a share between 0 and 1, e.g. 0.95")
