"""Bases against closed forms, thresholds against a sort."""

import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from orthora.linalg import dct_rows, haar_rows, magnitude_threshold, smallest_mask

BASES = {"dct": dct_rows, "haar": haar_rows}
H = math.sqrt(0.5)
Q = math.sqrt(0.125)
HAAR = {
    1: [[1.0]],
    2: [[H, H], [H, -H]],
    4: [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [H, -H, 0, 0], [0, 0, H, -H]],
    8: [
        [Q, Q, Q, Q, Q, Q, Q, Q],
        [Q, Q, Q, Q, -Q, -Q, -Q, -Q],
        [0.5, 0.5, -0.5, -0.5, 0, 0, 0, 0],
        [0, 0, 0, 0, 0.5, 0.5, -0.5, -0.5],
        [H, -H, 0, 0, 0, 0, 0, 0],
        [0, 0, H, -H, 0, 0, 0, 0],
        [0, 0, 0, 0, H, -H, 0, 0],
        [0, 0, 0, 0, 0, 0, H, -H],
    ],
}

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=60)
sizes = st.integers(1, 200)


def distance(A: Tensor, B: Tensor) -> float:
    return float((A - B).abs().max())


@repeatable
@given(n=sizes, data=st.data())
def test_dct_rows_equal_the_closed_form(n, data):
    rank = data.draw(st.integers(1, n))
    rows = dct_rows(rank, n)
    k = data.draw(st.integers(0, rank - 1))
    expected = [
        math.sqrt((2 - (k == 0)) / n) * math.cos(math.pi * (j + 0.5) * k / n) for j in range(n)
    ]
    assert rows.shape == (rank, n)
    assert rows.dtype == torch.float64
    assert distance(rows[k], torch.tensor(expected, dtype=torch.float64)) <= 1e-12


@pytest.mark.parametrize("n", HAAR)
def test_haar_rows_are_the_classical_basis_for_powers_of_two(n):
    assert distance(haar_rows(n, n), torch.tensor(HAAR[n], dtype=torch.float64)) <= 1e-15


def test_unbalanced_haar_of_three_points_by_hand():
    a, b = math.sqrt(1 / 6), math.sqrt(2 / 3)
    expected = [[math.sqrt(1 / 3)] * 3, [a, a, -b], [H, -H, 0]]
    assert distance(haar_rows(3, 3), torch.tensor(expected, dtype=torch.float64)) <= 1e-15


@pytest.mark.parametrize("base", BASES)
def test_bases_are_orthonormal_for_every_size(base):
    for n in [*range(1, 131), 255, 256, 257, 1000]:
        rows = BASES[base](n, n)
        eye = torch.eye(n, dtype=torch.float64)
        assert distance(rows @ rows.mT, eye) <= 1e-12, n
        assert distance(rows.mT @ rows, eye) <= 1e-12, n


@pytest.mark.parametrize("base", BASES)
@repeatable
@given(n=st.integers(2, 200), data=st.data())
def test_rows_are_nested(base, n, data):
    rank = data.draw(st.integers(1, n - 1))
    assert torch.equal(BASES[base](rank, n), BASES[base](rank + 1, n)[:rank])


@repeatable
@given(n=st.integers(2, 200))
def test_haar_rows_are_two_constants_on_adjacent_intervals(n):
    for row in haar_rows(n, n)[1:]:
        support = row.nonzero().flatten()
        start, stop = int(support[0]), int(support[-1]) + 1
        assert support.numel() == stop - start
        left = int((row > 0).sum())
        assert bool((row[start : start + left] == row[start]).all())
        assert bool((row[start + left : stop] == row[stop - 1]).all())
        assert row[start] > 0 > row[stop - 1]
        assert left - (stop - start - left) in (0, 1)
        assert abs(float(row.sum())) <= 1e-12


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rank", [0, -2, 8, True])
def test_bases_refuse_an_unfit_rank_by_its_value(base, rank):
    with pytest.raises(ValueError, match=rf"rank.*{rank}"):
        BASES[base](rank, 7)


