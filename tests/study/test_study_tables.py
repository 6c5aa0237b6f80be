"""Tables of a study, comparisons at equal movement and steps, costs, and what is shown of runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_data import ADAPTIVE, RATES, TEST, Entry, claim, compared

from orthora.figures.tables import TextTable
from orthora.store import write_json
from orthora.study import Cell, StudySpec, plan
from orthora.study import tables as study_tables
from orthora.study.claims import verdicts
from orthora.study.compare import Comparisons
from orthora.study.cost import Cost, cost_of
from orthora.study.drawings import all_drawings
from orthora.study.folder import works
from orthora.study.job import Ending
from orthora.study.matched import at_equal, at_equal_steps, spreads
from orthora.study.tables import all_tables
from orthora.study.view import duration, last_row

# At an equal first step


def moved(method: str, rate: float, rows: Sequence[tuple[float | None, float]]) -> list[Entry]:
    """Cells of an arm at a rate: norm of the first step and score, by seed."""
    return [
        Entry(method, rate, seed, Fraction(str(score)), numbers={"first_norm": norm})
        for seed, (norm, score) in enumerate(rows)
    ]


LORA = (
    moved("lora", 1e-3, [(1.0, 0.5), (2.0, 0.6)])
    + moved("lora", 1e-4, [(0.1, 0.3), (0.2, 0.4)])
    + moved("lora", 3e-3, [(4.0, 0.2), (8.0, 0.1)])
)


def test_at_an_equal_norm_the_reference_is_interpolated_over_its_logarithm():
    rlpo = moved("rlpo", 1e-4, [(math.sqrt(0.1), 0.9), (2.0, 0.8)])
    (one,) = at_equal(compared(LORA + rlpo), "first_norm")
    # Seed 0: half way between 0.1 and 1, so 0.4; seed 1: at a point of the reference, 0.6.
    assert (one.arm, one.rate, one.own.seeds, one.difference.seeds) == ("rlpo", 1e-4, 2, 2)
    assert one.own.mean == pytest.approx(0.85)
    assert one.difference.mean == pytest.approx((0.5 + 0.2) / 2)
    assert one.moved == pytest.approx(math.sqrt(math.sqrt(0.1) * 2.0))
    t_1 = 12.70620  # Student's, one degree of freedom
    assert one.difference.high == pytest.approx(0.35 + t_1 * 0.15, rel=1e-5)  # sd / sqrt(2) = 0.15


def test_interpolation_is_piecewise_and_by_seed():
    rlpo = moved("rlpo", 1e-4, [(2.0, 0.5), (4.0, 0.5)])
    (one,) = at_equal(compared(LORA + rlpo), "first_norm")
    # Seed 0: half way from (1, 0.5) to (4, 0.2); seed 1: half way from (2, 0.6) to (8, 0.1).
    assert one.difference.mean == pytest.approx((0.5 - 0.35 + 0.5 - 0.35) / 2)


@pytest.mark.parametrize("norm", [0.0999, 8.001, None, 0.0, math.nan])
def test_what_lies_outside_of_the_references_norms_is_left_out(norm: float | None):
    rlpo = moved("rlpo", 1e-3, [(norm, 0.9), (2.0, 0.8)])
    (one,) = at_equal(compared(LORA + rlpo), "first_norm")
    assert (one.own.seeds, one.own.mean) == (1, pytest.approx(0.8))
    alone = moved("rlpo", 1e-3, [(norm, 0.9)])
    assert at_equal(compared(LORA + alone), "first_norm") == []


def test_the_ends_of_the_references_norms_count():
    rlpo = moved("rlpo", 1e-3, [(0.1, 0.9), (8.0, 0.8)])
    (one,) = at_equal(compared(LORA + rlpo), "first_norm")
    assert one.difference.mean == pytest.approx((0.9 - 0.3 + 0.8 - 0.1) / 2)


def test_without_two_norms_of_the_reference_nothing_is_compared():
    rlpo = moved("rlpo", 1e-3, [(1.0, 0.9)])
    one_point = moved("lora", 1e-3, [(1.0, 0.5)])
    unmeasured = one_point + moved("lora", 1e-4, [(None, 0.5)])
    unscored = one_point + [replace(e, score=None) for e in moved("lora", 1e-4, [(0.1, 0.5)])]
    for lora in (one_point, unmeasured, unscored):
        assert at_equal(compared(lora + rlpo), "first_norm") == []
    assert at_equal(compared(LORA), "first_norm") == []  # the reference is beside nothing


def test_movement_may_be_the_kl_of_a_step():
    swapped = [
        replace(one, numbers={"kl_update": one.numbers["first_norm"], "first_norm": 5.0})
        for one in LORA + moved("rlpo", 1e-4, [(math.sqrt(0.1), 0.9), (2.0, 0.8)])
    ]
    (one,) = at_equal(compared(swapped), "kl_update")
    assert one.difference.mean == pytest.approx((0.5 + 0.2) / 2)


def shifted(method: str, by: int) -> list[Entry]:
    """An arm that moves ten times as far at every rate, ``by`` times, and is as good as that is."""
    moves, scores = [10.0**k for k in range(-3, 6)], [0.1, 0.2, 0.4, 0.6, 0.7, 0.6, 0.3, 0.1, 0.0]
    return [
        one
        for place, rate in enumerate(RATES)
        for one in moved(method, rate, [(moves[place + by], scores[place + by])] * 2)
    ]


def test_methods_that_differ_in_how_far_they_move_alone_are_equal_where_they_move_equally_far():
    arms = shifted("lora", 2) + shifted("rlpo", 3) + shifted("rlmo", 1)
    rows = spreads(compared(arms), "first_norm")
    # At its first rate lora moves by 0.1: rlpo begins at 1, so that two arms alone are left.
    assert [(one.rate, one.moved, one.arms) for one in rows] == [
        (3e-4, pytest.approx(1.0), 3),
        (1e-3, pytest.approx(10.0), 3),
    ]
    assert [one.at_equal for one in rows] == pytest.approx([0.0, 0.0], abs=1e-12)

    assert rows[0].at_rate == pytest.approx(np.std([0.6, 0.7, 0.4], ddof=1))
    assert rows[1].at_rate == pytest.approx(np.std([0.7, 0.6, 0.6], ddof=1))


def test_a_method_that_falls_makes_a_spread_but_not_what_is_typical():
    arms = [
        one for place in range(4) for one in shifted(("rlpo", "rlmo", "olora", "dct")[place], 2)
    ]
    fallen = [replace(one, method="pissa", score=Fraction(0)) for one in shifted("pissa", 2)]
    for one in spreads(compared(shifted("lora", 2) + arms + fallen), "first_norm"):
        assert min(one.at_rate, one.at_equal) > 0.1
        assert (one.typical_at_rate, one.typical_at_equal) == (0, 0)
    rows = spreads(
        compared(shifted("lora", 2) + shifted("rlpo", 3) + shifted("rlmo", 1)), "first_norm"
    )
    assert rows[0].typical_at_rate == pytest.approx(1.4826 * 0.1)  # of .6, .7, .4


# At equal steps


def trained(method: str, rate: float, curves: Sequence[Sequence[float]], score: str) -> list[Entry]:
    """Cells of forty steps, of which a curve may have fewer."""
    return [
        Entry(method, rate, seed, Fraction(score), passes=curve, settings={"steps": 40})
        for seed, curve in enumerate(curves)
    ]


def test_at_equal_steps_a_tenth_of_the_curve_is_averaged():
    curves = [[step / 100 for step in range(1, 41)], [step / 50 for step in range(1, 41)]]
    good = trained("rlpo", 1e-3, curves, "0.9") + trained("rlpo", 1e-4, [[1.0] * 40] * 2, "0.1")
    (row,) = at_equal_steps(compared(good)).values()
    # Four steps each: 7 to 10, 17 to 20, 27 to 30, 37 to 40; mean over the two seeds.
    expected = [1.5 * middle / 100 for middle in (8.5, 18.5, 28.5, 38.5)]
    assert [one.mean for one in row] == pytest.approx(expected)
    assert all(one.seeds == 2 for one in row)


def test_short_and_missing_curves_are_compared_as_far_as_they_go():
    rlpo = trained("rlpo", 1e-3, [[0.5] * 29, []], "0.9")
    (row,) = at_equal_steps(compared(rlpo)).values()
    assert [(one.mean, one.seeds) for one in row[:2]] == [(0.5, 1)] * 2
    assert [one.seeds for one in row[2:]] == [0, 0]  # 30 and 40 steps
    (none,) = at_equal_steps(compared(trained("rlpo", 1e-3, [[]], "0.9"))).values()
    assert all(one.seeds == 0 for one in none)


def test_a_run_that_ended_early_is_not_compared_at_steps_that_it_did_not_take():
    whole, cut = [step / 100 for step in range(1, 41)], [step / 100 for step in range(1, 11)]
    rlpo = trained("rlpo", 1e-3, [whole, cut], "0.5")
    rlpo[1] = replace(rlpo[1], state="failed", by_training=True)
    (row,) = at_equal_steps(compared(rlpo)).values()
    assert [one.seeds for one in row] == [2, 1, 1, 1]
    assert row[0].mean == pytest.approx(0.085)  # both have taken 10 of 40 steps
    assert row[1].mean == pytest.approx(0.185)


# Tables of studies that are not whole


METHODS = ("lora", "rlpo", "rlmo")


def a_study() -> list[Entry]:
    """Three arms, the last of which collapses at high rates, and two under adaptive-kl."""
    cells = []
    for place, method in enumerate(METHODS):
        for step, rate in enumerate(RATES):
            for seed in range(5):
                score = Fraction(500 + 20 * place + 30 * step + seed * (seed + place), 1000)
                cells.append(
                    Entry(
                        method,
                        rate,
                        seed,
                        Fraction(1, 50) if place == 2 and step > 1 else score,
                        numbers={"first_norm": rate * (place + 1), "kl_base": 0.01 * step},
                        passes=[0.1 + 0.01 * i for i in range(50)],
                        seconds=10.0 + place,
                        parameters=1000 * (place + 1),
                    )
                )
    cells += [
        Entry(method, 3e-4, seed, Fraction(600 + seed, 1000), settings=ADAPTIVE)
        for method in METHODS[:2]
        for seed in range(5)
    ]
    return cells


def without(cells: Sequence[Entry], of: Mapping[str, Any], state: str = "missing") -> list[Entry]:
    """Cells with some attributes have no score and nothing else."""
    bare: dict[str, Any] = {
        "score": None, "state": state, "numbers": {}, "passes": (), "seconds": None,
        "parameters": None,
    }  # fmt: skip
    return [
        replace(one, **bare) if all(getattr(one, k) == v for k, v in of.items()) else one
        for one in cells
    ]


def every_cell(tables: Mapping[str, TextTable]) -> list[str]:
    for name, table in tables.items():
        assert table.rows, name
        assert table.title
        for row in table.rows:
            assert len(row) == len(table.head), name
        assert table.markdown()
        assert table.csv()
        assert table.latex()
    return [cell for table in tables.values() for row in table.rows for cell in row] + [
        table.text for table in tables.values()
    ]


FIRST_MISSING = without(a_study(), {"method": "lora"})
STUDIES: dict[str, tuple[list[Entry], dict[str, Any]]] = {
    "whole": (a_study(), {}),
    "one seed": ([one for one in a_study() if one.seed == 0], {}),
    "two seeds": ([one for one in a_study() if one.seed < 2], {}),
    "no base model": (a_study(), {"base": None}),
    "an arm missing": (without(a_study(), {"method": "rlmo"}), {}),
    "an arm failed": (without(a_study(), {"method": "rlmo"}, "failed"), {}),
    "a rate missing": (without(a_study(), {"rate": 1e-3}), {}),
    "a seed missing": (without(a_study(), {"seed": 0}), {}),
    "a cell of each arm": ([one for one in a_study() if (one.seed, one.rate) == (0, 3e-4)], {}),
    "no reference in the grid": ([one for one in a_study() if one.method != "lora"], {}),
    "ended by training": ([replace(one, score=Fraction(0), state="failed", by_training=True)
                           if one.method == "rlmo" else one for one in a_study()], {}),
    "finished but not scored": ([replace(one, score=None) if one.method == "rlmo" else one
                                 for one in a_study()], {}),
}  # fmt: skip


def text_of(cells: list[Entry], changes: dict[str, Any]) -> list[str]:
    found = compared(cells, **changes)
    all_drawings(found)
    return every_cell(all_tables(found))


@pytest.mark.parametrize("name", STUDIES)
def test_tables_of_unfinished_studies_have_no_nan(name: str):
    for text in text_of(*STUDIES[name]):
        assert "nan" not in text
        assert "inf" not in text
        assert text


@pytest.mark.parametrize(
    "cells", [FIRST_MISSING, without(a_study(), {})], ids=["reference missing", "all missing"]
)
def test_tables_without_the_reference_are_made(cells: list[Entry]):
    for text in text_of(cells, {}):
        assert "nan" not in text


def rows_of(table: TextTable) -> dict[str, dict[str, str]]:
    """Cells by arm and column."""
    return {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def found() -> Comparisons:
    """The whole study."""
    return compared(a_study())


def test_best_rates_are_as_compared(found: Comparisons):
    rows = rows_of(study_tables.best_rates(found))
    assert list(rows) == ["rlpo", "lora, adaptive-kl", "rlpo, adaptive-kl", "lora", "rlmo"]
    lora, rlpo = rows["lora"], rows["rlpo"]
    assert (lora["best rate"], lora["picked for (seeds)"]) == ("3e-3 (highest tried)", "3e-3 (5)")
    assert lora["pass@1"].startswith("0.596 [")  # 590 + the mean of 0, 1, 4, 9, 16
    assert lora["less its reference"] == "–"
    assert rlpo["less its reference"].startswith("+0.022 [+0.0")  # 20 + the mean of 0 to 4
    assert rlpo["p"] == f"{2**-4:.3g}"
    assert rlpo["Holm"] == f"{3 * 2**-4:.3g}"
    assert rlpo["with the pick"].startswith("[+0.0")
    assert rlpo["joint"].startswith("[+0.0")
    assert rlpo["KL to base"] == "0.03"
    adaptive = rows["lora, adaptive-kl"]
    assert (adaptive["best rate"], adaptive["picked for (seeds)"]) == ("follows the KL", "–")


def test_shared_rates_count_what_collapsed(found: Comparisons):
    rows = rows_of(study_tables.shared_rates(found))
    assert set(rows) == set(METHODS)  # adaptive arms have no fixed rates
    assert rows["rlmo"]["3e-3"].endswith("(5 of 5 collapsed)")
    assert rows["rlmo"]["1e-4"].startswith("0.55")
    assert "collapsed" not in "".join(rows["lora"].values())


def test_sensitivity_by_hand(found: Comparisons):
    rows = rows_of(study_tables.sensitivity(found))
    assert rows["lora"]["mean over rates"].startswith("0.551 [")  # 545 and 6
    assert rows["lora"]["worst rate"] == "0.506"
    assert rows["lora"]["rates within 0.02 of the best"] == "3e-3"
    assert rows["rlmo"]["rates within 0.02 of the best"] == "3e-4"
    assert rows["rlmo"]["worst rate"] == "0.020"
    assert (rows["lora"]["collapsed"], rows["rlmo"]["collapsed"]) == ("0 of 20", "10 of 20")
    assert rows["rlmo"]["below the base model"] == "10 of 20"
    wider = rows_of(study_tables.sensitivity(compared(a_study(), margin=0.07)))
    assert wider["lora"]["rates within 0.07 of the best"] == "3e-4, 1e-3, 3e-3"


def test_costs_by_hand(found: Comparisons):
    rows = rows_of(study_tables.costs(found))
    assert rows["rlpo"] == {
        "arm": "rlpo", "trained parameters": "2,000", "runs": "20", "seconds per run": "11.0",
        "all runs": "4 min",
    }  # fmt: skip
    assert rows["lora, adaptive-kl"]["runs"] == "0"


def test_failures_say_what_and_why():
    cells = a_study()
    cells[0] = replace(cells[0], score=None, state="missing")
    cells[1] = replace(cells[1], state="failed", by_training=True)
    cells[2] = replace(cells[2], score=None, state="missing")
    assert cells[0].method == cells[2].method == "lora"
    table = study_tables.failures(compared(cells).results)
    assert table is not None
    assert table.rows == (
        (cells[1].cell.name, "failed", "for some reason", "60"),
        ("lora", "2 missing", "not run yet", "–"),
    )
    assert study_tables.failures(compared(a_study()).results) is None


def test_verdicts_have_their_table():
    one = claim("better", ["rlpo"], source="a | b")
    table = study_tables.claims(verdicts(compared(a_study(), claims=[one])))
    # Both are best at the highest rate: lora might be better yet at another.
    assert table.rows == (("better rlpo", "holds at a shared lr only", "a | b"),)
    assert "a \\| b" in table.markdown()


# Costs


COSTED: dict[str, Any] = {
    "steps": 10, "prompts_per_step": 4, "group_size": 8, "max_response_tokens": 100,
    "mini_batch_prompts": 4, "overlong_buffer": 0, "eval_problems": 0,
}  # fmt: skip


@pytest.fixture
def costly(tmp_path: Path) -> StudySpec:
    """Six cells; of rlpo's half take twice the epochs."""
    return StudySpec(
        name="costly",
        base="tiny",
        settings=COSTED,
        grid=[{"method": ["lora", "rlpo"], "update_epochs": [1, 3], "seed": [0]}],
        evaluations={"test": TEST},
        out=str(tmp_path / "costly"),
        parameters=1000,
    )


