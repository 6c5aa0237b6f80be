"""Titles, labels, grids and ticks of charts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orthora.figures.panels import Panel, number, place_text
from orthora.figures.style import GRID, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis


def dress(
    axes: Axes,
    title: str,
    ylabel: str,
    log: bool,
    *,
    xlabel: str = "training step",
    whole: bool = True,
    sideways: bool = False,
    pad: float | None = None,
) -> None:
    """Title, labels, grid and ticks.

    Args:
        axes: what to dress.
        title: heading.
        ylabel: of the values.
        log: whether the values are logarithmic.
        xlabel: of the places.
        whole: the places are whole numbers.
        sideways: values run to the right, and the places are named already.
        pad: points between heading and chart.
    """
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontweight="bold", color=INK, pad=pad)
    axes.set_xlabel(ylabel if sideways else xlabel, color=INK)
    if not sideways:
        axes.set_ylabel(ylabel, color=INK)
    if whole and axes.get_xscale() != "log":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if log:
        _log_ticks(axes, sideways)
    axes.grid(color=GRID, lw=0.8, axis="x" if sideways else "both")
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def log_places(axes: Axes, panel: Panel) -> None:
    """Logarithmic axis of the places, with a tick at each of them, or at some.

    Places that are measurements, many and not whole, get round numbers instead.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    places = sorted({x for series in panel.series for x in series.x if 0 < x < math.inf})
    if not places:
        return
    axes.set_xscale("log")
    low, high = places[0] / 1.3, places[-1] * 1.3
    if len(places) <= _NAMED or all(x == int(x) for x in places):
        axes.xaxis.set_major_locator(FixedLocator(places[:: math.ceil(len(places) / 6) or 1]))
    else:
        _round_numbers(axes.xaxis, low, high, most=5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: place_text(x)))
    axes.set_xlim(low, high)


_NAMED = 8
"""Places up to which each is taken for a setting that was chosen."""


def _log_ticks(axes: Axes, sideways: bool = False) -> None:
    """Logarithmic axis of the values with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    (axes.set_xscale if sideways else axes.set_yscale)("log")
    axis = axes.xaxis if sideways else axes.yaxis
    low, high = axes.get_xlim() if sideways else axes.get_ylim()
    if not 0 < low < high < math.inf:
        return
    _round_numbers(axis, low, high, most=7)
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def _round_numbers(axis: XAxis | YAxis, low: float, high: float, most: int) -> None:
    """Ticks at powers of ten, or between them where there are few."""
    from matplotlib.ticker import LogLocator

    decades = math.log10(high) - math.log10(low)
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.5 else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs, numticks=most))
