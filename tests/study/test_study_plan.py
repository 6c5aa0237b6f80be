"""Plans: which cells a study has, what they are called, and what is refused."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_data import ADAPTIVE, TEST, claim

from orthora.config import TrainConfig
from orthora.study import Cell, StudySpec, load_study, plan
from orthora.study.arms import arms_of, check_claims, fixed_partner, reference_of
from orthora.study.folder import check_owner, opened
from orthora.study.results import load_results

GRID: dict[str, Any] = {
    "method": ["lora", "rlpo"],
    "learning_rate": [1e-3, 1e-4],
    "seed": [1, 0],
}
STEERED = ADAPTIVE | {"learning_rate": 3e-4}


def study(*grid: dict[str, Any], **changes: Any) -> StudySpec:
    """A study on the embedded model."""
    table: dict[str, Any] = {"name": "plans", "base": "tiny", "evaluations": {"test": TEST}}
    return StudySpec(**(table | {"grid": list(grid) or [GRID]} | changes))


def refusal(*grid: dict[str, Any], **changes: Any) -> str:
    """Why a study can't be planned, in one line."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        plan(study(*grid, **changes))
    text = str(caught.value)
    assert "\n" not in text, text
    assert len(text) < 600, text
    return text


def points(cells: list[Cell], *keys: str) -> list[tuple[Any, ...]]:
    """Some settings of all cells."""
    return [tuple(cell.config(Path("x")).model_dump()[key] for key in keys) for cell in cells]


# Which cells


def test_a_grid_is_the_product_of_its_axes():
    grid = GRID | {"rank": [8, 4, 2], "steps": 7}
    axes = (grid["method"], grid["learning_rate"], grid["seed"], grid["rank"])
    found = points(plan(study(grid)), "method", "learning_rate", "seed", "rank")
    assert sorted(found) == sorted(itertools.product(*axes))
    assert set(points(plan(study(grid)), "steps")) == {(7,)}


def test_several_grids_are_united():
    adaptive = {"method": ["lora", "rlpo"], "seed": [0, 1], "learning_rate": 3e-4} | ADAPTIVE
    both = plan(study(GRID, adaptive))
    parts = [*plan(study(GRID)), *plan(study(adaptive))]
    assert len(both) == 8 + 4
    assert {cell.hash for cell in both} == {cell.hash for cell in parts}


def test_cells_come_seed_by_seed_and_within_a_seed_as_the_grid_has_them():
    cells = plan(study(GRID))
    expected = [
        (seed, method, rate)
        for seed in (0, 1)
        for method in ("lora", "rlpo")
        for rate in (1e-3, 1e-4)
    ]
    assert points(cells, "seed", "method", "learning_rate") == expected
    assert [(c.seed, c.method, c.rate) for c in cells] == expected


def test_the_same_study_is_the_same_plan():
    assert plan(study(GRID)) == plan(study(GRID))


def test_settings_go_over_the_base_and_the_grid_over_settings():
    settings = {"steps": 7, "rank": 3, "eval_problems": 0}
    cells = plan(study(GRID | {"rank": [2]}, settings=settings))
    assert set(points(cells, "steps", "rank", "eval_problems")) == {(7, 2, 0)}
    assert set(points(cells, "model", "group_size", "alpha")) == {("tiny", 8, 16.0)}  # the preset


def test_a_list_in_a_list_is_one_value():
    rules = ["default", "grad_norm > 5x"]
    cells = plan(study(GRID | {"watch": [rules]}))
    assert set(points(cells, "watch")) == {(tuple(rules),)}


def test_defaults_of_a_run_stand_in_for_what_a_cell_does_not_say():
    (cell,) = plan(study({"rank": 8}, base="paper", settings={"model": "m", "data": "d.jsonl"}))
    config = cell.config(Path("x"))
    assert (cell.method, cell.seed, cell.rate) == (
        config.method,
        config.seed,
        config.learning_rate,
    )


# Names and hashes


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base that presets can't change."""
    file = tmp_path / "base.toml"
    file.write_text('model = "tiny"\ntask = "arithmetic"\n')
    return file


def test_names_and_hashes_are_these_for_good(base: Path):
    (cell,) = plan(study({"method": "lora", "learning_rate": 1e-3, "seed": 0}, base=str(base)))
    text = (
        '{"learning_rate": 0.001, "method": "lora", "model": "tiny", "seed": 0, '
        '"task": "arithmetic", "threads": 1}'
    )
    # It changed once, when a run's threads became part of it: its sums depend on them.
    assert cell.hash == hashlib.sha256(text.encode()).hexdigest()[:16] == "cfa420d536acd452"
    assert cell.name == "lora-1e-3-r16-s0-cfa420d5"


