"""What the cells of a study gave, as values."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from orthora.checkpoint import json_object
from orthora.study.alike import unlike
from orthora.study.arms import Arm, arms_of
from orthora.study.folder import Work, base_name, check_owner, evaluations_of, works
from orthora.study.job import evaluation_folder
from orthora.study.plan import Cell, plan
from orthora.study.spec import StudySpec

SCORE = "pass_at_1/"
"""What the columns of scores in a table of results begin with."""
NUMBERS: tuple[str, ...] = ("kl_update", "kl_base", "first_norm", "peak_grad", "end_pass_rate")
"""Of a run, beside its scores."""
_LIMIT = 10**7
_SOLVED = 0.5
"""Share of right answers above which a run without a signal has solved its problems, not failed."""


@dataclass(frozen=True)
class Record:
    """One cell.

    Attributes:
        cell: what was planned.
        arm: what it is compared as.
        state: ``finished``, ``failed``, or ``missing``.
        reason: why it failed, or None.
        by_training: training itself ended it.
        step: training step of what was scored.
        scores: pass@1 by evaluation that is there, exact, of a run that finished or that training
            ended; of one that training ended before a checkpoint, 0, if it did not end with all
            answers right.
        numbers: by the names in `NUMBERS`, where known.
        pass_rates: share of right answers at every training step.
        seconds: of its training.
        parameters: that it trained.
    """

    cell: Cell
    arm: Arm
    state: str
    reason: str | None
    by_training: bool
    step: int | None
    scores: Mapping[str, Fraction]
    numbers: Mapping[str, float | None]
    pass_rates: Sequence[float]
    seconds: float | None
    parameters: int | None


def missing(cell: Cell, arm: Arm) -> Record:
    """A cell that has not ended."""
    nothing = dict.fromkeys(NUMBERS)
    return Record(cell, arm, "missing", None, False, None, {}, nothing, (), None, None)


@dataclass(frozen=True)
class Results:
    """All cells of a study.

    Attributes:
        spec: the study.
        records: in the plan's order.
        bases: pass@1 of every base model by evaluation, as far as it is known, by model.
        unlike: what is not the same in all cells though their settings say so, a line each.
    """

    spec: StudySpec
    records: Sequence[Record]
    bases: Mapping[str, Mapping[str, float]]
    unlike: Sequence[str] = ()

    @property
    def base(self) -> Mapping[str, float]:
        """Pass@1 of the base model by evaluation; of several models, their mean."""
        names = dict.fromkeys(name for scores in self.bases.values() for name in scores)
        found = {name: [one[name] for one in self.bases.values() if name in one] for name in names}
        return {
            name: math.fsum(values) / len(values)
            for name, values in found.items()
            if len(values) == len(self.bases)
        }

    def base_of(self, record: Record) -> float | None:
        """What a run's own base model scores; None where that is not known."""
        return self.bases.get(record.cell.settings["model"], {}).get(self.reported)

    @property
    def evaluations(self) -> list[str]:
        """Names of the scores."""
        return list(self.spec.evaluations)

    @property
    def reported(self) -> str:
        """The score that tables have."""
        return score_name(self.spec.reported())

    @property
    def selected(self) -> str:
        """The score that learning rates are picked by."""
        return score_name(self.spec.selected())

    def states(self) -> dict[str, int]:
        """Number of cells by state."""
        names = ("finished", "failed", "missing")
        return {name: sum(r.state == name for r in self.records) for name in names}


def score_name(evaluations: Sequence[str]) -> str:
    """Of a score that is the mean of some evaluations."""
    return " and ".join(evaluations)


def with_means(spec: StudySpec, scores: dict[str, Fraction]) -> dict[str, Fraction]:
    """Scores, and the means of several that the study asks for, of those that are whole."""
    for names in (spec.reported(), spec.selected()):
        if len(names) > 1 and all(name in scores for name in names):
            mean = sum((scores[name] for name in names), Fraction(0)) / len(names)
            scores = scores | {score_name(names): mean}
    return scores


