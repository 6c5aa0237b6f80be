"""How figures look: colours, markers and lines by method and setting, sizes and fonts."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

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
OTHER_MARKERS = ("d", "H", "8", "o", "s", "^", "v", "D")
BASE_STYLE = Style("#30343b", (0, (4, 2)), "")
"""Of the base model and of chance."""

INK, GRID = "#30343b", "#dfe3e8"
SINGLE, DOUBLE = 3.3, 6.8
"""Widths in inches: a column, and both columns of a paper."""

_BOTH: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "orthora",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],
}
SCREEN: dict[Any, Any] = _BOTH | {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "legend.fontsize": 10,
}
"""Settings of matplotlib for a page."""
PAPER: dict[Any, Any] = _BOTH | {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
"""Settings of matplotlib for print."""


def setting_key(setting: str) -> tuple[bool, float, str]:
    """Sorts settings: fixed learning rates from the highest, then the others.

    Args:
        setting: e.g. ``1e-3``, ``1e-3, rank 8`` or ``adaptive-kl 2e-3 from 1e-3``.
    """
    found = re.match(r"[\d.]+(e[+-]?\d+)?", setting)
    return (found is None, -float(found.group()) if found else 0.0, setting)


def styles_of(groups: Iterable[tuple[str, str, str]]) -> dict[str, Style]:
    """Styles of groups that are drawn together, no two of them alike.

    Colour and marker say the method, the line says the setting. Methods without a colour of their
    own are grey, with markers that differ.

    Args:
        groups: label, method and setting of each.
    """
    groups = list(groups)
    settings = sorted({setting for _, _, setting in groups}, key=setting_key)
    unknown = sorted({method for _, method, _ in groups if method not in METHOD_COLOURS})
    styles: dict[str, Style] = {}
    for label, method, setting in groups:
        style = METHOD_COLOURS.get(method, DEFAULT_STYLE)
        if method in unknown:
            marker = OTHER_MARKERS[unknown.index(method) % len(OTHER_MARKERS)]
            style = replace(style, marker=marker)
        lines = (style.line, *RATE_LINES)
        place = settings.index(setting)
        tries = [replace(style, line=lines[(place + k) % len(lines)]) for k in range(len(lines))]
        styles[label] = next((one for one in tries if one not in styles.values()), tries[0])
    return styles


def layer_colour(place: float) -> str:
    """Colour of a layer, from blue at the first to orange at the last.

    All are between 3:1 against white and 3:1 against the dark page.

    Args:
        place: of the layer, from 0 to 1.
    """
    first, last = (0x1F, 0x78, 0xC8), (0xC8, 0x68, 0x00)
    return "#" + "".join(
        f"{round(a + (b - a) * place):02x}" for a, b in zip(first, last, strict=True)
    )
