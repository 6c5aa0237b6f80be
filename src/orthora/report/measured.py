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
    parts, lacks, broken = _sorted(_SCORES, table)
    if len(lacks) == len(_SCORES):
        return '<p class="soft">No run has a held-out score; train with eval_problems > 0.</p>'
    return f"{_grid(parts)}\n{_not_drawn(broken)}".rstrip()


def geometry_html(table: Frame, folder: str) -> str:
    """What `orthora measure` found, as figures and tables, or the command that measures.

    Args:
        table: as `orthora.figures.source.collect` gives it.
        folder: of the runs, for that command.
    """
    looks = styles(table[table["module"] != ""])
    parts, lacks, broken = _sorted(_GEOMETRY, table, folder, list(looks))
    if not (table["module"] != "").any():
        command = escape(f"orthora measure {folder}")
        return f'<p class="soft">The weights were not measured. Do it: <code>{command}</code></p>'
    legend = f'<ul class="legend">{items_html(looks, "geometry")}</ul>'
    return f"{legend}\n{_grid(parts)}\n{_not_drawn([*broken, *lacks])}"


def _sorted(
    names: Sequence[str], table: Frame, folder: str = "RUN...", listed: Sequence[str] = ()
) -> tuple[list[str], list[str], list[str]]:
    """The figures that can be drawn, what the others lack, and what failed while it was drawn."""
    parts, lacks, broken = [], [], []
    for entry in map(_NAMED.__getitem__, names):
        try:
            if why := missing(entry, table, folder):
                lacks.append(why)
            else:
                parts.append(_shown(entry, table, listed))
        except Exception as error:  # one figure must not cost the page
            broken.append(f"{entry.kind} {entry.name!r} can't be drawn: {error_text(error)}")
    return parts, lacks, broken


def error_text(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__} {(str(error).splitlines() or [''])[0]}".strip()


def _not_drawn(reasons: Sequence[str]) -> str:
    rest = "".join(f"<li>{escape(why)}</li>" for why in reasons)
    return f'<h3>Not drawn</h3>\n<ul class="prose soft">{rest}</ul>' if rest else ""


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
