"""Verdicts on claims: data for every ruling, and simulated studies in which nothing is true."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from study_data import ADAPTIVE, RATES, Entry, Simulated, claim, compared

import orthora.stats
from orthora.study.claims import Verdict, verdicts
from orthora.study.compare import Comparisons
from orthora.study.spec import ClaimConfig

HOLDS, SHARED = "holds", "holds at a shared lr only"
NOT, OPEN = "does not hold", "cannot be told here"
QUIET = (3, -2, 1, -4, 2, 0, -1, 1)
"""What seeds add, in 1024ths; they sum to 0."""
LOUD = tuple(60 * one for one in QUIET)
LOWEST = 3e-5
LOW, MIDDLE, HIGH, HIGHEST = RATES


def arm(
    method: str,
    scores: Mapping[float, float],
    noise: Sequence[int] = QUIET,
    select: Mapping[float, float] | None = None,
    **more: Any,
) -> list[Entry]:
    """Cells of eight seeds around a mean score at every rate.

    Args:
        method: of the arm.
        scores: mean by rate.
        noise: by seed; every method has it in another order.
        select: score that rates are picked by, if it is another one.
        more: of the cells.
    """
    turn = sum(map(ord, method)) % 8
    own = [*noise[turn:], *noise[:turn]]
    return [
        Entry(
            method,
            rate,
            seed,
            Fraction(round(1024 * mean) + own[seed], 1024),
            None if select is None else Fraction(round(1000 * select[rate]), 1000),
            **more,
        )
        for rate, mean in scores.items()
        for seed in range(8)
    ]


def peak(mean: float) -> dict[float, float]:
    """A sweep whose best rate is none of its ends."""
    return {LOW: mean - 0.1, MIDDLE: mean, HIGH: mean - 0.1}


def judged(one: ClaimConfig, *arms: list[Entry], **changes: Any) -> Verdict:
    """The verdict on a claim; the base model scores 0.5."""
    cells = [cell for cells in arms for cell in cells]
    (verdict,) = verdicts(compared(cells, claims=[one], **changes))
    assert verdict.claim is one
    assert verdict.numbers
    return verdict


LORA = arm("lora", {LOW: 0.5, MIDDLE: 0.6, HIGH: 0.55})
BETTER = arm("rlpo", {LOW: 0.6, MIDDLE: 0.7, HIGH: 0.3})
WORSE = arm("rlpo", {LOW: 0.5, MIDDLE: 0.52, HIGH: 0.3})
SAME = arm("rlpo", {LOW: 0.4, MIDDLE: 0.6, HIGH: 0.55})
EARLY = arm(
    "rlpo", {LOWEST: 0.5, LOW: 0.6, MIDDLE: 0.3, HIGH: 0.3}
)  # as good at its own rate, bad at lora's
NOISY = arm("rlpo", {LOW: 0.3, MIDDLE: 0.63, HIGH: 0.3}, LOUD)
FLATTERED = arm("rlpo", {LOW: 0.6, MIDDLE: 0.7}, select={LOW: 0.9, MIDDLE: 0.8})
"""Better at lora's rate, but another one is picked."""
TUNED_WORSE = arm("rlpo", {LOW: 0.5, MIDDLE: 0.7}, select={LOW: 0.9, MIDDLE: 0.8})


@pytest.mark.parametrize(
    ("kind", "rlpo", "ruling"),
    [
        ("better", BETTER, HOLDS),
        ("better", FLATTERED, SHARED),
        ("better", TUNED_WORSE, SHARED),
        ("better", WORSE, NOT),
        ("better", SAME, NOT),  # within the margin
        ("better", EARLY, NOT),
        ("better", NOISY, OPEN),
        ("worse", WORSE, HOLDS),
        ("worse", EARLY, SHARED),
        ("worse", BETTER, NOT),
        ("worse", SAME, NOT),
        ("worse", NOISY, OPEN),
    ],
)
def test_better_and_worse(kind: str, rlpo: list[Entry], ruling: str):
    assert judged(claim(kind, ["rlpo"]), LORA, rlpo).ruling == ruling
    assert judged(claim(kind, ["rlpo"], "lora"), LORA, rlpo).ruling == ruling


def test_every_one_of_several_must_be_better():
    rlmo = arm("rlmo", peak(0.9))
    both = claim("better", ["rlpo", "rlmo"])
    assert judged(both, LORA, BETTER, rlmo).ruling == HOLDS
    assert judged(both, LORA, NOISY, rlmo).ruling == OPEN
    assert judged(both, LORA, SAME, rlmo).ruling == NOT
    assert judged(claim("better", ["rlmo"], "lora", "rlpo"), LORA, SAME, rlmo).ruling == HOLDS
    assert judged(claim("better", ["rlmo"], "lora", "rlpo"), LORA, NOISY, rlmo).ruling == HOLDS
    assert judged(claim("better", ["rlpo"], "lora", "rlmo"), LORA, BETTER, rlmo).ruling == NOT


