"""From verdicts to numbers, against counting by hand and enumeration."""

from itertools import combinations

import pytest

from orthora.evaluate.result import OUTCOMES, Scored, result_of, shown_ks
from orthora.types import Verdict

RIGHT, WRONG = Verdict(True, "7", "exact"), Verdict(False, "8", "different number")
NOTHING = Verdict(False, None, "no answer")
SLOW = Verdict(False, "9", "symbolic timeout")


def one(verdict, *, ended=True, tokens=10, other=None):
    verdicts = {"robust": verdict} if other is None else {"robust": verdict, "dapo": other}
    return Scored(tokens, ended, verdicts)


GROUPS = [
    [one(RIGHT), one(WRONG), one(WRONG), one(RIGHT)],
    [one(WRONG), one(NOTHING, ended=False), one(NOTHING), one(SLOW)],
    [one(RIGHT, ended=False), one(RIGHT), one(RIGHT), one(WRONG, tokens=50)],
]


def test_pass_at_k_for_every_k_is_what_enumeration_gives():
    result = result_of(GROUPS, 4)
    for k in range(1, 5):
        by_hand = []
        for group in GROUPS:
            draws = list(combinations([s.verdict.correct for s in group], k))
            by_hand.append(sum(map(any, draws)) / len(draws))
        assert result.pass_at_k[str(k)] == pytest.approx(sum(by_hand) / 3)
    assert list(result.pass_at_k_interval) == ["1", "2", "4"]
    for k, (low, high) in result.pass_at_k_interval.items():
        assert low <= result.pass_at_k[k] <= high
    assert result.interval == result.pass_at_k_interval["1"]


def test_majorities_by_hand():
    result = result_of(GROUPS, 4)
    assert result.majority_at_k["1"] == pytest.approx(result.pass_at_1)
    # of all four: 7 and 8 twice each, a tie; 8 and 9 once each, both wrong; 7 three times
    assert result.majority_at_k["4"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_every_sample_has_one_outcome():
    result = result_of(GROUPS, 4)
    counts = {"correct": 5, "wrong": 4, "no_answer": 1, "truncated": 1, "timeout": 1, "unscored": 0}
    assert result.outcomes == {name: counts[name] / 12 for name in OUTCOMES}
    assert sum(result.outcomes.values()) == pytest.approx(1)
    assert (result.truncated, result.no_answer) == (2 / 12, 2 / 12)
    assert result.mean_length == (11 * 10 + 50) / 12


def test_a_failed_sandbox_is_no_score_and_not_a_wrong_answer():
    groups = [[one(None), one(RIGHT), one(WRONG)], [one(RIGHT), one(RIGHT), one(None)]]
    result = result_of(groups, 3)
    assert result.pass_at_1 == pytest.approx((1 / 2 + 1) / 2)
    assert result.unscored == 2
    assert list(result.pass_at_k) == ["1", "2"], "no problem has three scored samples"
    assert result.outcomes["unscored"] == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match=r"the sandbox failed on all samples.*orthora rescore"):
        result_of([[one(None)], [one(RIGHT)]], 1)


def test_the_rules_side_by_side():
    groups = [[one(RIGHT, other=WRONG), one(WRONG, other=WRONG)], [one(RIGHT, other=RIGHT)] * 2]
    result = result_of(groups, 2)
    assert result.by_rule == {"robust": 0.75, "dapo": 0.5}
    assert result.disagreement == 0.25
    assert result_of(GROUPS, 4).disagreement is None


def test_a_number_of_samples_that_is_not_n_is_refused():
    with pytest.raises(ValueError, match="problem 1 has 2 of 4 samples"):
        result_of([GROUPS[0], GROUPS[1][:2]], 4)
    with pytest.raises(ValueError, match="problem 0 has 4 of 2 samples"):
        result_of(GROUPS, 2)
    with pytest.raises(ValueError, match="no problems"):
        result_of([], 4)


@pytest.mark.parametrize(
    ("most", "ks"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (10, [1, 2, 4, 8, 10]), (32, [1, 2, 4, 8, 16, 32])],
)
def test_the_ks_that_are_shown(most, ks):
    assert shown_ks(most) == ks


def test_wrong_answers_vote_by_value_not_by_spelling():
    halves = [Verdict(False, text, "different number") for text in ("0.5", "1/2", r"\frac{1}{2}")]
    group = [one(RIGHT), one(RIGHT), *map(one, halves)]
    assert result_of([group], 5).majority_at_k["5"] == 0.0
    words = [Verdict(False, text, "different") for text in ("Even", "even ", "odd")]
    assert result_of([[one(RIGHT), *map(one, words)]], 4).majority_at_k["4"] == 0.0