def estimated(spec: StudySpec) -> Cost:
    cells = plan(spec)
    return cost_of(spec, cells, works(spec, cells))


def test_costs_are_counted_from_the_settings(costly: StudySpec):
    cost = estimated(costly)
    assert cost.responses == 4 * 10 * 4 * 8
    assert cost.tokens == cost.responses * 100
    # Per token: 2 to generate, 2 to score, and 6 for every epoch; half of the cells have 3.
    assert cost.flops == pytest.approx(1000 * (cost.tokens / 2) * ((4 + 6) + (4 + 18)))
    assert cost.seconds is None
    assert cost.basis.startswith("unknown")


def test_costs_of_evaluations_are_counted(costly: StudySpec):
    evaluations = {
        "a": TEST | {"problems": 10, "samples": 3, "max_response_tokens": 50},
        "b": TEST | {"problems": 7, "samples": None, "max_response_tokens": 20, "temperature": 0},
    }
    evaluations["b"].pop("samples")  # greedy: one
    spec = costly.model_copy(update={"evaluations": evaluations})
    more, less = estimated(spec), estimated(costly)
    each = 10 * 3 * 50 + 7 * 20
    assert more.evaluation_tokens is not None
    assert more.evaluation_tokens >= 4 * each
    assert more.tokens == less.tokens
    assert more.flops == less.flops  # of training alone
    assert less.evaluation_tokens is None  # TEST has no length of its own
    open_ended = {"c": TEST | {"problems": 0, "max_response_tokens": 9}}
    unknown = estimated(spec.model_copy(update={"evaluations": evaluations | open_ended}))
    assert unknown.evaluation_tokens is None