def test_schedules_are_in_the_name(base: Path):
    grid = {"learning_rate": 3e-4, "seed": 5, "rank": 4}
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"schedule": "cosine"}, "rlpo-3e-4-cosine-r4-s5-"),
        (ADAPTIVE | {"kl_target": 1e-3}, "rlpo-kl1e-3-from-3e-4-r4-s5-"),
        ({"learning_rate": "match-kl:lora@1e-5"}, "rlpo-match-kl-lora-at-1e-05-r4-s5-"),
    ]
    for change, name in kinds:
        (cell,) = plan(study(grid | change, base=str(base)))
        assert cell.name == name + cell.hash[:8]


def test_hashes_tell_any_two_settings_apart():
    grid = GRID | {"rank": [8, 4], "alpha": [16, 8.5], "weight_decay": [0.1, 0.0]}
    cells = plan(study(grid, ADAPTIVE | grid))
    assert len({cell.hash for cell in cells}) == len({cell.name for cell in cells}) == len(cells)


def test_threads_are_as_many_as_the_cpus_where_they_are_not_given(base: Path):
    def threads(**changes: Any) -> set[int]:
        spec = study(GRID, base=str(base), **changes)
        return {cell.settings["threads"] for cell in plan(spec)}

    assert threads() == {1}
    assert threads(cpus=3) == threads(cpus=3, settings={"threads": 0}) == {3}
    assert threads(cpus=3, settings={"threads": 2}) == {2}
    one = plan(study(GRID, base=str(base)))
    assert one == plan(study(GRID, base=str(base), settings={"threads": 1}, cpus=4))
    assert one[0].hash != plan(study(GRID, base=str(base), cpus=2))[0].hash
    assert study(GRID).settings == {}


def test_a_cell_keeps_its_name_when_the_grid_grows():
    before = {cell.name for cell in plan(study(GRID))}
    more = GRID | {"seed": [0, 1, 2], "method": ["pissa", "rlpo", "lora"]}
    after = {cell.name for cell in plan(study(more, more | ADAPTIVE, about="more", retries=0))}
    assert before < after


def test_a_cell_keeps_its_name_wherever_it_is_kept(tmp_path: Path, base: Path):
    named = tmp_path / "named.toml"
    named.write_text(base.read_text() + 'out = "runs/somewhere"\n')
    here = plan(study(GRID, base=str(base)))
    there = plan(study(GRID, base=str(named), out=str(tmp_path / "other"), name="other"))
    assert [c.name for c in here] == [c.name for c in there]
    assert all("out" not in cell.settings for cell in there)
    assert here[0].config(Path("a")).out == str(Path("a") / "runs" / here[0].name)


def test_a_cell_keeps_its_name_when_defaults_are_written_out(base: Path):
    fields = TrainConfig.model_fields
    said = {k: fields[k].default for k in ("steps", "schedule", "grad_clip", "save_every")}
    said["adam_betas"] = list(fields["adam_betas"].default)
    plain = plan(study(GRID, base=str(base)))
    assert plan(study(GRID, base=str(base), settings=said)) == plain
    assert plan(study(GRID | {"schedule": ["constant"]}, base=str(base))) == plain


def test_a_cell_keeps_its_name_however_a_number_or_method_is_written(base: Path):
    ways = [{"alpha": 16, "method": "rlpo"}, {"alpha": 16.0, "method": "lora-rlpo"}]
    assert len({plan(study(way, base=str(base)))[0].hash for way in ways}) == 1


# What is refused


@pytest.mark.parametrize("one", [{"method": ["rlpo", "lora-rlpo"]}, {"seed": [0, 0]}])
def test_a_cell_that_comes_twice_is_refused(one: dict[str, Any]):
    text = refusal(GRID | one)
    assert "two cells have one hash: " in text
    assert "comes twice (grid 1); leave one out" in text


def test_a_cell_that_two_grids_have_is_refused_with_both():
    text = refusal(GRID, {"method": "lora-rlpo", "learning_rate": 1e-3, "seed": [7, 0]})
    (cell,) = plan(study({"method": "rlpo", "learning_rate": 1e-3, "seed": 0}))
    assert f"{cell.name} comes twice (grid 1 and 2)" in text


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "grid 1 is empty: no axes"),
        ({"seed": [], "rank": [8]}, "grid 1 is empty: axis 'seed' has no values"),
        (
            {"lerning_rate": [1]},
            "grid 1: 'lerning_rate' is no setting of a run. Did you mean 'lear",
        ),
        ({"out": ["x"]}, "grid 1: out is set by the study; leave it out"),
        ({"rank": [8, -1]}, "grid 1, rank -1: rank: input should be greater"),
        ({"rank": ["many"]}, "grid 1, rank many: rank: "),
        ({"method": ["lroa"]}, "grid 1, method lroa: unknown method 'lroa'. Did you mean 'lora'?"),
        ({"method": ["lora+rlpo"]}, "grid 1, method lora+rlpo: "),
    ],
)
def test_a_bad_grid_is_refused(grid: dict[str, Any], message: str):
    assert refusal(grid).startswith(message)
    assert refusal(GRID, grid).startswith(message.replace("grid 1", "grid 2"))