def test_a_margin_decides_what_is_as_good():
    slight = arm("rlpo", peak(0.61), [5 * one for one in QUIET])
    assert judged(claim("worse", ["rlpo"]), LORA, slight).ruling == NOT
    off = arm("rlpo", peak(0.6), [5 * one for one in QUIET])
    assert judged(claim("better", ["rlpo"]), LORA, off).ruling == NOT
    assert judged(claim("better", ["rlpo"]), LORA, off, margin=0.005).ruling == OPEN


THREE = arm("rlpo", peak(0.625), [10 * one for one in QUIET])
"""Above lora by three standard errors, which is clear alone and not among six."""
NAMES = ("rlmo", "pissa", "olora", "milora", "dora")


def test_what_all_comparisons_bear_out_needs_no_correction():
    lora = arm("lora", peak(0.6))
    others = [arm(name, peak(0.8)) for name in NAMES]
    assert judged(claim("better", ["rlpo"]), lora, THREE).ruling == HOLDS
    assert judged(claim("better", ["rlpo", *NAMES]), lora, THREE, *others).ruling == HOLDS


def test_what_one_of_many_speaks_against_does():
    lora = arm("lora", peak(0.6))
    others = [arm(name, peak(0.4)) for name in NAMES]
    assert judged(claim("worse", ["rlpo"]), lora, THREE).ruling == NOT
    assert judged(claim("worse", ["rlpo", *NAMES]), lora, THREE, *others).ruling == OPEN


def test_claims_that_compare_nothing_are_left_open():
    for kind in ("better", "worse"):
        for one, reference in ((claim(kind, ["lora"]), "lora"), (claim(kind, ["rlpo"]), "pissa")):
            found = compared(LORA + BETTER, claims=[one], reference=reference)
            assert verdicts(found)[0].ruling == OPEN


def test_numbers_of_a_verdict_are_those_of_the_comparison():
    verdict = judged(claim("better", ["rlpo"]), LORA, BETTER)
    tuned, shared = verdict.numbers
    assert tuned.startswith("rlpo less lora, each at its own best rate: +0.1")
    assert "8 seeds" in tuned
    assert "p 0.00781, with Holm 0.00781" in tuned  # 2^-7
    assert "best rate, 3e-4: +0.1" in shared


# Collapse


FALLEN = arm("rlpo", {LOW: 0.05, MIDDLE: 0.1, HIGH: 0.05})
FALLEN_THERE = arm("rlpo", {LOW: 0.6, MIDDLE: 0.1, HIGH: 0.05})


def some_fallen(count: int) -> list[Entry]:
    """The first seeds collapse at every rate."""
    return [
        replace(one, score=Fraction(1, 10), select=Fraction(1, 2)) if one.seed < count else one
        for one in arm("rlpo", {LOW: 0.5, MIDDLE: 0.6, HIGH: 0.5})
    ]


@pytest.mark.parametrize(
    ("rlpo", "ruling"),
    [
        (FALLEN, HOLDS),
        (some_fallen(5), HOLDS),
        (FALLEN_THERE, SHARED),
        (SAME, NOT),
        (arm("rlpo", {LOW: 0.6, MIDDLE: 0.6, HIGH: 0.01}), SHARED),  # where lora does not
        (arm("rlpo", {LOW: 0.4, MIDDLE: 0.3, HIGH: 0.3}), NOT),  # worse than the base, no collapse
        (some_fallen(1), OPEN),
        (some_fallen(4), OPEN),  # half is not most
    ],
)
def test_collapses(rlpo: list[Entry], ruling: str):
    assert judged(claim("collapses", ["rlpo"]), LORA, rlpo).ruling == ruling


def test_collapse_at_a_shared_rate_takes_most_of_the_runs_there():
    rates = {LOW: 0.6, MIDDLE: 0.62, HIGH: 0.6}
    for count, ruling in ((4, OPEN), (5, SHARED)):
        rlpo = [
            replace(one, score=Fraction(1, 100)) if one.rate == HIGH and one.seed < count else one
            for one in arm("rlpo", rates)
        ]
        verdict = judged(claim("collapses", ["rlpo"]), LORA, rlpo)
        assert verdict.ruling == ruling
        place = "1e-3" if ruling == SHARED else "no rate"
        assert verdict.numbers[0].endswith(f"where most of lora's did not at {place}.")
    # A rate that the reference does not have is no shared one.
    alone = arm("rlpo", {LOW: 0.6, MIDDLE: 0.6, RATES[3]: 0.01})
    assert judged(claim("collapses", ["rlpo"]), LORA, alone).ruling == OPEN


def test_collapse_where_the_reference_collapses_too_says_nothing():
    lora = arm("lora", {LOW: 0.5, MIDDLE: 0.6, HIGH: 0.01})
    rlpo = arm("rlpo", {LOW: 0.6, MIDDLE: 0.6, HIGH: 0.01})
    assert judged(claim("collapses", ["rlpo"]), lora, rlpo).ruling == OPEN