DENORMAL = 2.0**-149
magnitudes = st.one_of(
    st.floats(-(2.0**126), 2.0**126, width=32),
    st.sampled_from([0.0, -0.0, DENORMAL, -DENORMAL, 5 * DENORMAL, 2.0**-126, 1.0, -1.0, 0.02]),
    st.floats(-0.0625, 0.0625, width=32),
)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    values = draw(st.lists(magnitudes, min_size=m * n, max_size=m * n))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    return torch.tensor(values, dtype=torch.float64).to(dtype).view(m, n)


@st.composite
def shares(draw: st.DrawFn) -> Fraction:
    whole = draw(st.integers(1, 40))
    return Fraction(draw(st.integers(1, whole)), whole)


def bits(x: float) -> bytes:
    return struct.pack("<d", x)


@settings(repeatable, max_examples=400)
@given(W=weights(), share=shares())
@example(W=torch.tensor([[-0.0, 0.0], [DENORMAL, -DENORMAL]]), share=Fraction(1, 4))
@example(W=torch.tensor([[-0.0, 0.0], [DENORMAL, -DENORMAL]]), share=Fraction(3, 4))
@example(W=torch.ones(3, 3), share=Fraction(1, 5))
@example(W=torch.full((2, 2), 1e-60, dtype=torch.float64), share=Fraction(1))
def test_threshold_is_the_order_statistic_bit_for_bit(W, share):
    ordered = sorted(abs(x) for x in W.float().flatten().tolist())
    place = math.ceil(share * W.numel())
    threshold = magnitude_threshold(W, float(share))
    assert bits(threshold) == bits(ordered[place - 1])
    assert threshold == float(W.float().abs().flatten().kthvalue(place).values)
    mask = smallest_mask(W, float(share))
    assert mask.dtype == torch.bool
    assert mask.shape == W.shape
    assert int(mask.sum()) == sum(x <= threshold for x in ordered) >= place


@repeatable
@given(W=weights(), share=shares())
def test_masks_depend_on_magnitudes_only_and_grow_with_the_share(W, share):
    mask = smallest_mask(W, float(share))
    assert torch.equal(mask, smallest_mask(-W, float(share)))
    assert torch.equal(mask.mT, smallest_mask(W.mT, float(share)))
    assert bool((mask <= smallest_mask(W, 1.0)).all())
    assert bool(smallest_mask(W, 1.0).all())


def test_bfloat16_ties_are_all_included():
    generator = torch.Generator().manual_seed(0)
    W = (0.02 * torch.randn(200, 300, generator=generator)).bfloat16()
    threshold = magnitude_threshold(W, 0.2)
    magnitude = W.float().abs()
    assert threshold == float(magnitude.flatten().kthvalue(12_000).values)
    assert int((magnitude < threshold).sum()) < 12_000 < int(smallest_mask(W, 0.2).sum())


def test_thresholds_work_where_quantile_refuses():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4100, 4100, generator=generator)
    assert W.numel() > 2**24
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(W.flatten(), 0.2)
    place = W.numel() // 5
    threshold = magnitude_threshold(W, 0.2)
    magnitude = W.abs()
    assert int((magnitude < threshold).sum()) < place <= int((magnitude <= threshold).sum())
    assert bool((magnitude == threshold).any())
    assert torch.equal(smallest_mask(W, 0.2), magnitude <= threshold)
    assert threshold == pytest.approx(0.2533, abs=1e-3)  # the normal distribution's


@pytest.mark.parametrize("function", [magnitude_threshold, smallest_mask])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, math.nan, math.inf])
def test_a_share_outside_0_1_is_refused_by_its_value(function, share):
    with pytest.raises(ValueError, match=rf"share must lie in \(0, 1\], got {share}"):
        function(torch.ones(3, 3), share)


@pytest.mark.parametrize("function", [magnitude_threshold, smallest_mask])
def test_masks_refuse_what_is_not_finite(function):
    with pytest.raises(ValueError, match="holds 1 NaN or Inf of 4 values"):
        function(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), 0.5)
