"""Comparisons of a study's arms, against references by hand and against simulated studies."""

import csv
import functools
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from study_data import ADAPTIVE, METHODS, RATES, TEST, Entry, Simulated, compared

import orthora.stats
from orthora.store import write_json
from orthora.study import StudySpec, plan
from orthora.study.compare import Comparisons
from orthora.study.estimates import Estimate, estimate, exchange_p
from orthora.study.folder import base_name, evaluations_of
from orthora.study.job import Ending, evaluation_folder
from orthora.study.paired import Paired
from orthora.study.results import BASE, as_csv, exact, load_results, rows_of

Counts = Mapping[float, Mapping[int, int | None]]
"""Right answers of 1024, by rate and seed."""


def entries(method: str, counts: Counts, **more: Any) -> list[Entry]:
    """An arm's cells; None is a missing score."""
    return [
        Entry(
            method,
            rate,
            seed,
            None if count is None else Fraction(count, 1024),
            state="missing" if count is None else "finished",
            **more,
        )
        for rate, by_seed in counts.items()
        for seed, count in by_seed.items()
    ]


def of_rows(rows: Mapping[float, Sequence[int | None]]) -> Counts:
    """Counts of seeds 0, 1, and so on."""
    return {rate: dict(enumerate(row)) for rate, row in rows.items()}


# Scores


def test_scores_are_recovered_as_the_fractions_that_they_were():
    generator = np.random.default_rng(0)
    for samples in [*range(1, 300), 1024, 4096, 76_800]:
        for count in generator.integers(0, samples + 1, size=5):
            assert exact(float(count / samples)) == Fraction(int(count), samples)
    for problems in (7, 30, 256, 1000):  # a mean over problems of means over samples, in floats
        counts = generator.integers(0, 5, size=problems)
        assert exact(float(np.mean(counts / 4))) == Fraction(int(counts.sum()), 4 * problems)


@pytest.fixture
def folder(tmp_path: Path) -> StudySpec:
    """A study of two cells and two evaluations."""
    return StudySpec(
        name="read",
        base="tiny",
        grid=[{"method": ["lora", "rlpo"], "seed": [3]}],
        evaluations={"validation": TEST | {"data_split": "validation"}, "test": TEST},
        select="validation",
        report="test",
        out=str(tmp_path / "study"),
    )


