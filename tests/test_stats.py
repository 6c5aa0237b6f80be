"""Statistics against brute force and against simulation."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, product
from math import comb, erfc, gamma, pi, sqrt, tan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthora.stats import _t_quantile, bootstrap_interval, holm, pass_at_k, sign_flip_p


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
    assert abs(hits / trials - level) < 4 * (level * (1 - level) / trials) ** 0.5


@pytest.mark.parametrize(
    ("problems", "trials"),  # plain percentiles cover 91 % with 10 problems, 93.9 % with 30
    [(10, 2_000), pytest.param(30, 16_000, marks=pytest.mark.slow)],
)
def test_interval_covers_at_its_nominal_rate_with_few_problems(problems: int, trials: int):
    generator = np.random.default_rng(11)
    shares = generator.binomial(32, generator.uniform(size=(trials, problems))) / 32
    bounds = [bootstrap_interval(row, draws=2_000, seed=i) for i, row in enumerate(shares)]
    covered = sum(low <= 0.5 <= high for low, high in bounds) / trials
    assert abs(covered - 0.95) < 3 * (0.95 * 0.05 / trials) ** 0.5


def test_interval_has_the_width_of_students_with_few_values():
    generator = np.random.default_rng(4)
    ratios = []
    for values in generator.uniform(size=(100, 15)):
        low, high = bootstrap_interval(values, draws=4_000)
        ratios.append((high - low) / (2 * 2.144787 * values.std(ddof=1) / sqrt(15)))
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)  # plain percentiles: 0.88


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),  # tables; two-sided
    [
        (0.95, 1, 12.70620),
        (0.95, 2, 4.302653),
        (0.95, 3, 3.182446),
        (0.99, 5, 4.032143),
        (0.9, 10, 1.812461),
        (0.95, 29, 2.045230),
        (0.95, 100, 1.983972),
        (0.95, 10**6, 1.959966),
    ],
)
def test_t_quantile_equals_the_table(level: float, freedom: int, expected: float):
    assert _t_quantile(level, freedom) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("level", [0.1, 0.8, 0.999])
def test_t_quantile_by_closed_forms_and_by_integration(level: float):
    assert _t_quantile(level, 1) == pytest.approx(tan(pi * level / 2), rel=1e-9)
    assert _t_quantile(level, 2) == pytest.approx(level * sqrt(2 / (1 - level**2)), rel=1e-9)
    for freedom in (3, 4, 8, 17):
        x = np.linspace(0, _t_quantile(level, freedom), 100_001)
        density = gamma((freedom + 1) / 2) / gamma(freedom / 2) / sqrt(freedom * pi)
        density *= (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        assert 2 * np.trapezoid(density, x) == pytest.approx(level, abs=1e-8)


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
    assert bootstrap_interval([0.1, 0.1, 0.1]) == (0.1, 0.1)  # whose mean rounds to above 0.1


def test_two_values_bound_no_better_than_their_range():
    assert bootstrap_interval([0.2, 0.6]) == (0.2, 0.6)


def test_interval_follows_shifts_scales_and_mirrors():
    values = np.random.default_rng(6).beta(0.3, 2.7, size=20)
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(3 * values - 1) == pytest.approx((3 * low - 1, 3 * high - 1))
    assert bootstrap_interval(-values) == pytest.approx((-high, -low))


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


def every_sign(differences: Sequence[Fraction | int]) -> Fraction:
    """The p-value by enumeration."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return Fraction(sum(value >= observed for value in sums), len(sums))


fractions = st.fractions(-1, 1, max_denominator=8)


@given(st.lists(fractions, min_size=1, max_size=9))
@settings(max_examples=150, deadline=None)
def test_sign_flips_equal_their_enumeration(differences: list[Fraction]):
    expected = float(every_sign(differences))
    assert sign_flip_p(differences) == pytest.approx(expected, rel=1e-12)


@given(st.lists(fractions, min_size=1, max_size=30), fractions.filter(bool), st.randoms())
@settings(max_examples=100, deadline=None)
def test_sign_flips_ignore_order_scale_direction_and_ties(differences, factor, random):
    changed = [d * factor for d in differences] + [Fraction(0)] * 3
    random.shuffle(changed)
    assert sign_flip_p(changed) == pytest.approx(sign_flip_p(differences), rel=1e-12)


def test_sign_flips_by_hand():
    assert sign_flip_p([Fraction(1, 2)] * 3) == 0.25  # +++ and --- of 8
    assert sign_flip_p([Fraction(1, 4), Fraction(1, 2), Fraction(-1, 8)]) == 0.5
    assert sign_flip_p([3, -1]) == 1.0
    assert sign_flip_p(np.array([2, 2, 2, 2])) == 0.125
    assert sign_flip_p([0, Fraction(0)]) == 1.0


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (5, 5), (9, 2), (30, 51), (400, 320)])
def test_with_one_sample_sign_flips_are_mcnemars_exact_test(better: int, worse: int):
    n = better + worse
    tail = sum(comb(n, i) for i in range(min(better, worse) + 1))
    expected = min(1.0, 2 * tail / 2**n)
    assert sign_flip_p([1] * better + [-1] * worse + [0] * 50) == pytest.approx(expected, rel=1e-12)