def test_no_grid_at_all_is_refused():
    with pytest.raises(ValueError, match="at least 1 item"):
        StudySpec(name="x", base="tiny", grid=[], evaluations={"test": TEST})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"stpes": 3}},
            "settings: 'stpes' is no setting of a run. Did you mean 'steps'",
        ),
        ({"settings": {"out": "x"}}, "settings: out is set by the study"),
        (
            {"exclude": [{"sed": 0, "reason": "r"}]},
            "exclude 1: 'sed' is no setting of a run. Did you",
        ),
        (
            {"differences": ["rnk"]},
            "differences: 'rnk' is no setting of a run. Did you mean 'rank'?",
        ),
        ({"differences": ["out"]}, "differences: out is set by the study"),
        ({"differences": ["zzzzzz"]}, "differences: 'zzzzzz' is no setting of a run."),
        ({"base": "tny"}, "no config file 'tny'"),
        ({"settings": {"steps": 0}}, "grid 1, method lora, learning_rate 0.001, seed 1: steps: "),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str):
    assert refusal(**changes).startswith(message)


def test_methods_that_differ_in_what_is_not_declared_are_refused():
    grids = (
        {"method": "lora", "rank": 8, "seed": [0, 1]},
        {"method": "rlpo", "rank": 4, "seed": [0, 1]},
    )
    text = refusal(*grids)
    for part in ("'lora'", "'rlpo'", "differ in rank", "8 against 4", "'rank' to differences"):
        assert part in text
    assert len(plan(study(*grids, differences=["rank"]))) == 4


def test_methods_with_other_seeds_or_rates_are_refused():
    one = {"method": "lora", "seed": [0, 1], "learning_rate": 1e-3}
    assert "differ in seed (0, 1 against 0, 1, 2)" in refusal(
        one, one | {"method": "rlpo", "seed": [0, 1, 2]}
    )
    rates = refusal(one, one | {"method": "rlpo", "learning_rate": 1e-4})
    assert "differ in learning_rate (0.001 against 0.0001)" in rates
    declared = study(
        one, one | {"method": "rlpo", "learning_rate": 1e-4}, differences=["learning_rate"]
    )
    assert len(plan(declared)) == 4


def test_a_default_counts_where_methods_differ():
    one = {"method": "lora", "seed": 0}
    text = refusal(one, one | {"method": "rlpo"} | ADAPTIVE)
    assert "differ in schedule (constant against adaptive-kl)" in text


def test_settings_with_other_seeds_are_refused_also_where_that_is_declared_or_excluded():
    one = {"method": ["lora", "rlpo"], "seed": [0, 1], "learning_rate": 1e-3}
    text = refusal(one, one | {"learning_rate": 1e-4, "seed": [0, 1, 2]})
    assert text.startswith("seeds are paired, and the setting of lora-1e-3-")
    assert "lacks seeds 2; give all settings the same seeds" in text
    other = one | {"method": "rlpo", "seed": [0, 1, 2]}
    assert "lacks seeds 2;" in refusal(one | {"method": "lora"}, other, differences=["seed"])
    out = {"method": "rlpo", "learning_rate": 1e-3, "seed": 0, "reason": "r"}
    assert "the setting of rlpo-1e-3-" in refusal(exclude=[out])
    assert len(plan(study(exclude=[{"seed": 0, "reason": "r"}]))) == 4


def test_fairness_compares_with_the_reference():
    three = [
        {"method": m, "rank": r, "seed": 0} for m, r in (("pissa", 4), ("lora", 8), ("rlpo", 8))
    ]
    assert "'lora' and 'pissa' differ in rank (8 against 4)" in refusal(*three)
    text = refusal(*three, reference="pissa")
    assert "'pissa' and 'lora' differ in rank (4 against 8)" in text


LACKING = (
    {"method": ["lora", "rlpo"], "rank": [8, 4], "seed": 0},
    {"method": ["lora", "rlpo"], "rank": 8, "seed": 1},
    {"method": "lora", "rank": 4, "seed": 1},
)


def test_a_missing_combination_is_refused_even_if_all_values_are_there():
    assert refusal(*LACKING).startswith("method 'rlpo' lacks a combination that the other has")
    assert refusal(*LACKING, reference="rlpo").startswith("method 'rlpo' lacks a combination")


def test_a_missing_combination_is_named():
    text = refusal(*LACKING)
    assert "rank" in text
    assert "seed" in text


# Exclusions


