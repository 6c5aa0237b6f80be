"""Figures of a study: what is in which panel, and that axes can be read."""

import math
from fractions import Fraction

from study_data import ADAPTIVE, RATES, Entry, compared

from orthora.figures.panels import Panel, Series
from orthora.figures.render import render
from orthora.figures.style import styles_of
from orthora.study.drawings import all_drawings

METHODS = ("lora", "rlpo", "rlmo", "pissa", "milora", "olora", "dct")
STEPS = 24


def passes(seed: int) -> list[float]:
    return [0.4 + 0.01 * step + 0.001 * seed for step in range(STEPS)]


def entries(methods: tuple[str, ...]) -> list[Entry]:
    """Every method at four rates, and lora under adaptive-kl as well."""
    found = [
        Entry(method, rate, seed, Fraction(600 + 10 * place, 1024), passes=passes(seed))
        for method in methods
        for place, rate in enumerate(RATES)
        for seed in range(3)
    ]
    steered = [
        Entry("lora", 3e-4, seed, Fraction(640, 1024), passes=passes(seed), settings=ADAPTIVE)
        for seed in range(3)
    ]
    return found + steered


def test_curves_of_adaptive_arms_have_a_panel_of_their_own():
    fixed, steered = all_drawings(compared(entries(("lora", "rlpo"))))["curves"].panels
    assert isinstance(fixed, Panel)
    assert isinstance(steered, Panel)
    assert [one.label for one in fixed.series] == ["lora", "rlpo"]
    assert [one.label for one in steered.series] == ["lora, adaptive-kl"]
    # A twelfth of 24 steps is two: the last point is the mean of the last two steps, and of seeds.
    assert fixed.series[0].x[-1] == STEPS
    assert math.isclose(fixed.series[0].y[-1], 0.4 + 0.01 * (STEPS - 1.5) + 0.001)


def test_bands_are_left_out_where_they_would_hide_the_curves():
    few, many = (
        all_drawings(compared(entries(methods)))["curves"].panels[0]
        for methods in (METHODS[:6], METHODS)
    )
    assert isinstance(few, Panel)
    assert isinstance(many, Panel)
    assert all(one.low and one.high for one in few.series)
    assert not any(one.low or one.high for one in many.series)


def ticks(x: list[float]) -> list[float]:
    """Those on the horizontal axis that are in sight."""
    style = styles_of([("lora", "lora", "")])["lora"]
    panel = Panel("t", "x", "y", (Series("lora", style, tuple(x), (0.5,) * len(x)),), log_x=True)
    axes = render([panel]).axes[0]
    low, high = axes.get_xlim()
    return [float(tick) for tick in axes.get_xticks() if low <= tick <= high]


def test_chosen_places_are_ticks_and_measured_ones_get_round_numbers():
    assert ticks([1e-4, 3e-4, 1e-3, 3e-3]) == [1e-4, 3e-4, 1e-3, 3e-3]
    assert ticks([2.0**k for k in range(11)]) == [2.0**k for k in range(0, 11, 2)]
    measured = [0.0127 * 1.613**k for k in range(11)]  # 0.0127 to 1.51
    assert all(math.isclose(a, b) for a, b in zip(ticks(measured), [0.01, 0.1, 1.0], strict=True))
