"""Figures and tables to files."""

from pathlib import Path

from orthora.figures.panels import Drawing
from orthora.figures.style import PAPER
from orthora.figures.tables import TextTable
from orthora.store import replacing, write_atomic


def save(shown: Drawing | TextTable, path: Path) -> list[Path]:
    """Write a figure as PDF, SVG or PNG, or a table as Markdown, CSV or LaTeX.

    A PDF gets a PNG of 300 dots per inch beside it.

    Args:
        shown: from `draw`.
        path: its ending says the format.

    Returns:
        What was written. Equal figures give equal bytes.

    Raises:
        ValueError: for an ending that is none of them.
    """
    check_ending(isinstance(shown, TextTable), path)
    if isinstance(shown, TextTable):
        write = {".md": shown.markdown, ".csv": shown.csv, ".tex": shown.latex}[path.suffix]
        return [write_atomic(path, write())]
    from matplotlib import rc_context

    fixed = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {"Software": None}}
    paths = [path, path.with_suffix(".png")] if path.suffix == ".pdf" else [path]
    for place in paths:
        with rc_context(PAPER), replacing(place) as temporary:
            shown.figure().savefig(
                temporary, format=place.suffix[1:], dpi=300, metadata=fixed[place.suffix]
            )
    return paths


def check_ending(is_table: bool, path: Path) -> None:
    """The format can be told from the name.

    Raises:
        ValueError: if it can't.
    """
    endings = (".md", ".csv", ".tex") if is_table else (".pdf", ".svg", ".png")
    if path.suffix not in endings:
        what = "table" if is_table else "figure"
        raise ValueError(f"{path} has none of a {what}'s endings: {', '.join(endings)}")
