"""Tables of results that are read back: the same results, or a clear word."""

import csv
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from study_data import TEST

from orthora.study import StudySpec, plan
from orthora.study.arms import arms_of
from orthora.study.claims import verdicts
from orthora.study.command import run_command
from orthora.study.compare import Comparisons
from orthora.study.report import report_study, write_report
from orthora.study.reread import read_table
from orthora.study.results import NUMBERS, Record, Results, as_csv, rows_of, with_means

CLAIM = {"says": "rlpo is better", "kind": "better", "methods": ["rlpo"]}


def study(**changes) -> StudySpec:
    """Two methods at three rates, five seeds."""
    table = {
        "name": "read-back",
        "base": "tiny",
        "grid": [{"method": ["lora", "rlpo"], "learning_rate": [3e-4, 1e-3, 3e-3],
                  "seed": [0, 1, 2, 3, 4]}],
        "evaluations": {"validation": TEST | {"data_split": "validation"}, "test": TEST},
        "select": "validation",
        "report": "test",
        "claims": [CLAIM],
    }  # fmt: skip
    return StudySpec(**(table | changes))


def results(spec: StudySpec, seed: int = 0) -> Results:
    """Scores out of 1024 by chance; some cells failed, one has no number but its scores."""
    chance = np.random.default_rng(seed)
    cells = plan(spec)
    arms = arms_of(spec, cells)
    records = []
    for place, cell in enumerate(cells):
        state = ("missing", "failed", "failed")[place] if place < 3 else "finished"
        scored = state == "finished" or place == 2  # the other failure has none
        scores = {name: Fraction(int(chance.integers(1025)), 1024) for name in spec.evaluations}
        numbers = dict.fromkeys(NUMBERS)
        if place > 3:
            numbers |= {name: float(chance.normal()) for name in NUMBERS}
        scores, step = (with_means(spec, scores), 60) if scored else ({}, None)
        itself = state == "failed" and scored
        records.append(Record(
            cell, arms[cell.name], state, None, itself, step, scores, numbers, (), None, None,
        ))  # fmt: skip
    base = with_means(spec, dict.fromkeys(spec.evaluations, Fraction(13, 32)))
    return Results(spec, records, {"tiny": {name: float(score) for name, score in base.items()}})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "changes", [{}, {"report": ["validation", "test"], "select": None}], ids=["one", "a mean"]
)
def test_a_table_reads_back_as_what_was_written(changes, seed, tmp_path):
    spec = study(**changes)
    found = results(spec, seed)
    file = tmp_path / "results.csv"
    file.write_text(as_csv(rows_of(found)))
    again = read_table(spec, file)
    assert list(again.records) == list(found.records)  # scores are equal as fractions
    assert again.base == found.base
    assert as_csv(rows_of(again)) == file.read_text()
    assert verdicts(Comparisons(again)) == verdicts(Comparisons(found))


