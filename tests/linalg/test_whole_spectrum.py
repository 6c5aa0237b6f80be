"""The whole spectrum before and after an update, against dense float64 references."""

import math

import pytest
import torch

from orthora.linalg import whole
from orthora.linalg.davidson import leading
from orthora.linalg.geometry import energy_shares, principal_angles, spectral_shift
from orthora.linalg.updates import Dense, LowRank
from orthora.linalg.whole import Change, decompose

SHAPES = [(40, 30), (30, 40), (33, 33)]
Q = 6


def gaussian(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def svd(W):
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return U, S, Vh.mT


@pytest.fixture(params=["svd", "gram", "bounds"])
def path(request, monkeypatch):
    """The ways to decompose, whatever the size: by SVD, by Gram matrix, and that with bounds."""
    monkeypatch.setattr(whole, "_SVD_SIDE", 512 if request.param == "svd" else 0)
    monkeypatch.setattr(whole, "_VALUES_SIDE", 0 if request.param == "bounds" else 512)
    return request.param


def moved(found, update, q, **options):
    return Change(found, update).moved(q, **options)


def low_rank(shape, size, seed=1, rank=3):
    return LowRank(size * gaussian(shape[0], rank, seed=seed), gaussian(rank, shape[1], seed=9))


@pytest.mark.parametrize("shape", SHAPES)
def test_all_triplets(path, shape):
    W = gaussian(*shape)
    U, S, V = svd(W)
    found = decompose(W)
    torch.testing.assert_close(found.S, S, rtol=1e-9, atol=1e-12)
    assert found.norm == pytest.approx(float(W.norm()))
    assert found.rank == min(shape)
    for columns in (found.top(Q), found.bottom(Q), slice(3, 9)):
        left, right = found.left(columns), found.right(columns)
        assert float(principal_angles(left, U[:, columns]).max()) < 1e-6
        assert float(principal_angles(right, V[:, columns]).max()) < 1e-6
        torch.testing.assert_close(W @ right, left * S[columns], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["product", "matrix"])
def test_along_every_pair(path, shape, kind):
    W, update = gaussian(*shape), low_rank(shape, 0.1)
    D = update.X @ update.Y
    U, _, V = svd(W)
    expected = (U.mT @ D @ V).diagonal()
    found = Change(decompose(W), update if kind == "product" else Dense(D)).along()
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-6, atol=1e-9)
    assert float(energy_shares(found).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("i", [0, 11, 29])
def test_mass_made_in_one_pair_is_found_there_and_moves_its_value(path, shape, i):
    W = gaussian(*shape)
    U, S, V = svd(W)
    update = LowRank(1e-3 * U[:, i : i + 1], V[:, i : i + 1].mT)
    found = decompose(W)
    assert float(energy_shares(Change(found, update).along())[i]) == pytest.approx(1.0, abs=1e-9)
    after = moved(found, update, min(i + 1, len(S)), exact=True)
    assert float(after.values[i] - S[i]) == pytest.approx(1e-3, rel=1e-6)
    assert after.shift == pytest.approx(1e-3 / float(S.norm()), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("kind", ["product", "matrix"])
def test_moved_equals_the_dense_reference(path, shape, size, kind):
    """Values, angles of both sides and the shift, or bounds that hold it, to 1e-6 relative."""
    W, update = gaussian(*shape), low_rank(shape, size)
    D = update.X @ update.Y
    U, S, V = svd(W)
    P, T, R = svd(W + D)
    found = moved(decompose(W), update if kind == "product" else Dense(D), Q)
    torch.testing.assert_close(found.values, T[:Q], rtol=1e-9, atol=0)
    expected = principal_angles(V[:, :Q], R[:, :Q])
    torch.testing.assert_close(found.right, expected, rtol=1e-6, atol=1e-11)
    expected = principal_angles(U[:, :Q], P[:, :Q])
    torch.testing.assert_close(found.left, expected, rtol=1e-6, atol=1e-11)
    shift = spectral_shift(S, T)
    assert found.shift_low * (1 - 1e-6) <= shift <= found.shift_high * (1 + 1e-9)
    if path != "bounds" or kind == "matrix":
        assert found.shift == pytest.approx(shift, rel=1e-6)
        assert found.shift_low == found.shift
    else:
        assert found.shift is None
        assert found.shift_low > 0
        exact = moved(decompose(W), update, Q, exact=True)
        assert exact.shift == pytest.approx(shift, rel=1e-6)


def test_the_lower_bound_is_tight_where_the_leading_pairs_move_alone(path):
    W = gaussian(40, 30)
    U, _, V = svd(W)
    update = LowRank(1e-2 * U[:, :2], V[:, :2].mT)
    found = moved(decompose(W), update, Q)
    assert found.shift_low == pytest.approx(found.shift_high, rel=1e-6)


def test_nothing_moves_at_step_zero(path):
    W = gaussian(40, 30)
    for update in (LowRank(torch.zeros(40, 2), gaussian(2, 30)), Dense(torch.zeros(40, 30))):
        found = moved(decompose(W), update, Q)
        torch.testing.assert_close(found.values, svd(W)[1][:Q], rtol=1e-12, atol=0)
        assert float(found.left.max()) <= 1e-9
        assert float(found.right.max()) <= 1e-12
        assert (found.shift_low, found.shift_high) == (0, 0)
        assert not Change(decompose(W), update).along().any()


def test_rotations_change_no_value_and_no_angle(path):
    W, update = gaussian(40, 30), low_rank((40, 30), 0.1)
    P = torch.linalg.qr(gaussian(40, 40, seed=5))[0]
    R = torch.linalg.qr(gaussian(30, 30, seed=6))[0]
    one = moved(decompose(W), update, Q)
    two = moved(decompose(P @ W @ R), LowRank(P @ update.X, update.Y @ R), Q)
    for a, b in zip(
        (one.values, one.left, one.right), (two.values, two.left, two.right), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    assert one.shift_low == pytest.approx(two.shift_low)


def test_directions_without_a_singular_value_carry_no_energy(path):
    W = gaussian(40, 30)
    W[:, 28:] = 0
    found = decompose(W)
    assert found.rank == 28
    assert found.right(found.bottom(2)).shape == (30, 2)
    c = Change(found, low_rank((40, 30), 0.1)).along()
    assert c[:28].all()
    assert not c[28:].any()


@pytest.mark.parametrize("size", [1e-8, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("degenerate", [False, True])
def test_leading_pairs_of_a_modified_diagonal(size, degenerate):
    k = 120
    values = torch.linspace(9, 0, k, dtype=torch.float64)
    if degenerate:
        values[4:9] = values[4]
    P, R = size * gaussian(k, 4), gaussian(k, 4, seed=2)
    K = P.mT @ P
    M = torch.diag(values) + P @ R.mT + R @ P.mT + R @ K @ R.mT
    theta, C = leading(values, P, R, K, Q)
    expected, Z = torch.linalg.eigh((M + M.mT) / 2)
    noise = 1e-13 * float(expected[-1])
    torch.testing.assert_close(theta, expected.flip(0)[:Q], rtol=1e-11, atol=noise)
    torch.testing.assert_close(M @ C, C * theta, rtol=1e-9, atol=1e-9 * float(theta[0]))
    if not degenerate:
        assert float(principal_angles(C, Z.flip(1)[:, :Q]).max()) < 1e-7


def test_a_large_weight_goes_the_gram_way_and_agrees():
    W = gaussian(700, 520).float()
    update = LowRank(1e-2 * gaussian(700, 4, seed=1).float(), gaussian(4, 520, seed=2).float())
    found = decompose(W)
    assert found.long is None
    D = update.X.double() @ update.Y.double()
    U, S, V = svd(W)
    P, T, R = svd(W.double() + D)
    after = moved(found, update, Q)
    torch.testing.assert_close(after.values, T[:Q], rtol=1e-10, atol=0)
    torch.testing.assert_close(after.right, principal_angles(V[:, :Q], R[:, :Q]), rtol=1e-6, atol=0)
    torch.testing.assert_close(after.left, principal_angles(U[:, :Q], P[:, :Q]), rtol=1e-6, atol=0)
    assert after.shift_low <= spectral_shift(S, T) <= after.shift_high
    assert not math.isclose(after.shift_low, 0.0)


@pytest.mark.parametrize("shape", [(1400, 600), (600, 1400)])
def test_weights_with_a_wide_spectrum_keep_their_smallest_values(shape):
    """Spikes of more than a hundred times the smallest value."""
    W = 0.02 * gaussian(*shape)
    left, right = gaussian(shape[0], 20, seed=1), gaussian(20, shape[1], seed=2)
    W = (W + 3e-3 * left * torch.arange(20, 0, -1) @ right).float()
    S = svd(W)[1]
    assert float(S[0] / S[-1]) > 100
    torch.testing.assert_close(decompose(W).S, S, rtol=1e-10, atol=0)
    update = low_rank(shape, 1e-3)
    after = moved(decompose(W), update, Q)
    _, T, Vh = svd(W.double() + update.X @ update.Y)
    torch.testing.assert_close(after.values, T[:Q], rtol=1e-10, atol=0)
    angles = principal_angles(svd(W)[2][:, :Q], Vh[:, :Q])
    torch.testing.assert_close(after.right, angles, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_an_update_where_the_weight_is_zero_is_not_missed(side):
    """Dead rows and columns: the update's own subspace is no part of the weight's."""
    W = gaussian(200, 160)
    W[150:] = 0 if side != "right" else W[150:]
    W[:, 120:] = 0 if side != "left" else W[:, 120:]
    X, Y = torch.zeros(200, 2, dtype=torch.float64), torch.zeros(2, 160, dtype=torch.float64)
    X[150:] = gaussian(50, 2, seed=1)
    Y[:, 120:] = gaussian(2, 40, seed=2)
    U, S, V = svd(W)
    P, T, R = svd(W + X @ Y)
    found = moved(decompose(W), LowRank(X, Y), Q)
    torch.testing.assert_close(found.values, T[:Q], rtol=1e-9, atol=0)
    for angles, one, other in ((found.left, U, P), (found.right, V, R)):
        expected = principal_angles(one[:, :Q], other[:, :Q])
        torch.testing.assert_close(angles, expected, rtol=1e-5, atol=1e-7)
    assert found.shift == pytest.approx(spectral_shift(S, T), rel=1e-6)


def test_leading_values_that_fall_below_the_rest_are_not_mistaken():
    """An update that takes the leading pairs away: what was 30th is now first."""
    k = 90
    values = torch.linspace(9, 1, k, dtype=torch.float64)
    P = torch.eye(k, 28, dtype=torch.float64)
    K = torch.zeros(28, 28, dtype=torch.float64)
    R = -P * values[:28] / 2
    theta, C = leading(values, P, R, K, Q)
    torch.testing.assert_close(theta, values[28 : 28 + Q])
    assert float(C[28 : 28 + Q].diagonal().abs().min()) == pytest.approx(1.0)


def test_the_rank_of_a_product_is_found_in_a_tall_float32_weight():
    W = (gaussian(1400, 300) @ gaussian(300, 600, seed=1)).float()
    assert decompose(W).rank == 300


def test_bad_questions_are_refused():
    found = decompose(gaussian(8, 5))
    with pytest.raises(ValueError, match="6 singular pairs asked for; the weight has 5"):
        moved(found, Dense(torch.zeros(8, 5)), 6)
    with pytest.raises(ValueError, match="NaN or Inf"):
        decompose(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="NaN or Inf"):
        moved(found, Dense(torch.full((8, 5), math.inf)), 2)
