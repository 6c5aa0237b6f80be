"""What finished runs show, as a terminal table and as one self-contained HTML page."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from orthora.evaluations import EVAL_COLUMNS, EvalView, load_evaluations
from orthora.figures import CHARTS, chart_html, legend_html
from orthora.findings import findings
from orthora.runs import COLUMNS, RunView, Table, flatten, join_names, load_runs, summary_rows

_CSS = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5a626d;--back:#f6f7f9;--card:#fff;
--rule:#d9dde3}
@media (prefers-color-scheme:dark){
:root{--ink:#e7eaee;--soft:#a5adb8;--back:#14171b;--card:#1e2228;--rule:#383f48}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
header,main{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:32px}main{padding-bottom:48px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.2rem 0 .7rem}
p,li,dd{overflow-wrap:anywhere}.soft,caption,figcaption,dt{color:var(--soft)}
.prose{max-width:78ch}.prose li{margin:.35rem 0}.prose{padding-left:1.2rem}p.prose{padding-left:0}
.box{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.7rem .65rem .4rem;font-size:.88rem}
caption span{display:inline-block;position:sticky;left:.65rem;max-width:calc(100vw - 60px)}
th,td{padding:.45rem .65rem;text-align:left;border-top:1px solid var(--rule);white-space:nowrap}
thead th{font-weight:600;color:var(--soft)}tbody th{font-weight:600}
dl.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:.5rem 1.5rem;
margin:0;padding:.9rem;font-size:.9rem}dl.grid dt{font-size:.82rem}dl.grid dd{margin:0}
dl.grid dt,dl.grid dd{overflow-wrap:anywhere}
.legend{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;
margin:0 0 14px;padding:.5rem .8rem;list-style:none;background:#fff;color:#1d2126;
border:1px solid var(--rule);border-radius:10px;font-size:.88rem}
.legend li{display:flex;align-items:center;gap:.4rem}.legend svg{width:46px;height:15px;flex:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:14px}
figure{margin:0;padding:10px 10px 8px;background:#fff;border:1px solid var(--rule);
border-radius:10px;break-inside:avoid}
figure svg{display:block;width:100%;height:auto}
figure text{font-family:system-ui,sans-serif!important}
figcaption{font-size:.8rem;color:#5a626d;padding:2px 4px}
details{margin:.5rem 0}summary{cursor:pointer;padding:.4rem 0}
h3{font-size:1rem;margin:.8rem 0 .4rem}
@media (max-width:700px){header,main{padding-left:12px;padding-right:12px}h1{font-size:1.5rem}
dl.grid{grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:.4rem 1rem}
.charts{grid-template-columns:minmax(0,1fr)}
.legend{font-size:.78rem;gap:0 .7rem;padding:.35rem .5rem}
figure{padding:6px 4px}th,td{padding:.4rem .6rem}
tbody th{position:sticky;left:0;background:var(--card)}}
@media print{@page{margin:12mm}:root{--ink:#000;--soft:#444;--back:#fff;--card:#fff;--rule:#bbb}
body{font-size:10.5pt}header,main{padding:0;max-width:none}.legend{position:static}
.box{overflow:visible}table{font-size:7.6pt}th,td{padding:3px 4px;white-space:normal}
.charts{grid-template-columns:1fr 1fr;gap:8px}.legend,.box:not(:has(dl)){break-inside:avoid}
dl.grid{grid-template-columns:repeat(3,1fr);padding:.5rem}.legend{break-after:avoid}
h2{margin:1.2rem 0 .4rem}.prose{max-width:none}.prose li{margin:.1rem 0}details{margin:0}
tr,li,dl.grid>div{break-inside:avoid}h2,h3,summary{break-after:avoid}}
"""