@pytest.mark.parametrize("own", [True, False])
def test_costs_of_evaluations_are_at_most_what_is_said(costly: StudySpec, own: bool):
    evaluation = TEST | {"problems": 10, "samples": 3, "max_response_tokens": 50}
    scored = {"eval_problems": 10, "eval_samples": 3} if own else {}
    changes = {"settings": COSTED | scored, "evaluations": {"a": evaluation}}
    tokens = estimated(costly.model_copy(update=changes)).evaluation_tokens
    assert tokens is not None
    each = 10 * 3 * 50
    assert tokens >= (4 * (each + 10 * 3 * 100) if own else (4 + 1) * each)


def test_time_is_known_from_a_device_or_better_from_cells_that_finished(costly: StudySpec):
    fast = costly.model_copy(update={"flops_per_second": 1e6})
    cost = estimated(fast)
    assert cost.flops is not None
    assert cost.seconds == pytest.approx(cost.flops / 1e6)
    assert "flops_per_second" in cost.basis
    for cell, seconds, steps in zip(plan(fast)[:3], (20.0, 40.0, 90.0), (10, 10, 10), strict=True):
        write_json(costly.folder / "runs" / cell.name / "result.json", {"steps": steps})
        ending = Ending("finished", scored_step=steps, seconds=seconds)
        write_json(costly.folder / "cells" / cell.name / "cell.json", asdict(ending))
    cost = estimated(fast)
    # lora has 2 and 4 seconds a step, rlpo 9; each takes twice ten.
    assert cost.seconds == pytest.approx(20 * 3 + 20 * 9)
    assert "3 cells that have finished" in cost.basis


