"""Watchdog rules as pure functions of the rows."""

import math

import pytest

from orthora.config import TrainConfig, build
from orthora.config.starting import check_start
from orthora.watch import DEFAULT, NOT_FINITE, SETTLED, WINDOW, Rule, alarms, parse, rules_of


def rows(*values, metric="entropy"):
    return [{"step": i + 1, metric: value} for i, value in enumerate(values)]


def fired(text, table) -> list[int]:
    """Steps at which a rule is told of, as the rows come in."""
    return [
        alarm.step for end in range(1, len(table) + 1) for alarm in alarms(parse(text), table[:end])
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("kl_update_k3 > 0.02", Rule("kl_update_k3", True, 0.02)),
        ("entropy<1e-3", Rule("entropy", False, 1e-3)),
        ("grad_norm > 10x for 2", Rule("grad_norm", True, 10.0, True, 2)),
        ("grad_norm/q_proj > 3x", Rule("grad_norm/q_proj", True, 3.0, True)),
        (" reward < -0.5 for 12 ", Rule("reward", False, -0.5, False, 12)),
        ("grad_norm/Wqkv > 3 x", Rule("grad_norm/Wqkv", True, 3.0, True)),
        ("entropy < 1E-3", Rule("entropy", False, 1e-3)),
    ],
)
def test_rules_are_read_and_written(text, rule):
    assert parse(text) == (rule,)
    assert parse(str(rule)) == (rule,)


def test_the_default_is_a_set_of_rules_that_is_written_as_it_is_read():
    assert [str(rule) for rule in parse("default")] == [str(parse(t)[0]) for t in DEFAULT]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entropie < 1", "did you mean entropy"),
        ("zzzzzz < 1", "known: kl_update_k1"),
        ("entropy = 1", "METRIC > VALUE"),
        ("entropy < nan", "METRIC > VALUE"),
        ("entropy < 1..2", "METRIC > VALUE"),
        ("entropy < 1 for 0", "at least 1 step"),
        ("", "METRIC > VALUE"),
        ("grad_norm/ > 1", "no metric"),
    ],
)
def test_a_bad_rule_is_one_line_with_the_remedy(text, words):
    with pytest.raises(ValueError, match=words) as error:
        parse(text)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=words):
        build(TrainConfig, {"model": "tiny", "out": "x", "task": "arithmetic", "watch": [text]})


def test_an_absolute_rule_fires_once_per_crossing():
    assert fired("entropy > 2", rows(1, 3, 3, 1, 3)) == [2, 5]
    assert fired("entropy < 2", rows(1, 3, 3, 1, 3)) == [1, 4]


def test_steps_in_a_row():
    assert fired("entropy > 2 for 3", rows(3, 3, 1, 3, 3, 3, 3, 1)) == [6]
    alarm = alarms(parse("entropy > 2 for 3"), rows(1, 3, 4, 5))[0]
    assert (alarm.since, alarm.step, alarm.value) == (2, 4, 5.0)


def test_a_relative_rule_looks_at_the_median_before_the_steps_it_judges():
    settled = [1.0] * SETTLED
    assert fired("entropy > 3x", rows(*settled, 3.1)) == [SETTLED + 1]
    assert fired("entropy > 3x", rows(*settled, 2.9)) == []
    assert fired("entropy > 3x", rows(*settled[:-1], 3.1)) == []  # too little is known
    assert fired("entropy > 3x for 2", rows(*settled, 9, 9)) == [SETTLED + 2]
    assert fired("entropy < 0.5x", rows(*settled, 0.4)) == [SETTLED + 1]
    # one wild step among those before does not hide the next
    assert fired("entropy > 3x", rows(*settled, 100.0, 1.0, 100.0)) == [6, 8]
    # what lies beyond the window is forgotten
    assert fired("entropy > 3x", rows(*[100.0] * 5, *[1.0] * WINDOW, 4.0))[-1] == WINDOW + 6


