"""The findings that are committed: the page says what the verdicts say, and they follow from the
committed result tables."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import pytest

from orthora.runs import rate_text
from orthora.study import load_study, plan
from orthora.study.arms import arms_of
from orthora.study.claims import verdicts
from orthora.study.compare import Comparisons
from orthora.study.results import BASE, Record, Results, exact

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("docs/findings/*/verdicts.json"))
NUMBERS = ("kl_update", "kl_base", "first_norm", "peak_grad", "end_pass_rate")


def results_of(folder: Path) -> Results:
    """A study's results out of its committed table."""
    spec = load_study(ROOT / "studies" / f"{folder.name}.toml")
    cells = plan(spec)
    arms = arms_of(spec, cells)
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    first = rows.pop(BASE)
    names = [name.partition("/")[2] for name in first if name.startswith("pass_at_1/")]
    records = []
    for cell in cells:
        row = rows.pop(cell.name)
        assert row["hash"] == cell.hash
        scores = {n: exact(float(s)) for n in names if (s := row[f"pass_at_1/{n}"])}
        numbers = {key: float(row[key]) if row[key] else None for key in NUMBERS}
        records.append(Record(
            cell, arms[cell.name], row["state"], None, row["by_training"] == "True", None,
            scores, numbers, (), None, None,
        ))  # fmt: skip
    assert not rows
    assert all(isinstance(score, Fraction) for one in records for score in one.scores.values())
    base = {name: float(first[f"pass_at_1/{name}"]) for name in names}
    return Results(spec, records, {"tiny": base})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_verdicts_follow_from_the_committed_results(folder):
    kept = json.loads((folder / "verdicts.json").read_text())
    found = verdicts(Comparisons(results_of(folder)))
    assert [(one.claim.says, one.ruling) for one in found] == [
        (one["claim"], one["verdict"]) for one in kept
    ]
    assert [list(one.numbers) for one in found] == [one["numbers"] for one in kept]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_says_what_the_verdicts_say(folder):
    page = (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for one in json.loads((folder / "verdicts.json").read_text()):
        wanted = f"| {one['claim']} | **{one['verdict']}** |"
        assert any(line.startswith(wanted) and folder.name in line for line in rows), wanted


def steering_table(found: Comparisons) -> list[str]:
    """The rows of the table in docs/adaptive-kl.md: each method swept and under adaptive-kl."""
    rows = [
        "| method | best fixed rate | pass@1 there | under adaptive-kl | difference (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label in found.fixed:
        (one,) = found.family([(f"{label}, adaptive-kl", label)], "tuned")
        fixed, steered = (
            float(sum(found.tuned[name].scores.values()) / len(found.tuned[name].scores))
            for name in (label, f"{label}, adaptive-kl")
        )
        low, mean, high = one.plain.low, one.plain.mean, one.plain.high
        rate = rate_text(found.tuned[label].rate)
        rows.append(
            f"| `{label}` | {rate} | {fixed:.3f} | {steered:.3f} | "
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f}) |"
        )
    return rows


def test_the_page_on_adaptive_kl_has_the_numbers_of_the_study():
    found = Comparisons(results_of(ROOT / "docs/findings/adaptive-kl-tiny"))
    page = (ROOT / "docs/adaptive-kl.md").read_text(encoding="utf-8")
    begin, end = "<!-- study-adaptive-kl -->\n", "\n<!-- /study-adaptive-kl -->"
    table = page.partition(begin)[2].partition(end)[0]
    assert table.splitlines() == steering_table(found)


def test_there_are_findings():
    assert {"paper-table1-tiny", "paper-ablation-orthonormal-tiny", "paper-lr-tiny"} <= {
        folder.name for folder in FOLDERS
    }