def test_excluded_cells_are_left_out_with_a_reason():
    out = {"method": "rlpo", "learning_rate": 1e-3, "reason": "it diverges"}
    left = points(plan(study(exclude=[out])), "method", "learning_rate")
    assert len(left) == 6
    assert ("rlpo", 1e-3) not in left
    assert ("lora", 1e-3) in left


def test_a_cell_is_excluded_by_a_default_that_it_does_not_say():
    cells = plan(study(GRID, GRID | ADAPTIVE, exclude=[{"schedule": "constant", "reason": "r"}]))
    assert points(cells, "schedule") == [("adaptive-kl",)] * 8


def test_exclusions_do_not_rename_what_is_left():
    every = {cell.name for cell in plan(study())}
    left = {cell.name for cell in plan(study(exclude=[{"seed": 0, "reason": "r"}]))}
    assert left < every


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([{"rank": 8}], "exclude 1 needs settings and a reason"),
        ([{"rank": 8, "reason": ""}], "exclude 1 needs settings and a reason"),
        ([{"reason": "r"}], "exclude 1 needs settings and a reason"),
        ([{"rank": 9, "reason": "r"}], "exclude 1 leaves nothing out: no cell has rank 9"),
        (
            [{"seed": 0, "reason": "r"}, {"seed": 0, "method": "lora", "reason": "r"}],
            "exclude 2 leaves nothing out: no cell has seed 0, method lora",
        ),
        ([{"rank": 8, "reason": "r"}], "the grid is empty: everything is excluded"),
    ],
)
def test_bad_exclusions_are_refused(exclude: list[dict[str, Any]], message: str):
    assert refusal(exclude=exclude) == message


@pytest.mark.parametrize(
    ("grid", "exclude"),
    [
        (GRID, {"method": "lora-rlpo"}),
        (GRID | {"adam_betas": [[0.9, 0.999], [0.9, 0.99]]}, {"adam_betas": [0.9, 0.999]}),
        (
            GRID | {"learning_rate": ["match-kl:lora@1e-5", 1e-4]},
            {"learning_rate": "match-kl:lora@1e-5"},
        ),
    ],
    ids=["alias", "default pair", "match"],
)
def test_what_a_grid_says_can_be_excluded_in_the_same_words(grid: dict, exclude: dict):
    half = plan(study(grid, exclude=[exclude | {"reason": "r"}]))
    assert 2 * len(half) == len(plan(study(grid)))


# Arms


def labels(*grid: dict[str, Any], **changes: Any) -> dict[str, bool]:
    """Whether an arm finds its rate, by its label."""
    spec = study(*grid, **changes)
    return {arm.label: bool(arm.finds) for arm in arms_of(spec, plan(spec)).values()}


def test_an_arm_is_a_method_and_what_is_unusual_of_its_settings():
    grid = GRID | {"rank": [8, 1]}
    found = labels(grid, grid | ADAPTIVE | {"learning_rate": 3e-4})
    expected = {
        f"{method}{rank}{schedule}": bool(schedule)
        for method in ("lora", "rlpo")
        for rank in ("", ", rank 1")
        for schedule in ("", ", adaptive-kl")
    }
    assert found == expected


def test_labels_go_by_the_base_and_its_settings_not_by_the_majority():
    grid = GRID | {"rank": [8, 4, 2]}
    assert {"lora", "lora, rank 4", "lora, rank 2"} <= {*labels(grid)}
    assert {"lora", "lora, rank 8", "lora, rank 2"} <= {*labels(grid, settings={"rank": 4})}
    assert {*labels(GRID | {"rank": 4})} == {"lora", "rlpo"}  # it is the same in all cells
    assert {*labels(GRID | {"rank": [4, 2]})} == {
        f"{method}, rank {rank}" for method in ("lora", "rlpo") for rank in (4, 2)
    }
    assert {*labels(GRID | {"weight_decay": [0.0, 0.1]})} == {
        f"{method}{more}" for method in ("lora", "rlpo") for more in ("", ", weight_decay 0")
    }


def test_a_default_that_the_base_writes_out_is_not_in_a_label():
    betas = list(TrainConfig.model_fields["adam_betas"].default)
    grid = GRID | {"adam_betas": [betas, [0.5, 0.9]]}
    assert {"lora", "rlpo"} <= {*labels(grid)}
    assert {"lora", "rlpo"} <= {*labels(grid, settings={"adam_betas": betas})}


def test_rates_and_seeds_are_within_an_arm():
    arms = arms_of(study(), plan(study()))
    assert {arm.label for arm in arms.values()} == {"lora", "rlpo"}
    assert len(arms) == 8


@pytest.mark.parametrize("fixed", [0, 1])
def test_arms_are_adaptive_even_if_most_of_the_study_is(fixed: int):
    adaptive = {"method": ["lora", "rlpo"], "seed": [0, 1], "kl_target": [1e-3, 2e-3]} | ADAPTIVE
    grids = [adaptive, {"method": ["lora", "rlpo"], "seed": [0, 1]}][: 1 + fixed]
    assert sum(labels(*grids).values()) == 4


