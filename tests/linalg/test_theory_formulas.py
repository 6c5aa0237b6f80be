"""The formulas of the theory against dense float64 references, and where the bounds are met."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orthora.linalg.theory import (
    adam_moves,
    categorical_kl,
    factor_gradients,
    first_step,
    first_update_bound,
    fisher,
    gap_factor,
    norm_bound,
    sign_update_bound,
    smallest_carried,
)
from orthora.methods import initialize
from orthora.types import Factors

M, N, R = 7, 5, 3
repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=40)
seeds = st.integers(0, 2**31 - 1)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(r, n, seed=0):
    return torch.linalg.qr(gaussian(n, r, seed=seed))[0].mT


def start(W, name, rank, scale):
    return Factors(*(x.double() for x in initialize(W, name, rank, scale=scale)))


def size(X):
    return float(torch.linalg.vector_norm(X))


def near(x, rel=1e-9):
    return pytest.approx(x, rel=rel)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_gradients_of_the_factors_are_those_of_autograd(scale):
    W, x, y = gaussian(M, N), gaussian(N, 11, seed=1), gaussian(M, 11, seed=2)
    A, B = gaussian(R, N, seed=3).requires_grad_(), gaussian(M, R, seed=4).requires_grad_()
    effective = W + scale * B @ A
    loss = ((effective @ x).tanh() - y).square().sum()
    G, dA, dB = torch.autograd.grad(loss, (effective, A, B))
    found = factor_gradients(G, A.detach(), B.detach(), scale)
    torch.testing.assert_close(found.A, dA)
    torch.testing.assert_close(found.B, dB)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.8, 0.95)])
def test_adams_first_step_is_torchs_whatever_the_betas(betas):
    pair = Factors(gaussian(R, N), gaussian(M, R, seed=1))
    gradients = Factors(gaussian(R, N, seed=2) * 1e-7, gaussian(M, R, seed=3))  # near eps, and not
    after = [X.clone() for X in pair]
    for X, g in zip(after, gradients, strict=True):
        X.grad = g
    torch.optim.AdamW(after, lr=1e-2, betas=betas, eps=1e-8, weight_decay=0.0).step()
    moves = adam_moves(gradients, 1e-8)
    for X, X0, u in zip(after, pair, moves, strict=True):
        torch.testing.assert_close(X, X0 - 1e-2 * u)
    assert float(max(u.abs().max() for u in moves)) < 1.0


@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_a_step_is_the_difference_of_the_products(rate):
    A, B, scale = gaussian(R, N), gaussian(M, R, seed=1), 2.0
    moves = Factors(gaussian(R, N, seed=2), gaussian(M, R, seed=3))
    step = first_step(A, B, moves, scale, rate)
    dense = scale * ((B - rate * moves.B) @ (A - rate * moves.A) - B @ A)
    torch.testing.assert_close(step.exact, dense)
    half = first_step(A, B, moves, scale, rate / 2)
    torch.testing.assert_close(half.first, step.first / 2)
    torch.testing.assert_close(half.second, step.second / 4)


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0])
@pytest.mark.parametrize(
    ("name", "carried"), [("pissa", 2), ("milora", 4), ("olora", None), ("olora-tail", None)]
)
def test_what_the_factors_carry(name, carried, scale):
    W = 3 * gaussian(M, N)
    S = torch.linalg.svdvals(W)
    expected = 1.0 if carried is None else float(S[carried]) / scale
    assert smallest_carried(*start(W, name, R, scale)) == near(expected, 1e-5)


PAIRS = [("pissa", "rlpo"), ("milora", "rlmo"), ("olora", "rlpo"), ("olora-tail", "rlmo")]


def first_order(name, W, G, rank, scale):
    pair = start(W, name, rank, scale)
    moves = factor_gradients(G, *pair, scale)
    return first_step(*pair, moves, scale, 1e-2).first


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@settings(repeatable)
@given(seed=seeds, m=st.integers(2, 9), n=st.integers(2, 9), scale=st.floats(0.25, 4), d=st.data())
def test_theorem_4_1_for_any_gradient(pair, seed, m, n, scale, d):
    rank = d.draw(st.integers(1, min(m, n)))
    W, G = 3 * gaussian(m, n, seed=seed), gaussian(m, n, seed=seed + 1)
    heavy, flat = (first_order(name, W, G, rank, scale) for name in pair)
    bound = smallest_carried(*start(W, pair[0], rank, scale))
    assert size(heavy) >= bound * size(flat) * (1 - 1e-5) - 1e-8 * scale * size(G)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_theorem_4_1_is_met_by_a_gradient_on_the_weakest_direction(pair):
    W = gaussian(8, 6, seed=4)
    U, _, Vh = torch.linalg.svd(W)
    G = U[:, 7:] @ Vh[R - 1 if pair[1] == "rlpo" else 5][None]  # writes outside, reads the weakest
    heavy, flat = (first_order(name, W, G, R, 2.0) for name in pair)
    assert size(heavy) / size(flat) == near(smallest_carried(*start(W, pair[0], R, 2.0)), 1e-4)


def dense_factor(A, B, scale):
    """The norm of ``G -> G - s^2 (G A'A + B B' G)`` as a matrix on vec(G)."""
    m, n = B.shape[0], A.shape[1]
    one = torch.eye(m * n, dtype=torch.float64)
    left = torch.kron(B @ B.mT, torch.eye(n, dtype=torch.float64))
    right = torch.kron(torch.eye(m, dtype=torch.float64), A.mT @ A)
    return float(torch.linalg.matrix_norm(one - scale**2 * (left + right), ord=2))


@settings(repeatable)
@given(
    seed=seeds,
    m=st.integers(1, 5),
    n=st.integers(1, 5),
    scale=st.sampled_from([0.3, 1.0, 2.0]),
    strength=st.floats(0.05, 2),
    d=st.data(),
)
def test_the_factor_is_the_norm_of_the_dense_map(seed, m, n, scale, strength, d):
    r = d.draw(st.integers(1, min(m, n)))  # up to full rank, where nothing need be lost
    A, B = strength * gaussian(r, n, seed=seed), strength * gaussian(m, r, seed=seed + 1)
    assert gap_factor(A, B, scale) == near(dense_factor(A, B, scale))
    assert gap_factor(A, None, scale) == near(dense_factor(A, 0 * B, scale))
    paper = torch.linalg.matrix_norm(torch.eye(n, dtype=torch.float64) - A.mT @ A, ord=2)
    assert gap_factor(A) == near(float(paper))
    if r < n:
        assert gap_factor(A) >= 1.0


@pytest.mark.parametrize(("scale", "factor"), [(0.5, 1.0), (1.0, 1.0), (1.4, 1.0), (2.0, 3.0)])
def test_orthonormal_rows_have_factor_one_up_to_scale_root_two(scale, factor):
    assert gap_factor(rows(R, N), None, scale) == near(factor)


def test_full_orthonormal_rows_lose_nothing():
    assert gap_factor(rows(N, N)) == pytest.approx(0.0, abs=1e-12)


def test_the_gap_of_one_step_is_within_the_factor_and_attains_it():
    A, B, scale, rate = 0.9 * rows(R, N), 0.7 * rows(R, M, seed=1).mT, 2.0, 1e-9
    p, q = A[:1] / 0.9, B[:, :1] / 0.7  # a gradient that both factors see whole
    for G, tight in ((gaussian(M, N, seed=2), False), (q @ p, True)):
        step = first_step(A, B, factor_gradients(G, A, B, scale), scale, rate).first
        gap, bound = size(step + rate * G), rate * size(G) * gap_factor(A, B, scale)
        assert gap <= bound * (1 + 1e-9)
        assert (gap == near(bound)) is tight


@settings(repeatable)
@given(seed=seeds, strength=st.floats(0.1, 3), scale=st.floats(0.25, 4))
def test_proposition_5_3_and_where_it_is_met(seed, strength, scale):
    A, B = strength * rows(R, N, seed=seed), torch.zeros(M, R, dtype=torch.float64)
    for G, tight in ((gaussian(M, N, seed=seed), False), (gaussian(M, R, seed=seed) @ A, True)):
        step = first_step(A, B, factor_gradients(G, A, B, scale), scale, 0.1).exact
        bound = first_update_bound(G, A, scale, 0.1)
        assert size(step) <= bound * (1 + 1e-9)
        assert not tight or size(step) == near(bound)


@settings(repeatable)
@given(seed=seeds, scale=st.floats(0.25, 4))
def test_adams_first_update_has_a_bound_of_its_own(seed, scale):
    B = torch.zeros(M, R, dtype=torch.float64)
    for A, tight in ((gaussian(R, N, seed=seed), False), (rows(R, N, seed=seed), True)):
        moves = adam_moves(factor_gradients(gaussian(M, N, seed=seed + 1), A, B, scale), 1e-12)
        step = first_step(A, B, moves, scale, 0.1).exact
        bound = sign_update_bound(A, M, scale, 0.1)
        assert size(step) <= bound
        assert not tight or size(step) == near(bound, 1e-6)  # orthonormal rows: all signs count


def soft(z):
    return z.log_softmax(-1)


@pytest.mark.parametrize("seed", range(3))
def test_the_fisher_matrix_is_the_hessian_of_the_kl(seed):
    z, slopes = gaussian(6, 8, seed=seed), gaussian(4, 6, 8, seed=seed + 1)

    def kl(d):
        return categorical_kl(soft(z + (d[:, None, None] * slopes).sum(0)), soft(z)).sum()

    zero = torch.zeros(4, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(kl, zero)
    torch.testing.assert_close(fisher(slopes, soft(z)), hessian)
    shifted = slopes + gaussian(4, 6, 1, seed=9)  # a constant over the outcomes is no change
    torch.testing.assert_close(fisher(shifted, soft(z)), fisher(slopes, soft(z)))


@pytest.mark.parametrize("step", [1.0, 1e-4, 1e-9])
def test_a_kl_is_good_to_the_smallest_steps(step):
    z, slope = gaussian(5, 8), gaussian(5, 8, seed=1)
    new, old = soft(z + step * slope), soft(z)
    found = categorical_kl(new, old)
    assert bool((found >= 0).all())
    if step == 1.0:
        torch.testing.assert_close(found, (new.exp() * (new - old)).sum(-1))
    else:
        quadratic = step**2 / 2 * fisher(slope[None], old)
        assert float(found.sum()) == near(float(quadratic), 3e-4 if step > 1e-6 else 1e-5)


def test_a_kl_to_an_outcome_without_probability_is_finite():
    old, new = soft(torch.tensor([[0.0, -2000.0]]).double()), soft(torch.zeros(1, 2).double())
    assert float(categorical_kl(new, old)) == near(1000 - math.log(2), 1e-3)


@settings(repeatable)
@given(seed=seeds, L=st.integers(1, 6))
def test_the_norm_bound_of_a_quadratic_kl_is_met_on_the_flattest_direction(seed, L):
    root = gaussian(L, L + 2, seed=seed)
    F = root @ root.mT
    values, vectors = torch.linalg.eigh(F)
    for d, tight in ((gaussian(L, seed=seed + 1), L == 1), (vectors[:, 0] * 1e-3, True)):
        bound = norm_bound(float(d @ F @ d) / 2, float(values[0]))
        assert size(d) <= bound * (1 + 1e-9)
        assert not tight or size(d) == near(bound, 1e-6)


def test_a_flat_direction_bounds_nothing():
    assert norm_bound(1e-3, 0.0) == math.inf
    assert norm_bound(1e-3, -1e-20) == math.inf
