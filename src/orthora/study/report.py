"""What a study says: tables, figures, verdicts, and one page with all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from orthora.figures.files import save
from orthora.figures.html import drawing_html, text_table_html
from orthora.figures.tables import TextTable
from orthora.methods import compose
from orthora.report import page_of
from orthora.store import write_atomic, write_json
from orthora.study import drawings, tables
from orthora.study.claims import Verdict, verdicts
from orthora.study.compare import Comparisons
from orthora.study.reread import read_table
from orthora.study.results import Results, as_csv, load_results, rows_of
from orthora.study.spec import StudySpec


@dataclass(frozen=True)
class StudyReport:
    """What was found and written.

    Attributes:
        results: of the cells.
        comparisons: of the arms.
        verdicts: of the claims.
        page: the HTML page.
        folder: of the tables and figures.
    """

    results: Results
    comparisons: Comparisons
    verdicts: list[Verdict]
    page: Path
    folder: Path


def report_study(
    spec: StudySpec,
    out: Path | None = None,
    date: str | None = None,
    table: Sequence[Path] = (),
) -> StudyReport:
    """Read what there is of a study and write ``results.csv``, tables, figures and the page.

    All but costs and page is the same, bit for bit, however often the study was interrupted.

    Args:
        spec: the study.
        out: folder to write to; ``report`` in the study's if left out.
        date: on the page; today in UTC if left out.
        table: ``results.csv`` of an earlier report, to read instead of the runs; after it others,
            out of which cells are filled in that it has not.

    Raises:
        ValueError: if there is no cell that has ended, a file is corrupt, or there is a table
            and no folder to write to.
    """
    if table and out is None:
        raise ValueError("give --out: a report out of a table does not go into the study's folder")
    results = read_table(spec, table[0], table[1:]) if table else load_results(spec)
    if not any(one.state != "missing" for one in results.records):
        where = ", ".join(map(str, table or [spec.folder]))
        raise ValueError(f"no cell of {where} has ended yet; orthora study run goes on")
    return write_report(results, out or spec.folder / "report", date)


def write_report(results: Results, folder: Path, date: str | None = None) -> StudyReport:
    """Judge results, and write what `report_study` writes."""
    found = Comparisons(results)
    judged = verdicts(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "results.csv", as_csv(rows_of(results)))
    write_json(folder / "verdicts.json", [_as_json(one) for one in judged])
    texts = tables.all_tables(found)
    if judged:
        texts = {"claims": tables.claims(judged)} | texts
    for name, table in texts.items():
        save(table, folder / f"{name}.md")
    pictures = drawings.all_drawings(found)
    for name, drawing in pictures.items():
        save(drawing, folder / f"{name}.svg")
    today = date or datetime.now(UTC).date().isoformat()
    sections = _sections(found, judged, texts, pictures)
    page = page_of(sections, f"Study {results.spec.name}", today)
    file = write_atomic(folder / "report.html", page)
    return StudyReport(results, found, judged, file, folder)


def _as_json(one: Verdict) -> dict[str, object]:
    return {
        "claim": one.claim.says,
        "source": one.claim.source,
        "verdict": one.ruling,
        "numbers": list(one.numbers),
    }


def _sections(
    found: Comparisons,
    judged: list[Verdict],
    texts: dict[str, TextTable],
    pictures: dict[str, drawings.Drawing],
) -> list[tuple[str, str]]:
    """Headings and bodies of the page."""
    shown = {
        name: f"<h3>{escape(table.title)}</h3>\n{text_table_html(table)}"
        for name, table in texts.items()
    }
    drawn = {name: drawing_html(one, name) for name, one in pictures.items()}
    sections = [("What was asked", _asked(found.results))]
    if judged:
        table = f'<div class="words">{text_table_html(texts["claims"])}</div>'
        sections.append(("Claims", f"{table}\n{_numbers(judged)}"))
    for heading, parts in (
        ("At their own best rates", (drawn.get("tuned"), shown.get("best-rates"))),
        ("At shared rates", (drawn.get("rates"), shown.get("shared-rates"),
                             shown.get("shared-differences"))),
        ("Sensitivity to the learning rate", (shown.get("sensitivity"),)),
        ("Where methods move equally far", (drawn.get("movement"), shown.get("spread"),
                                            shown.get("equal-kl"), shown.get("equal-norm"))),
        ("At equal steps", (drawn.get("curves"), shown.get("equal-steps"))),
        ("Cost", (shown.get("costs"),)),
        ("Cells that did not finish", (shown.get("failures"),)),
    ):  # fmt: skip
        there = [_wide(part) for part in parts if part]
        if there:
            joined = "\n".join(there)
            sections.append((heading, f'<div class="drawings">{joined}</div>'))
    return sections


def _wide(part: str) -> str:
    """A table takes the whole width; a figure knows its own."""
    return part if part.startswith('<div class="drawing') else f'<div class="wide">{part}</div>'


def _asked(results: Results) -> str:
    spec, states = results.spec, results.states()
    itself = sum(record.by_training for record in results.records)
    states = {
        "finished": states["finished"],
        "ended by training itself": itself,
        "failed": states["failed"] - itself,
        "missing": states["missing"],
    }
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    text = f"{len(results.records)} runs: {counts}."
    facts = {
        "Reported score": results.reported,
        "Rates are picked by": results.selected,
        "Reference": spec.reference,
        "Margin of equality": f"{spec.margin:g}",
        "Methods may differ in": ", ".join(spec.differences) or "nothing",
        "Does not take all settings": "; ".join(
            f"{method}: {says}"
            for method in dict.fromkeys(record.cell.method for record in results.records)
            if (says := compose(method).overrides)
        )
        or "none",
        "Left out": "; ".join(str(one["reason"]) for one in spec.exclude) or "nothing",
        "Base model": ", ".join(f"{n} {s:.3f}" for n, s in results.base.items()) or "not scored",
    }
    shared = _shared(results)
    pairs = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in (facts | shared).items()
    )
    warned = "".join(f'<p class="prose"><b>{escape(one)}</b></p>' for one in results.unlike)
    return (
        f'<p class="prose">{escape(spec.about)}</p><p class="prose">{escape(text)}</p>{warned}'
        f'<div class="box"><dl class="grid">{pairs}</dl></div>'
    )


def _shared(results: Results) -> dict[str, object]:
    """Settings that all cells share and that are not defaults."""
    first, *rest = (record.cell for record in results.records)
    return {
        key: value
        for key, value in first.settings.items()
        if all(cell.settings.get(key) == value for cell in rest)
    }


def _numbers(judged: list[Verdict]) -> str:
    """Every verdict with the numbers that it rests on."""
    return "\n".join(
        f"<details><summary>{escape(one.claim.says)} — {escape(one.ruling)}</summary>"
        '<ul class="prose">'
        + "".join(f"<li>{escape(text)}</li>" for text in one.numbers)
        + "</ul></details>"
        for one in judged
    )