def test_first_rates_of_adaptive_kl_are_settings():
    adaptive = GRID | ADAPTIVE | {"kl_target": [1e-3, 2e-3], "learning_rate": [3e-5, 3e-3]}
    found = labels(GRID, adaptive)
    expected = {
        f"{method}{target}, adaptive-kl, from {rate}": True
        for method in ("lora", "rlpo")
        for target in (", kl_target 1e-3", "")
        for rate in ("3e-5", "3e-3")
    }
    assert found == expected | {"lora": False, "rlpo": False}
    one = labels(GRID, GRID | ADAPTIVE | {"learning_rate": 3e-3})
    assert {"lora, adaptive-kl", "rlpo, adaptive-kl"} < {*one}  # one of all: no need to name it
    spec = study(GRID, adaptive)
    arms = {arm.label: arm for arm in arms_of(spec, plan(spec)).values()}
    for label in expected:
        assert fixed_partner(label, arms) == label.partition(",")[0]


def test_matched_rates_are_rates_of_one_arm():
    grid = GRID | {"learning_rate": ["match-kl:lora@1e-5", "match-kl:lora@1e-4"]}
    assert len(labels(grid)) == 2
    both = labels(GRID, grid)
    assert sorted(both) == ["lora", "lora, match-kl:lora", "rlpo", "rlpo, match-kl:lora"]
    assert not any(both.values())


def test_one_matched_rate_is_found_not_swept():
    match = {"learning_rate": ["match-kl:lora@1e-5", "match-norm:lora@1e-5"]}
    both = ["learning_rate", "learning_rate_match"]
    spec = study(GRID, GRID | match | {"method": ["rlpo"]}, differences=both)
    arms = {arm.label: arm for arm in arms_of(spec, plan(spec)).values()}
    found = {label: arm.finds for label, arm in arms.items()}
    matched = dict.fromkeys(("rlpo, match-kl:lora", "rlpo, match-norm:lora"), "match")
    assert found == {"lora": "", "rlpo": ""} | matched
    for label in matched:
        assert fixed_partner(label, arms) == "rlpo"
    check_claims(spec.model_copy(update={"claims": [claim("no-sweep", [*matched])]}), plan(spec))


def test_an_arm_of_one_matched_rate_keeps_its_schedule_beside_a_partner():
    match = {"learning_rate": "match-kl:lora@1e-5"}
    cosine = {"schedule": "cosine"}
    spec = study(GRID, GRID | cosine, GRID | match, GRID | match | cosine)
    arms = {arm.label: arm for arm in arms_of(spec, plan(spec)).values()}
    assert fixed_partner("rlpo, match-kl:lora", arms) == "rlpo"
    assert fixed_partner("rlpo, match-kl:lora, cosine", arms) == "rlpo, cosine"


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            claim("better", ["rlop"]),
            "claim 2 (better): 'rlop' is no arm of the study; it has: lora; rlpo; lora, adaptive",
        ),
        (claim("worse", ["rlpo"], "pissa"), "claim 2 (worse): 'pissa' is no arm of the study"),
        (claim("better", ["lora-rlpo"]), "claim 2 (better): 'lora-rlpo' is no arm"),
        (claim("stabler", ["rlpo"]), "claim 2 (stabler): it needs a partner in than for every"),
        (claim("stabler", ["rlpo"], "lora", "pissa"), "claim 2 (stabler): 'pissa' is no arm"),
        (
            claim("stabler", ["rlpo, adaptive-kl"], "lora"),
            "claim 2 (stabler): an arm under adaptive-kl has no sweep; compare it by 'better'",
        ),
        (claim("order", ["rlpo"]), "claim 2 (order): it needs two methods or more"),
        (claim("equal", ["rlpo"]), "claim 2 (equal): it needs two methods or more"),
        (
            claim("no-sweep", ["rlpo"]),
            "claim 2 (no-sweep): it is about arms under adaptive-kl, or with one matched rate; "
            "'rlpo' is none",
        ),
        (claim("better", ["rlpo", "rlpo"]), "claim 2 (better): an arm is named twice"),
        (claim("better", ["rlpo"], "lora", "lora"), "claim 2 (better): an arm is named twice"),
        (claim("worse", ["rlpo"], "rlpo"), "claim 2 (worse): an arm is compared with itself"),
        (
            claim("stabler", ["rlpo", "lora"], "lora", "rlpo"),
            "claim 2 (stabler): an arm is compared with itself",
        ),
        (claim("better", ["rlpo"], lower_kl=True), "claim 2 (better): lower_kl is for 'order'"),
        *(
            (claim(kind, [method, "rlpo, adaptive-kl"], "lora"), f"claim 2 ({kind}): than is for")
            for kind, method in (
                ("collapses", "rlpo"),
                ("order", "rlpo"),
                ("equal", "rlpo"),
                ("no-sweep", "lora, adaptive-kl"),
            )
        ),
        (claim("better", ["lora"]), "claim 2 (better): 'lora' has no reference to be compared"),
        (claim("collapses", ["lora"]), "claim 2 (collapses): 'lora' has no reference to be"),
    ],
)
def test_claims_about_what_a_study_does_not_have_are_refused(one: Any, message: str):
    fine = claim("better", ["rlpo"], "lora")
    spec = study(GRID, GRID | STEERED, claims=[fine, one])
    with pytest.raises(ValueError, match=r"claim 2") as caught:
        check_claims(spec, plan(spec))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_claims_about_what_a_study_has_are_let_pass():
    adaptive = "rlpo, adaptive-kl"
    fine = [
        claim("better", ["rlpo"]),
        claim("better", ["lora"], "rlpo"),  # what the reference is compared with is said
        claim("collapses", ["rlpo", adaptive]),
        claim("worse", ["lora, adaptive-kl"]),
        claim("stabler", ["rlpo"], "lora"),
        claim("no-sweep", [adaptive, "lora, adaptive-kl"]),
        claim("order", ["rlpo", "lora"], lower_kl=True),
        claim("equal", ["rlpo", "lora", adaptive]),
    ]
    spec = study(GRID, GRID | STEERED, claims=fine)
    check_claims(spec, plan(spec))