def test_what_training_ended_has_collapsed():
    ended = [replace(one, by_training=True, state="failed", score=Fraction(0)) for one in SAME]
    verdict = judged(claim("collapses", ["rlpo"]), LORA, ended)
    assert verdict.ruling == SHARED  # at a lower rate than all that were tried it might not have
    assert verdict.numbers[0].startswith("rlpo: 8 of 8 runs collapsed at its own best rate")
    assert verdict.numbers[0].endswith("is the lowest one that was tried: another may be better.")


def test_two_seeds_do_not_tell_whether_most_collapse():
    two = [one for one in LORA + FALLEN if one.seed < 2]
    assert judged(claim("collapses", ["rlpo"]), two).ruling == OPEN
    three = [one for one in LORA + FALLEN if one.seed < 3]
    assert judged(claim("collapses", ["rlpo"]), three).ruling == HOLDS


def test_collapses_can_be_told_of_the_reference_itself():
    lora = [replace(one, method="lora") for one in FALLEN]
    assert judged(claim("collapses", ["lora"]), lora, SAME).ruling == HOLDS
    assert judged(claim("collapses", ["lora"]), LORA, SAME).ruling == NOT


def test_without_a_base_score_nobody_knows_what_collapsed():
    assert judged(claim("collapses", ["rlpo"]), LORA, FALLEN, base=None).ruling == OPEN


def test_without_a_base_score_three_of_eight_are_not_most():
    mostly_fine = [
        replace(one, by_training=one.seed < 3, state="failed" if one.seed < 3 else "finished")
        for one in SAME
    ]
    assert judged(claim("collapses", ["rlpo"]), LORA, mostly_fine, base=None).ruling != HOLDS


# Order


TOP = arm("rlmo", {LOW: 0.6, MIDDLE: 0.8, HIGH: 0.3})
ORDER = ["rlmo", "rlpo", "lora"]


@pytest.mark.parametrize(
    ("top", "middle", "ruling"),
    [
        (TOP, BETTER, HOLDS),
        (TOP, SAME, HOLDS),  # the last may equal the one before
        (BETTER, BETTER, HOLDS),
        (TOP, NOISY, OPEN),  # that the middle is as good as the last is not shown
        (SAME, SAME, NOT),  # the first is within the margin of the last
        (WORSE, SAME, NOT),
        (BETTER, TOP, NOT),  # the second is clearly above the first
        (TOP, WORSE, NOT),  # and here clearly below the last
        (NOISY, SAME, OPEN),
        (FLATTERED, SAME, SHARED),
    ],
)
def test_orders(top: list[Entry], middle: list[Entry], ruling: str):
    named = [replace(one, method="rlmo") for one in top]
    second = [replace(one, method="rlpo") for one in middle]
    assert judged(claim("order", ORDER), LORA, second, named).ruling == ruling


def with_kl(cells: list[Entry], kl: float, noise: float = 0.05) -> list[Entry]:
    """Cells with a KL to the base."""
    return [
        replace(one, numbers={"kl_base": kl * (1 + noise * math.sin(9 * one.seed + 5 * kl))})
        for one in cells
    ]


@pytest.mark.parametrize(
    ("kl", "noise", "ruling"),
    [
        (0.01, 0.05, HOLDS),
        (0.05, 0.05, NOT),  # farther from the base
        (0.0199, 0.5, OPEN),
        (None, 0.05, OPEN),  # not measured
    ],
)
def test_orders_with_a_lower_kl(kl: float | None, noise: float, ruling: str):
    lower = claim("order", ["rlpo", "lora"], lower_kl=True)
    rlpo = BETTER if kl is None else with_kl(BETTER, kl, noise)
    assert judged(lower, with_kl(LORA, 0.02), rlpo).ruling == ruling
    assert judged(claim("order", ["rlpo", "lora"]), with_kl(LORA, 0.02), rlpo).ruling == HOLDS


def test_a_kl_that_was_not_measured_is_told_without_nan():
    lower = claim("order", ["rlpo", "lora"], lower_kl=True)
    numbers = judged(lower, LORA, BETTER).numbers
    assert not any("nan" in text for text in numbers)
    assert [text for text in numbers if "KL" in text] == [
        f"KL to the base of rlpo and lora, {where}: not measured."
        for where in ("each at its own best rate", "at the reference's best rate, 3e-4")
    ]


def test_of_several_a_higher_kl_must_be_clear_jointly():
    """Higher by three standard errors: clear alone, and not among six."""
    names = ["rlpo", *NAMES]
    steps = dict(zip(names, (0.85, 0.82, 0.79, 0.76, 0.73, 0.70), strict=True))
    arms = [with_kl(arm(name, peak(steps[name])), 0.01) for name in names]
    noise = [25e-5 * one for one in QUIET]
    lora = [replace(one, numbers={"kl_base": 0.02}) for one in LORA]
    near = [replace(one, numbers={"kl_base": 0.02 + 6.1e-4 + noise[one.seed]}) for one in arms[0]]
    lower = [claim("order", [*some, "lora"], lower_kl=True) for some in (names[:1], names)]
    assert judged(lower[0], lora, near).ruling == NOT
    assert judged(lower[1], lora, near, *arms[1:]).ruling == OPEN


