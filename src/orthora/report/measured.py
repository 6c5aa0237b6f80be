"""Sections of the page on held-out scores and on the geometry of the weights."""

from collections.abc import Sequence
from html import escape

from orthora.figures.catalogue import ENTRIES, Entry, draw, missing
from orthora.figures.html import drawing_html, items_html, text_table_html
from orthora.figures.lines import styles
from orthora.figures.panels import Drawing
from orthora.figures.source import Frame
from orthora.figures.tables import TextTable

_SCORES = ("held-out", "checkpoints", "rate-sweep", "rank-sweep", "scores")
_GEOMETRY = (
    "spectra", "energy-cumulative", "head-energy", "subspace-similarity", "row-alignment",
    "spectral-shift", "angles", "nss", "update-relative", "sparsity", "update-spectra",
    "drift-heatmap", "geometry", "start-norms",
)  # fmt: skip
_NAMED = {entry.name: entry for entry in ENTRIES}


def scores_html(table: Frame) -> str:
    """Held-out scores by method and setting, seeds together.

    Args:
        table: as `orthora.figures.source.collect` gives it.
    """
    drawn = [_NAMED[name] for name in _SCORES if not missing(_NAMED[name], table)]
    if not drawn:
        return '<p class="soft">No run has a held-out score; train with eval_problems > 0.</p>'
    return _grid([_shown(entry, table) for entry in drawn])


def geometry_html(table: Frame, folder: str) -> str:
    """What `orthora measure` found, as figures and tables, or the command that measures.

    Args:
        table: as `orthora.figures.source.collect` gives it.
        folder: of the runs, for that command.
    """
    lacks = {name: missing(_NAMED[name], table, folder) for name in _GEOMETRY}
    names = [name for name, why in lacks.items() if not why]
    if not names:
        command = escape(f"orthora measure {folder}")
        return f'<p class="soft">The weights were not measured. Do it: <code>{command}</code></p>'
    looks = styles(table[table["module"] != ""])
    legend = f'<ul class="legend">{items_html(looks, "geometry")}</ul>'
    parts = [_shown(_NAMED[name], table, list(looks)) for name in names]
    reasons = [why for why in lacks.values() if why]
    rest = "".join(f"<li>{escape(why)}</li>" for why in reasons)
    more = f'<h3>Not drawn</h3>\n<ul class="prose soft">{rest}</ul>' if rest else ""
    return f"{legend}\n{_grid(parts)}\n{more}"


def _grid(parts: Sequence[str]) -> str:
    joined = "\n".join(parts)
    return f'<div class="drawings">{joined}</div>'


def _shown(entry: Entry, table: Frame, listed: Sequence[str] = ()) -> str:
    shown = draw(entry.name, table)
    if isinstance(shown, TextTable):
        heading = f"<h3>{escape(shown.title)}</h3>"
        return f'<div class="wide">{heading}\n{text_table_html(shown)}</div>'
    assert isinstance(shown, Drawing), "the catalogue has no third kind"
    return drawing_html(shown, entry.name, listed)