def test_two_arms_may_have_one_partner():
    grid = GRID | {"method": ["lora", "rlpo", "pissa"]}
    spec = study(grid, claims=[claim("stabler", ["rlpo", "pissa"], "lora", "lora")])
    check_claims(spec, plan(spec))


def test_a_study_of_first_rates_alone_has_its_reference():
    """The reference is a method: its arm in the same settings is what others are compared with."""
    first = {"learning_rate": [3e-5, 3e-3]}
    spec = study(GRID | STEERED | first, claims=[claim("better", ["rlpo, from 3e-5"])],
                 settings=ADAPTIVE)  # fmt: skip
    cells = plan(spec)
    check_claims(spec, cells)
    arms = {arm.label: arm for arm in arms_of(spec, cells).values()}
    assert reference_of("rlpo, from 3e-3", arms, "lora") == "lora, from 3e-3"
    ranks = study(GRID | {"rank": [1, 4]}, claims=[claim("worse", ["rlpo, rank 1"])])
    check_claims(ranks, plan(ranks))


def test_a_method_with_a_first_rate_of_its_own_is_compared_with_the_reference_under_adaptive_kl():
    own = [{"method": method, "seed": [0, 1]} | ADAPTIVE | {"learning_rate": rate}
           for method, rate in (("lora", 3e-4), ("rlpo", 1e-3))]  # fmt: skip
    spec = study(GRID, *own, differences=["learning_rate", "schedule"])
    arms = {arm.label: arm for arm in arms_of(spec, plan(spec)).values()}
    assert reference_of("rlpo, adaptive-kl, from 1e-3", arms, "lora") == (
        "lora, adaptive-kl, from 3e-4"
    )


def test_a_partner_at_fixed_rates_is_found_by_its_settings_whatever_its_label():
    constant = GRID | {"schedule": "constant"}
    spec = study(constant, GRID | {"learning_rate": 3e-4}, settings=ADAPTIVE)
    arms = {arm.label: arm for arm in arms_of(spec, plan(spec)).values()}
    assert fixed_partner("lora", arms) == "lora, constant"
    three = study(GRID, GRID | {"schedule": "cosine"}, GRID | STEERED)
    arms = {arm.label: arm for arm in arms_of(three, plan(three)).values()}
    assert fixed_partner("rlpo, adaptive-kl", arms) == "rlpo"


def test_an_adaptive_arm_without_fixed_rates_has_no_sweep_to_spare():
    adaptive = "rlpo, adaptive-kl"
    grids = ({"method": "lora", "seed": [0, 1]}, {"method": "rlpo", "seed": [0, 1]} | ADAPTIVE)
    spec = study(*grids, claims=[claim("no-sweep", [adaptive])], differences=["schedule"])
    with pytest.raises(
        ValueError, match=r"claim 1 \(no-sweep\): 'rlpo, adaptive-kl' has no partner"
    ):
        check_claims(spec, plan(spec))


@pytest.mark.parametrize("claims", [[], [claim("better", ["rlpo"], "lora")]])
def test_a_reference_that_is_no_arm_is_refused(claims: list[Any]):
    spec = study(reference="pissa", claims=claims)
    with pytest.raises(ValueError, match="'pissa' is no method of the study; it has: lora; rlpo"):
        check_claims(spec, plan(spec))


# Files