def test_an_order_with_a_lower_kl_may_hold_at_a_shared_rate_only():
    lower = claim("order", ["rlpo", "lora"], lower_kl=True)
    rlpo = [
        replace(one, numbers={"kl_base": (0.09 if one.rate == LOW else 0.01) + one.seed / 1e4})
        for one in arm("rlpo", {LOW: 0.7, MIDDLE: 0.7}, select={LOW: 0.9, MIDDLE: 0.8})
    ]
    verdict = judged(lower, with_kl(LORA, 0.02), rlpo)
    assert verdict.ruling == SHARED
    assert sum("KL to the base" in text for text in verdict.numbers) == 2


# Stability


RLPO_ABOVE = arm("rlpo", dict.fromkeys(RATES, 0.7))
RLPO_FAR = arm("rlpo", dict(zip(RATES, (0.9, 0.9, 0.9, 0.1), strict=True)))
RLMO = arm("rlmo", dict.fromkeys(RATES, 0.6))
RLMO_FALLS = arm("rlmo", dict(zip(RATES, (0.6, 0.6, 0.1, 0.1), strict=True)))


@pytest.mark.parametrize(
    ("rlpo", "rlmo", "ruling"),
    [
        (RLPO_ABOVE, RLMO, HOLDS),
        (RLPO_ABOVE, RLMO_FALLS, HOLDS),
        (RLPO_FAR, RLMO_FALLS, HOLDS),
        (RLPO_FAR, RLMO, OPEN),  # better on average, but it collapses where the other does not
        (arm("rlpo", dict.fromkeys(RATES, 0.6)), RLMO, NOT),
        (arm("rlpo", dict.fromkeys(RATES, 0.5)), RLMO, NOT),
        (arm("rlpo", dict.fromkeys(RATES, 0.63), LOUD), RLMO, OPEN),
    ],
)
def test_stabler_over_the_whole_sweep(rlpo: list[Entry], rlmo: list[Entry], ruling: str):
    one = claim("stabler", ["rlpo"], "rlmo")
    assert judged(one, LORA, rlpo, rlmo).ruling == ruling


def test_stability_is_told_over_the_rates_that_both_have():
    rates = dict(zip(RATES, (0.7, 0.7, 0.7, 0.01), strict=True))
    rlpo, rlmo = arm("rlpo", rates), arm("rlmo", dict.fromkeys(RATES[:3], 0.6))
    verdict = judged(claim("stabler", ["rlpo"], "rlmo"), LORA, rlpo, rlmo)
    assert verdict.ruling == HOLDS
    text = "Collapsed over the 3 rates that both have: rlpo 0 of 24, rlmo 0 of 24."
    assert verdict.numbers[-1] == text
    apart = arm("rlmo", {1e-2: 0.6})
    assert judged(claim("stabler", ["rlpo"], "rlmo"), LORA, rlpo, apart).ruling == OPEN


def test_each_is_compared_with_its_own_partner():
    four = [RLPO_ABOVE, RLMO, arm("pissa", dict.fromkeys(RATES, 0.5)),
            arm("olora", dict.fromkeys(RATES, 0.4))]  # fmt: skip
    assert judged(claim("stabler", ["rlpo", "pissa"], "rlmo", "olora"), *four).ruling == HOLDS
    assert judged(claim("stabler", ["rlpo", "pissa"], "olora", "rlmo"), *four).ruling == NOT


# Equality


def three(rlpo: list[Entry], rlmo: list[Entry]) -> list[list[Entry]]:
    return [LORA, rlpo, [replace(one, method="rlmo") for one in rlmo]]


@pytest.mark.parametrize(
    ("rlpo", "rlmo", "ruling"),
    [
        (SAME, EARLY, HOLDS),  # equal when tuned, apart at lora's rate
        (SAME, SAME, NOT),  # nowhere apart: tuning is not what makes them equal
        (BETTER, SAME, NOT),
        (NOISY, EARLY, OPEN),
    ],
)
def test_equal_when_tuned(rlpo: list[Entry], rlmo: list[Entry], ruling: str):
    assert judged(claim("equal", ["rlpo", "rlmo", "lora"]), *three(rlpo, rlmo)).ruling == ruling


def test_a_best_rate_at_an_end_of_those_tried_is_told():
    told = judged(claim("worse", ["rlpo"]), LORA, arm("rlpo", {LOW: 0.2, MIDDLE: 0.3, HIGH: 0.4}))
    assert told.numbers[0].endswith(
        "The best rate of rlpo is the highest one that was tried: another may be better."
    )
    inside = judged(claim("worse", ["rlpo"]), LORA, WORSE)
    assert not any("that was tried" in text for text in inside.numbers)


