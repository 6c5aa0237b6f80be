"""Figures as inline SVG that follows the page's colours."""

from __future__ import annotations

import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING

from orthora.figures.style import DEFAULT_STYLE, GRID, INK, METHOD_COLOURS, SCREEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG_NAMESPACE = "http://www.w3.org/2000/svg"
DARK = "#1e2228"
"""Background of a chart on a dark page."""
_DARKENED = {"#ffffff": DARK, "#000000": "#ffffff", INK: "#e7eaee", GRID: "#383f48"}
_THEMED = (
    *_DARKENED,
    *(style.colour.lower() for style in METHOD_COLOURS.values() if style.colour != "#000000"),
    DEFAULT_STYLE.colour,
)
_COLOUR = re.compile("|".join(_THEMED) + r"\b", re.I)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two hex colours, from 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def on_dark(colour: str) -> str:
    """The colour that stands for a chart's colour on a dark page, at least 4.5:1 against it.

    Args:
        colour: hex colour of a chart.
    """
    colour = colour.lower()
    if colour in _DARKENED:
        return _DARKENED[colour]
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    for share in range(101):
        mixed = "#" + "".join(f"{round(p + (255 - p) * share / 100):02x}" for p in parts)
        if contrast(mixed, DARK) >= 4.5:
            return mixed
    raise AssertionError(f"white is no contrast to {DARK}")


def theme_css() -> str:
    """Style sheet that gives the charts of a page their colours, light and dark."""

    def variables(shade: Callable[[str], str]) -> str:
        return ":root{" + ";".join(f"--c{c[1:].lower()}:{shade(c)}" for c in _THEMED) + "}"

    dark = variables(on_dark)
    return f"{variables(str)}\n@media screen and (prefers-color-scheme:dark){{{dark}}}"


def to_svg(figure: Figure, *, alt: str = "", key: str = "", themed: bool = False) -> str:
    """Renders a figure as an SVG element for a page: real text, the same bytes every time.

    Args:
        figure: the figure.
        alt: text alternative; by default the title of the first axes.
        key: prefix of every id. By default a digest of the picture, so only two equal pictures on
            one page need keys of their own.
        themed: let the colours follow the page: see `theme_css`.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(SCREEN):
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
    if themed:  # black is what matplotlib leaves out
        root.set("style", "fill: #000000")
    svg = ET.tostring(root, encoding="unicode")
    return _COLOUR.sub(lambda found: f"var(--c{found.group()[1:].lower()})", svg) if themed else svg


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
