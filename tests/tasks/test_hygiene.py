"""Repeated and contradictory problems: by hand, and the figures of DAPO-Math-17k."""

import json
from pathlib import Path

import pytest

from orthora.tasks import audit, load_task
from orthora.tasks.hygiene import cleaned
from orthora.tasks.statements import AFTER, BEFORE, statement
from orthora.types import Problem

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "dapo_math_17k"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data is not beside this checkout")

ROWS = [
    Problem("What is 1 + 1?", "2", "a"),
    Problem("What is  1 + 1?\n", "02", "b"),  # the same, gold as well
    Problem([{"role": "user", "content": "What is\t1 + 1?"}], "2", "c"),
    Problem("What is 2 + 2?", "4", "d"),
    Problem(f"{BEFORE}What is 2 + 2?{AFTER}", "5", "e"),  # contradicts
    Problem("What is 2 + 2?", "4", "f"),
    Problem("what is 1 + 1?", "2", "g"),  # another problem: blanks alone are looked through
]


def test_an_audit_by_hand():
    found = audit(ROWS)
    assert (found.rows, found.unique, found.surplus) == (7, 3, 3)
    assert found.duplicates == (("a", "b", "c"), ("d", "f"))
    assert found.contradictions == (("d", "e", "f"),)


@pytest.mark.parametrize(
    ("drop", "left"),
    [
        ((), "abcdefg"),
        (("duplicates",), "adeg"),
        ("duplicates", "adeg"),
        (("contradictions",), "abcg"),
        (("contradictions", "duplicates"), "ag"),
    ],
)
def test_what_dropping_leaves(drop, left):
    assert "".join(p.id for p in cleaned(ROWS, drop)) == left


def test_dropping_everything_is_refused():
    with pytest.raises(ValueError, match="dropping contradictions leaves no problem"):
        cleaned(ROWS[3:5], ("contradictions",))


@needs_data
@pytest.mark.slow
def test_the_figures_of_dapo_math_17k():
    file = str(DATA / "dapo_math_17k.parquet")
    problems = load_task("dapo-math", file)
    found = audit(problems)
    assert (found.rows, found.unique, len(found.contradictions)) == (17_917, 17_188, 12)
    assert (len(found.duplicates), found.surplus) == (680, 717)
    by_id = {p.id: p for p in problems}
    listed = [json.loads(row) for row in (DATA / "conflicts.jsonl").read_text().splitlines()]
    told = {(" ".join(row["problem"].split()), *sorted(row["answers"])) for row in listed}
    assert told == {
        (
            " ".join(statement(by_id[group[0]]).split()),
            *sorted({by_id[row].answer for row in group}),
        )
        for group in found.contradictions
    }
    assert len(load_task("dapo-math", file, drop=("duplicates",))) == 17_200
    left = load_task("dapo-math", file, drop=("duplicates", "contradictions"))
    assert len(left) == 17_188 - 12
    assert audit(left).duplicates == audit(left).contradictions == ()