RISING = arm("rlpo", {LOW: 0.3, MIDDLE: 0.4, HIGH: 0.5})
"""Worse than lora, but perhaps not at a higher rate than was tried."""
HIGHER = arm("rlpo", {LOW: 0.3, MIDDLE: 0.65, HIGH: 0.7})
ALIKE = arm("rlpo", {LOW: 0.4, MIDDLE: 0.602, HIGH: 0.6, HIGHEST: 0.5})
RISING_LORA = arm("lora", {LOW: 0.4, MIDDLE: 0.5, HIGH: 0.6})


@pytest.mark.parametrize(
    ("kind", "lora", "rlpo", "ruling"),
    [
        ("worse", LORA, RISING, SHARED),
        ("better", LORA, RISING, OPEN),  # not refuted
        ("better", LORA, HIGHER, HOLDS),  # what is better already
        ("worse", LORA, HIGHER, NOT),
        ("better", RISING_LORA, BETTER, OPEN),  # nor is lora's best known
        ("worse", RISING_LORA, WORSE, HOLDS),
        ("better", RISING_LORA, WORSE, NOT),
        ("better", RISING_LORA, RISING, OPEN),
        ("worse", RISING_LORA, RISING, SHARED),
        ("worse", RISING_LORA, ALIKE, OPEN),  # within the margin of what was seen
    ],
)
def test_nothing_is_held_against_an_arm_whose_sweep_is_unfinished(
    kind: str, lora: list[Entry], rlpo: list[Entry], ruling: str
):
    assert judged(claim(kind, ["rlpo"]), lora, rlpo).ruling == ruling


def test_equality_takes_finished_sweeps():
    rising = arm("rlpo", {LOW: 0.3, MIDDLE: 0.3, HIGH: 0.6})
    three_arms = three(rising, EARLY)
    assert judged(claim("equal", ["rlpo", "rlmo", "lora"]), *three_arms).ruling == OPEN
    far = three(arm("rlpo", {LOW: 0.5, MIDDLE: 0.6, HIGH: 0.8}), EARLY)
    assert judged(claim("equal", ["rlpo", "rlmo", "lora"]), *far).ruling == NOT


def test_an_order_takes_finished_sweeps():
    order = claim("order", ["rlpo", "rlmo", "lora"])
    rlmo = arm("rlmo", {LOW: 0.3, MIDDLE: 0.65, HIGH: 0.3})
    assert judged(order, LORA, BETTER, rlmo).ruling == HOLDS
    assert judged(order, RISING_LORA, BETTER, rlmo).ruling == OPEN
    # What is above the first already is no less so as the first may have a better rate.
    higher = arm("rlmo", {LOW: 0.5, MIDDLE: 0.9, HIGH: 0.4})
    assert judged(order, LORA, BETTER, higher).ruling == NOT
    assert judged(order, LORA, HIGHER, higher).ruling == OPEN
    lower = claim("order", ["rlpo", "lora"], lower_kl=True)
    assert judged(lower, with_kl(LORA, 0.02), with_kl(BETTER, 0.01)).ruling == HOLDS
    assert judged(lower, with_kl(LORA, 0.02), with_kl(HIGHER, 0.01)).ruling == SHARED
    assert judged(lower, with_kl(LORA, 0.02), with_kl(HIGHER, 0.03)).ruling == OPEN
    assert judged(lower, with_kl(LORA, 0.02), with_kl(BETTER, 0.03)).ruling == NOT


def test_the_only_rate_tried_may_not_be_the_best():
    one = arm("rlpo", {MIDDLE: 0.7})
    assert judged(claim("better", ["rlpo"]), LORA, one).ruling == HOLDS  # at whatever rate
    assert judged(claim("worse", ["rlpo"]), LORA, arm("rlpo", {MIDDLE: 0.5})).ruling == SHARED
    verdict = judged(claim("better", ["rlpo"]), arm("lora", {MIDDLE: 0.6}), one)
    assert verdict.ruling == SHARED
    assert "best rate of lora is the only one that was tried" in verdict.numbers[0]


def test_a_rate_without_scores_was_not_tried():
    missing = arm("rlpo", {HIGHEST: 0.1})
    missing = [replace(one, state="missing", score=None) for one in missing]
    found = compared([*LORA, *RISING, *missing])
    assert found.at_the_edge("rlpo") == "highest"
    assert compared([*LORA, *RISING, *arm("rlpo", {HIGHEST: 0.1})]).at_the_edge("rlpo") == ""


@pytest.mark.parametrize(("high", "count", "edge"), [(515, 3, "highest"), (545, 2, "")])
def test_an_arm_whose_seeds_are_mostly_scored_at_an_end_is_at_it(high: int, count: int, edge: str):
    """All seeds together pick the middle rate; those that are best there alone keep it so."""
    middle = [600, 600, 600, 400, 400] if count == 3 else [650, 650, 500, 500, 500]
    found = compared([
        *LORA,
        *(Entry("rlpo", LOW, seed, Fraction(2, 5)) for seed in range(5)),
        *(Entry("rlpo", MIDDLE, seed, Fraction(one, 1000)) for seed, one in enumerate(middle)),
        *(Entry("rlpo", HIGH, seed, Fraction(high, 1000)) for seed in range(5)),
    ])  # fmt: skip
    assert found.tuned["rlpo"].rate == MIDDLE
    assert found.tuned["rlpo"].picks[HIGH] == count
    assert found.at_the_edge("rlpo") == edge