def load_results(spec: StudySpec) -> Results:
    """Read what there is of a study; cells that have not ended are missing.

    Raises:
        ValueError: a bad study, a folder of another one, or a corrupt file.
    """
    cells = plan(spec)
    check_owner(spec)
    if not spec.folder.is_dir():
        raise ValueError(f"{spec.folder} does not exist; run the study first: orthora study run")
    arms = arms_of(spec, cells)
    found = works(spec, cells)
    records = [_record(spec, work, arms[work.cell.name]) for work in found if work.cell]
    return Results(spec, records, _bases(spec, cells), unlike(found))


def _bases(spec: StudySpec, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Scores of the base models."""
    evaluations = evaluations_of(spec)
    found = {}
    for model in dict.fromkeys(cell.settings["model"] for cell in cells):
        scores = _scores(spec.folder / "runs" / base_name(model), evaluations)
        found[model] = {n: float(score) for n, score in with_means(spec, scores).items()}
    return found


def _scores(run: Path, evaluations: Mapping[str, dict[str, Any]]) -> dict[str, Fraction]:
    """Pass@1 by evaluation, as far as they are there."""
    found = {}
    for name, settings in evaluations.items():
        file = evaluation_folder(run, name, settings) / "scores.json"
        if file.is_file():
            score = json_object(file).get("pass_at_1")
            if not isinstance(score, int | float):
                raise ValueError(f"{file} has no pass_at_1; delete its folder, and run the study")
            found[name] = exact(score)
    return found


def exact(score: float) -> Fraction:
    """A score as the fraction that it was before it was written down."""
    return Fraction(score).limit_denominator(_LIMIT)


def _record(spec: StudySpec, work: Work, arm: Arm) -> Record:
    assert work.cell is not None, "a cell"
    run, ending = work.job.run, work.ending
    result: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    if ending is not None:
        if (run / "result.json").is_file():
            result = json_object(run / "result.json")
        if (run / "metrics.jsonl").is_file():
            rows = _whole_rows(run / "metrics.jsonl")
    rates = [row["pass_rate"] for row in rows if row.get("pass_rate") is not None]
    late = rates[-max(1, len(rates) // 10) :]
    end = math.fsum(late) / len(late) if late else None
    scores: dict[str, Fraction] = {}
    if ending is not None and (ending.scored_step is not None or ending.by_training):
        scores = _scores(run, work.job.evaluations)
        if ending.scored_step is None and (end is None or end < _SOLVED):
            scores = dict.fromkeys(work.job.evaluations, Fraction(0))
        scores = with_means(spec, scores)
    numbers = {
        "kl_update": result.get("mean_kl_update"),
        "kl_base": result.get("kl_base"),
        "first_norm": result.get("first_update_norm"),
        "peak_grad": result.get("peak_grad_norm"),
        "end_pass_rate": end,
    }
    return Record(
        work.cell,
        arm,
        ending.state if ending else "missing",
        ending.reason if ending else None,
        bool(ending and ending.by_training),
        ending.scored_step if ending else None,
        scores,
        numbers,
        rates,
        result.get("seconds"),
        result.get("trained_parameters"),
    )


BASE = "base model"
"""Of the first row of the result table, which has the base model's scores."""


def rows_of(results: Results) -> list[dict[str, Any]]:
    """One row per cell of everything that is the same however often the study was interrupted."""
    rows = []
    base = {f"{SCORE}{name}": results.base.get(name) for name in results.evaluations}
    for one in results.records:
        row: dict[str, Any] = {
            "cell": one.cell.name,
            "hash": one.cell.hash,
            "arm": one.arm.label,
            "method": one.arm.method,
            "learning_rate": one.cell.rate,
            "seed": one.cell.seed,
            "state": one.state,
            "by_training": one.by_training,
            "scored_step": one.step,
        }
        row |= {
            f"{SCORE}{name}": float(one.scores[name]) if name in one.scores else None
            for name in results.evaluations
        }
        rows.append(row | dict(one.numbers))
    return [dict.fromkeys(rows[0]) | {"cell": BASE} | base, *rows] if rows else []


def _whole_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a metrics log but for one that a kill has torn."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            raise ValueError(f"{file} is corrupt: {line[:40]!r} is no row")
        rows.append(row)
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; numbers are written so that they read back to the same bits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
