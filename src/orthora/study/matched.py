"""Comparisons at something else that is equal: the first step's norm, the steps of training."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orthora.study.compare import Comparisons
from orthora.study.estimates import Estimate, estimate


class AtNorm(NamedTuple):
    """An arm at a rate, beside the reference at an equal first step.

    Attributes:
        arm: label.
        rate: its learning rate.
        norm: of its first update, mean over seeds.
        own: its score.
        difference: less the reference's score at that norm; the reference's is interpolated over
            the logarithm of its norms, seed by seed.
    """

    arm: str
    rate: float
    norm: float
    own: Estimate
    difference: Estimate


def at_equal_norm(found: Comparisons) -> list[AtNorm]:
    """Every arm and rate whose first-step norm lies within the reference's, against it."""
    rows = []
    for label in found.arms:
        than = found.reference_of(label)
        if than is None:
            continue
        curves = {seed: _curve(found, than, seed) for seed in _seeds(found, than)}
        for rate in sorted(found.cells[label]):
            scores = found.at(label, rate)
            norms = _norms(found, label, rate)
            own, pairs = [], []
            for seed, score in scores.items():
                norm, (xs, ys) = norms.get(seed), curves.get(seed, ((), ()))
                if norm is None or len(xs) < 2 or not xs[0] <= math.log(norm) <= xs[-1]:
                    continue
                own.append(float(score))
                pairs.append(float(score) - float(np.interp(math.log(norm), xs, ys)))
            if pairs:
                mean = math.exp(math.fsum(map(math.log, norms.values())) / len(norms))
                rows.append(AtNorm(label, rate, mean, estimate(own), estimate(pairs)))
    return rows


def _seeds(found: Comparisons, label: str) -> list[int]:
    return sorted({seed for by_seed in found.cells[label].values() for seed in by_seed})


def _norms(found: Comparisons, label: str, rate: float) -> dict[int, float]:
    records = found.cells[label].get(rate, {})
    norms = {seed: record.numbers["first_norm"] for seed, record in records.items()}
    return {seed: norm for seed, norm in norms.items() if norm and norm > 0}


def _curve(found: Comparisons, label: str, seed: int) -> tuple[Sequence[float], Sequence[float]]:
    """Scores of one seed over the logarithm of the first-step norm, rising."""
    points = []
    for rate in found.cells[label]:
        norm, score = _norms(found, label, rate).get(seed), found.at(label, rate).get(seed)
        if norm is not None and score is not None:
            points.append((math.log(norm), float(score)))
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