def test_no_sweep_takes_a_finished_sweep():
    rising = arm("rlpo", {LOW: 0.4, MIDDLE: 0.5, HIGH: 0.6})
    assert judged(NO_SWEEP, LORA, rising, steered(0.7)).ruling == OPEN
    assert judged(NO_SWEEP, LORA, rising, steered(0.55)).ruling == NOT


def test_equality_is_told_by_pairs_alone_and_together():
    unsure = arm("rlpo", {LOW: 0.5, MIDDLE: 0.546, HIGH: 0.6, HIGHEST: 0.5},
                 tuple(20 * one for one in QUIET))  # fmt: skip
    sure = arm("rlmo", {LOW: 0.5, MIDDLE: 0.3, HIGH: 0.6, HIGHEST: 0.5})
    told = judged(claim("equal", ["rlpo", "rlmo", "lora"]), LORA, unsure, sure).numbers
    assert told[0] == (
        "Tuned, the 3 methods lie between 0.600 and 0.600. Of 3 pairs 1 are within 0.02 by "
        "intervals of their own, and 0 differ; by joint ones 0 differ, and 0 by more than 0.02."
    )
    assert told[-1] == (
        "All at the reference's best rate, of 3 pairs 3 differ by intervals of their own, and 2 by "
        "joint ones."
    )


def test_equality_is_between_the_methods_that_are_named():
    """Apart from the reference at its rate, but not from each other: tuning changed nothing."""
    pissa, milora = ([replace(one, method=name) for one in EARLY] for name in ("pissa", "milora"))
    assert judged(claim("equal", ["pissa", "milora"]), LORA, pissa, milora).ruling == NOT


def test_what_is_not_known_at_a_shared_rate_refutes_no_equality():
    loud = {(MIDDLE, seed): Fraction(3 * LOUD[seed], 1024) for seed in range(8)}
    rlpo = [
        replace(one, score=one.score + loud.get((one.rate, one.seed), 0))
        for one in arm("rlpo", {LOWEST: 0.5, LOW: 0.6, MIDDLE: 0.5, HIGH: 0.3})
    ]
    assert judged(claim("equal", ["rlpo", "lora"]), LORA, rlpo).ruling == OPEN


def test_what_supports_a_claim_alone_does_not_speak_against_it_among_others():
    slight = arm("rlpo", peak(0.6107), [2 * one for one in QUIET])
    noisy = [replace(one, method="rlmo") for one in NOISY]
    assert judged(claim("better", ["rlpo"]), LORA, slight).ruling == HOLDS
    assert judged(claim("better", ["rlmo"]), LORA, noisy).ruling == OPEN
    assert judged(claim("better", ["rlpo", "rlmo"]), LORA, slight, noisy).ruling == OPEN


def test_where_adaptive_kl_begins_is_no_rate_that_could_be_shared_or_swept():
    lora = arm("lora", {LOW: 0.7, MIDDLE: 0.6, HIGH: 0.7})
    steered_lora = arm("lora", {MIDDLE: 0.62}, settings=ADAPTIVE)
    found = compared([*lora, *steered_lora, *BETTER, *steered(0.65)])
    for view in ("shared", "sweep"):
        for arm_, than in (("lora, adaptive-kl", "lora"), ("rlpo, adaptive-kl", "rlpo"),
                           ("rlpo, adaptive-kl", "lora, adaptive-kl")):  # fmt: skip
            (one,) = found.family([(arm_, than)], view)
            assert not one.alone.seeds
        assert found.family([("rlpo", "lora")], view)[0].alone.seeds == 8
    better = claim("better", ["lora, adaptive-kl"], "lora")
    assert judged(better, RISING_LORA, steered_lora).ruling == OPEN


# Without a sweep


def steered(score: float, noise: Sequence[int] = QUIET) -> list[Entry]:
    return arm("rlpo", {MIDDLE: score}, noise, settings=ADAPTIVE)


SWEPT = arm("rlpo", {LOW: 0.4, MIDDLE: 0.5, HIGH: 0.6, HIGHEST: 0.5})
NO_SWEEP = claim("no-sweep", ["rlpo, adaptive-kl"])


@pytest.mark.parametrize(
    ("adaptive", "ruling"),
    [
        (steered(0.595), HOLDS),
        (steered(0.7), HOLDS),
        (steered(0.55), NOT),
        (steered(0.6, LOUD), OPEN),
        (steered(0.58, QUIET[::-1]), OPEN),  # just about the margin
    ],
)
def test_no_sweep_needed(adaptive: list[Entry], ruling: str):
    assert judged(NO_SWEEP, LORA, SWEPT, adaptive).ruling == ruling