def test_sign_flips_are_exact_far_out_and_never_0():
    generator = np.random.default_rng(5)
    differences = [int(d) for d in generator.integers(-1, 9, size=300)]
    ways = {0: 1}
    for d in differences:
        grown: dict[int, int] = {}
        for total, count in ways.items():
            for reached in (total + d, total - d):
                grown[reached] = grown.get(reached, 0) + count
        ways = grown
    far = sum(count for total, count in ways.items() if abs(total) >= abs(sum(differences)))
    expected = far / 2**300
    assert 0 < expected < 1e-50
    assert sign_flip_p(differences) == pytest.approx(expected, rel=1e-11)
    assert sign_flip_p([1] * 40) == 2.0**-39
    assert 0 < sign_flip_p([1] * 5_000) < 1e-300


def test_sign_flips_of_a_large_set_approach_the_normal_tail():
    generator = np.random.default_rng(7)
    differences = generator.integers(-63, 65, size=5_000)
    z = abs(differences.sum()) / sqrt((differences**2).sum())
    assert 0.5 < z < 3
    p = sign_flip_p([Fraction(int(d), 64) for d in differences])
    assert p == pytest.approx(erfc(z / sqrt(2)), rel=0.01)


Rates = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def rejected(rates: Rates, *, trials: int = 1_500, samples: int = 8) -> float:
    """Share of simulated comparisons with p <= 0.05."""
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(trials):
        one, other = rates(generator)
        counts = generator.binomial(samples, one) - generator.binomial(samples, other)
        hits += sign_flip_p(counts) <= 0.05
    return hits / trials


def same(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rates = generator.beta(0.3, 0.7, size=30)
    return rates, rates


def exchangeable(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return generator.beta(0.3, 0.7, size=30), generator.beta(0.3, 0.7, size=30)


def balanced(_: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rates = np.repeat([0.4, 0.6], 15)
    return rates, rates[::-1]


def shifted(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rates = generator.beta(2, 2, size=30)
    return rates, 0.7 * rates


@pytest.mark.parametrize("rates", [same, exchangeable, balanced])
def test_sign_flips_keep_their_level(rates: Rates):
    share = rejected(rates)
    error = (0.05 * 0.95 / 1_500) ** 0.5
    assert share < 0.05 + 3 * error
    if rates is exchangeable:  # the other nulls are lumpier, or narrower than the flips suppose
        assert share > 0.05 - 5 * error


def test_sign_flips_find_a_true_difference():
    assert rejected(shifted, trials=300) > 0.8


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        ([], "empty"),
        ([Fraction(1, 2), 0.25], "difference 1 is 0.25; pass exact ones"),
        ([Fraction(1, p) for p in (100_003, 100_019, -100_043)], "same number of samples"),
    ],
)
def test_sign_flips_refuse(differences: list, message: str):
    with pytest.raises(ValueError, match=message):
        sign_flip_p(differences)


@pytest.mark.parametrize("seeds", range(1, 13))
def test_sign_flips_over_few_seeds_have_a_floor(seeds: int):
    floor = 2.0 ** (1 - seeds)
    assert sign_flip_p([Fraction(i + 1, 7) for i in range(seeds)]) == floor
    assert sign_flip_p([*[Fraction(1)] * (seeds - 1), Fraction(-1, 1000)]) == min(1, 2 * floor)


@pytest.mark.parametrize("seeds", [5, 8])
def test_sign_flips_over_few_seeds_keep_every_attainable_level(seeds: int):
    generator = np.random.default_rng(9)
    draws = generator.integers(-1000, 1001, size=(2_000, seeds))
    ps = np.array([sign_flip_p(row) for row in draws])
    for level in (2.0 ** (1 - seeds), 2.0 ** (3 - seeds), 0.25, 0.5):
        assert np.mean(ps <= level) < level + 3 * (level * (1 - level) / len(ps)) ** 0.5


def holm_rejects(ps: Sequence[float], level: float) -> list[bool]:
    """Holm's procedure as he gives it: step down, and stop at the first that stands."""
    rejects = [False] * len(ps)
    for place, index in enumerate(np.argsort(ps, kind="stable")):
        if ps[index] > level / (len(ps) - place):
            break
        rejects[index] = True
    return rejects


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.4]) == pytest.approx([0.8, 0.003, 0.8])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_holm_adjusted_is_the_least_level_at_which_his_procedure_rejects(ps: list[float]):
    adjusted = holm(ps)
    for index, value in enumerate(adjusted):
        assert ps[index] <= value <= 1
        assert value == 1 or holm_rejects(ps, value * (1 + 1e-9))[index]
        assert not holm_rejects(ps, value * (1 - 1e-9))[index]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
@settings(max_examples=100, deadline=None)
def test_holm_keeps_the_order_and_lies_between_single_and_bonferroni(ps: list[float], random):
    adjusted = holm(ps)
    order = list(range(len(ps)))
    random.shuffle(order)
    assert holm([ps[i] for i in order]) == [adjusted[i] for i in order]
    for p, value in zip(ps, adjusted, strict=True):
        assert p <= value <= min(1.0, len(ps) * p)
    assert [adjusted[i] for i in np.argsort(ps, kind="stable")] == sorted(adjusted)


def test_holm_keeps_the_level_of_a_family_whose_tests_depend_on_each_other():
    generator = np.random.default_rng(10)
    trials, errors, found = 4_000, 0, 0
    for _ in range(trials):
        common, own = generator.normal(size=1), generator.normal(size=5)
        z = np.sqrt(0.5) * common + np.sqrt(0.5) * own + np.array([0, 0, 0, 3.5, 3.5])
        adjusted = holm([erfc(abs(value) / sqrt(2)) for value in z])
        errors += min(adjusted[:3]) <= 0.05
        found += min(adjusted[3:]) <= 0.05
    assert errors / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    assert found / trials > 0.8
