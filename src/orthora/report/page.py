"""What finished runs show, as a terminal table and as one self-contained HTML page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from orthora.evaluations import EVAL_COLUMNS, EvalView, load_evaluations
from orthora.figures import CHARTS, chart_html, legend_html
from orthora.figures.html import table_html
from orthora.figures.source import collect
from orthora.findings import findings
from orthora.report.measured import error_text, geometry_html, scores_html
from orthora.report.notes import EVAL_NOTES, NOTES
from orthora.report.style import style_sheet
from orthora.runs import COLUMNS, RunView, Table, flatten, join_names, load_runs, summary_rows
from orthora.store import write_atomic


def print_table(runs: Sequence[RunView], evaluations: Sequence[EvalView] = ()) -> None:
    """Prints the summary as tables in the terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    if not console.is_terminal:  # a log has no width; 80 columns would cut the numbers
        console = Console(width=max(console.width, 160))
    for columns, rows in ((COLUMNS, summary_rows(runs)), (EVAL_COLUMNS, evaluations)):
        if rows:
            table = RichTable(*(name for name, _ in columns))
            for cells in _cells(columns, rows):
                table.add_row(*map(Text, cells))
            console.print(table)


def _cells(columns: Sequence[tuple[str, Any]], rows: Sequence[Any]) -> list[list[str]]:
    """The cells of a table."""
    return [[cell(row) for _, cell in columns] for row in rows]


def write_report(
    runs_folder: Path | str, out_path: Path | str, *, title: str, date: str | None = None
) -> Path:
    """Writes one self-contained HTML page about the runs, all of it or nothing.

    Args:
        runs_folder: folder of run folders.
        out_path: the page to write; its folder is made where missing.
        title: heading of the page.
        date: date on the page; today in UTC by default.

    Raises:
        ValueError: if there is neither run nor evaluation, or a file is corrupt.
    """
    runs, out = load_runs(runs_folder), Path(out_path)
    evaluations = load_evaluations(runs_folder)
    if not runs and not evaluations:
        raise ValueError(
            f"{runs_folder} holds no */result.json and no scores.json; give the folder of the runs"
        )
    sections = _run_sections(runs, Path(runs_folder))
    if evaluations:
        place = min(2, len(sections))  # after the summary
        sections[place:place] = [("Evaluations", _evaluations_html(evaluations))]
    page = page_of(sections, title, date or datetime.now(UTC).date().isoformat())
    return write_atomic(out, page)


def _pairs(table: Table) -> str:
    """A definition list out of a mapping."""
    if not table:
        return '<p class="soft">Not recorded.</p>'
    items = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in table.items()
    )
    return f'<div class="box"><dl class="grid">{items}</dl></div>'


def _evaluations_html(evaluations: Sequence[EvalView]) -> str:
    head, rows = [name for name, _ in EVAL_COLUMNS], _cells(EVAL_COLUMNS, evaluations)
    return f"{table_html(head, rows, _EVALUATIONS, 'Evaluations')}\n{_pairs(EVAL_NOTES)}"


_SUMMARY = "One row per run. Brackets: interval; clear: the intervals do not overlap."
_EVALUATIONS = "One row per evaluation folder. Brackets: 95 % interval over problems."


def _charts_html(runs: Sequence[RunView]) -> str:
    drawn = [run for run in runs if run.metrics]
    if not drawn:
        return '<p class="soft">No run recorded a training step.</p>'
    missing = [run.label for run in runs if not run.metrics]
    note = (
        f'<p class="soft">No steps recorded: {escape(join_names(missing))}.</p>' if missing else ""
    )
    smooth = max(1, max(len(run.metrics) for run in drawn) // 12)
    charts = "\n".join(_chart_html(drawn, chart, smooth) for chart in CHARTS)
    return f'{note}<ul class="legend">{legend_html(drawn)}</ul>\n<div class="charts">{charts}</div>'


def _chart_html(runs: Sequence[RunView], chart: tuple[str, str, str, bool], smooth: int) -> str:
    """A chart, or the reason why it can't be drawn."""
    try:
        return chart_html(runs, *chart, smooth)
    except Exception as error:  # one chart must not cost the page
        why = f"{chart[1]} can't be drawn: {error_text(error)}"
        return f'<p class="soft">{escape(why)}</p>'


def _run_html(run: RunView) -> str:
    parts = (
        ("Result", flatten(run.result)), ("Config", run.config), ("Environment", run.environment)
    )  # fmt: skip
    tables = "".join(f"<h3>{name}</h3>{_pairs(table)}" for name, table in parts)
    status = escape(f"{run.label} — {run.result['status']}, folder {run.folder}")
    return f"<details><summary>{status}</summary>{tables}</details>"


def _run_sections(runs: Sequence[RunView], folder: Path) -> list[tuple[str, str]]:
    """Headings and bodies on training runs."""
    if not runs:
        return []
    configs = [run.config for run in runs if run.config]
    shared = {
        key: value
        for key, value in (configs[0] if configs else {}).items()
        if all(config.get(key) == value for config in configs)
    }
    methods = dict.fromkeys(run.method for run in runs)
    counts = Counter(run.result["status"] for run in runs)
    what = f"{len(runs)} runs ({', '.join(f'{n} {status}' for status, n in counts.items())}) of "
    what += f"{join_names(methods)}. Settings that all recorded configurations share:"
    head, cells = [name for name, _ in COLUMNS], _cells(COLUMNS, summary_rows(runs))
    table = collect([folder], training=False)
    return [
        ("Findings", _list(findings(runs))),
        ("Summary", table_html(head, cells, _SUMMARY, "Summary table")),
        ("Scores", scores_html(table)),
        ("Training curves", _charts_html(runs)),
        ("Geometry", geometry_html(table, str(folder))),
        ("What was run", f'<p class="prose">{escape(what)}</p>{_pairs(shared)}'),
        ("How the numbers are defined", _pairs(NOTES)),
        ("Runs in detail", "\n".join(map(_run_html, runs))),
    ]


def page_of(sections: Sequence[tuple[str, str]], title: str, date: str) -> str:
    """A self-contained page.

    Args:
        sections: headings and bodies, in HTML.
        title: heading of the page.
        date: on the page.
    """
    main = "\n".join(f"<section><h2>{name}</h2>\n{body}</section>" for name, body in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style_sheet()}</style></head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">'
        f'<time datetime="{escape(date)}">{escape(date)}</time></p></header>\n'
        f"<main>\n{main}\n</main>\n</body>\n</html>\n"
    )


def _list(texts: Iterable[str]) -> str:
    return '<ul class="prose">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