HEAD = 'name = "x"\nbase = "tiny"\n'
AXES = "[[grid]]\nseed = [0]\n"
ARITHMETIC = 'task = "arithmetic"\nproblems = 8\n'
TESTED = f"[evaluations.test]\n{ARITHMETIC}"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a study's file."""

    def write(text: str) -> Path:
        file = tmp_path / "study.toml"
        file.write_text(text)
        return file

    return write


def test_a_study_is_read_from_its_file(written: Callable[[str], Path]):
    text = (
        f'{HEAD}select = "val"\nreport = "test"\nreference = "lora-rlpo"\n{AXES}'
        f'[evaluations.val]\n{ARITHMETIC}data_split = "validation"\n'
        f"[evaluations.test]\n{ARITHMETIC}"
        '[[claims]]\nsays = "so"\nkind = "better"\nmethods = ["lora"]\n'
    )
    spec = load_study(written(text))
    assert (spec.selected(), spec.reported(), spec.reference) == (("val",), ("test",), "rlpo")
    assert spec.claims == [claim("better", ["lora"]).model_copy(update={"says": "so"})]
    assert spec.folder == Path("runs/x")


def test_the_first_evaluation_is_reported_and_selects_if_nothing_is_said(written):
    one = load_study(
        written(f"{HEAD}{AXES}[evaluations.a]\n{ARITHMETIC}[evaluations.b]\n{ARITHMETIC}")
    )
    assert (one.selected(), one.reported()) == (("a",), ("a",))
    two = load_study(
        written(
            f'report = "b"\n{HEAD}{AXES}[evaluations.a]\n{ARITHMETIC}[evaluations.b]\n{ARITHMETIC}'
        )
    )
    assert (two.selected(), two.reported()) == (("b",), ("b",))


