"""Statistics against brute force and against simulation."""

from itertools import combinations

import numpy as np
import pytest

from orthora.stats import bootstrap_interval, pass_at_k


def test_pass_at_k_equals_the_share_of_k_subsets_with_a_correct_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                expected = sum(any(subset) for subset in subsets) / len(subsets)
                assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12), (n, c, k)


def test_pass_at_k_by_hand_and_at_its_ends():
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold the correct one
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(64, 0, 32) == 0.0
    assert pass_at_k(64, 64, 1) == 1.0
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)  # no overflow, no cancellation


def test_pass_at_k_is_unbiased():
    generator = np.random.default_rng(0)
    rate, k = 0.2, 4
    counts = generator.binomial(8, rate, size=20_000)
    estimate = np.mean([pass_at_k(8, int(c), k) for c in counts])
    assert estimate == pytest.approx(1 - (1 - rate) ** k, abs=0.01)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 1, 5, "k is 5"),
        (4, 5, 1, "c is 5"),
        (4, -1, 1, "c is -1"),
        (0, 0, 1, "n is 0"),
        (-3, 0, 1, "n is -3"),
        (4, 1, 0, "k is 0"),
        (4, 1, -2, "k is -2"),
    ],
)
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_the_true_mean_at_about_its_nominal_rate(level: float):
    generator = np.random.default_rng(1)
    trials, hits = 400, 0
    for trial in range(trials):
        rates = generator.beta(2, 3, size=100)  # problems differ; the mean rate is 0.4
        shares = generator.binomial(4, rates) / 4
        low, high = bootstrap_interval(shares, level=level, draws=500, seed=trial)
        hits += low <= 0.4 <= high
    # four binomial standard errors, plus one point for the percentile bootstrap's shortfall
    slack = 4 * (level * (1 - level) / trials) ** 0.5 + 0.01
    assert abs(hits / trials - level) < slack


def test_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(2).normal(size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_interval_is_reproducible_and_depends_on_the_seed():
    values = [0.0, 0.25, 0.5, 1.0, 0.3, 0.7]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_draws_that_are_resampled_in_blocks_all_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orthora.stats._BLOCK", 35)
    low, high = bootstrap_interval([2.0] * 10, draws=11)
    assert (low, high) == (2.0, 2.0)


def test_one_value_and_equal_values_give_no_width():
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "shape"),
        ([0.5, float("nan")], {}, r"values \[1\] are not finite"),
        ([float("inf")], {}, "not finite"),
        ([0.5, 0.6], {"level": 1.0}, "level is 1.0"),
        ([0.5, 0.6], {"level": 95}, "level is 95"),
        ([0.5, 0.6], {"draws": 0}, "draws is 0"),
    ],
)
def test_interval_refuses(values: list[float], options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)