def test_a_missing_value_breaks_no_rule_and_one_that_is_no_number_breaks_all():
    assert fired("entropy > 2", rows(None, None)) == []
    assert fired("entropy > 2 for 2", rows(3, None, 3)) == []
    assert fired("entropy > 2", rows(1, math.nan)) == [2]
    assert fired("entropy < 2", rows(3, math.inf)) == [2]
    assert fired("grad_norm > 2", rows(3, 3)) == []


def test_a_step_that_was_taken_back_says_nothing_of_the_policy():
    table = rows(1.0, 1.0, 1.0, metric="kl_update_k3")
    assert fired("kl_update_k3 > 0.02 for 2", table) == [2]
    undone = [row | {"undone": int(row["step"] != 3)} for row in table]
    assert fired("kl_update_k3 > 0.02 for 2", undone) == []
    assert fired("kl_update_k3 > 0.02", undone) == [3]
    assert fired("grad_norm > 0.5", [row | {"grad_norm": 1.0} for row in undone]) == [1]


def test_what_was_no_number_is_told_of_by_the_row_that_a_file_holds():
    """JSON has no NaN: a resumed run must see what the unbroken one saw."""
    table = [*rows(1.0, 1.0), {"step": 3, "entropy": None, NOT_FINITE: ["entropy"]}]
    assert fired("entropy > 2", table) == [3]
    assert fired("entropy > 2x", table) == [3]
    assert math.isnan(alarms(parse("entropy > 2"), table)[0].value)
    assert fired("loss > 2", table) == []


@pytest.mark.parametrize(("target", "limit"), [(None, 0.02), (2e-3, 0.02), (1e-2, 0.1)])
def test_under_adaptive_kl_the_default_barks_at_ten_times_its_target(target, limit):
    default, own = rules_of(["default"], target), rules_of(["kl_update_k3 > 0.5"], target)
    assert [r.value for r in default if r.metric == "kl_update_k3"] == pytest.approx([limit])
    assert default[1:] == list(parse("default"))[1:]
    assert own == list(parse("kl_update_k3 > 0.5"))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"watch": [], "watch_action": "stop"}, "needs a rule; set watch"),
        ({"watch": ["head_energy > 0.5"], "geometry": False}, "geometry and a method"),
        ({"watch": ["head_energy > 0.5"], "head_rank": 0}, "head_rank above 0"),
        ({"watch": ["delta_norm > 0.5"], "method": "dora"}, "a method that moves by B A"),
        ({"watch": ["kl_base_k1 > 1"], "kl_base_share": 0}, "kl_base_share above 0"),
        ({"watch": ["kl_update_k3 > 1"], "kl_update_share": 0}, "kl_update_share above 0"),
        ({"watch": ["undone > 0"]}, "adaptive-kl"),
        ({"watch": ["entropy > 3 for 9"], "steps": 8}, "more steps than the run has, 8"),
        ({"watch": ["reward < 0.5x"]}, "median that may be negative"),
        ({"watch": ["kl_update_k1 > 5x for 2"]}, "median that may be negative"),
        ({"watch": ["grad_norm > -2x"]}, "not above 0"),
        ({"watch": ["entropy < 0x"]}, "not above 0"),
    ],
)
def test_no_run_begins_with_a_rule_that_means_nothing(changes, remedy):
    config = {"model": "tiny", "out": "x", "task": "arithmetic"} | changes
    with pytest.raises(ValueError, match=remedy) as error:
        check_start(build(TrainConfig, config))
    assert "\n" not in str(error.value)


def test_a_rule_that_is_new_may_hold_already():
    table, (rule,) = rows(3, 3, 3), parse("entropy > 2")
    assert not alarms([rule], table)
    (alarm,) = alarms([rule], table, [rule])
    assert alarm.step == 3
    assert not alarms([rule], rows(3, 3, 1), [rule])


def test_one_rule_needs_no_list():
    config = {"model": "tiny", "out": "x", "task": "arithmetic", "watch": "default"}
    assert build(TrainConfig, config).watch == ("default",)