def test_a_method_that_has_not_finished_is_taken_to_be_as_slow_as_the_others(costly: StudySpec):
    cell: Cell = plan(costly)[0]
    write_json(costly.folder / "runs" / cell.name / "result.json", {"steps": 10})
    ending = Ending("finished", scored_step=10, seconds=50.0)
    write_json(costly.folder / "cells" / cell.name / "cell.json", asdict(ending))
    assert estimated(costly).seconds == pytest.approx(4 * 50)


def test_a_model_that_is_not_at_hand_has_no_operations(costly: StudySpec, tmp_path: Path):
    away = {"settings": COSTED | {"model": str(tmp_path / "nothing")}, "parameters": None}
    assert estimated(costly.model_copy(update=away)).flops is None
    counted = estimated(costly.model_copy(update={"parameters": None}))
    assert counted.flops is not None
    assert counted.flops > 0


# What is shown of runs


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (12_600, "3.5 h"),
        (129_599, "36.0 h"),
        (129_600, "1.5 days"),
        (181_440, "2.1 days"),
    ],
)
def test_durations_in_words(seconds: float, text: str):
    assert duration(seconds) == text


def test_durations_are_rounded_by_a_third_at_most():
    for seconds in range(1, 300_000, 37):
        number, unit = duration(seconds).split()
        value = float(number) * {"s": 1, "min": 60, "h": 3600, "days": 86_400}[unit]
        assert value == pytest.approx(seconds, rel=0.34)


