"""A study's results out of the table that its report wrote, where the runs themselves are gone."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from orthora.study.arms import Arm, arms_of
from orthora.study.plan import Cell, plan
from orthora.study.results import (
    BASE,
    NUMBERS,
    SCORE,
    Record,
    Results,
    exact,
    missing,
    with_means,
)
from orthora.study.spec import StudySpec

_STATES = {"finished": False, "failed": False, "missing": True}
_TRUTHS = {"True": True, "False": False}

Row = Mapping[str, str]


def read_table(spec: StudySpec, file: Path, more: Sequence[Path] = ()) -> Results:
    """What `orthora.study.results.rows_of` wrote, as results again.

    Scores come back exactly, and with them every table of scores and every verdict. Not in the
    table, and so not in the results: rewards by step, run times, numbers of parameters, reasons of
    failures. Cells that the study has and the table has not are missing. A table does not say how
    runs were scored either: that an evaluation is the same as then is for its reader to know.

    Args:
        spec: the study that the table is of; its grid may have grown since.
        file: ``results.csv``.
        more: tables, of other studies too, out of which cells are filled in that ``file`` has not;
            the first that has one counts.

    Raises:
        ValueError: naming the file, and what is wrong, if it is no such table or another study's,
            if one of ``more`` scores the base model differently, or if the study has several base
            models, whose scores a table does not keep apart.
    """
    found = _read(spec, file)
    for other in more:
        theirs = _read(spec, other, whole=False)
        if theirs.bases != found.bases:
            raise ValueError(
                f"the base model scores {theirs.base} in {other} and {found.base} in {file}; give "
                "tables of one model and one evaluation"
            )
        both = zip(found.records, theirs.records, strict=True)
        records = [b if a.state == "missing" else a for a, b in both]
        found = replace(found, records=records)
    return found


def _read(spec: StudySpec, file: Path, whole: bool = True) -> Results:
    """Out of one table, all of it or only the cells that the study has."""
    cells = plan(spec)
    models = list(dict.fromkeys(cell.settings["model"] for cell in cells))
    if len(models) > 1:
        raise ValueError(
            f"{spec.name} has {len(models)} base models, whose scores {file} does not keep apart; "
            "make the report from the runs"
        )
    base, rows = _rows(spec, file)
    arms = arms_of(spec, cells)
    records = []
    for cell in cells:
        row = rows.pop(cell.hash, None)
        try:
            records.append(_record(spec, cell, arms[cell.name], row))
        except ValueError as error:
            raise ValueError(f"{file}: {cell.name}: {error}") from error
    if rows and whole:
        name = next(iter(rows.values()))["cell"]
        raise ValueError(
            f"{file} has {name!r}, which is no cell of {spec.name}; give the table and the study "
            "of one version"
        )
    try:
        scores = {name: float(score) for name, score in _scores(spec, base).items()}
    except ValueError as error:
        raise ValueError(f"{file}: {BASE}: {error}") from error
    return Results(spec, records, {models[0]: scores})


def _rows(spec: StudySpec, file: Path) -> tuple[Row, dict[str, Row]]:
    """The row of the base model, and the others by hash.

    Raises:
        ValueError: if it is no table of results.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            rows: list[Row] = list(csv.DictReader(handle, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} is no table of results: {error}") from error
    if not rows:
        raise ValueError(f"{file} is empty; give it the results.csv of a report")
    first, *rest = rows
    needed = ["cell", "hash", "state", "by_training", "scored_step", *NUMBERS]
    needed += [f"{SCORE}{name}" for name in spec.evaluations]
    for name in needed:
        if name not in first:
            raise ValueError(f"{file} has no column {name!r}; give it the results.csv of a report")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"{file}: line {number} has not as many fields as the first")
    if first["cell"] != BASE:
        raise ValueError(f"{file} begins with {first['cell']!r}, not with the {BASE}")
    found = {row["hash"]: row for row in rest}
    if len(found) < len(rest):
        raise ValueError(f"{file} has a cell twice")
    return first, found


def _record(spec: StudySpec, cell: Cell, arm: Arm, row: Row | None) -> Record:
    """One cell.

    Raises:
        ValueError: if a field is not what it should be.
    """
    if row is None or _one_of(_STATES, row, "state"):
        return missing(cell, arm)
    if row["cell"] != cell.name:
        raise ValueError(f"the row with its hash is called {row['cell']!r}")
    step = row["scored_step"]
    if step and not step.isdecimal():
        raise ValueError(f"scored_step {step!r} is no number of steps")
    return Record(
        cell=cell,
        arm=arm,
        state=row["state"],
        reason=None,
        by_training=_one_of(_TRUTHS, row, "by_training"),
        step=int(step) if step else None,
        scores=_scores(spec, row),
        numbers={name: _number(row, name) for name in NUMBERS},
        pass_rates=(),
        seconds=None,
        parameters=None,
    )


def _one_of(known: Mapping[str, bool], row: Row, key: str) -> bool:
    """What a word stands for.

    Raises:
        ValueError: if it is none of the known ones.
    """
    if row[key] not in known:
        raise ValueError(f"{key} {row[key]!r} is none of {', '.join(known)}")
    return known[row[key]]


def _number(row: Row, key: str) -> float | None:
    """A finite number; None where there is none.

    Raises:
        ValueError: if it is another text.
    """
    try:
        value = float(row[key]) if row[key] else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{key} {row[key]!r} is no finite number")
    return value


def _scores(spec: StudySpec, row: Row) -> dict[str, Fraction]:
    """Pass@1 by evaluation, exact, with the means that the study asks for.

    Raises:
        ValueError: if one is no share.
    """
    found = {}
    for name in spec.evaluations:
        score = _number(row, f"{SCORE}{name}")
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"{SCORE}{name} {score:g} is no share")
        if score is not None:
            found[name] = exact(score)
    return with_means(spec, found)