def test_no_sweep_is_told_beside_every_shared_rate():
    told = judged(NO_SWEEP, LORA, SWEPT, steered(0.595)).numbers[-1]
    # 0.595 less rlpo's 0.4, 0.5, 0.6, in scores of 1,024 samples.
    assert told.startswith("Mean over methods, less a fixed rate that all share: 1e-4: +0.1943 (")
    assert "; 3e-4: +0.09473 (" in told
    assert "; 1e-3 (the best by selection): -0.004883 (" in told


def test_no_sweep_is_told_over_all_methods_and_of_the_lowest_run():
    fixed = arm("lora", {LOW: 0.3, MIDDLE: 0.6, HIGH: 0.5})
    other = arm("lora", {MIDDLE: 0.3}, settings=ADAPTIVE)
    both = claim("no-sweep", ["lora, adaptive-kl", "rlpo, adaptive-kl"])
    told = judged(both, fixed, SWEPT, other, steered(0.65)).numbers[-2]
    # -0.3 and +0.05, in scores of 1,024 samples; the lowest of 0.3 against the mean of 0.6.
    assert told.startswith("Mean over methods, less each one's swept best: -0.1245 (")
    assert told.endswith(" The lowest run has 0.49 of its method's swept best.")


def test_no_sweep_without_anything_swept_is_open():
    found = compared([*LORA, *steered(0.6)], claims=[NO_SWEEP])
    assert verdicts(found)[0].ruling == OPEN


def test_no_sweep_is_told_of_a_swept_arm_in_the_same_settings():
    usual = arm("rlpo", {LOW: 0.4, MIDDLE: 0.5, HIGH: 0.6})
    rank = {"rank": 1}
    small = arm("rlpo", {LOW: 0.4, MIDDLE: 0.5, HIGH: 0.3}, settings=rank)
    adaptive = arm("rlpo", {MIDDLE: 0.5}, settings=ADAPTIVE | rank)
    one = claim("no-sweep", ["rlpo, rank 1, adaptive-kl"])
    assert judged(one, LORA, usual, small, adaptive).ruling == HOLDS


# Unfinished studies


CASES: list[tuple[ClaimConfig, list[Entry]]] = [
    (claim("better", ["rlpo"]), LORA + BETTER),
    (claim("worse", ["rlpo"]), LORA + WORSE),
    (claim("collapses", ["rlpo"]), LORA + FALLEN),
    (claim("order", ["rlpo", "lora"]), LORA + BETTER),
    (claim("stabler", ["rlpo"], "rlmo"), RLPO_ABOVE + RLMO),
    (claim("equal", ["rlpo", "lora"]), LORA + EARLY),
    (NO_SWEEP, SWEPT + steered(0.6)),
]


@pytest.mark.parametrize(("one", "cells"), CASES, ids=[one.kind for one, _ in CASES])
@pytest.mark.parametrize("state", ["missing", "failed"])
@pytest.mark.parametrize("first", [True, False])
def test_an_unfinished_cell_leaves_a_claim_open(one: ClaimConfig, cells, state: str, first: bool):
    place = 0 if first else -1
    assert judged(one, cells).ruling == HOLDS
    unfinished = list(cells)
    unfinished[place] = replace(unfinished[place], state=state, score=None, select=None)
    verdict = judged(one, unfinished)
    assert verdict.ruling == OPEN
    assert verdict.numbers == (
        f"1 cells are missing, failed or not scored, e.g. {cells[place].cell.name}.",
    )


def test_a_cell_that_training_ended_is_no_unfinished_one():
    ended = list(FALLEN)
    ended[0] = replace(ended[0], state="failed", by_training=True, score=Fraction(0))
    assert judged(claim("collapses", ["rlpo"]), LORA, ended).ruling == HOLDS


def test_unfinished_cells_of_other_arms_leave_a_claim_alone():
    other = [replace(one, method="rlmo", state="missing", score=None) for one in BETTER]
    assert judged(claim("better", ["rlpo"]), LORA, BETTER, other).ruling == HOLDS


def test_unfinished_cells_from_another_first_rate_leave_no_sweep_alone():
    """The reference's arm is compared with another of the same method by all other claims."""
    swept = arm("lora", {LOW: 0.4, MIDDLE: 0.5, HIGH: 0.45})
    mine = arm("lora", {MIDDLE: 0.55}, settings=ADAPTIVE)
    other = arm("lora", {LOWEST: 0.55}, settings=ADAPTIVE)
    other[0] = replace(other[0], state="missing", score=None, select=None)
    one = claim("no-sweep", ["lora, adaptive-kl, from 3e-4"])
    assert {cell.rate for cell in mine} == {3e-4}
    assert judged(one, swept, other, mine).ruling == HOLDS
    one = claim("no-sweep", ["lora, adaptive-kl, from 3e-5"])
    assert {cell.rate for cell in other} == {3e-5}
    assert judged(one, swept, other, mine).ruling == OPEN


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_or_two_leave_every_claim_open(seeds: int):
    for one, cells in CASES:
        assert judged(one, [cell for cell in cells if cell.seed < seeds]).ruling == OPEN


