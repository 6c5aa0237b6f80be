"""The findings that are committed: the page says what the verdicts say, and they follow from the
committed result tables."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from orthora.runs import rate_text
from orthora.study import load_study
from orthora.study.claims import verdicts
from orthora.study.compare import Comparisons
from orthora.study.estimates import FEWEST, estimate
from orthora.study.report import write_report
from orthora.study.reread import read_table
from orthora.study.results import Results

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("docs/findings/*/verdicts.json"))
SETTINGS = {60: "adaptive-kl-settings-tiny", 120: "adaptive-kl-settings-120-tiny"}
"""Studies whose claims are columns of a table; see `settings_table`."""
BySeed = Mapping[int, Fraction]


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


@pytest.mark.parametrize(
    "folder",
    [folder for folder in FOLDERS if folder.name not in SETTINGS.values()],
    ids=lambda folder: folder.name,
)
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


def settings_table() -> list[str]:
    """The rows of the table in docs/adaptive-kl.md: every setting, after 60 and after 120 steps.

    Over the seeds for which all methods have what is compared; the best of four is picked by the
    seeds that have all four. An interval from three seeds on.
    """
    rows = [
        "| steps | target | from | mean | less 3e-4 for all | less 1e-3 for all | "
        "less each method's best of four | lowest run's share of it | as good as each sweep |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for steps, name in SETTINGS.items():
        found = Comparisons(results_of(ROOT / "docs/findings" / name))
        by_rate = {rate: [found.at(m, rate) for m in found.fixed] for rate in found.rates}
        best = _best_of_all(found, _whole(*by_rate.values()))
        settings = itertools.product(("2e-3", "1e-3"), ("3e-5", "3e-4", "3e-3"))
        for (target, first), verdict in zip(settings, verdicts(found), strict=True):
            assert verdict.claim.says.startswith(f"From {first} with a target of {target}, ")
            word = "" if target == "2e-3" else "kl_target 1e-3, "
            mine = [
                found.tuned[f"{m}, {word}adaptive-kl, from {first}"].scores for m in found.fixed
            ]
            cells = [_together(mine, "")]
            cells += [_together(mine, "+", than) for than in (by_rate[3e-4], by_rate[1e-3], best)]
            cells += [_lowest(mine, best), verdict.ruling]
            rows.append(f"| {steps} | {target} | {first} | {' | '.join(cells)} |")
    return rows


def later_table() -> list[str]:
    """The rows of the table in docs/adaptive-kl.md: each method after 120 steps."""
    found = Comparisons(results_of(ROOT / "docs/findings" / SETTINGS[120]))
    rows = [
        "| method | 3e-4 | 1e-3 | under adaptive-kl | less 3e-4 | less 1e-3 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    columns = []
    for method in found.fixed:
        adaptive = found.tuned[f"{method}, adaptive-kl, from 3e-4"].scores
        columns.append((found.at(method, 3e-4), found.at(method, 1e-3), adaptive))
    seeds = _whole(*columns)
    for method, column in zip(found.fixed, columns, strict=True):
        low, high, mine = ({s: one[s] for s in seeds} for one in column)
        cells = [_together([one], "") for one in (low, high, mine)]
        cells += [_together([mine], "+", [than]) for than in (low, high)]
        rows.append(f"| `{method}` | {' | '.join(cells)} |")
    return rows


def _best_of_all(found: Comparisons, seeds: Sequence[int]) -> list[BySeed]:
    """Each method at its best rate, of these seeds alone."""
    records = [one for one in found.results.records if one.cell.seed in seeds]
    whole = Comparisons(replace(found.results, records=records))
    return [whole.tuned[method].scores for method in whole.fixed]


def _lowest(mine: Sequence[BySeed], best: Sequence[BySeed]) -> str:
    """The lowest run over its method's best, on the seeds that both have."""
    seeds = _whole(mine, best)
    shares = [
        float(min(one[s] for s in seeds) / (sum(than[s] for s in seeds) / len(seeds)))
        for one, than in zip(mine, best, strict=True)
    ]
    return f"{min(shares):.2f} of {len(mine) * len(seeds)}"


def _whole(*tables: Sequence[BySeed]) -> list[int]:
    """The seeds that all methods have."""
    return sorted(set.intersection(*({*one} for table in tables for one in table)))


def _together(mine: Sequence[BySeed], sign: str, than: Sequence[BySeed] | None = None) -> str:
    """Mean over methods, or its difference, by seed."""
    seeds = _whole(mine, than or mine)
    values = [sum(one[seed] for one in mine) / len(mine) for seed in seeds]
    if than:
        theirs = [sum(one[seed] for one in than) / len(than) for seed in seeds]
        values = [a - b for a, b in zip(values, theirs, strict=True)]
    found = estimate(values)
    text = f"{found.mean:{sign}.3f}"
    if found.seeds >= FEWEST:
        text += f" ({found.low:{sign}.3f} to {found.high:{sign}.3f})"
    return text if found.seeds == 5 else f"{text}, {found.seeds} seed{'s' * (found.seeds > 1)}"


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


def test_the_page_on_adaptive_kl_has_the_numbers_of_all_settings():
    assert between("adaptive-kl.md", "study-settings") == settings_table()


def test_the_page_on_adaptive_kl_has_each_method_after_120_steps():
    assert between("adaptive-kl.md", "study-later") == later_table()


def test_there_are_findings():
    assert {"paper-table1-tiny", "paper-ablation-orthonormal-tiny", "paper-lr-tiny"} <= {
        folder.name for folder in FOLDERS
    }


def test_the_page_on_the_probe_has_what_matched_rates_would_have_scored(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import predict

    tables = predict.tables(ROOT / "docs")
    assert set(tables) == {"bench-predict-60", "bench-predict-120"}
    for mark, lines in tables.items():
        assert between("probe.md", mark) == lines
