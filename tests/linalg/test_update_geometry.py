"""Geometry of updates against dense float64 references, and what must not change it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orthora.linalg import both_subspaces, top_subspace
from orthora.linalg.geometry import (
    changed_entries,
    effective_rank,
    energy_shares,
    input_energy,
    overlaps,
    principal_angles,
    projector_distance,
    row_alignment,
    similarity,
    spectral_shift,
    stable_rank,
)
from orthora.linalg.masks import smallest_mask
from orthora.linalg.updates import Dense, LowRank

M, N, R = 24, 18, 4


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def orthonormal(n, q, seed=0):
    return torch.linalg.qr(gaussian(n, q, seed=seed, dtype=torch.float64))[0]


def svd(W):
    return torch.linalg.svd(W.double(), full_matrices=False)


@pytest.fixture
def weight():
    return gaussian(M, N)


@pytest.fixture
def update():
    return LowRank(0.1 * gaussian(M, R, seed=1), 0.1 * gaussian(R, N, seed=2))


def dense(update):
    return update.X.double() @ update.Y.double()


def both(update):
    """The update as a product and as a matrix."""
    return [update, Dense(dense(update))]


def test_values_and_norm_are_those_of_the_dense_update(update):
    expected = torch.linalg.svdvals(dense(update))
    for one in both(update):
        torch.testing.assert_close(one.values()[:R], expected[:R], rtol=1e-12, atol=0)
        assert one.norm() == pytest.approx(float(dense(update).norm()), rel=1e-12)
        assert stable_rank(one.values()) == pytest.approx(
            float(dense(update).norm() / torch.linalg.matrix_norm(dense(update), 2)) ** 2
        )
        block = gaussian(6, N, seed=4)
        kept = block.clone(), dense(one) if isinstance(one, LowRank) else one.D.clone()
        torch.testing.assert_close(one.added_to(block, 3), block + dense(update)[3:9].float())
        assert torch.equal(block, kept[0])
        assert torch.equal(kept[1], dense(one) if isinstance(one, LowRank) else one.D)
        torch.testing.assert_close(one.mT.values(), one.values())
        assert one.mT.shape == one.shape[::-1] == (N, M)


def test_more_columns_than_rows():
    X, Y = gaussian(5, 9), gaussian(9, 7, seed=1)
    values = LowRank(X, Y).values()
    assert len(values) == 5
    torch.testing.assert_close(values, torch.linalg.svdvals(X.double() @ Y.double()))


def test_values_of_a_large_matrix_come_from_its_gram():
    D = gaussian(530, 700)
    torch.testing.assert_close(
        Dense(D).values(), torch.linalg.svdvals(D.double()), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("small", [1e-3, 1e-7, 1e-11])
def test_halves_that_nearly_cancel_keep_their_difference(small):
    """``B A - B0 A0`` after a few steps: the norm of the difference, not of its rounding."""
    B0, A0 = gaussian(M, R, dtype=torch.float64), gaussian(R, N, seed=1, dtype=torch.float64)
    step = gaussian(R, N, seed=2, dtype=torch.float64)
    X, Y = torch.cat([B0, B0], 1), torch.cat([A0 + small * step, -A0])
    expected = float((B0 @ ((A0 + small * step) - A0)).norm())
    assert LowRank(X, Y).norm() == pytest.approx(expected, rel=1e-14 / small + 1e-10)


def test_mass_made_in_one_pair_is_found_there(weight):
    U, _, Vh = svd(weight)
    for i in (0, 7, N - 1):
        one = LowRank(1e-3 * U[:, i : i + 1], Vh[i : i + 1])
        expected = torch.zeros(N, dtype=torch.float64)
        expected[i] = 1e-3
        for update in both(one):
            c = update.along(U, Vh.mT)
            torch.testing.assert_close(c, expected, atol=1e-14, rtol=0)
            assert float(energy_shares(c)[i]) == pytest.approx(1.0, abs=1e-12)
            assert float(input_energy(update, Vh.mT)[i]) == pytest.approx(1.0, abs=1e-12)
            assert similarity(update.inputs(5), Vh[i : i + 1].mT) == pytest.approx(1.0)


def test_along_and_energies_against_dense_products(weight, update):
    for pairs in both_subspaces(weight, 5):
        for one in both(update):
            c = one.along(pairs.U, pairs.V)
            expected = (pairs.U.double().mT @ dense(update) @ pairs.V.double()).diagonal()
            torch.testing.assert_close(c, expected, rtol=1e-10, atol=1e-14)
            energy = (dense(update) @ pairs.V.double()).norm(dim=0) ** 2 / dense(update).norm() ** 2
            torch.testing.assert_close(input_energy(one, pairs.V), energy, rtol=1e-10, atol=0)


def test_energies_sum_to_one_over_a_whole_basis(weight, update):
    V = svd(weight)[2].mT
    for one in both(update):
        assert float(input_energy(one, V).sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(energy_shares(gaussian(40)).sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("nothing", [LowRank(torch.zeros(M, R), gaussian(R, N)),
                                     Dense(torch.zeros(M, N))])  # fmt: skip
def test_no_update_is_no_drift(weight, nothing):
    pairs = top_subspace(weight, 3)
    assert nothing.norm() == 0
    assert not nothing.along(pairs.U, pairs.V).any()
    assert not input_energy(nothing, pairs.V).any()
    assert not energy_shares(nothing.along(pairs.U, pairs.V)).any()
    assert stable_rank(nothing.values()) == effective_rank(nothing.values()) == 0
    assert nothing.inputs(3).shape == (N, 0)
    assert similarity(nothing.inputs(3), pairs.V) is None
    assert not any(bool(block.any()) for block in changed_entries(weight, nothing))


def test_rotations_change_nothing_that_they_should_not(weight, update):
    P, Q = orthonormal(M, M, 5), orthonormal(N, N, 6)
    turned = LowRank(P @ update.X.double(), update.Y.double() @ Q.mT)
    assert turned.norm() == pytest.approx(update.norm(), rel=1e-12)
    torch.testing.assert_close(turned.values(), update.values(), rtol=1e-10, atol=0)
    one, other = svd(weight), svd(P @ weight.double() @ Q.mT)
    torch.testing.assert_close(
        update.along(one[0], one[2].mT).abs(), turned.along(other[0], other[2].mT).abs()
    )
    V, W = orthonormal(N, 4, 1), orthonormal(N, 4, 2)
    torch.testing.assert_close(principal_angles(Q @ V, Q @ W), principal_angles(V, W))
    torch.testing.assert_close(
        principal_angles(V @ orthonormal(4, 4, 3), W), principal_angles(V, W)
    )
    assert similarity(Q @ V, Q @ W) == pytest.approx(similarity(V, W))


def test_the_inputs_are_the_leading_right_singular_vectors(update):
    V = svd(dense(update))[2].mT
    for one in both(update):
        assert similarity(one.inputs(2), V[:, :2]) == pytest.approx(1.0, abs=1e-12)
        assert one.inputs(9).shape == (N, R)
        assert similarity(one.mT.inputs(2), svd(dense(update))[0][:, :2]) == pytest.approx(1.0)


@given(st.lists(st.floats(1e-9, math.pi / 2), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_angles_that_were_made_are_found_small_and_large(angles):
    k, n = len(angles), 14
    Q = orthonormal(n, 2 * k, 3)
    turned = torch.tensor(angles, dtype=torch.float64)
    W = Q[:, :k] * turned.cos() + Q[:, k:] * turned.sin()
    found = principal_angles(Q[:, :k], W)
    torch.testing.assert_close(found, turned.sort().values, rtol=1e-6, atol=1e-14)
    distance = float((turned.sin() ** 2).mean().sqrt())
    assert projector_distance(found) == pytest.approx(distance, rel=1e-6)
    P = Q[:, :k] @ Q[:, :k].mT - W @ W.mT
    assert projector_distance(found) == pytest.approx(
        float(P.norm()) / math.sqrt(2 * k), rel=1e-6, abs=1e-12
    )


def test_angles_of_subspaces_of_unequal_dimension():
    Q = orthonormal(10, 6)
    assert not principal_angles(Q[:, :2], Q[:, :5]).any() or bool(
        (principal_angles(Q[:, :2], Q[:, :5]) < 1e-14).all()
    )
    torch.testing.assert_close(
        principal_angles(Q[:, :3], Q[:, 3:]), torch.full((3,), math.pi / 2, dtype=torch.float64)
    )
    assert similarity(Q[:, :2], Q[:, :5]) == pytest.approx(1.0)


def test_row_alignment_of_rows_inside_outside_and_by_chance():
    V = orthonormal(200, 20)
    assert row_alignment(gaussian(4, 20, dtype=torch.float64) @ V.mT, V) == pytest.approx(1.0)
    A = gaussian(4, 200, dtype=torch.float64)
    assert row_alignment(A - A @ V @ V.mT, V) == pytest.approx(0.0, abs=1e-12)
    assert row_alignment(gaussian(400, 200), V) == pytest.approx(math.sqrt(0.1), rel=0.03)
    assert row_alignment(torch.zeros(4, 200), V) == 0


def test_ranks_of_known_spectra():
    assert stable_rank(torch.ones(7)) == 7
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert stable_rank(torch.tensor([2.0, 1.0])) == 1.25
    p = torch.tensor([0.75, 0.25]).double()
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0])) == pytest.approx(
        math.exp(-float((p * p.log()).sum()))
    )


def test_changed_entries_are_those_of_a_bfloat16_merge():
    W, X, Y = gaussian(300, 257), 1e-3 * gaussian(300, 2, seed=1), gaussian(2, 257, seed=2)
    expected = (W + X @ Y).bfloat16() != W.bfloat16()
    found = torch.cat(list(changed_entries(W, LowRank(X, Y))))
    assert float((found != expected).float().mean()) < 1e-4  # float32 sums in another order
    assert 0.05 < float(found.float().mean()) < 0.95


def test_overlap_and_lift_by_hand():
    W = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[True, False, False, True]])
    update = LowRank(torch.ones(1, 1), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    met, other = overlaps(changed_entries(W, update), mask, ~mask)
    assert (met.density, met.overlap, met.changed, met.lift) == (0.5, 0.5, 0.5, 1.0)
    assert other == met
    nothing = overlaps(changed_entries(W, Dense(torch.zeros(1, 4))), mask)[0]
    assert (nothing.overlap, nothing.lift, nothing.changed) == (None, None, 0.0)
    with pytest.raises(ValueError, match="differ in shape"):
        overlaps(changed_entries(W, update), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="have 1 rows, and the mask 2"):
        overlaps(changed_entries(W, update), torch.ones(2, 4, dtype=torch.bool))


def test_small_weights_change_first():
    """bfloat16 steps grow with the weight: one small step everywhere meets the smallest."""
    W = gaussian(200, 200)
    step = LowRank(torch.full((200, 1), 1e-3), torch.ones(1, 200))
    met = overlaps(changed_entries(W, step), smallest_mask(W, 0.3))[0]
    assert met.density == pytest.approx(0.3, abs=1e-3)
    assert met.lift is not None
    assert met.lift > 1.5


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (torch.ones(3), torch.ones(4), "3 singular values before and 4"),
        (torch.zeros(2), torch.ones(2), "all singular values are zero"),
    ],
)
def test_shifts_of_nothing_are_refused(before, after, words):
    with pytest.raises(ValueError, match=words):
        spectral_shift(before, after)