def test_without_a_base_score_every_claim_is_open():
    for one, cells in CASES:
        verdict = judged(one, cells, base=None)
        assert (verdict.ruling, verdict.numbers) == (OPEN, ("The base model is not scored.",))


def test_a_cell_without_the_selection_score_leaves_a_claim_open():
    found = compared(LORA + BETTER, claims=[claim("better", ["rlpo"])])
    first, *rest = found.results.records
    first = replace(first, scores={"test": first.scores["test"]})
    found = Comparisons(replace(found.results, records=[first, *rest]))
    assert verdicts(found)[0].ruling == OPEN


def test_an_unfinished_cell_of_a_reference_that_is_not_named_leaves_a_claim_open():
    for one, cells in CASES:
        if one.kind in ("better", "worse", "collapses"):  # others name it, or do not use it
            gone = [replace(c, state="missing", score=None) if c.method == "lora" and not c.seed
                    else c for c in cells]  # fmt: skip
            assert judged(one, gone).ruling == OPEN, one.kind


@pytest.mark.parametrize("left", [0, 1])
def test_an_unfinished_sweep_leaves_no_sweep_open(left: int):
    swept = [
        one
        if left and (one.seed or one.rate != HIGH)
        else replace(one, state="missing", score=None)
        for one in SWEPT
    ]
    assert judged(NO_SWEEP, LORA, swept, steered(0.6)).ruling == OPEN


@pytest.mark.parametrize("left", [0, 1])
def test_an_unfinished_reference_leaves_what_goes_by_its_rate_open(left: int):
    lora = [
        one if left and one.seed < 4 else replace(one, state="missing", score=None) for one in LORA
    ]
    rlmo = arm("rlmo", {LOW: 0.6, MIDDLE: 0.6, HIGH: 0.6})
    one = claim("worse", ["rlpo"], "rlmo")
    assert judged(one, LORA, FALLEN_THERE, rlmo).ruling == SHARED
    assert judged(one, lora, FALLEN_THERE, rlmo).ruling == OPEN


@pytest.mark.parametrize("left", [0, 1], ids=["all", "one"])
def test_cells_without_the_reported_score_leave_a_claim_open(left: int):
    lora = [one if left and one.seed else replace(one, score=None) for one in LORA]
    assert judged(claim("better", ["rlpo"]), lora, BETTER).ruling == OPEN


# Simulated studies


@pytest.fixture(scope="module", autouse=True)
def quantiles() -> Iterator[None]:
    """Student's quantiles are found once: thousands of studies ask for the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orthora.stats, "_t_quantile", functools.cache(orthora.stats._t_quantile))
        yield


STUDIES = 2_000
CLAIMS = [
    claim("better", ["rlpo"]),
    claim("worse", ["rlpo"]),
    claim("collapses", ["rlpo"]),
    claim("order", ["rlpo", "lora"]),
]
CLEAR, EQUAL = (-0.15, 0.0, -0.2, -0.3), (0.0, 0.0, 0.0, 0.0)


@functools.cache
def rulings(means: Sequence[float], effect: float = 0.0) -> dict[str, dict[str, float]]:
    """How often which ruling is given, by kind of claim, where both arms are the same.

    Args:
        means: expected score by rate, over 0.5.
        effect: what makes the second better, if it does.
    """
    generator = np.random.default_rng(12)
    seeds = generator.normal(0, 0.03, size=(STUDIES, 1, 1, 8))
    own = generator.normal(0, 0.02, size=(STUDIES, 2, len(means), 8))
    score = 0.5 + np.array(means)[:, None] + seeds + own
    score[:, 1] += effect
    counts = np.rint(1024 * score.clip(0, 1)).astype(np.int64)
    simulated = Simulated(("lora", "rlpo"), claims=CLAIMS)
    found: list[Comparisons] = [simulated(study) for study in counts]
    every = [verdicts(one) for one in found]
    return {
        one.kind: {
            ruling: float(np.mean([row[place].ruling == ruling for row in every]))
            for ruling in (HOLDS, SHARED, NOT, OPEN)
        }
        for place, one in enumerate(CLAIMS)
    }


@pytest.mark.slow
@pytest.mark.parametrize("means", [CLEAR, EQUAL], ids=["best rate clear", "rates equal"])
@pytest.mark.parametrize("kind", ["better", "worse", "order", "collapses"])
def test_claims_rarely_hold_where_nothing_is_true(means: Sequence[float], kind: str):
    print(rulings(means)[kind])
    assert rulings(means)[kind][HOLDS] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / STUDIES)


@pytest.mark.slow
def test_what_is_true_mostly_holds_and_its_opposite_never():
    shares = rulings(CLEAR, 0.06)
    assert shares["better"][HOLDS] > 0.9
    assert shares["order"][HOLDS] > 0.9
    assert shares["worse"][HOLDS] == 0
    assert shares["worse"][NOT] > 0.9