WHOLE = [{"step": step, "reward": 0.5} for step in range(1, 4)]


@pytest.mark.parametrize(
    ("tail", "step"),
    [
        ("", 3),
        ('{"step": 4, "rew', 3),
        ('{"step": 4, "reward": 0.5}', 3),  # no line end: it may not be whole
        ('{"step": 4, "rew\n', 3),
        ('{"step": 4}\n', 4),
        ("\n\n", 3),
        ("\x00\x00\x00", 3),
        ("\x00\x00\n", 3),
    ],
)
def test_the_last_whole_row_is_read_behind_a_torn_one(tmp_path: Path, tail: str, step: int):
    text = "".join(json.dumps(row) + "\n" for row in WHOLE) + tail
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_row(tmp_path)["step"] == step


def test_bytes_that_are_no_text_are_passed_over(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n')
    assert last_row(tmp_path) == {"step": 1}


def test_the_last_row_of_a_long_log_is_found(tmp_path: Path):
    rows = [{"step": step, "text": "x" * 500} for step in range(200)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_row(tmp_path)["step"] == 199


def test_without_a_whole_row_there_is_none(tmp_path: Path):
    assert last_row(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text("")
    assert last_row(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    assert last_row(tmp_path) == {}


def test_runs_that_ended_early_are_counted_where_others_go_on():
    long, short = [0.6] * 60, [0.1] * 20
    cells = [
        Entry("rlpo", 1e-3, seed, Fraction(1, 2), passes=short if seed < 3 else long)
        for seed in range(5)
    ]
    table = study_tables.equal_steps(compared(cells))
    (row,) = table.rows
    assert row[1].startswith("0.300 [")
    assert row[2] == "0.600 [0.600, 0.600] (2 of 5 runs)"
    assert "the number of the others" in table.caption[0]


def test_a_correction_counts_the_tests_that_there_are():
    """An arm at other rates than its reference has an interval, and no test."""
    other = [
        Entry("dora", rate, seed, Fraction(1, 2)) for rate in (1e-2, 3e-2) for seed in range(5)
    ]
    table = study_tables.best_rates(compared([*a_study(), *other]))
    say = " ".join(table.caption)
    tested = [row for row in table.rows if row[7] != "–"]
    assert f"Holm: corrected for {len(tested)}." in say
    assert f"all {sum(row[4] != '–' for row in table.rows)} comparisons together" in say
    assert "an arm that was not tried at its reference's rates has none" in say
