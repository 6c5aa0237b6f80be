"""Comparisons at something else that is equal: how far training moves, the steps of training."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from orthora.study.compare import Comparisons
from orthora.study.estimates import Array, Estimate, estimate

Movement = Literal["first_norm", "kl_update", "kl_base"]
"""Norm of the first update, mean KL per step of the rollout policy and the updated one, or KL to
the base at the end."""
Curve = tuple[Sequence[float], Sequence[float]]


class AtEqual(NamedTuple):
    """An arm at a rate, beside the reference where that moves as far.

    Attributes:
        arm: label.
        rate: its learning rate.
        moved: how far it moves, geometric mean over seeds.
        own: its score.
        difference: less the reference's score where that moves as far; the reference's is
            interpolated over the logarithm of how far it moves, seed by seed.
    """

    arm: str
    rate: float
    moved: float
    own: Estimate
    difference: Estimate


def at_equal(found: Comparisons, key: Movement) -> list[AtEqual]:
    """Every arm and rate that moves as far as the reference at some rate, against it."""
    rows = []
    for label in found.arms:
        than = found.reference_of(label)
        if than is None:
            continue
        curves = {seed: _curve(found, than, seed, key) for seed in _seeds(found, than)}
        for rate in sorted(found.cells[label]):
            scores = found.at(label, rate)
            moved = moved_by_seed(found, label, rate, key)
            own, pairs = [], []
            for seed, score in scores.items():
                far, (xs, ys) = moved.get(seed), curves.get(seed, ((), ()))
                if far is None or len(xs) < 2 or not xs[0] <= math.log(far) <= xs[-1]:
                    continue
                own.append(float(score))
                pairs.append(float(score) - float(np.interp(math.log(far), xs, ys)))
            if pairs:
                rows.append(AtEqual(label, rate, middle(moved), estimate(own), estimate(pairs)))
    return rows


class Spread(NamedTuple):
    """How far methods lie apart: at a rate that all have, and where all move equally far.

    Attributes:
        rate: of the reference.
        moved: how far the reference moves there, geometric mean over seeds.
        arms: how many are compared: those that have this rate, and move as far at some rate.
        at_rate: standard deviation over the arms of their mean scores at that rate.
        at_equal: the same where each moves as far as the reference, interpolated over the logarithm
            of how far it moves.
        typical_at_rate: median deviation at that rate, as a standard deviation: what arms lie apart
            but for a few that fall (Hampel 1974, J. Am. Stat. Assoc. 69, 383-393).
        typical_at_equal: the same where each moves as far.
    """

    rate: float
    moved: float
    arms: int
    at_rate: float
    at_equal: float
    typical_at_rate: float
    typical_at_equal: float


def spreads(found: Comparisons, key: Movement) -> list[Spread]:
    """What is left of the differences between arms with fixed rates where all move equally far."""
    reference = found.results.spec.reference
    curves = {label: _mean_curve(found, label, key) for label in found.fixed}
    rows = []
    for rate in sorted(found.cells.get(reference, {})):
        moved = moved_by_seed(found, reference, rate, key)
        if not moved:
            continue
        far = middle(moved)
        pairs = []
        for label, (xs, ys) in curves.items():
            scores = found.at(label, rate)
            if scores and len(xs) > 1 and xs[0] <= math.log(far) <= xs[-1]:
                there = float(np.interp(math.log(far), xs, ys))
                pairs.append((float(np.mean([*map(float, scores.values())])), there))
        if len(pairs) > 2:
            sides = [np.array(side) for side in zip(*pairs, strict=True)]
            wide = [float(np.std(side, ddof=1)) for side in sides]
            rows.append(Spread(rate, far, len(pairs), *wide, *map(_typical, sides)))
    return rows


def _typical(values: Array) -> float:
    """Median deviation from the median, scaled to a normal distribution's standard deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def middle(moved: dict[int, float]) -> float:
    """Geometric mean over seeds."""
    return math.exp(math.fsum(map(math.log, moved.values())) / len(moved))


def _seeds(found: Comparisons, label: str) -> list[int]:
    return sorted({seed for by_seed in found.cells[label].values() for seed in by_seed})


def moved_by_seed(found: Comparisons, label: str, rate: float, key: Movement) -> dict[int, float]:
    """How far an arm moves at a rate, by seed."""
    records = found.cells[label].get(rate, {})
    moved = {seed: record.numbers[key] for seed, record in records.items()}
    return {seed: far for seed, far in moved.items() if far and 0 < far < math.inf}


def _curve(found: Comparisons, label: str, seed: int, key: Movement) -> Curve:
    """Scores of one seed over the logarithm of how far it moves, rising."""
    points = []
    for rate in found.cells[label]:
        far = moved_by_seed(found, label, rate, key).get(seed)
        score = found.at(label, rate).get(seed)
        if far is not None and score is not None:
            points.append((math.log(far), float(score)))
    return _rising(points)


def _mean_curve(found: Comparisons, label: str, key: Movement) -> Curve:
    """The same of all seeds together."""
    points = []
    for rate in found.cells[label]:
        moved, scores = moved_by_seed(found, label, rate, key), found.at(label, rate)
        if moved and scores:
            mean = float(np.mean([*map(float, scores.values())]))
            points.append((math.log(middle(moved)), mean))
    return _rising(points)


def _rising(points: Sequence[tuple[float, float]]) -> Curve:
    xs, ys = zip(*sorted(points), strict=True) if points else ((), ())
    return xs, ys


SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of all steps, at which training accuracy is compared."""


def at_equal_steps(found: Comparisons) -> dict[str, list[Estimate]]:
    """Training accuracy of every arm at its own best rate after a share of the steps.

    Each is the mean of the tenth of the steps that ends there, over seeds; a run that training
    ended before does not count there.
    """
    rows = {}
    for label, tuned in found.tuned.items():
        curves = [
            (record.pass_rates, record.cell.get("steps")) for record in tuned.records.values()
        ]
        row = []
        for share in SHARES:
            values = []
            for curve, steps in curves:
                end = max(1, round(share * steps))
                part = curve[max(0, end - max(1, steps // 10)) : end]
                if len(curve) >= end:
                    values.append(math.fsum(part) / len(part))
            row.append(estimate(values))
        rows[label] = row
    return rows
