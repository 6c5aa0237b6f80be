"""maj@k against brute force over all subsets, and by its invariances."""

import time
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthora.voting import majority_at_k

Samples = list[tuple[str | None, bool]]

samples = st.lists(
    st.tuples(st.sampled_from([None, "7", "8", "9", "1/2"]), st.booleans()), min_size=1, max_size=9
)


def maj(drawn: Samples, k: int) -> float:
    return majority_at_k([vote for vote, _ in drawn], [hit for _, hit in drawn], k)


def vote_of(subset: Samples) -> Fraction:
    """Chance that the vote of one subset is correct."""
    ballots = Counter((hit, None if hit else vote) for vote, hit in subset if hit or vote)
    if not ballots:
        return Fraction(0)
    leaders = [ballot for ballot, count in ballots.items() if count == max(ballots.values())]
    return Fraction(sum(hit for hit, _ in leaders), len(leaders))


@given(samples, st.data())
@settings(max_examples=300, deadline=None)
def test_majority_equals_the_mean_over_all_subsets(drawn: Samples, data: st.DataObject):
    k = data.draw(st.integers(1, len(drawn)))
    results = [vote_of(list(subset)) for subset in combinations(drawn, k)]
    assert maj(drawn, k) == float(sum(results) / len(results))


def test_majority_by_hand():
    drawn: Samples = [("7", True), ("7", True), ("8", False), ("9", False)]
    # of the pairs one is 7 7; four are 7 8 or 7 9, won half the time; 8 9 is lost
    assert maj(drawn, 2) == 0.5
    assert maj(drawn, 3) == pytest.approx((2 * 1 + 2 / 3) / 4)  # 7 7 x twice, 7 8 9 twice
    assert maj(drawn, 4) == 1.0


def test_abstentions_do_not_vote_and_none_at_all_is_wrong():
    silent: Samples = [(None, False)] * 5
    assert maj(silent, 3) == 0.0
    assert maj([*silent, ("7", True)], 6) == 1.0
    assert maj([*silent, ("7", True)], 2) == pytest.approx(1 / 3)  # 5 of the 15 pairs hold it
    assert maj([*silent, ("7", True), ("8", False)], 7) == 0.5


def test_correct_samples_vote_as_one_and_apart_from_the_wrong():
    assert maj([("1/2", True), ("0.5", True), ("3", False)], 3) == 1.0
    assert maj([("0.5", True), ("0.5", False)], 2) == 0.5  # the same string, but judged wrong


@given(samples)
def test_one_draw_gives_the_share_of_correct_and_all_draws_the_vote_of_all(drawn: Samples):
    assert maj(drawn, 1) == sum(hit for _, hit in drawn) / len(drawn)
    assert maj(drawn, len(drawn)) == float(vote_of(drawn))


@given(samples, st.randoms(), st.data())
def test_order_and_names_of_answers_do_not_matter(drawn: Samples, random, data: st.DataObject):
    k = data.draw(st.integers(1, len(drawn)))
    names: dict = {"7": 9, "8": ("x", 1), "9": "7", "1/2": frozenset(), None: None}
    renamed = [(names[vote], hit) for vote, hit in drawn]
    random.shuffle(renamed)
    assert maj(renamed, k) == maj(drawn, k)


@given(samples, st.data())
def test_a_wrong_sample_turned_correct_never_hurts(drawn: Samples, data: st.DataObject):
    k = data.draw(st.integers(1, len(drawn)))
    changed = data.draw(st.integers(0, len(drawn) - 1))
    better = [(vote, hit or i == changed) for i, (vote, hit) in enumerate(drawn)]
    assert maj(better, k) >= maj(drawn, k)


def test_two_answers_follow_the_hypergeometric_law():
    # 64 samples, 24 correct and 40 of one wrong answer; odd k can't tie, so it takes k / 2 and more
    drawn: Samples = [("7", True)] * 24 + [("8", False)] * 40
    generator = np.random.default_rng(0)
    for k in (3, 31):
        wins = generator.hypergeometric(24, 40, k, size=200_000) > k / 2
        error = max(1e-5, float(wins.std())) / 200_000**0.5
        assert abs(maj(drawn, k) - wins.mean()) < 5 * error


def test_majority_is_unbiased():
    """The mean of maj@5 from 12 samples is the true chance of a vote of 5."""
    generator = np.random.default_rng(1)
    answers: Samples = [("7", True), ("8", False), ("9", False), (None, False)]
    chances = [0.4, 0.3, 0.2, 0.1]

    def draw(n: int) -> Samples:
        return [answers[i] for i in generator.choice(4, size=n, p=chances)]

    estimates = np.array([maj(draw(12), 5) for _ in range(2_000)])
    votes = np.array([float(vote_of(draw(5))) for _ in range(6_000)])
    error = (estimates.var() / 2_000 + votes.var() / 6_000) ** 0.5
    assert error < 0.01
    assert abs(estimates.mean() - votes.mean()) < 4 * error


def test_many_samples_are_exact_and_fast():
    wrong: Samples = [(str(i * i % 23), False) for i in range(44)]
    drawn = [("x", True)] * 20 + wrong
    started = time.process_time()
    values = [maj(drawn, k) for k in range(1, 65)]
    assert time.process_time() - started < 2  # 64 calls; measured: 0.02 s
    assert values[0] == 20 / 64
    assert values[-1] == 1.0
    # 1000 samples, the correct answer twice, the others once: of three, both win, or one ties
    rare: Samples = [("x", True)] * 2 + [(str(i), False) for i in range(998)]
    both, one = Fraction(6, 1000 * 999), Fraction(6 * 997, 1000 * 999)
    assert maj(rare, 3) == pytest.approx(float(both + one / 3), rel=1e-9)


@pytest.mark.parametrize(
    ("votes", "correct", "k", "message"),
    [
        (["7"], [True], 0, "k is 0"),
        (["7"], [True], -1, "k is -1"),
        (["7"], [True], 2, "only n = 1"),
        ([], [], 1, "only n = 0"),
        (["7", "8"], [True], 1, "votes are 2 but correct are 1"),
    ],
)
def test_majority_refuses(votes: list, correct: list, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        majority_at_k(votes, correct, k)
