"""What a figure shows, as values: panels of series with their numbers, and its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orthora.figures.style import SINGLE, Style
from orthora.runs import rate_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """One line of a chart, or its points.

    Attributes:
        label: what it stands for.
        style: how it is drawn.
        x: places, rising.
        y: values; NaN leaves a gap.
        low: lower bounds of the band, empty where there is none.
        high: upper bounds.
        listed: whether the legend has it.
    """

    label: str
    style: Style
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    listed: bool = True


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: heading.
        xlabel: name and unit of the horizontal axis.
        ylabel: name and unit of the vertical axis.
        series: what is drawn.
        log: logarithmic values; those that are not positive are not drawn.
        log_x: logarithmic places.
        whole: the places are whole numbers.
        levels: reference values with their names, drawn across.
        bars: draw bounds as bars at the points, not as a band.
        diagonal: name of a reference line from (0, 0) to (1, 1).
        categories: names of the places 0, 1, ..., which then run down, with values to the right.
    """

    title: str
    xlabel: str
    ylabel: str
    series: tuple[Series, ...]
    log: bool = False
    log_x: bool = False
    whole: bool = False
    levels: tuple[tuple[float, str], ...] = ()
    bars: bool = False
    diagonal: str = ""
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heat:
    """One heat map: a value by layer and module type.

    Attributes:
        title: heading.
        ylabel: name and unit of the value.
        layers: names of the columns.
        modules: names of the rows.
        values: by row and column; NaN where there is none.
        bounds: of the colours, the same on all maps of a figure.
    """

    title: str
    ylabel: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    values: tuple[Numbers, ...]
    bounds: tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A figure: its panels, and what its caption must say.

    Attributes:
        title: of the whole.
        panels: charts or heat maps.
        caption: sentences.
        columns: panels side by side.
        width: inches in print.
    """

    title: str
    panels: tuple[Panel | Heat, ...]
    caption: tuple[str, ...] = ()
    columns: int = 1
    width: float = SINGLE

    def figure(self) -> Figure:
        """The figure as it is printed."""
        from orthora.figures.render import render

        return render(self.panels, columns=self.columns, width=self.width)

    @property
    def text(self) -> str:
        """The caption."""
        return " ".join(self.caption)

    def not_drawn(self) -> list[str]:
        """Sentences on values that can't be drawn, if there are any."""
        charts = [panel for panel in self.panels if isinstance(panel, Panel)]
        values = [(y, panel.log) for panel in charts for one in panel.series for y in one.y]
        broken = sum(not math.isfinite(y) for y, _ in values)
        low = sum(y <= 0 and log for y, log in values)
        texts = [f"Not drawn: values that are not finite ({broken})."] if broken else []
        if low:
            texts.append(f"Not drawn: zero or negative values on a logarithmic axis ({low}).")
        return texts


def number(value: float) -> str:
    """A number as captions and tables have it: four digits, or a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e+")


def place_text(value: float) -> str:
    """A place on an axis: small ones as learning rates are written."""
    return rate_text(value) if 0 < abs(value) < 0.01 else f"{value:.6g}"


def with_interval(value: float, low: float, high: float) -> str:
    """A number with its bounds."""
    return f"{number(value)} [{number(low)}, {number(high)}]"


def gist(panel: Panel | Heat) -> str:
    """The numbers of a panel in a few words, as the text alternative of its picture."""
    if isinstance(panel, Heat):
        return _heat_gist(panel)
    ends = []
    for series in (one for one in panel.series if one.listed):
        if panel.categories:
            ends += [
                f"{panel.categories[round(x)]} {cell}"
                for x, cell in zip(series.x, cells_of(series), strict=True)
            ]
        else:
            ends.append(f"{series.label} {number(_last(series.y))}")
    what = "Values" if panel.categories else f"Lines over {panel.xlabel}. Last values"
    levels = "".join(f" {name}: {number(value)}." for value, name in panel.levels)
    return f"{panel.title}, {panel.ylabel}. {what}: {'; '.join(ends) or 'none'}.{levels}"


def _heat_gist(panel: Heat) -> str:
    known = [
        (value, f"layer {layer} {module}")
        for module, row in zip(panel.modules, panel.values, strict=True)
        for layer, value in zip(panel.layers, row, strict=True)
        if math.isfinite(value)
    ]
    if not known:
        return f"{panel.title}, heat map of {panel.ylabel} by layer and module. No values."
    low, high = min(known), max(known)
    return (
        f"{panel.title}, heat map of {panel.ylabel} by layer and module. "
        f"Largest {number(high[0])} at {high[1]}, smallest {number(low[0])} at {low[1]}."
    )


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


def cells_of(series: Series) -> list[str]:
    """Values of a series as text, with their bounds where it has them."""
    if not series.low:
        return [number(value) for value in series.y]
    return [
        with_interval(y, low, high) if math.isfinite(low + high) else number(y)
        for y, low, high in zip(series.y, series.low, series.high, strict=True)
    ]


def numbers_of(panel: Panel | Heat) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that holds what a panel draws."""
    if isinstance(panel, Heat):
        rows = [
            [module, *map(number, values)]
            for module, values in zip(panel.modules, panel.values, strict=True)
        ]
        return ["module", *(f"layer {layer}" for layer in panel.layers)], rows
    if panel.categories:
        cells = {
            panel.categories[round(x)]: cell
            for series in panel.series
            for x, cell in zip(series.x, cells_of(series), strict=True)
        }
        return ["", panel.ylabel], [[name, cells.get(name, "–")] for name in panel.categories]
    columns = [dict(zip(one.x, cells_of(one), strict=True)) for one in panel.series]
    places = sorted({x for one in panel.series for x in one.x})
    rows = [[place_text(x), *(column.get(x, "–") for column in columns)] for x in places]
    return [panel.xlabel, *(one.label for one in panel.series)], rows