_NOTES = {
    "KL": "On the tokens of the rollouts, in nats per token. KL per update: rollout policy to "
    "updated policy, estimator k3; the table has the mean over the run. KL to base: rollout "
    "policy, so before the step's updates, to the base model, estimator k1 (few unlikely tokens "
    "make k3 leap there); the table has the mean over the last ten steps.",
    "Held-out pass@1": "Mean share of correct samples over held-out problems, after training.",
    "Interval": "Bootstrap over the held-out problems. It says how much the choice of problems "
    "moves the number, and nothing of the training seed.",
    "Clear": "The two intervals, as printed, do not overlap. This is a cautious rule: a difference "
    "that is not clear may still be real.",
    "Peak grad norm": "The largest gradient norm of the run.",
    "Seconds": "Wall time of the run.",
    "Reward and pass rate in the charts": "On the training rollouts of each step, not held-out.",
}
_EVAL_NOTES = {
    "Pass@1": "Mean over problems of the share of correct samples (mean@n), with a 95 % bootstrap "
    "interval over problems.",
    "Pass@k": "Unbiased, for k as large as there are samples.",
    "No answer": "Responses in which the verifier found no answer, cut at the limit or not.",
    "No score": "Samples whose sandbox failed; they count neither as right nor as wrong.",
    "Rules differ on": "Samples that the rule that counts and dapo (or robust) judge differently.",
    "In training data": "Problems found in the training data: word for word, by half of their word "
    "10-grams, or by their opening.",
}


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
    page = _page(runs, evaluations, title, date or datetime.now(UTC).date().isoformat())
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(out)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return out


def _pairs(table: Table) -> str:
    """A definition list out of a mapping."""
    if not table:
        return '<p class="soft">Not recorded.</p>'
    items = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in table.items()
    )
    return f'<div class="box"><dl class="grid">{items}</dl></div>'


def _table_html(
    columns: Sequence[tuple[str, Any]], rows: Sequence[Any], caption: str, label: str
) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in columns)
    body = ""
    for first, *rest in _cells(columns, rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n'
    return (
        f'<div class="box" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<caption><span>{caption}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


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
    charts = "\n".join(chart_html(drawn, *chart, smooth) for chart in CHARTS)
    return f'{note}<ul class="legend">{legend_html(drawn)}</ul>\n<div class="charts">{charts}</div>'


def _run_html(run: RunView) -> str:
    parts = (
        ("Result", flatten(run.result)), ("Config", run.config), ("Environment", run.environment)
    )  # fmt: skip
    tables = "".join(f"<h3>{name}</h3>{_pairs(table)}" for name, table in parts)
    status = escape(f"{run.label} — {run.result['status']}, folder {run.folder}")
    return f"<details><summary>{status}</summary>{tables}</details>"


def _run_sections(runs: Sequence[RunView]) -> list[tuple[str, str]]:
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
    summary = _table_html(COLUMNS, summary_rows(runs), _SUMMARY, "Summary table")
    return [
        ("Findings", _list(findings(runs))),
        ("Summary", summary),
        ("Training curves", _charts_html(runs)),
        ("What was run", f'<p class="prose">{escape(what)}</p>{_pairs(shared)}'),
        ("How the numbers are defined", _pairs(_NOTES)),
        ("Runs in detail", "\n".join(map(_run_html, runs))),
    ]


def _page(runs: Sequence[RunView], evaluations: Sequence[EvalView], title: str, date: str) -> str:
    sections = _run_sections(runs)
    if evaluations:
        table = _table_html(EVAL_COLUMNS, evaluations, _EVALUATIONS, "Evaluations")
        place = min(2, len(sections))  # after the summary
        sections[place:place] = [("Evaluations", f"{table}\n{_pairs(_EVAL_NOTES)}")]
    main = "\n".join(f"<section><h2>{name}</h2>\n{body}</section>" for name, body in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">'
        f'<time datetime="{escape(date)}">{escape(date)}</time></p></header>\n'
        f"<main>\n{main}\n</main>\n</body>\n</html>\n"
    )


def _list(texts: Iterable[str]) -> str:
    return '<ul class="prose">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
