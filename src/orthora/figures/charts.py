"""Charts of training runs as matplotlib figures and as inline SVG.

Only this module imports matplotlib, and only inside its functions, so that importing it is cheap.
Colour and marker say the method, line style says the learning rate, on every chart alike.
"""

from __future__ import annotations

import hashlib
import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orthora.runs import RunView as Run

SVG_NAMESPACE = "http://www.w3.org/2000/svg"
Dash = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Style:
    """How the runs of one method are drawn.

    Attributes:
        colour: hex colour, at least 3:1 against white.
        line: line style at the highest learning rate of a chart; lower rates use ``RATE_LINES``.
        marker: matplotlib marker, so that colour is never the only sign.
    """

    colour: str
    line: Dash
    marker: str


# Okabe and Ito's palette; orange, sky blue and pink are darkened to 3:1 against white.
METHOD_COLOURS: Mapping[str, Style] = {
    "lora": Style("#000000", "-", "o"),
    "lora-gaussian": Style("#777777", "-", "D"),
    "pissa": Style("#0072B2", "-", "s"),
    "milora": Style("#C98500", "-", "^"),
    "olora": Style("#009E73", "-", "v"),
    "olora-qr": Style("#117733", "-", "<"),
    "olora-tail": Style("#5E8C00", "-", ">"),
    "rlpo": Style("#D55E00", "-", "P"),
    "rlmo": Style("#C46A9C", "-", "X"),
    "dct": Style("#3A9BD9", "-", "p"),
    "wavelet": Style("#882255", "-", "h"),
    "geora": Style("#8C6D00", "-", "*"),
}
DEFAULT_STYLE = Style("#888888", "-", "d")
RATE_LINES: tuple[Dash, ...] = ((0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (9, 3)))

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

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "orthora",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "legend.fontsize": 10,
}
_INK, _GRID = "#30343b", "#dfe3e8"


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


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the finite values among the last ``window`` ones; NaN where the value itself is not.

    Raises:
        ValueError: if the window is smaller than 1.
    """
    if window < 1:
        raise ValueError(f"smoothing window {window} is smaller than 1; use 1 for no smoothing")
    means = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i + 1 - window) : i + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if math.isfinite(value) else math.nan)
    return means


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

    with rc_context(_RC):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        drawn = [_draw(axes, run, runs, quantity, log, smooth) for run in runs]
        if not any(drawn):
            axes.text(0.5, 0.5, "no values recorded", ha="center", transform=axes.transAxes)
        _dress(axes, title, ylabel, log and any(drawn))
        if legend and any(drawn):
            axes.legend(frameon=False)
    return figure


def swatch(run: Run, runs: Sequence[Run]) -> Figure:
    """Draws the short piece of line that stands for a run in a legend."""
    from matplotlib.figure import Figure

    style = style_of(run, runs)
    figure = Figure(figsize=(0.72, 0.24), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set(xlim=(0, 2), ylim=(-1, 1), xticks=[], yticks=[])
    axes.plot([0.1, 1, 1.9], [0, 0, 0], color=style.colour, ls=style.line, lw=2)
    axes.plot([1], [0], color=style.colour, marker=style.marker, ms=7, mec="white", mew=0.6)
    return figure


def legend_html(runs: Sequence[Run]) -> str:
    """The legend that all charts of a page share, as an HTML list."""
    return "".join(
        f"<li>{to_svg(swatch(run, runs), alt=f'line of {run.label}', key=f'legend{i}')}"
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
    if hidden:
        note += f" {hidden} values not drawn: not finite{', zero or negative' if log else ''}."
    svg = to_svg(figure, alt=alt, key=f"chart-{quantity}")
    return f"<figure>{svg}<figcaption>{note}</figcaption></figure>"


def to_svg(figure: Figure, *, alt: str = "", key: str = "") -> str:
    """Renders a figure as an SVG element for a page: real text, the same bytes every time.

    Args:
        figure: the figure.
        alt: text alternative; by default the title of the first axes.
        key: prefix of every id. By default a digest of the picture, so only two equal pictures on
            one page need keys of their own.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    prefix = f"{key or 'f' + hashlib.sha256(text.encode()).hexdigest()[:10]}-"
    root = ET.fromstring(text)
    for metadata in root.findall(f"{{{SVG_NAMESPACE}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _localise(element, prefix)
    heading = figure.axes[0].get_title(loc="left") if figure.axes else ""
    name = alt or heading or "chart"
    root.attrib |= {"xmlns": SVG_NAMESPACE, "id": f"{prefix}svg", "role": "img", "aria-label": name}
    tooltip = ET.Element("title")
    tooltip.text = heading or name
    root.insert(0, tooltip)
    return ET.tostring(root, encoding="unicode")


def _draw(axes: Axes, run: Run, runs: Sequence[Run], quantity: str, log: bool, smooth: int) -> bool:
    """Draws one run and says whether there was anything to draw."""

    def drawable(values: Sequence[float]) -> list[float]:
        return [v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in values]

    xs, raw = points(run, quantity)
    ys = drawable(running_mean(raw, smooth))
    if all(math.isnan(y) for y in ys):
        return False
    style = style_of(run, runs)
    if smooth > 1:
        axes.plot(xs, drawable(raw), color=style.colour, lw=0.7, alpha=0.16)
    every = max(1, len(xs) // 6)
    offset = every * runs.index(run) // len(runs)
    axes.plot(
        xs, ys, color=style.colour, ls=style.line, lw=1.9, label=run.label,
        marker=style.marker, ms=6, mec="white", mew=0.5, markevery=(offset, every),
    )  # fmt: skip
    return True


def _dress(axes: Axes, title: str, ylabel: str, log: bool) -> None:
    """Title, axes, grid and ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontweight="bold", color=_INK)
    axes.set_xlabel("training step", color=_INK)
    axes.set_ylabel(ylabel, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if log:
        _log_ticks(axes)
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)


def _log_ticks(axes: Axes) -> None:
    """Logarithmic vertical axis with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.5 else tuple(range(1, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _localise(element: ET.Element, prefix: str) -> None:
    """Takes namespaces off an SVG element and gives its ids and references the prefix."""
    element.tag = element.tag.rpartition("}")[2]
    for name, value in list(element.attrib.items()):
        local = name.rpartition("}")[2]
        del element.attrib[name]
        if local == "id":
            value = prefix + value
        elif local == "href":
            value = value.replace("#", f"#{prefix}", 1)
        element.set(local, value.replace("url(#", f"url(#{prefix}"))
    if element.tag == "style" and element.text:  # inline, a bare `*` would reach the whole page
        element.text = element.text.replace("*{", f"#{prefix}svg *{{")
