"""The findings that are committed: the page says what the verdicts say, and they follow from the
committed result tables."""

import json
from pathlib import Path

import pytest

from orthora.runs import rate_text
from orthora.study import load_study
from orthora.study.claims import verdicts
from orthora.study.compare import Comparisons
from orthora.study.report import write_report
from orthora.study.reread import read_table
from orthora.study.results import Results

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("docs/findings/*/verdicts.json"))


def results_of(folder: Path) -> Results:
    """A study's results out of its committed table."""
    spec = load_study(ROOT / "studies" / f"{folder.name}.toml")
    return read_table(spec, folder / "results.csv")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_tables_and_figures_follow_from_the_committed_results(folder, tmp_path):
    """All but what rests on the runs themselves, bit for bit."""
    write_report(results_of(folder), tmp_path)
    made = {path.name for path in tmp_path.iterdir()} - {"report.html", "failures.md"}
    kept = {path.name for path in folder.iterdir()}
    assert kept - made <= {"curves.svg", "costs.md", "equal-steps.md", "failures.md"}
    assert made <= kept
    for name in made:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


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


def _mean(found: Comparisons, label: str) -> float:
    scores = found.tuned[label].scores.values()
    return float(sum(scores) / len(scores))


def _difference(found: Comparisons, label: str, than: str) -> str:
    (one,) = found.family([(label, than)], "tuned")
    return f"{one.plain.mean:+.3f} ({one.plain.low:+.3f} to {one.plain.high:+.3f})"


def steering_table(found: Comparisons) -> list[str]:
    """The rows of the table in docs/adaptive-kl.md: each method swept and under adaptive-kl."""
    rows = [
        "| method | best fixed rate | pass@1 there | under adaptive-kl | difference (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label in found.fixed:
        steered = f"{label}, adaptive-kl"
        rows.append(
            f"| `{label}` | {rate_text(found.tuned[label].rate)} | {_mean(found, label):.3f} | "
            f"{_mean(found, steered):.3f} | {_difference(found, steered, label)} |"
        )
    return rows


def cosine_table(found: Comparisons) -> list[str]:
    """The rows of the table in docs/findings.md: each method at constant rates and with cosine."""
    rows = [
        "| method | best constant rate | pass@1 | best first rate of a cosine | pass@1 | "
        "difference (95 %) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label in (arm.method for arm in found.arms.values() if not arm.rest):
        cosine = f"{label}, cosine"
        rates = [rate_text(found.tuned[one].rate) for one in (label, cosine)]
        rows.append(
            f"| `{label}` | {rates[0]} | {_mean(found, label):.3f} | {rates[1]} | "
            f"{_mean(found, cosine):.3f} | {_difference(found, cosine, label)} |"
        )
    return rows


def between(page: str, mark: str) -> list[str]:
    """The lines between a page's marks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.partition(f"<!-- {mark} -->\n")[2].partition(f"\n<!-- /{mark} -->")[0].splitlines()


def test_the_page_has_the_numbers_of_cosine_runs():
    found = Comparisons(results_of(ROOT / "docs/findings/paper-table1-tiny"))
    assert between("findings.md", "study-cosine") == cosine_table(found)


def test_the_page_on_adaptive_kl_has_the_numbers_of_the_study():
    found = Comparisons(results_of(ROOT / "docs/findings/adaptive-kl-tiny"))
    assert between("adaptive-kl.md", "study-adaptive-kl") == steering_table(found)


def test_there_are_findings():
    assert {"paper-table1-tiny", "paper-ablation-orthonormal-tiny", "paper-lr-tiny"} <= {
        folder.name for folder in FOLDERS
    }
