"""Panels -> matplotlib figure. Only this package imports matplotlib, inside its functions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orthora.figures.axes import dress, log_places
from orthora.figures.panels import Heat, Panel, Series
from orthora.figures.style import BASE_STYLE, INK, PAPER, SCREEN, SINGLE, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOM = 0.6
"""Share of the lines' range that the vertical axis leaves for bands that reach beyond."""
_SHADES = 48
"""Colours of a heat map; from 50 on, matplotlib draws the colour bar as a bitmap."""


def render(
    panels: Sequence[Panel | Heat],
    *,
    columns: int = 1,
    width: float = SINGLE,
    screen: bool = False,
    legend: bool = True,
) -> Figure:
    """Draw panels side by side and below each other.

    Args:
        panels: what to draw.
        columns: panels in a row.
        width: inches in print.
        screen: draw for a page: larger, with larger type.
        legend: add a legend below.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    across = 5.2 * columns if screen else width
    lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(map(_height, line)) for line in lines]
    with rc_context(SCREEN if screen else PAPER):
        names = _legend_names(panels) if legend else []
        per_row = max(1, int(across * 72 / (max(map(len, names), default=1) * 4.3 + 34)))
        down = sum(heights) * (1.55 if screen else 1.0) + math.ceil(len(names) / per_row) * 0.16
        figure = Figure(figsize=(across, down), layout="constrained", facecolor="white")
        axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
        for place, one in zip(axes.flat, panels, strict=False):
            if isinstance(one, Heat):
                _draw_heat(place, one)
            else:
                _draw_panel(place, one, screen)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        if names:
            _legend(figure, axes.flat, per_row)
    return figure


def _height(panel: Panel | Heat) -> float:
    """Inches of a panel in print."""
    if isinstance(panel, Heat):
        return 0.85 + 0.135 * len(panel.modules)
    if panel.categories:
        return 0.75 + 0.2 * sum(name.count("\n") + 1 for name in map(_wrapped, panel.categories))
    return 2.1


def _wrapped(name: str) -> str:
    """A long name in two lines."""
    return textwrap.fill(name, max(16, len(name) // 2 + 3), break_on_hyphens=False)


def _legend_names(panels: Sequence[Panel | Heat]) -> list[str]:
    names: dict[str, None] = {}
    for panel in panels:
        if isinstance(panel, Panel) and not panel.categories:
            names |= dict.fromkeys(one.label for one in panel.series if one.listed)
        if isinstance(panel, Panel):
            names |= dict.fromkeys(name for _, name in panel.levels)
            names |= {panel.diagonal: None} if panel.diagonal else {}
    return list(names)


def _legend(figure: Figure, axes: Any, per_row: int) -> None:
    handles: dict[str, Any] = {}
    for place in axes:
        handles |= dict(zip(*reversed(place.get_legend_handles_labels()), strict=True)) | handles
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=per_row,
        frameon=False, handlelength=2.4, columnspacing=1.2, borderaxespad=0.2, labelcolor=INK,
    )  # fmt: skip


def _draw_panel(axes: Axes, panel: Panel, screen: bool) -> None:
    size = (1.9, 6.0) if screen else (1.1, 3.6)
    for place, series in enumerate(panel.series):
        if panel.categories:
            _draw_dots(axes, series, panel.log, size)
        else:
            _draw_line(axes, series, panel, size, place)
    for value, name in panel.levels:
        across = axes.axvline if panel.categories else axes.axhline
        across(value, color=BASE_STYLE.colour, ls=BASE_STYLE.line, lw=0.6 * size[0], label=name)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color=BASE_STYLE.colour, ls=BASE_STYLE.line, lw=0.6 * size[0],
                  label=panel.diagonal)  # fmt: skip
    drawn = any(math.isfinite(y) for one in panel.series for y in drawable(one.y, panel.log))
    if not drawn:
        low = any(math.isfinite(y) for one in panel.series for y in one.y)
        text = "no value above zero" if low else "no values recorded"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
    elif not panel.categories:
        _limit(axes, panel)
    if panel.categories:
        _categories(axes, panel)
    dress(axes, panel.title, panel.ylabel, panel.log and drawn, xlabel=panel.xlabel,
          whole=panel.whole, sideways=bool(panel.categories),
          pad=3 if not screen else None)  # fmt: skip
    if panel.log_x and panel.series:
        log_places(axes, panel)


def _draw_line(
    axes: Axes, series: Series, panel: Panel, size: tuple[float, float], place: int
) -> None:
    style, (width, marker) = series.style, size
    ys = drawable(series.y, panel.log)
    label = series.label if series.listed else "_" + series.label
    every = max(1, len(ys) // 6) if len(ys) > 12 else 1
    offset = every * place // len(panel.series) if every > 1 else 0
    axes.plot(
        series.x, ys, color=style.colour, ls=style.line, lw=width, label=label,
        marker=style.marker, ms=marker, mec="white", mew=0.1 * marker, markevery=(offset, every),
    )  # fmt: skip
    points = sum(map(math.isfinite, ys))
    if series.low and (panel.bars or points == 1):
        for x, low, high in zip(series.x, series.low, series.high, strict=True):
            axes.plot([x, x], [low, high], color=style.colour, lw=0.7 * width, alpha=0.7)
    elif series.low:
        low, high = drawable(series.low, panel.log), drawable(series.high, panel.log)
        if panel.log:  # a band that reaches zero goes to the foot of the chart
            low = [1e-300 if math.isnan(a) and b > 0 else a for a, b in zip(low, high, strict=True)]
        axes.fill_between(series.x, low, high, color=style.colour, alpha=0.15, lw=0)


def _draw_dots(axes: Axes, series: Series, log: bool, size: tuple[float, float]) -> None:
    style, ys = series.style, drawable(series.y, log)
    if series.low:
        for x, low, high in zip(series.x, series.low, series.high, strict=True):
            axes.plot([low, high], [x, x], color=style.colour, lw=size[0], solid_capstyle="butt")
    axes.plot(ys, series.x, color=style.colour, ls="", marker=style.marker, ms=1.5 * size[1],
              mec="white", mew=0.5)  # fmt: skip


def _categories(axes: Axes, panel: Panel) -> None:
    axes.set_yticks(range(len(panel.categories)), list(map(_wrapped, panel.categories)))
    axes.set_ylim(len(panel.categories) - 0.4, -0.6)


def _limit(axes: Axes, panel: Panel) -> None:
    """Keep the lines readable where bands reach far beyond them."""
    ys = [y for series in panel.series for y in drawable(series.y, panel.log) if math.isfinite(y)]
    ys += [level for level, _ in panel.levels if math.isfinite(level)]
    ys += [0.0, 1.0] if panel.diagonal else []
    ys = [math.log10(y) for y in ys if y > 0] if panel.log else ys
    wide = bounds(panel)
    low, high = min(ys), max(ys)
    room = (high - low or abs(high) or 1.0) * _ROOM
    low, high = max(low - room, min(wide[0], low)), min(high + room, max(wide[1], high))
    margin = 0.05 * (high - low or abs(high) or 1.0)
    low, high = low - margin, high + margin
    if panel.log:
        low, high = 10.0 ** max(low, -300), 10.0 ** min(high, 300)
    if math.isfinite(high - low):
        axes.set_ylim(low, high)


def bounds(panel: Panel) -> tuple[float, float]:
    """Lowest and highest bound of what is drawn, in powers of ten on a logarithmic axis."""
    found = [
        bound
        for series in panel.series
        for y, *ends in zip(drawable(series.y, panel.log), series.low, series.high, strict=False)
        for bound in ends
        if math.isfinite(y) and not math.isnan(bound)
    ]
    if panel.log:
        found = [math.log10(bound) if bound > 0 else -math.inf for bound in found]
    return (min(found), max(found)) if found else (math.inf, -math.inf)


def drawable(values: Sequence[float], log: bool) -> list[float]:
    """Values with NaN for those that can't be drawn."""
    return [v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in values]