def keep(
    spec: StudySpec,
    name: str,
    ending: Ending | None,
    scores: Mapping[str, float],
    result: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write what a cell would have left."""
    run = spec.folder / "runs" / name
    run.mkdir(parents=True, exist_ok=True)
    write_json(spec.folder / "study.json", {"name": spec.name})
    if ending is not None:
        write_json(spec.folder / "cells" / name / "cell.json", asdict(ending))
    for key, score in scores.items():
        own = evaluation_folder(run, key, evaluations_of(spec)[key])
        write_json(own / "scores.json", {"pass_at_1": score})
    if result is not None:
        write_json(run / "result.json", result)
    if rows:
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_results_are_what_the_cells_left(folder: StudySpec):
    one, other = plan(folder)
    result = {
        "mean_kl_update": 0.001, "kl_base": 0.02, "first_update_norm": 0.3, "peak_grad_norm": 7.0,
        "seconds": 12.5, "trained_parameters": 999,
    }  # fmt: skip
    rows = [{"step": step, "pass_rate": step / 100} for step in range(1, 31)]
    keep(folder, one.name, Ending("finished", scored_step=50), {"validation": 0.3, "test": 1 / 3},
         result, rows)  # fmt: skip
    keep(
        folder,
        base_name("tiny"),
        Ending("finished", scored_step=0),
        {"validation": 0.1, "test": 0.125},
    )
    found = load_results(folder)
    first, second = found.records
    assert (first.state, first.step, first.by_training) == ("finished", 50, False)
    assert first.scores == {"validation": Fraction(3, 10), "test": Fraction(1, 3)}
    assert first.numbers == {
        "kl_update": 0.001, "kl_base": 0.02, "first_norm": 0.3, "peak_grad": 7.0,
        "end_pass_rate": pytest.approx((0.28 + 0.29 + 0.3) / 3),
    }  # fmt: skip
    assert (first.seconds, first.parameters, len(first.pass_rates)) == (12.5, 999, 30)
    assert (second.cell, second.state, second.scores) == (other, "missing", {})
    assert found.base == {"validation": 0.1, "test": 0.125}
    assert found.states() == {"finished": 1, "failed": 0, "missing": 1}


def test_a_run_that_training_ended_counts_as_0_unless_a_checkpoint_was_scored(folder: StudySpec):
    one, other = plan(folder)
    keep(folder, one.name, Ending("failed", "no signal", by_training=True), {}, {})
    scored = Ending("failed", "the loss is nan", by_training=True, scored_step=20)
    keep(folder, other.name, scored, {"validation": 0.5, "test": 0.25}, {})
    first, second = load_results(folder).records
    assert first.scores == {"validation": 0, "test": 0}
    assert second.scores == {"validation": Fraction(1, 2), "test": Fraction(1, 4)}
    assert second.step == 20


@pytest.mark.parametrize(
    ("rates", "scores"),
    [
        ([0.1] * 20, {"validation": 0, "test": 0}),
        ([0.9] * 18 + [0.4, 0.5], {"validation": 0, "test": 0}),  # the last tenth counts
        ([0.1] * 18 + [0.4, 0.6], {}),  # half is enough
        ([1.0], {}),
    ],
)
def test_a_run_without_a_signal_whose_answers_were_right_has_no_score(folder, rates, scores):
    one, _ = plan(folder)
    rows = [{"step": step, "pass_rate": rate} for step, rate in enumerate(rates, 1)]
    keep(folder, one.name, Ending("failed", "no signal", by_training=True), {}, {}, rows)
    record = load_results(folder).records[0]
    assert record.scores == scores
    assert record.by_training


def test_a_run_whose_answers_were_right_is_scored_at_its_checkpoint(folder: StudySpec):
    one, _ = plan(folder)
    ending = Ending("failed", "no signal", by_training=True, scored_step=20)
    rows = [{"step": 1, "pass_rate": 1.0}]
    keep(folder, one.name, ending, {"validation": 0.5, "test": 0.25}, {}, rows)
    assert load_results(folder).records[0].scores == {"validation": 0.5, "test": 0.25}


@pytest.mark.parametrize("tail", ['{"step": 3, "pass_r', '{"step": 3, "pass_r\n', "\n"])
def test_a_torn_line_of_metrics_is_passed_over(folder: StudySpec, tail: str):
    one, _ = plan(folder)
    rows = [{"step": 1, "pass_rate": 0.25}, {"step": 2, "pass_rate": None}, {"step": 3}]
    keep(folder, one.name, Ending("finished", scored_step=3), {}, {}, rows)
    file = folder.folder / "runs" / one.name / "metrics.jsonl"
    file.write_text(file.read_text() + tail)
    assert load_results(folder).records[0].pass_rates == [0.25]


def test_a_cell_that_has_not_ended_has_nothing_yet(folder: StudySpec):
    one, _ = plan(folder)
    keep(folder, one.name, None, {"test": 0.5}, {"kl_base": 1.0}, [{"step": 1, "pass_rate": 0.5}])
    record = load_results(folder).records[0]
    assert (record.state, record.scores, record.pass_rates) == ("missing", {}, [])
    assert set(record.numbers.values()) == {None}


def test_every_model_has_its_own_base_score(folder: StudySpec, tmp_path: Path):
    other = str(tmp_path / "other")
    spec = folder.model_copy(update={"grid": [{"seed": 0, "model": ["tiny", other]}]})
    for model, score in (("tiny", 0.25), (other, 0.75)):
        ending = Ending("finished", scored_step=0)
        keep(spec, base_name(model), ending, {"validation": score, "test": score})
    found = load_results(spec)
    assert found.bases == {
        "tiny": {"validation": 0.25, "test": 0.25}, other: {"validation": 0.75, "test": 0.75},
    }  # fmt: skip
    assert [found.base_of(one) for one in found.records] == [0.25, 0.75]
    assert found.base == {"validation": 0.5, "test": 0.5}


def test_rows_with_commas_and_quotes_read_back():
    entry = Entry("lora", 1e-3, 0, Fraction(1, 2), settings={"reward": 'a, "b"'})
    rows = rows_of(compared([entry, replace(entry, settings={})]).results)
    back = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["arm"] for row in back] == ["", 'lora, reward a, "b"', "lora"]
    assert [row["cell"] for row in back] == [row["cell"] for row in rows]
    assert as_csv([]).strip() == ""


def test_another_failure_is_no_score(folder: StudySpec):
    one, _ = plan(folder)
    keep(folder, one.name, Ending("failed", "OSError: disk full"), {}, {})
    record = load_results(folder).records[0]
    assert (record.state, record.reason, record.scores) == ("failed", "OSError: disk full", {})


def test_a_failure_between_two_evaluations_is_no_score(folder: StudySpec):
    one, _ = plan(folder)
    keep(folder, one.name, Ending("failed", "OSError: disk full"), {"validation": 0.5}, {})
    assert load_results(folder).records[0].scores == {}


def test_a_mean_of_evaluations_is_exact_and_there_if_all_are(folder: StudySpec):
    both = folder.model_copy(update={"report": ["test", "validation"], "select": "test"})
    one, other = plan(both)
    keep(both, one.name, Ending("finished", scored_step=50), {"validation": 0.3, "test": 1 / 3})
    keep(both, other.name, Ending("finished", scored_step=50), {"validation": 0.3})
    keep(
        both,
        base_name("tiny"),
        Ending("finished", scored_step=0),
        {"validation": 0.25, "test": 0.75},
    )
    found = load_results(both)
    first, second = (record.scores for record in found.records)
    assert first[found.reported] == Fraction(19, 60)
    assert first[found.selected] == Fraction(1, 3)
    assert found.reported not in second
    assert found.base[found.reported] == 0.5


def test_rows_of_numbers_read_back_to_the_same_bits(folder: StudySpec):
    one, _ = plan(folder)
    result = {"kl_base": 0.1 + 0.2, "peak_grad_norm": 1e-17 / 3}
    keep(folder, one.name, Ending("finished", scored_step=50), {"test": 1 / 3}, result)
    keep(folder, base_name("tiny"), Ending("finished", scored_step=0), {"validation": 0.1 + 0.2})
    head, base, first, second = as_csv(rows_of(load_results(folder))).splitlines()
    row = dict(zip(head.split(","), base.split(","), strict=True))
    assert (row["cell"], row["state"], row["pass_at_1/test"]) == (BASE, "", "")
    assert float(row["pass_at_1/validation"]) == float(exact(0.1 + 0.2)) == 0.3
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert float(row["pass_at_1/test"]) == 1 / 3
    assert float(row["kl_base"]) == 0.1 + 0.2
    assert float(row["peak_grad"]) == 1e-17 / 3
    assert (row["pass_at_1/validation"], row["kl_update"]) == ("", "")
    assert (row["cell"], row["hash"], row["state"]) == (one.name, one.hash, "finished")
    assert ",missing," in second


# Picks


def best(table: dict[float, dict[int, int]]) -> float:
    """The lowest of the rates with the best mean, as floats of few bits."""
    means = {rate: sum(row.values()) / len(row) for rate, row in table.items() if row}
    return min(rate for rate in means if means[rate] == max(means.values()))


def whole_rates(select: Counts) -> dict[float, dict[int, int]]:
    """The rates with most scores, and these."""
    known = {rate: {s: c for s, c in row.items() if c is not None} for rate, row in select.items()}
    most = max(map(len, known.values()))
    return {rate: row for rate, row in known.items() if len(row) == most}


def by_hand(select: Counts, report: Counts) -> tuple[dict[int, Fraction], dict[float, int]]:
    """Scores by seed, and seeds by rate, where every seed's rate is picked by the others.

    Picked are rates that have most seeds.
    """
    scores, picks = {}, {}
    known = whole_rates(select)
    for seed in sorted({s for row in known.values() for s in row}):
        others = {rate: {s: c for s, c in row.items() if s != seed} for rate, row in known.items()}
        rate = best(others if any(others.values()) else known)
        count = report[rate].get(seed)
        if count is not None:
            scores[seed] = Fraction(count, 1024)
            picks[rate] = picks.get(rate, 0) + 1
    return scores, picks


def arm_of(select: Counts, report: Counts) -> Comparisons:
    """An arm with two scores per cell, which are both there or both missing."""
    return compared(
        Entry(
            "rlpo",
            rate,
            seed,
            None if report[rate][seed] is None else Fraction(report[rate][seed], 1024),
            None if count is None else Fraction(count, 1024),
        )
        for rate, row in select.items()
        for seed, count in row.items()
    )


few = st.one_of(st.none(), st.integers(0, 4).map(lambda k: 256 * k))


@st.composite
def two_scores(draw: st.DrawFn) -> tuple[Counts, Counts]:
    """Scores of up to 4 rates and 5 seeds with ties and holes."""
    rates = draw(st.integers(1, 4))
    seeds = draw(st.integers(1, 5))
    select = {r: {s: draw(few) for s in range(seeds)} for r in RATES[:rates]}
    report = {
        rate: {s: None if c is None else draw(st.integers(0, 1024)) for s, c in row.items()}
        for rate, row in select.items()
    }
    return select, report


@given(two_scores())
@settings(max_examples=300, deadline=None)
def test_every_seeds_rate_is_picked_by_the_others(data: tuple[Counts, Counts]):
    tuned = arm_of(*data).tuned["rlpo"]
    scores, picks = by_hand(*data)
    assert tuned.scores == scores
    assert dict(tuned.picks) == picks
    known = whole_rates(data[0])
    assert tuned.rate == best(known) if any(known.values()) else math.isnan(tuned.rate)
    assert {seed: record.scores["test"] for seed, record in tuned.records.items()} == scores


def test_picks_of_three_seeds_by_hand():
    rows = of_rows({1e-4: [500, 500, 500], 1e-3: [900, 400, 400]})
    tuned = compared(entries("rlpo", rows)).tuned["rlpo"]
    assert tuned.rate == 1e-3  # 1700 of 3072, and 1500
    # Without seed 0 the others see 800 against 1000, with it 1300 against 1000.
    assert tuned.scores == {0: Fraction(500, 1024), 1: Fraction(400, 1024), 2: Fraction(400, 1024)}
    assert tuned.picks == {1e-4: 1, 1e-3: 2}


@given(two_scores(), st.integers(0, 4), st.integers(0, 1024))
@settings(max_examples=100, deadline=None)
def test_a_seeds_own_score_has_no_say_in_its_rate(data, seed: int, other: int):
    select, report = data
    if len({s for row in select.values() for s in row}) < 2:
        return
    before = arm_of(select, report).tuned["rlpo"].records.get(seed)
    moved = {
        rate: {s: other if s == seed and c is not None else c for s, c in row.items()}
        for rate, row in select.items()
    }
    after = arm_of(moved, report).tuned["rlpo"].records.get(seed)
    others = [c for row in select.values() for s, c in row.items() if s != seed and c is not None]
    if others:
        assert (before and before.cell.rate) == (after and after.cell.rate)


def test_of_equal_rates_the_lowest_is_picked_whatever_the_order():
    rows = of_rows({3e-3: [512, 600], 1e-4: [600, 512], 1e-3: [556, 556]})
    for order in (rows, dict(reversed(rows.items()))):
        tuned = compared(entries("rlpo", order)).tuned["rlpo"]
        assert tuned.rate == 1e-4
        assert tuned.scores == {0: Fraction(1, 2), 1: Fraction(1, 2)}  # each at the other's best
        assert tuned.picks == {3e-3: 1, 1e-4: 1}


def test_equal_means_that_floats_tell_apart_are_equal():
    thirds = {1e-4: Fraction(1, 3), 1e-3: Fraction(1, 3)}
    cells = [
        Entry("rlpo", rate, seed, score) for rate, score in thirds.items() for seed in range(3)
    ]
    moved = [Entry("rlpo", 1e-3, 3, Fraction(1, 10)), Entry("rlpo", 1e-4, 3, Fraction(1, 10))]
    assert compared(cells + moved[::-1]).tuned["rlpo"].rate == 1e-4
    assert 0.1 + 1 / 3 + 1 / 3 + 1 / 3 != 1 / 3 + 1 / 3 + 1 / 3 + 0.1  # what it guards against


def test_a_single_seed_picks_for_itself():
    tuned = compared(entries("rlpo", of_rows({1e-4: [100], 1e-3: [200]}))).tuned["rlpo"]
    assert tuned.scores == {0: Fraction(200, 1024)}
    assert (tuned.rate, tuned.picks) == (1e-3, {1e-3: 1})


def test_a_seed_without_the_picked_rate_has_no_tuned_score():
    rows = of_rows({1e-4: [300, 300, None], 1e-3: [None, 800, 800]})
    tuned = compared(entries("rlpo", rows)).tuned["rlpo"]
    assert set(tuned.scores) == {1, 2}


def test_a_rate_that_lacks_seeds_is_not_picked():
    rows = of_rows({1e-4: [300, 300, 300], 1e-3: [None, 800, 800], 3e-3: [None, None, 1000]})
    tuned = compared(entries("rlpo", rows)).tuned["rlpo"]
    assert (tuned.rate, tuned.picks) == (1e-4, {1e-4: 3})


def test_rates_are_picked_by_one_score_and_another_is_reported():
    cells = [
        Entry("rlpo", rate, seed, Fraction(report), Fraction(select))
        for rate, report, select in ((1e-4, "0.9", "0.2"), (1e-3, "0.1", "0.3"))
        for seed in range(3)
    ]
    found = compared(cells)
    assert found.tuned["rlpo"].scores == dict.fromkeys(range(3), Fraction(1, 10))
    assert compared(cells, select="test").tuned["rlpo"].rate == 1e-4


# Views


def test_the_sweep_is_the_mean_over_all_rates_of_whole_seeds():
    rows = of_rows({1e-4: [100, 200, 300], 1e-3: [400, None, 100], 3e-3: [101, 0, 0]})
    found = compared(entries("rlpo", rows))
    assert found.sweep("rlpo") == {0: Fraction(601, 3072), 2: Fraction(400, 3072)}


def test_a_sweep_with_a_rate_that_nobody_finished_is_no_sweep():
    rows = of_rows({1e-4: [100, 200], 1e-3: [None, None]})
    assert compared(entries("rlpo", rows)).sweep("rlpo") == {}


def test_sweeps_are_compared_over_the_rates_that_both_have():
    rlpo = of_rows({1e-4: [100, 200], 1e-3: [400, 500], 3e-3: [0, 0]})
    lora = of_rows({3e-4: [900, 900], 1e-4: [10, 20], 1e-3: [30, 50]})
    found = compared(entries("rlpo", rlpo) + entries("lora", lora))
    one, other = found.pair("rlpo", "lora", "sweep")
    assert one == {0: Fraction(500, 2048), 1: Fraction(700, 2048)}
    assert other == {0: Fraction(40, 2048), 1: Fraction(70, 2048)}
    apart = compared(entries("rlpo", rlpo) + entries("lora", of_rows({3e-4: [1, 1]})))
    assert apart.pair("rlpo", "lora", "sweep") == ({}, {})
    assert apart.family([("rlpo", "lora")], "sweep")[0].alone.seeds == 0


LORA = of_rows({1e-4: [300, 301, 302], 1e-3: [500, 503, 501]})
RLPO = of_rows({1e-4: [700, 700, 705], 1e-3: [400, 410, 420]})


def test_the_shared_view_is_at_the_references_own_best_rate():
    found = compared(entries("lora", LORA) + entries("rlpo", RLPO))
    assert found.shared_rate("rlpo") == found.shared_rate("lora") == 1e-3
    (one,) = found.family([("rlpo", "lora")], "shared")
    assert one.alone.mean == pytest.approx((400 + 410 + 420 - 500 - 503 - 501) / 3072)
    (back,) = found.family([("lora", "rlpo")], "shared")
    assert back.alone.mean == -one.alone.mean
    (tuned,) = found.family([("rlpo", "lora")], "tuned")
    assert tuned.alone.mean == pytest.approx((700 + 700 + 705 - 500 - 503 - 501) / 3072)


def test_the_shared_rate_is_picked_seed_by_seed_by_the_references_others():
    lora = of_rows({1e-4: [500, 500, 500], 1e-3: [900, 400, 400]})  # seed 0 is scored at 1e-4
    rlpo = of_rows({1e-4: [1, 2, 3], 1e-3: [10, 20, None], 3e-3: [999, 999, 999]})
    found = compared(entries("lora", lora) + entries("rlpo", rlpo))
    assert found.shared_rate("rlpo") == 1e-3
    rates = {seed: one.cell.rate for seed, one in found.shared("rlpo", "lora").items()}
    assert rates == {0: 1e-4, 1: 1e-3}  # seed 2 has none at 1e-3
    one, other = found.pair("rlpo", "lora", "shared")
    assert one == {0: Fraction(1, 1024), 1: Fraction(20, 1024)}
    assert other == found.tuned["lora"].scores


def test_the_shared_view_goes_by_the_reference_of_the_first():
    rank = {"rank": 1}
    cells = entries("lora", LORA) + entries("rlpo", RLPO)
    cells += entries("lora", RLPO, settings=rank) + entries("rlpo", LORA, settings=rank)
    found = compared(cells)
    plain, small = found.pair("rlpo", "rlpo, rank 1", "shared")
    assert plain == found.at("rlpo", 1e-3)
    assert small == found.at("rlpo, rank 1", 1e-3)
    small, plain = found.pair("rlpo, rank 1", "rlpo", "shared")
    assert small == found.at("rlpo, rank 1", 1e-4)
    assert plain == found.at("rlpo", 1e-4)


def test_the_best_shared_rate_is_best_on_average():
    found = compared(entries("lora", LORA) + entries("rlpo", RLPO))
    assert found.best_shared_rate() == 1e-4  # about 502 against 456
    assert found.rates == [1e-4, 1e-3]


def test_the_best_shared_rate_leaves_adaptive_arms_out():
    adaptive = entries("rlpo", of_rows({3e-4: [1024] * 3}), settings=ADAPTIVE)
    found = compared(entries("lora", LORA) + entries("rlpo", RLPO) + adaptive)
    assert found.fixed == ["lora", "rlpo"]
    assert found.rates == [1e-4, 1e-3]
    assert found.best_shared_rate() == 1e-4


def test_the_best_shared_rate_is_one_that_all_arms_have():
    lacking = of_rows({1e-3: [1, 1, 1]})
    holes = of_rows({1e-4: [None] * 3, 1e-3: [1, 1, 1]})
    for rows in (lacking, holes):
        found = compared(entries("lora", LORA) + entries("rlpo", RLPO) + entries("rlmo", rows))
        assert found.best_shared_rate() == 1e-3
    apart = compared(entries("lora", LORA) + entries("rlpo", of_rows({3e-3: [1, 1, 1]})))
    assert math.isnan(apart.best_shared_rate())


def test_the_best_shared_rate_goes_by_the_selection_score():
    cells = [
        Entry(method, rate, 0, Fraction(report), Fraction(select))
        for method in ("lora", "rlpo")
        for rate, report, select in ((1e-4, "0.9", "0.2"), (1e-3, "0.1", "0.3"))
    ]
    assert compared(cells).best_shared_rate() == 1e-3


def test_an_arm_is_compared_with_the_reference_in_the_same_settings_or_else_the_plain_one():
    rows = of_rows({1e-3: [1, 2]})
    rank = {"rank": 1}
    cells = entries("lora", rows) + entries("rlpo", rows) + entries("rlmo", rows)
    cells += entries("rlpo", rows, settings=ADAPTIVE) + entries("rlmo", rows, settings=rank)
    cells += entries("lora", rows, settings=rank)
    found = compared(cells)
    expected = {
        "lora": None,
        "rlpo": "lora",
        "rlmo": "lora",
        "rlpo, adaptive-kl": "lora",
        "rlmo, rank 1": "lora, rank 1",
        "lora, rank 1": "lora",
    }
    assert {label: found.reference_of(label) for label in found.arms} == expected
    pairs = {(one.arm, one.than) for one in found.against_reference("tuned")}
    assert pairs == {(arm, than) for arm, than in expected.items() if than}


def test_without_the_reference_nothing_is_compared():
    found = compared(entries("rlpo", RLPO), reference="lora")
    assert found.reference_of("rlpo") is None
    assert found.against_reference("tuned") == []
    assert found.shared_rate("rlpo") == 1e-4


# Collapse


@pytest.mark.parametrize(
    ("score", "by_training", "base", "expected"),
    [
        (Fraction(249, 1000), False, 0.5, True),
        (Fraction(1, 4), False, 0.5, False),  # half is not below half
        (Fraction(9, 10), False, 0.5, False),
        (Fraction(0), True, 0.5, True),
        (Fraction(3, 10), True, 0.5, False),  # at its last checkpoint
        (None, False, 0.5, None),
        (Fraction(0), False, None, None),
        (Fraction(0), True, None, None),
        (None, True, 0.5, None),  # all of its answers were right
    ],
)
def test_a_run_collapses_below_half_of_the_base_whatever_ended_it(
    score, by_training, base, expected
):
    state = "failed" if by_training else "finished"
    found = compared(
        [Entry("rlpo", 1e-3, 0, score, state=state, by_training=by_training)], base=base
    )
    assert found.collapsed(found.results.records[0]) is expected


def test_a_run_that_ended_because_everything_was_right_did_not_collapse():
    entry = Entry("rlpo", 1e-3, 0, Fraction(99, 100), state="failed", by_training=True)
    found = compared([entry], base=0.5)
    assert not found.collapsed(found.results.records[0])


def test_collapses_are_counted_at_a_rate_and_at_all():
    found = compared(entries("rlpo", of_rows({1e-4: [10, 500, None], 1e-3: [20, 30, 900]})))
    assert found.collapse_counts("rlpo", [1e-4]) == (1, 2)
    assert found.collapse_counts("rlpo", [1e-3]) == (2, 3)
    assert found.collapse_counts("rlpo") == (3, 5)
    assert found.collapse_counts("rlpo", [1e-3, 1e-4, 3e-3]) == (3, 5)
    assert found.collapse_counts("rlpo", [3e-3]) == found.collapse_counts("rlpo", []) == (0, 0)


def test_a_run_is_measured_by_its_own_base_model():
    scores = [Entry("rlpo", 1e-3, seed, Fraction(3, 10)) for seed in range(2)]
    other = [replace(one, settings={"model": "other"}) for one in scores]
    found = compared(scores + other)
    results = replace(found.results, bases={"tiny": {"test": 0.5}, "other": {"test": 0.7}})
    found = Comparisons(results)
    assert [found.collapsed(one) for one in results.records] == [False, False, True, True]
    assert results.base == {"test": pytest.approx(0.6)}
    results = replace(results, bases={"tiny": {"test": 0.5}, "other": {}})
    assert [results.base_of(one) for one in results.records] == [0.5, 0.5, None, None]
    assert results.base == {}


def test_without_a_base_score_the_collapsed_are_not_all_that_count():
    ended = [Entry("rlpo", 1e-3, seed, 0, state="failed", by_training=True) for seed in range(3)]
    fine = [Entry("rlpo", 1e-3, seed, Fraction(1, 2)) for seed in range(3, 8)]
    assert compared(ended + fine, base=None).collapse_counts("rlpo") == (0, 0)


# Families


T_7 = {
    0.05: 2.364624, 0.0125: 3.335295, 0.01: 3.499483, 0.0025: 4.594638, 0.02: 2.997952,
}  # fmt: skip
"""Student's quantiles at 7 degrees of freedom, two-sided, from tables."""


def six_arms(generator: np.random.Generator, seeds: int = 8) -> list[Entry]:
    cells = []
    for method in METHODS:
        rows = {rate: generator.integers(300, 700, size=seeds).tolist() for rate in RATES}
        cells += entries(method, of_rows(rows))
    return cells


def one_sided_tail(differences: Sequence[int]) -> float:
    """The two-sided p of a sign-flip test, by all flips at once."""
    d = np.array(differences)
    flips = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    return float(np.mean(np.abs(flips @ d) >= abs(d.sum())))


def step_down(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values by their definition."""
    return [
        max(
            min(1.0, sum(other >= p for other in ps) * p)
            for p in ps
            if p <= own
        )
        for own in ps
    ]  # fmt: skip


def t_bounds(values: Sequence[Fraction], level: float) -> tuple[float, float]:
    """Student's interval of eight values, by its formula."""
    d = np.array([*map(float, values)])
    half = T_7[level] * d.std(ddof=1) / math.sqrt(8)
    return d.mean() - half, d.mean() + half


@pytest.mark.parametrize("view", ["shared", "sweep"])
def test_families_by_formula(view: Any):
    found = compared(six_arms(np.random.default_rng(3)))
    pairs = [(method, "lora") for method in METHODS[1:]]
    family = found.family(pairs, view)
    ps = []
    picks = len(RATES) if view == "shared" else 1  # the rate was picked from so many
    for (arm, than), one in zip(pairs, family, strict=True):
        a, b = found.pair(arm, than, view)
        d = [a[seed] - b[seed] for seed in range(8)]
        assert (one.arm, one.than, one.alone.seeds) == (arm, than, 8)
        assert one.alone.mean == one.jointly.mean == pytest.approx(float(sum(d) / 8))
        for interval, level in ((one.plain, 0.05), (one.alone, 0.05 / picks),
                                (one.jointly, 0.01 / picks)):  # fmt: skip
            low, high = t_bounds(d, level)
            assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-6)
        ps.append(min(1.0, picks * one_sided_tail([int(value * 4096) for value in d])))
    assert [one.p for one in family] == pytest.approx(ps)
    assert [one.p_holm for one in family] == pytest.approx(step_down(ps))


def test_tuned_families_allow_for_every_rate_that_the_other_might_have():
    found = compared(six_arms(np.random.default_rng(3)))
    pairs = [(method, "lora") for method in METHODS[1:]]
    family = found.family(pairs, "tuned")
    for (arm, than), one in zip(pairs, family, strict=True):
        a, b = found.tuned[arm].scores, found.tuned[than].scores
        d = [a[seed] - b[seed] for seed in range(8)]
        assert (one.plain.low, one.plain.high) == pytest.approx(t_bounds(d, 0.05), rel=1e-6)
        assert one.plain.mean == one.alone.mean == one.jointly.mean
        assert one.plain.mean == pytest.approx(float(sum(d) / 8))
        for interval, level in ((one.alone, 0.05), (one.jointly, 0.01)):
            bounds = [t_bounds(d, level)]
            bounds += [t_bounds([a[s] - found.at(than, r)[s] for s in range(8)], level)
                       for r in RATES]  # fmt: skip
            assert interval.low == pytest.approx(min(low for low, _ in bounds), rel=1e-6)
            bounds = [t_bounds(d, level)]
            bounds += [t_bounds([found.at(arm, r)[s] - b[s] for s in range(8)], level)
                       for r in RATES]  # fmt: skip
            assert interval.high == pytest.approx(max(high for _, high in bounds), rel=1e-6)
    assert [one.p_holm for one in family] == pytest.approx(step_down([one.p for one in family]))


def exchanged(one: Counts, other: Counts) -> float:
    """p of a tuned comparison: all exchanges of whole seeds, the rates picked anew each time."""
    seeds = sorted({s for row in one.values() for s in row})
    sums = []
    for flips in itertools.product((False, True), repeat=len(seeds)):
        first, second = (
            {
                rate: {s: (b if flip else a)[rate][s] for s, flip in zip(seeds, flips, strict=True)}
                for rate in a
            }
            for a, b in ((one, other), (other, one))
        )
        total = [sum(by_hand(arm, arm)[0].values()) for arm in (first, second)]
        sums.append(abs(total[0] - total[1]))
    return sum(value >= sums[0] for value in sums) / len(sums)


@given(st.data(), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_exchanges_pick_anew(data: st.DataObject, seeds: int, rates: int):
    row = st.lists(st.sampled_from([0, 300, 307, 512, 1024]), min_size=seeds, max_size=seeds)
    one, other = (of_rows({rate: data.draw(row) for rate in RATES[:rates]}) for _ in range(2))
    found = compared(entries("rlpo", one) + entries("lora", other))
    (pair,) = found.family([("rlpo", "lora")], "tuned")
    assert pair.p == exchanged(one, other)


def test_exchanges_go_by_the_selection_score_and_report_the_other():
    generator = np.random.default_rng(13)
    tables = generator.random((2, 2, 4, 6))  # arm, select or report, rate, seed
    cells = [
        Entry(method, rate, seed, Fraction(tables[a, 1, r, seed]), Fraction(tables[a, 0, r, seed]))
        for a, method in enumerate(("rlpo", "lora"))
        for r, rate in enumerate(RATES)
        for seed in range(6)
    ]
    found = compared(cells)
    (one,) = found.family([("rlpo", "lora")], "tuned")
    sums = []
    for flips in itertools.product((0, 1), repeat=6):
        arms = np.stack(
            [[tables[a ^ flip, ..., s] for s, flip in enumerate(flips)] for a in (0, 1)]
        )
        means = [
            np.mean([arm[s, 1, np.delete(arm, s, 0)[:, 0].mean(0).argmax()] for s in range(6)])
            for arm in arms
        ]
        sums.append(means[0] - means[1])
    assert one.alone.mean == pytest.approx(sums[0])
    assert one.p == np.mean(np.abs(sums) >= abs(sums[0]) - 1e-9)


def test_many_seeds_are_exchanged_at_random():
    generator = np.random.default_rng(14)
    d = generator.normal(0.3, 1, size=14)
    flips = 1 - 2 * ((np.arange(2**14)[:, None] >> np.arange(14)) & 1)
    exact_p = float(np.mean(np.abs(flips @ d) >= abs(d.sum()) - 1e-9))
    drawn_p = exchange_p(lambda flips: (1 - 2 * flips) @ d, 14)
    assert 0.05 < exact_p < 0.95
    assert abs(drawn_p - exact_p) < 4 * math.sqrt(exact_p * (1 - exact_p) / 20_000)
    assert exchange_p(lambda flips: (1 - 2 * flips).sum(axis=1), 60) == 1 / 20_000
    assert drawn_p == exchange_p(lambda flips: (1 - 2 * flips) @ d, 14)


def test_a_family_of_one_is_not_corrected():
    found = compared(six_arms(np.random.default_rng(4)))
    (one,) = found.family([("rlpo", "lora")], "tuned")
    assert one.alone == one.jointly != one.plain
    assert one.p == one.p_holm


def test_against_the_reference_is_one_family():
    found = compared(six_arms(np.random.default_rng(5)))
    pairs = [(method, "lora") for method in METHODS[1:]]
    assert found.against_reference("tuned") == found.family(pairs, "tuned")


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_exact_ps_are_never_below_their_floor(seeds: int):
    rows = of_rows({1e-3: [900 + 3**seed % 101 for seed in range(seeds)]})
    found = compared(entries("lora", of_rows({1e-3: [100] * seeds})) + entries("rlpo", rows))
    (one,) = found.family([("rlpo", "lora")], "tuned")
    assert one.p == 2.0 ** (1 - seeds)


def test_where_no_rate_has_all_seeds_there_is_no_p():
    rlpo = of_rows({1e-4: [None, 0, 500, 500], 1e-3: [0, None, 400, 400]})
    found = compared(entries("rlpo", rlpo) + entries("lora", of_rows({1e-3: [30, 600, 300, 400]})))
    (one,) = found.family([("rlpo", "lora")], "tuned")
    assert one.alone.seeds == 4
    assert math.isnan(one.p)


def test_differences_are_antisymmetric():
    found = compared(six_arms(np.random.default_rng(6)))
    one, back = found.family([("rlpo", "rlmo"), ("rlmo", "rlpo")], "tuned")
    assert (one.alone.mean, one.alone.low) == (-back.alone.mean, -back.alone.high)
    assert one.p == back.p
    assert (one.jointly.low, one.jointly.high) == (-back.jointly.high, -back.jointly.low)


@given(st.lists(st.integers(-250, 250), min_size=5, max_size=5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_what_a_seed_adds_to_all_arms_changes_no_difference(shifts: list[int], seed: int):
    cells = six_arms(np.random.default_rng(seed), seeds=5)[:40]
    moved = [
        Entry(one.method, one.rate, one.seed, one.score + Fraction(shifts[one.seed], 1024))
        for one in cells
    ]
    before, after = compared(cells), compared(moved)
    for view in ("tuned", "shared", "sweep"):
        assert before.against_reference(view) == after.against_reference(view)


def test_seeds_that_one_arm_lacks_are_left_out_of_the_pair_alone():
    rlpo = of_rows({1e-3: [500, None, 540, 560]})
    lora = of_rows({1e-3: [400, 410, None, 430]})
    rlmo = of_rows({1e-3: [600, 600, 600, 600]})
    found = compared(entries("lora", lora) + entries("rlpo", rlpo) + entries("rlmo", rlmo))
    one, other = found.family([("rlpo", "lora"), ("rlmo", "lora")], "tuned")
    assert (one.alone.seeds, other.alone.seeds) == (2, 3)
    assert one.alone.mean == pytest.approx((100 + 130) / 2 / 1024)


@pytest.mark.parametrize("seeds", [0, 1])
def test_too_few_common_seeds_say_nothing(seeds: int):
    lora = of_rows({1e-3: [400] * seeds + [None] * 3})
    rlpo = of_rows({1e-3: [900] * seeds + [900] * 3})
    found = compared(entries("lora", lora) + entries("rlpo", rlpo))
    (one,) = found.family([("rlpo", "lora")], "shared")
    assert one.alone.seeds == seeds
    assert (one.p, one.p_holm) == (1.0, 1.0)
    for interval in (one.plain, one.alone, one.jointly):
        assert not interval.known
        assert not interval.sign
        assert not interval.within(1.0)


def test_pairs_without_a_common_seed_do_not_count_in_the_family():
    cells = six_arms(np.random.default_rng(12))
    cells += entries("dora", of_rows({1e-3: [None] * 8})) + entries("dct", of_rows({1e-3: [None]}))
    found = compared(cells)
    pairs = [(method, "lora") for method in METHODS[1:]]
    none = [("dora", "lora"), ("dct", "lora")]
    for view in ("tuned", "shared"):
        mixed = found.family([none[0], *pairs[:2], none[1], *pairs[2:]], view)
        assert [one for one in mixed if one.alone.seeds] == found.family(pairs, view)
        assert [(one.p, one.p_holm) for one in mixed if not one.alone.seeds] == [(1.0, 1.0)] * 2


def test_estimates_by_hand():
    one = estimate([0.25, 0.5, 0.75])
    assert one.mean == 0.5
    assert one.high == pytest.approx(0.5 + 4.302653 * 0.25 / math.sqrt(3), rel=1e-6)
    assert one.low == pytest.approx(0.5 - 4.302653 * 0.25 / math.sqrt(3), rel=1e-6)
    assert math.isnan(estimate([]).mean)
    assert estimate([Fraction(1, 3)])[::3] == (1 / 3, 1)


@pytest.mark.parametrize(
    ("low", "high", "sign", "within"),
    [
        (0.01, 0.03, 1, False),
        (-0.03, -0.01, -1, False),
        (-0.01, 0.01, 0, True),
        (0.001, 0.019, 1, True),
        (-0.02, 0.01, 0, False),
        (0.0, 0.01, 0, True),
        (math.nan, math.nan, 0, False),
    ],
)
def test_signs_and_margins_go_by_the_interval(low, high, sign: int, within: bool):
    one = Estimate((low + high) / 2, low, high, 3)
    assert (one.sign, one.within(0.02)) == (sign, within)
    assert (one.above(0), one.below(0)) == (sign > 0, sign < 0)
    assert one.beyond(0.0) == bool(sign)
    assert not one.beyond(0.05)
    few = one._replace(seeds=2)
    assert not any((few.sign, few.within(0.02), few.above(-9), few.below(9), few.beyond(0)))


# Simulated studies without any difference


@dataclass(frozen=True)
class Null:
    """How often the comparisons of simulated studies err.

    Attributes:
        holm: share of studies in which a corrected p is at most 0.05.
        joint: share in which a joint interval excludes 0.
        single: share of all comparisons with a p of at most 0.05.
        bias: mean difference over its standard error.
    """

    holm: float
    joint: float
    single: float
    bias: float


FEW, STUDIES = 250, 1_000
CLEAR = (-0.15, 0.0, -0.2, -0.3)
"""Expected score by rate, less the best: every arm picks the same rate nearly always."""
EQUAL = (0.0, 0.0, 0.0, 0.0)
NOISE = (0.01, 0.02, 0.03, 0.04)
"""Standard deviation over seeds by rate."""


def drawn(
    generator: np.random.Generator,
    means: Sequence[float],
    studies: int,
    arms: int = 6,
    noise: NDArray[np.float64] | Sequence[float] = NOISE,
    seeds: int = 8,
) -> NDArray[np.int64]:
    """Right answers of 1024 by study, arm, rate and seed: what seeds add is common to all arms."""
    common = generator.normal(0, 0.03, size=(studies, 1, 1, seeds))
    own = generator.normal(size=(studies, arms, len(means), seeds)) * np.asarray(noise)[..., None]
    score = 0.5 + np.array(means)[:, None] + common + own
    return np.rint(np.clip(score, 0, 1) * 1024).astype(np.int64)


@pytest.fixture(scope="module", autouse=True)
def quantiles() -> Iterator[None]:
    """Student's quantiles are found once: thousands of studies ask for the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orthora.stats, "_t_quantile", functools.cache(orthora.stats._t_quantile))
        yield


@functools.cache
def null(means: Sequence[float]) -> dict[str, Null]:
    """Errors in both views, of studies whose arms have one distribution."""
    counts = drawn(np.random.default_rng(7), means, FEW if means == CLEAR else STUDIES)
    simulated = Simulated()
    families: dict[str, list[list[Paired]]] = {"tuned": [], "shared": []}
    for study in counts:
        found = simulated(study)
        for view, kept in families.items():
            kept.append(found.against_reference(view))
    nulls = {}
    for view, kept in families.items():
        each = np.array([np.mean([one.alone.mean for one in family]) for family in kept])
        nulls[view] = Null(
            float(np.mean([min(one.p_holm for one in family) <= 0.05 for family in kept])),
            float(np.mean([any(one.jointly.sign for one in family) for family in kept])),
            float(np.mean([[one.p <= 0.05 for one in family] for family in kept])),
            float(each.mean() / each.std(ddof=1) * math.sqrt(len(kept))),
        )
    return nulls


def at_most(level: float, trials: int = STUDIES) -> float:
    """A level and three standard errors of its estimate."""
    return level + 3 * math.sqrt(level * (1 - level) / trials)


SLOW = pytest.mark.slow


CASES = {
    "best rate clear, tuned": (CLEAR, "tuned"),
    "best rate clear, shared": (CLEAR, "shared"),
    "rates equal, tuned": (EQUAL, "tuned"),
    "rates equal, shared": (EQUAL, "shared"),
}


def each_case() -> pytest.MarkDecorator:
    """Null studies; those with equal rates take longer."""
    rows = [
        pytest.param(means, view, marks=[SLOW] if means == EQUAL else [], id=name)
        for name, (means, view) in CASES.items()
    ]
    return pytest.mark.parametrize(("means", "view"), rows)


@each_case()
def test_studies_without_a_difference_rarely_show_one(means: Sequence[float], view: str):
    errors = null(means)[view]
    print(errors)
    limit = at_most(0.05, FEW if means == CLEAR else STUDIES)
    assert errors.holm <= limit
    assert errors.joint <= limit
    assert errors.single <= limit  # at most: comparisons within a study are correlated


@each_case()
def test_no_view_favours_an_arm(means: Sequence[float], view: str):
    assert abs(null(means)[view].bias) < 4


@pytest.mark.parametrize(
    ("means", "least"),
    [(CLEAR, 0.95), ((-0.05, 0.0, -0.05, -0.2), 0.95), ((-0.15, 0.0, -0.01, -0.3), 0.9)],
    ids=["clear", "less clear", "two alike"],
)
def test_a_typical_difference_is_found_though_the_interval_allows_for_the_pick(means, least):
    """0.05 over five seeds whose spread, beside what all arms share, is 0.01."""
    simulated = Simulated(METHODS[:2], seeds=5)
    counts = drawn(np.random.default_rng(3), means, 100, arms=2, noise=[0.01] * 4, seeds=5)
    counts[:, 1] += round(1024 * 0.05)
    pairs = [simulated(study).against_reference("tuned")[0] for study in counts]
    found, plain, least_p = (
        np.mean([one.alone.sign == 1 for one in pairs]),
        np.mean([one.plain.sign == 1 for one in pairs]),
        np.mean([one.p == 2**-4 for one in pairs]),
    )
    print(found, plain, least_p)
    assert found >= least
    assert plain >= found
    assert least_p >= least


def steered(generator: np.random.Generator, means: Sequence[float], ahead: float) -> Paired:
    """An arm under adaptive-kl against the same one at fixed rates; it is ahead of the best."""
    seeds = generator.normal(0, 0.03, size=8)
    swept = 0.5 + np.array(means)[:, None] + seeds + generator.normal(0, 0.02, size=(4, 8))
    mine = 0.5 + ahead + seeds + generator.normal(0, 0.02, size=8)
    rows = np.rint(1024 * swept).astype(int).tolist()
    cells = entries("rlpo", of_rows(dict(zip(RATES, rows, strict=True))))
    own = np.rint(1024 * mine).astype(int).tolist()
    found = compared(cells + entries("rlpo", of_rows({3e-4: own}), settings=ADAPTIVE))
    return found.family([("rlpo, adaptive-kl", "rlpo")], "tuned")[0]


@SLOW
@pytest.mark.parametrize("means", [CLEAR, EQUAL], ids=["best rate clear", "rates equal"])
def test_an_arm_without_a_sweep_rarely_differs_in_its_interval_from_one_that_is_as_good(means):
    generator = np.random.default_rng(15)
    signs = [steered(generator, means, 0.0).alone.sign for _ in range(400)]
    print(np.mean(np.abs(signs)))
    assert np.mean(np.abs(signs)) <= at_most(0.05, 400)


def test_arms_that_were_not_tried_at_the_same_rates_have_no_p():
    one = steered(np.random.default_rng(16), CLEAR, 0.2)
    assert one.alone.low > 0.1
    assert math.isnan(one.p)
    assert math.isnan(one.p_holm)


def test_a_large_difference_is_found_in_most_studies():
    counts = drawn(np.random.default_rng(8), CLEAR, 60)
    counts[:, 1] += round(1024 * 0.06)
    simulated = Simulated()
    for view in ("tuned", "shared"):
        families = [simulated(study).against_reference(view) for study in counts]
        if view == "tuned":  # 2^-7 x 4 rates x 5 arms is .16
            assert np.mean([family[0].p_holm <= 0.05 for family in families]) > 0.8
        assert np.mean([family[0].jointly.sign == 1 for family in families]) > 0.8
        others = [any(one.jointly.sign for one in family[1:]) for family in families]
        assert np.mean(others) <= at_most(0.05, len(counts))


def test_luck_of_a_noisy_arm_is_not_counted_as_merit():
    """Equal expectations at every rate: picking on the scores themselves would flatter noise."""
    noise = np.full((3, 4), 0.02)
    noise[1] = 0.06
    counts = drawn(np.random.default_rng(9), EQUAL, 400, arms=3, noise=noise)
    simulated = Simulated(METHODS[:3])
    arms = [simulated(study).tuned.values() for study in counts]
    tuned = np.array([[sum(one.scores.values()) / 8 for one in study] for study in arms], float)
    naive = counts.mean(axis=3).max(axis=2) / 1024
    for scores, unbiased in ((tuned, True), (naive, False)):
        off = scores[:, 1] - scores[:, 0]  # the noisy one less the reference
        z = off.mean() / off.std(ddof=1) * math.sqrt(len(off))
        assert abs(z) < 4 if unbiased else z > 10
    assert tuned.mean(axis=0) == pytest.approx(0.5, abs=0.004)
    assert naive[:, 1].mean() > 0.515


def test_few_seeds_on_a_coarse_scale_rarely_show_a_difference():
    """Equal differences have an interval without width, which must be as rare as it should be."""
    generator = np.random.default_rng(11)
    for seeds in (2, 3):
        simulated, errors = Simulated(METHODS[:2], RATES[:1], seeds=seeds), 0
        for _ in range(STUDIES):
            counts = 32 * generator.binomial(30, 0.4, size=(2, 1, seeds))  # 30 problems, greedy
            (one,) = simulated(counts).against_reference("tuned")
            errors += one.alone.sign != 0
        assert errors / STUDIES <= at_most(0.05)
