"""Charts of training runs for a page: one line per run, straight from its metrics log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from orthora.figures.axes import dress
from orthora.figures.html import numbers_html, swatch_svg
from orthora.figures.lines import running_mean
from orthora.figures.panels import number
from orthora.figures.render import drawable
from orthora.figures.style import DEFAULT_STYLE, METHOD_COLOURS, RATE_LINES, SCREEN, Style
from orthora.figures.svg import to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orthora.runs import RunView as Run

CHARTS: tuple[tuple[str, str, str, bool], ...] = (
    ("reward", "Reward", "mean reward", False),
    ("pass_rate", "Pass rate on training problems", "share correct", False),
    ("kl_update_k3", "KL per update", "nats per token", True),
    ("kl_base_k1", "KL to the base model", "nats per token", False),
    ("grad_norm", "Gradient norm", "norm", True),
    ("entropy", "Entropy", "nats", False),
    ("length", "Response length", "tokens", False),
    ("lr", "Learning rate", "of the last update", True),
)
"""Quantity, title, vertical axis and whether it is logarithmic, for the charts of a page."""
_ROWS = 24
"""Steps in the table behind a chart."""
_POINTS = 300
"""Values of a line that are drawn; of longer logs, some are left out at equal distances."""


def style_of(run: Run, runs: Sequence[Run]) -> Style:
    """Style of one run among the runs that are drawn together.

    Args:
        run: the run to draw.
        runs: all runs of the page; the place of its learning rate among theirs picks the line.
    """
    style = METHOD_COLOURS.get(run.method, DEFAULT_STYLE)
    rank = sorted({other.setting_order for other in runs}).index(run.setting_order)
    line = RATE_LINES[(rank - 1) % len(RATE_LINES)] if rank else style.line
    return Style(style.colour, line, style.marker)


def points(run: Run, quantity: str) -> tuple[list[float], list[float]]:
    """Steps and values of one quantity, without the steps where it is missing or null."""
    rows = [row for row in run.metrics if row.get(quantity) is not None]
    return [float(row["step"]) for row in rows], [float(row[quantity]) for row in rows]


def curves(
    runs: Sequence[Run],
    quantity: str,
    *,
    title: str,
    ylabel: str,
    log: bool = False,
    smooth: int = 1,
    legend: bool = True,
) -> Figure:
    """Draws one quantity against the training step, one line per run.

    Args:
        runs: the runs; those without a value are left out. A line passes over steps without a
            value and breaks where a value is not finite.
        quantity: key of the metrics rows.
        title: heading of the chart.
        ylabel: name and unit of the vertical axis.
        log: logarithmic vertical axis; values that are not positive are not drawn.
        smooth: window of the running mean in recorded values; above 1, the values themselves
            stay as faint lines.
        legend: whether the chart carries its own legend.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SCREEN):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        drawn = [_draw(axes, run, runs, quantity, log, smooth) for run in runs]
        if not any(drawn):
            axes.text(0.5, 0.5, "no values recorded", ha="center", transform=axes.transAxes)
        dress(axes, title, ylabel, log and any(drawn))
        if legend and any(drawn):
            axes.legend(frameon=False)
    return figure


def legend_html(runs: Sequence[Run]) -> str:
    """The legend that all charts of a page share, as an HTML list."""
    return "".join(
        f"<li>{swatch_svg(style_of(run, runs), run.label, f'legend{i}')}"
        f"<span>{escape(run.label)}</span></li>"
        for i, run in enumerate(runs)
    )


def chart_html(
    runs: Sequence[Run], quantity: str, title: str, ylabel: str, log: bool, smooth: int
) -> str:
    """One chart of a page, with a text alternative and a caption that says what is not drawn."""
    last = []
    hidden = 0
    for run in runs:
        ys = points(run, quantity)[1]
        hidden += sum(not math.isfinite(y) or (log and y <= 0) for y in ys)
        last.append(f"{run.label} {ys[-1]:.3g}" if ys else f"{run.label} not recorded")
    alt = f"Line chart of {title.lower()} by training step. Last values: {'; '.join(last)}."
    figure = curves(
        runs, quantity, title=title, ylabel=ylabel, log=log, smooth=smooth, legend=False
    )
    note = f"Running mean of {smooth} values; faint: each value." if smooth > 1 else "Each value."
    every = math.ceil(max(len(points(run, quantity)[0]) for run in runs) / _POINTS)
    note += f" One value in {every} is drawn." if every > 1 else ""
    if hidden:
        note += f" {hidden} values not drawn: not finite{', zero or negative' if log else ''}."
    svg = to_svg(figure, alt=alt, key=f"chart-{quantity}", themed=True)
    numbers = numbers_html(*_numbers(runs, quantity), title)
    return f"<figure>{svg}<figcaption>{note}</figcaption>{numbers}</figure>"


def _numbers(runs: Sequence[Run], quantity: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table with the values of at most `_ROWS` steps, the last among them."""
    columns = [dict(zip(*points(run, quantity), strict=True)) for run in runs]
    steps = sorted({step for column in columns for step in column})
    kept = steps[::-1][:: math.ceil(len(steps) / _ROWS) or 1][::-1]
    rows = [
        [f"{step:g}", *(number(column[step]) if step in column else "–" for column in columns)]
        for step in kept
    ]
    return ["training step", *(run.label for run in runs)], rows


def _draw(axes: Axes, run: Run, runs: Sequence[Run], quantity: str, log: bool, smooth: int) -> bool:
    """Draws one run and says whether there was anything to draw."""
    xs, raw = points(run, quantity)
    ys = drawable(running_mean(raw, smooth), log)
    if all(math.isnan(y) for y in ys):
        return False
    style = style_of(run, runs)
    thin = slice(None, None, math.ceil(len(xs) / _POINTS))
    xs, raw, ys = xs[thin], raw[thin], ys[thin]
    if smooth > 1:
        axes.plot(xs, drawable(raw, log), color=style.colour, lw=0.7, alpha=0.16)
    every = max(1, len(xs) // 6)
    offset = every * runs.index(run) // len(runs)
    axes.plot(
        xs, ys, color=style.colour, ls=style.line, lw=1.9, label=run.label,
        marker=style.marker, ms=6, mec="white", mew=0.5, markevery=(offset, every),
    )  # fmt: skip
    return True