def test_a_base_beside_the_file_is_found_from_anywhere(written, base: Path, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file = written(f'name = "x"\nbase = "base.toml"\n{AXES}{TESTED}')
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert plan(load_study(file)) == plan(study({"seed": [0]}, base=str(base)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not valid TOML"),
        (
            f'nam = "x"\nbase = "tiny"\n{AXES}{TESTED}',
            "unknown config key 'nam'. Did you mean 'name'?",
        ),
        (f'base = "tiny"\n{AXES}{TESTED}', "name: field required"),
        (HEAD + TESTED, "grid: field required"),
        (f"{HEAD}grid = []\n{TESTED}", "grid: list should have at least 1 item"),
        (f'name = "a/b"\nbase = "tiny"\n{AXES}{TESTED}', "name: string should match pattern"),
        (f"margin = 0\n{HEAD}{AXES}{TESTED}", "margin: input should be greater than 0"),
        (
            f'reference = "lroa"\n{HEAD}{AXES}{TESTED}',
            "unknown method 'lroa'. Did you mean 'lora'?",
        ),
        (f'claims = "so"\n{HEAD}{AXES}{TESTED}', "claims: input should be a valid list"),
        (
            f'{HEAD}{AXES}[[claims]]\nsays = "so"\nkind = "better"\nmetods = ["lora"]\n',
            "claim 1: unknown config key 'metods'. Did you mean 'methods'?",
        ),
        (
            f'{HEAD}{AXES}[[claims]]\nsays = "so"\nkind = "best"\nmethods = ["lora"]\n',
            "claim 1: kind: input should be 'collapses', 'worse'",
        ),
        (
            f'{HEAD}{AXES}[[claims]]\nsays = "so"\nkind = "better"\nmethods = []\n',
            "claim 1: methods: list should have at least 1 item",
        ),
        (
            f"{HEAD}{AXES}[evaluations.v]\nproblms = 3\n",
            "evaluation 'v': unknown config key 'problms'. Did you mean 'problems'?",
        ),
        (
            f"{HEAD}{AXES}[evaluations.v]\nproblems = -3\n",
            "evaluation 'v': problems: input should be",
        ),
        (
            f'{HEAD}{AXES}[evaluations.v]\nmodel = "x"\n',
            "evaluation 'v': model is set by the study",
        ),
        (f'{HEAD}{AXES}[evaluations.v]\nout = "x"\n', "evaluation 'v': out is set by the study"),
        (f"{HEAD}{AXES}[evaluations.v]\n", "evaluation 'v': task 'file' needs data"),
        (
            f'select = "tst"\n{HEAD}{AXES}[evaluations.test]\n{ARITHMETIC}',
            "select 'tst' is none of the evaluations (test). Did you mean 'test'?",
        ),
        (
            f'report = ["test", "tst"]\n{HEAD}{AXES}[evaluations.test]\n{ARITHMETIC}',
            "report 'tst' is none of the evaluations (test). Did you mean 'test'?",
        ),
        (f'report = "t"\n{HEAD}{AXES}{TESTED}', "report 't' is none of the evaluations (test)."),
        (f"report = []\n{HEAD}{AXES}{TESTED}", "report [] must name evaluations, each once"),
        (
            f'select = ["test", "test"]\n{HEAD}{AXES}{TESTED}',
            "select ['test', 'test'] must name evaluations, each once",
        ),
        (
            f"cpus = 100000\n{HEAD}{AXES}{TESTED}",
            "cpus: input should be less than or equal to 4096",
        ),
        (HEAD + AXES, "a study needs an evaluation of its runs, such as [evaluations.test]"),
        (f"evaluations = {{}}\n{HEAD}{AXES}", "a study needs an evaluation of its runs"),
        (f"{HEAD}{AXES}[evaluations.'a b']\n{ARITHMETIC}", "evaluation 'a b' is no plain name: "),
        (f"{HEAD}{AXES}[evaluations.'../a']\n{ARITHMETIC}", "evaluation '../a' is no plain name"),
        (f"{HEAD}{AXES}[evaluations.a]\npreset = 3\n", "evaluation 'a': preset 3 is no name"),
        (
            f'{HEAD}{AXES}[evaluations.a]\npreset = "nope"\n',
            "evaluation 'a': no config file 'nope'",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(written, text: str, message: str):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_study(written(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    for place in (tmp_path / "nope.toml", tmp_path):
        with pytest.raises(ValueError, match=r"no study file .*; give a TOML file"):
            load_study(place)


def test_a_key_of_another_config_is_told_without_a_command_that_there_is_not(written):
    with pytest.raises(ValueError, match=r"claim 1: (?!.*orthora claim)"):
        load_study(written(f'{HEAD}{AXES}{TESTED}[[claims]]\nmodel = "x"\n'))


def test_evaluations_that_are_misspelt_are_pointed_out(written):
    with pytest.raises(ValueError, match="Did you mean 'evaluations'"):
        load_study(written(f"{HEAD}{AXES}[evaluatons.test]\n{ARITHMETIC}"))


# Folders


def test_the_folder_of_another_study_is_refused(tmp_path: Path):
    with opened(study(out=str(tmp_path / "here"))) as folder:
        assert json.loads((folder / "study.json").read_text()) == {"name": "plans"}
    check_owner(study(out=str(tmp_path / "here")))
    other = study(name="another", out=str(tmp_path / "here"))
    with pytest.raises(ValueError, match="is the folder of study 'plans', not of 'another'"):
        check_owner(other)
    with pytest.raises(ValueError, match="is the folder of study 'plans'"), opened(other):
        pass
    with pytest.raises(ValueError, match="is the folder of study 'plans'"):
        load_results(other)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    spec = study(out=str(tmp_path))
    with pytest.raises(ValueError, match="is not empty and no study's folder"), opened(spec):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        check_owner(study(out=str(tmp_path / "file")))


def test_an_empty_or_missing_folder_is_taken(tmp_path: Path):
    check_owner(study(out=str(tmp_path)))
    check_owner(study(out=str(tmp_path / "a" / "b")))
    with opened(study(out=str(tmp_path / "a" / "b"))) as folder:
        assert folder.is_dir()


def test_a_study_that_was_not_run_has_no_results(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist; run the study first"):
        load_results(study(out=str(tmp_path / "nothing")))


# Size

BIG = """
import time
from orthora.study import StudySpec, plan
from orthora.study.arms import arms_of
methods = "lora rlpo rlmo pissa milora olora olora-tail geora dct dora".split()
grid = {"method": methods, "learning_rate": [1e-4 * i for i in range(1, 11)],
        "seed": list(range(100))}
start = time.process_time()
spec = StudySpec(name="big", base="tiny", grid=[grid], evaluations={"test": {}})
cells = plan(spec)
arms_of(spec, cells)
seconds = time.process_time() - start
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(len(cells), seconds, int(peak.split()[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_ten_thousand_cells_are_planned_in_little_memory():
    done = subprocess.run(
        [sys.executable, "-c", BIG], capture_output=True, text=True, timeout=300, check=True
    )
    count, seconds, megabytes = map(float, done.stdout.split())
    print(f"{count:.0f} cells: {seconds:.2f} s of CPU, {megabytes:.0f} MB at most")
    assert count == 10_000
    assert megabytes < 300


def test_a_plan_needs_no_model_library():
    """They would take more memory and time than ten thousand cells."""
    code = (
        "import sys; from orthora.study.plan import plan; from orthora.study.run import run_study; "
        "print([m for m in ('transformers', 'peft', 'trl', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_truth_values_are_no_seeds():
    with pytest.raises(ValueError, match="seed: should be a number, got true"):
        plan(study(GRID | {"seed": [True, 0]}))
    with pytest.raises(ValueError, match="exclude 1 leaves nothing out: no cell has seed True"):
        plan(study(GRID, exclude=[{"seed": True, "reason": "r"}]))
