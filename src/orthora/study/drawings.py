"""The figures of a study."""

import math
from collections.abc import Sequence
from dataclasses import replace

from orthora.figures.panels import Drawing, Panel, Series
from orthora.figures.style import DOUBLE, SINGLE, Style, styles_of
from orthora.study.compare import Comparisons
from orthora.study.estimates import estimate
from orthora.study.matched import Movement, middle, moved_by_seed

_SEEDS = "Mean over seeds; 95 % t interval over seeds."


def _styles(found: Comparisons) -> dict[str, Style]:
    return styles_of((arm.label, arm.method, arm.rest) for arm in found.arms.values())


def _base(found: Comparisons) -> tuple[tuple[float, str], ...]:
    base = found.results.base.get(found.results.reported)
    return () if base is None else ((base, "base model"),)


def _line(label: str, style: Style, points: Sequence[tuple[float, Sequence[float]]]) -> Series:
    """Means over seeds with their intervals."""
    found = [(x, estimate(values)) for x, values in points if len(values)]
    return Series(
        label,
        style,
        tuple(x for x, _ in found),
        tuple(one.mean for _, one in found),
        tuple(one.low for _, one in found),
        tuple(one.high for _, one in found),
    )


def rates(found: Comparisons) -> Drawing:
    """Score over fixed learning rates; an arm with one rate is a point."""
    looks, series = _styles(found), []
    for label in found.fixed:
        by_rate = {rate: found.at(label, rate) for rate in sorted(found.cells[label])}
        points = [(rate, [*map(float, one.values())]) for rate, one in by_rate.items()]
        series.append(_line(label, looks[label], points))
    panel = Panel(
        "Learning rates", "learning rate", "pass@1",
        tuple(one for one in series if one.x), log_x=True, bars=True, levels=_base(found),
    )  # fmt: skip
    say = (f"Score {found.results.reported!r} after training.", _SEEDS)
    return Drawing("Sensitivity to the learning rate", (panel,), say)


def tuned(found: Comparisons) -> Drawing:
    """Every arm at its own best rate."""
    looks = _styles(found)
    means = {
        label: estimate([*one.scores.values()])
        for label, one in found.tuned.items() if one.scores
    }  # fmt: skip
    labels = sorted(means, key=lambda label: -means[label].mean)
    series = tuple(
        Series(label, looks[label], (float(place),), (means[label].mean,), (means[label].low,),
               (means[label].high,))
        for place, label in enumerate(labels)
    )  # fmt: skip
    panel = Panel("At their own best rates", "", "pass@1", series, levels=_base(found),
                  categories=tuple(labels))  # fmt: skip
    return Drawing("At their own best rates", (panel,),
                   ("For each seed the others pick the rate.", _SEEDS))  # fmt: skip


def curves(found: Comparisons) -> Drawing:
    """Training accuracy at every arm's own best rate; arms that sweep none in panels apart."""
    looks = _styles(found)
    sides = {"Fixed rates": found.fixed}
    for label, arm in found.arms.items():
        if arm.finds:
            sides.setdefault(_TITLES[arm.finds], []).append(label)
    panels = []
    for title, labels in sides.items():
        series = [_curve(label, looks[label], found) for label in labels]
        series = [one for one in series if one.x]
        if len(series) > _BANDS:
            series = [replace(one, low=(), high=()) for one in series]
        if series:
            panels.append(
                Panel(title, "training step", "share of right answers", tuple(series), whole=True)
            )
    say = (
        "Training accuracy, the mean over a twelfth of the steps, then over seeds; band: 95 % t "
        f"interval, where no more than {_BANDS} are drawn. A run that training ended is in "
        "it as far as it came."
    )
    width = DOUBLE if len(panels) > 1 else SINGLE
    return Drawing(
        "Training at their own best rates",
        tuple(panels),
        (say,),
        columns=max(1, len(panels)),
        width=width,
    )


_BANDS = 6
_TITLES = {"adaptive-kl": "adaptive-kl", "match": "Matched rates"}
"""Curves beyond which bands hide more than they show."""


def _curve(label: str, style: Style, found: Comparisons) -> Series:
    """An arm's training accuracy, smoothed."""
    records = found.tuned[label].records.values()
    rows = [record.pass_rates for record in records if record.pass_rates]
    length = max(map(len, rows), default=0)
    width = max(1, length // 12)
    points = []
    for end in range(width, length + 1, max(1, width // 2)):
        parts = [row[end - width : end] for row in rows if len(row) >= end]
        points.append((float(end), [math.fsum(part) / len(part) for part in parts]))
    return _line(label, style, points)


_MOVEMENT: dict[Movement, tuple[str, str]] = {
    "first_norm": ("First update", "|dW| (Frobenius)"),
    "kl_update": ("KL per step", "nats per token"),
    "kl_base": ("KL to the base", "nats per token"),
}


def movement(found: Comparisons) -> Drawing:
    """Score over how far training moved: first step, updates, distance to the base."""
    looks, panels = _styles(found), []
    for key, (title, unit) in _MOVEMENT.items():
        series = [
            _line(label, looks[label], points)
            for label in found.arms
            if (points := _moved(found, label, key))
        ]
        if series:
            panels.append(
                Panel(
                    title, unit, "pass@1", tuple(series), log_x=True, bars=True, levels=_base(found)
                )
            )
    say = "One point per learning rate: geometric mean over seeds across, mean score up."
    columns = min(3, max(1, len(panels)))
    return Drawing(
        "Score over movement", tuple(panels), (say, _SEEDS), columns=columns, width=DOUBLE
    )


def _moved(found: Comparisons, label: str, key: Movement) -> list[tuple[float, list[float]]]:
    """An arm's points, by how far they moved."""
    points = []
    for rate in found.cells[label]:
        scores, moved = found.at(label, rate), moved_by_seed(found, label, rate, key)
        if scores and moved:
            points.append((middle(moved), [*map(float, scores.values())]))
    return sorted(points)


def all_drawings(found: Comparisons) -> dict[str, Drawing]:
    """All of them that have something to show, by the name of their file."""
    drawn = {"tuned": tuned(found), "rates": rates(found), "curves": curves(found),
             "movement": movement(found)}  # fmt: skip
    return {
        name: one for name, one in drawn.items()
        if any(isinstance(panel, Panel) and panel.series for panel in one.panels)
    }  # fmt: skip