def test_cells_that_the_grid_has_gained_are_missing(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(as_csv(rows_of(results(study()))))
    grid = [{"method": ["lora", "rlpo", "rlmo"], "learning_rate": [3e-4, 1e-3, 3e-3],
             "seed": [0, 1, 2, 3, 4]}]  # fmt: skip
    grown = read_table(study(grid=grid), file)
    assert grown.states() == {"finished": 27, "failed": 2, "missing": 16}
    assert {one.state for one in grown.records if one.cell.method == "rlmo"} == {"missing"}


def test_cells_of_other_studies_fill_in_what_a_table_has_not(tmp_path):
    whole = results(study())
    wide = study(name="wide", grid=[{"method": ["lora", "pissa"], "learning_rate": [1e-3, 3e-3],
                                     "seed": [0, 1, 2, 3, 4, 5]}])  # fmt: skip
    other = results(wide, seed=1)
    own, first, second = (tmp_path / f"{name}.csv" for name in ("own", "first", "second"))
    part = [one for one in whole.records if one.cell.method == "rlpo"]
    own.write_text(as_csv(rows_of(replace(whole, records=part))))
    first.write_text(as_csv(rows_of(other)))
    second.write_text(as_csv(rows_of(whole)))
    found = {one.cell.name: one for one in read_table(study(), own, [first, second]).records}
    theirs = {one.cell.name: one for one in other.records if one.state != "missing"}
    for one in whole.records:
        kept = one if one.cell.method == "rlpo" else theirs.get(one.cell.name, one)
        assert found[one.cell.name].scores == kept.scores
        assert found[one.cell.name].state == kept.state
    assert any(name in theirs for name in found)
    assert len(found) == 30
    with pytest.raises(ValueError, match=r"first.csv has 'pissa.*no cell of read-back"):
        read_table(study(), first)


def test_tables_that_score_the_base_model_differently_are_kept_apart(tmp_path):
    whole = results(study())
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text(as_csv(rows_of(whole)))
    moved = {name: score + 0.25 for name, score in whole.base.items()}
    other.write_text(as_csv(rows_of(replace(whole, bases={"tiny": moved}))))
    with pytest.raises(
        ValueError, match=r"the base model scores .* in .*other.csv and .* in .*one"
    ):
        read_table(study(), one, [other])


def test_a_report_out_of_a_table_leaves_out_what_a_table_does_not_say(tmp_path):
    spec = study()
    first = write_report(results(spec), tmp_path / "first")
    second = report_study(spec, tmp_path / "second", table=[first.folder / "results.csv"])
    names = {path.name for path in second.folder.iterdir()}
    assert names == {path.name for path in first.folder.iterdir()}  # there were no runs either
    assert not names & {"costs.md", "equal-steps.md", "curves.svg"}
    for name in names - {"report.html"}:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    failures = (second.folder / "failures.md").read_text()
    assert "| lora | 1 missing | not run yet | – |" in failures
    assert failures.count("| failed | – |") == 2


def test_the_command_makes_a_report_out_of_a_table(tmp_path, capsys):
    table = tmp_path / "results.csv"
    table.write_text(as_csv(rows_of(results(study()))))
    file = tmp_path / "study.toml"
    file.write_text(
        'name = "read-back"\nbase = "tiny"\nselect = "validation"\nreport = "test"\n'
        '[[grid]]\nmethod = ["lora", "rlpo"]\nlearning_rate = [3e-4, 1e-3, 3e-3]\n'
        "seed = [0, 1, 2, 3, 4]\n"
        '[evaluations.validation]\ntask = "arithmetic"\nproblems = 256\nsamples = 4\n'
        'data_split = "validation"\n'
        '[evaluations.test]\ntask = "arithmetic"\nproblems = 256\nsamples = 4\n'
        '[[claims]]\nsays = "rlpo is better"\nkind = "better"\nmethods = ["rlpo"]\n'
    )
    out = tmp_path / "page"
    run_command(["report", str(file), "--table", str(table), "--out", str(out)])
    assert "rlpo is better" in capsys.readouterr().out
    assert (out / "results.csv").read_bytes() == table.read_bytes()
    assert "30 runs" in (out / "report.html").read_text()


def lines(change: Callable[[list[list[str]]], None]) -> Callable[[str], str]:
    """A change of the table's fields, as one of its text."""

    def changed(text: str) -> str:
        rows = list(csv.reader(text.splitlines()))
        change(rows)
        return "".join(",".join(row) + "\n" for row in rows)

    return changed


def at(row: int, column: str, value: str) -> Callable[[str], str]:
    """A table with another value in one place."""

    def put(rows: list[list[str]]) -> None:
        rows[row][rows[0].index(column)] = value

    return lines(put)


BAD = {
    "empty": (lambda text: "", "is empty"),
    "a head alone": (lambda text: text.splitlines()[0], "is empty"),
    "another file": (lambda text: "a,b\n1,2\n", "no column 'cell'"),
    "without an evaluation": (lambda text: text.replace("/test", "/else"), "'pass_at_1/test'"),
    "without the base model": (lines(lambda rows: rows.pop(1)), "begins with 'lora-3e-4"),
    "a short line": (lines(lambda rows: rows[4].pop()), "line 5 has not as many fields"),
    "a short base": (lines(lambda rows: rows[1].pop()), "line 2 has not as many fields"),
    "a base's score": (at(1, "pass_at_1/test", "x"), "base model: pass_at_1/test 'x' is no finite"),
    "another name": (at(9, "cell", "lora"), "the row with its hash is called 'lora'"),
    "steps below 0": (at(9, "scored_step", "-5"), "scored_step '-5' is no number of steps"),
    "an endless norm": (at(9, "peak_grad", "inf"), "peak_grad 'inf' is no finite number"),
    "a long line": (lines(lambda rows: rows[4].append("1")), "line 5 has not as many fields"),
    "twice": (lines(lambda rows: rows.append(rows[-1])), "has a cell twice"),
    "another cell": (at(9, "hash", "f" * 16), "which is no cell of read-back"),
    "a state": (at(9, "state", "done"), "state 'done' is none of finished, failed, missing"),
    "a truth": (at(9, "by_training", "maybe"), "by_training 'maybe' is none of"),
    "a score": (at(9, "pass_at_1/test", "half"), "pass_at_1/test 'half' is no finite number"),
    "no number": (at(9, "pass_at_1/test", "nan"), "pass_at_1/test 'nan' is no finite number"),
    "a share": (at(9, "pass_at_1/test", "1.5"), "pass_at_1/test 1.5 is no share"),
    "a step": (at(9, "scored_step", "x"), "scored_step 'x' is no number of steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_told_in_one_line(name, tmp_path):
    change, says = BAD[name]
    file = tmp_path / "results.csv"
    file.write_text(change(as_csv(rows_of(results(study())))))
    with pytest.raises(ValueError, match=r".") as caught:
        read_table(study(), file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_base_models_are_not_kept_apart_in_a_table(tmp_path):
    grid = [{"model": ["tiny", "other"], "method": "lora", "seed": [0, 1]}]
    with pytest.raises(ValueError, match=r"has 2 base models.*make the report from the runs"):
        read_table(study(grid=grid, claims=[]), tmp_path / "results.csv")


def test_a_mark_of_the_byte_order_is_no_column(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(as_csv(rows_of(results(study()))), encoding="utf-8-sig")
    assert read_table(study(), file).states()["finished"] == 27


def test_a_report_out_of_a_table_needs_a_folder_of_its_own(tmp_path):
    """In the study's folder it would keep runs out, or replace what runs have said."""
    file = tmp_path / "results.csv"
    file.write_text(as_csv(rows_of(results(study()))))
    spec = study(out=str(tmp_path / "study"))
    with pytest.raises(ValueError, match="give --out"):
        report_study(spec, table=[file])
    assert not spec.folder.exists()


def test_what_is_no_text_or_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"is no table of results: .*No such file"):
        read_table(study(), tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"is no table of results: .*directory"):
        read_table(study(), tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="is no table of results"):
        read_table(study(), tmp_path / "binary")


def test_a_table_in_which_nothing_has_ended_makes_no_report(tmp_path):
    file: Path = tmp_path / "results.csv"
    text = as_csv(rows_of(results(study())))
    file.write_text("".join(line + "\n" for line in text.splitlines()[:3]))  # the missing cell
    with pytest.raises(ValueError, match=r"no cell of .*results\.csv has ended yet"):
        report_study(study(), tmp_path / "out", table=[file])