def _draw_heat(axes: Axes, heat: Heat) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    low, high = heat.bounds
    spread = low > 0 and high / low > 30
    norm = (LogNorm if spread else Normalize)(low, high if high > low else low + 1)
    axes.set_facecolor("#b4b4b4")
    colours = colormaps["cividis"].resampled(_SHADES)
    mesh = axes.pcolormesh(heat.values, cmap=colours, norm=norm)
    axes.set_yticks([i + 0.5 for i in range(len(heat.modules))], heat.modules)
    every = max(1, math.ceil(len(heat.layers) / 7))
    axes.set_xticks(
        [i + 0.5 for i in range(0, len(heat.layers), every)], list(heat.layers[::every])
    )
    axes.invert_yaxis()
    axes.set_xlabel("layer", color=INK)
    axes.set_title(heat.title, loc="left", fontweight="bold", color=INK)
    axes.tick_params(colors=INK, length=0)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=12)
    bar.set_label(heat.ylabel, color=INK)
    bar.ax.tick_params(colors=INK, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def swatch(style: Style) -> Figure:
    """Draws the short piece of line that stands for a style in a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.72, 0.24), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set(xlim=(0, 2), ylim=(-1, 1), xticks=[], yticks=[])
    axes.plot([0.1, 1, 1.9], [0, 0, 0], color=style.colour, ls=style.line, lw=2)
    axes.plot([1], [0], color=style.colour, marker=style.marker, ms=7, mec="white", mew=0.6)
    return figure
