"""``orthora figure``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from orthora.figures.catalogue import draw, entry_of, rows_of_catalogue
from orthora.figures.files import check_ending, save
from orthora.figures.source import collect
from orthora.figures.tables import TextTable


@dataclass(frozen=True)
class FigureOptions:
    """Draw a figure or a table from runs. ``orthora figure list`` says which there are.

    Figures need training logs, held-out scores, or the tables that `orthora measure` leaves in run
    folders, the folder above them or the one that all of them lie in. Seeds of one setting are
    drawn as their mean with an interval.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Of the figure or table, or list."""
    runs: Annotated[list[Path], tyro.conf.Positional] = field(default_factory=list)
    """Run folders, or folders of run folders; for init-cost, folders of orthora init."""
    table: list[Path] = field(default_factory=list)
    """Further tables of orthora measure."""
    out: Path | None = None
    """File to write. A figure: .pdf (with a .png beside it), .svg or .png, NAME.pdf if left out; a
    table: .md, .csv or .tex, besides the terminal."""


def run_figure(arguments: Sequence[str]) -> None:
    """Draw, and say what was written.

    Args:
        arguments: of the command line, without the command's name.

    Raises:
        ValueError: naming what is wrong or missing, and the remedy.
    """
    options = tyro.cli(FigureOptions, args=arguments, prog="orthora figure")
    if options.name == "list":
        _list()
        return
    entry = entry_of(options.name)
    is_table = entry.kind == "table"
    out = options.out or (None if is_table else Path(f"{entry.name}.pdf"))
    if out is not None:
        check_ending(is_table, out)
    if not options.runs and not options.table:
        raise ValueError(f"{entry.kind} {entry.name!r} needs runs; give their folders, or --table")
    table = collect(options.runs, options.table)
    shown = draw(entry.name, table, " ".join(map(str, options.runs)) or "RUN...")
    if isinstance(shown, TextTable):
        _print(shown)
    else:
        print(shown.text)
    if out is not None:
        print("\n".join(map(str, save(shown, out))))


def _print(shown: TextTable) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console()
    table = Table(*shown.head, title=Text(shown.title), title_justify="left")
    for row in shown.rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(Text(shown.text))


def _list() -> None:
    from rich.table import Table

    table = Table("name", "shows", "from", "arXiv 2606.31813")
    for row in rows_of_catalogue():
        table.add_row(*row)
    _console().print(table)
    print(
        "The last column says which figure or table of the paper it corresponds to, where that is "
        "known;\nthe others are by content. fig3, fig7, fig9, table1, table4, table6 and table7 "
        "are names too."
    )


def _console() -> Console:
    """Stdout; wide where it is a file, as 80 columns would cut the numbers."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))
