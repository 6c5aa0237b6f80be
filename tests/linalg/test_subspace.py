"""Subspaces against float64 `torch.linalg.svd`, compared as projectors, and their certificates."""

from collections.abc import Callable, Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from orthora.linalg import bottom_subspace, check_rank, check_weight, top_subspace
from orthora.types import Subspace

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
ENDS = {"top": top_subspace, "bottom": bottom_subspace}


def spread(m: int, n: int, seed: int = 0) -> Tensor:
    """A matrix with singular values 5, ..., 0.2 in constant ratio, so that every gap is wide."""
    k = min(m, n)
    generator = torch.Generator().manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
    S = torch.logspace(np.log10(5.0), np.log10(0.2), k, dtype=torch.float64)
    return (U * S) @ V.mT


def zero_rows(m: int, n: int, kept: int) -> Tensor:
    W = torch.zeros(m, n, dtype=torch.float64)
    W[torch.randperm(m, generator=torch.Generator().manual_seed(1))[:kept]] = spread(kept, n)
    return W


def duplicated_columns(m: int, n: int, copies: int) -> Tensor:
    W = spread(m, n - copies)
    return torch.cat([W, W[:, :copies]], dim=1)


CASES: dict[str, tuple[Callable[[], Tensor], int]] = {  # matrix, its rank
    "tall": (lambda: spread(48, 30), 30),
    "wide": (lambda: spread(30, 48), 30),
    "square": (lambda: spread(36, 36), 36),
    "tall-zero-rows": (lambda: zero_rows(48, 30, 20), 20),
    "wide-zero-rows": (lambda: zero_rows(30, 48, 24), 24),
    "square-zero-rows": (lambda: zero_rows(36, 36, 31), 31),
    "tall-duplicated-columns": (lambda: duplicated_columns(48, 30, 6), 24),
    "square-duplicated-columns": (lambda: duplicated_columns(30, 30, 5), 25),
    "wide-duplicated-rows": (lambda: duplicated_columns(48, 30, 6).mT.contiguous(), 24),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, int]:
    build, positive = CASES[request.param]
    return build(), positive


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes in signatures are executed in tests; users meet the messages of the code instead."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def reference(W: Tensor, end: str, rank: int, positive: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    inside = slice(0, rank) if end == "top" else slice(positive - rank, positive)
    return U[:, inside], S[inside], Vh.mT[:, inside]


def projector(X: Tensor) -> Tensor:
    return X.double() @ X.double().mT


def ranks(positive: int) -> list[int]:
    return [1, 3, 8, positive]


def measure(W: Tensor, subspace: Subspace, U: Tensor | None = None) -> tuple[float, float]:
    """Residual and orthonormality, by numpy; ``U`` replaces the subspace's own."""
    X, S, V = (x.double().numpy() for x in (W, subspace.S, subspace.V))
    left = (subspace.U if U is None else U).double().numpy()
    top = np.linalg.svd(X, compute_uv=False)[0]
    residual = max(
        np.linalg.norm(X @ V - left @ np.diag(S), 2), np.linalg.norm(X.T @ left - V @ np.diag(S), 2)
    )
    eye = np.eye(len(S))
    orthonormality = max(np.abs(left.T @ left - eye).max(), np.abs(V.T @ V - eye).max())
    return residual / top, orthonormality


@pytest.mark.parametrize("end", ENDS)
def test_projectors_and_singular_values_equal_the_float64_svd(case, dtype, end):
    W, positive = case[0].to(dtype), case[1]
    assert torch.linalg.matrix_rank(W.double()) == positive  # also after rounding
    vectors, values = (1e-10, 1e-12) if dtype == torch.float64 else (1e-6, 1e-6)
    for rank in ranks(positive):
        U, S, V = reference(W, end, rank, positive)
        ours = ENDS[end](W, rank)
        assert ours.gap > 1e-3, rank  # otherwise the comparison of projectors means nothing
        assert torch.linalg.matrix_norm(projector(ours.V) - projector(V), 2) <= vectors, rank
        assert torch.linalg.matrix_norm(projector(ours.U) - projector(U), 2) <= vectors, rank
        assert float((ours.S.double() - S).abs().max()) <= values * float(S[0]), rank


@pytest.mark.parametrize("end", ENDS)
def test_shapes_dtype_and_layout(case, dtype, end):
    W = case[0].to(dtype)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    ours = ENDS[end](W, 5)
    shapes = [(W.shape[0], 5), (5,), (W.shape[1], 5)]
    assert [tuple(x.shape) for x in (ours.U, ours.S, ours.V)] == shapes
    assert all(x.dtype == out and x.is_contiguous() for x in (ours.U, ours.S, ours.V))


@pytest.mark.parametrize("rank", [1, 4, 12])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_top_is_the_best_low_rank_approximation(shape, rank):
    W = spread(*shape, seed=2)
    top = top_subspace(W, rank)
    error = torch.linalg.matrix_norm(W - (top.U * top.S) @ top.V.mT)
    tail = torch.linalg.svdvals(W)[rank:]
    assert float(error) == pytest.approx(float(tail.square().sum().sqrt()), rel=1e-10)


def test_bottom_never_returns_null_vectors(case, dtype):
    W, positive = case[0].to(dtype), case[1]
    smallest = float(torch.linalg.svdvals(W.double())[positive - 1])
    for rank in ranks(positive):
        images = W.double() @ bottom_subspace(W, rank).V.double()
        assert float(torch.linalg.svdvals(images)[-1]) >= smallest * (1 - 1e-5), rank


def test_the_naive_bottom_would_return_null_vectors():
    W = zero_rows(36, 36, 31)
    naive = torch.linalg.svd(W).Vh[-5:].mT
    assert float(torch.linalg.matrix_norm(W @ naive, 2)) <= 1e-12
    assert float(torch.linalg.svdvals(W @ bottom_subspace(W, 5).V)[-1]) >= 0.19


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        ([1.0, 1e-3, 1e-6, 1e-7], 4),  # float32's tolerance would take the last two for null
        ([1.0, 1e-3, 1e-12, 1e-18], 3),
        ([1.0, 1e-3, 1e-15, 8e-16], 3),  # the tolerance is 4 * 2^-52 = 8.9e-16
        ([1.0, 0.5, 0.0, 0.0], 2),
    ],
)
def test_zero_is_decided_in_float64(values, positive):
    W = torch.diag(torch.tensor(values, dtype=torch.float64))
    bottom = bottom_subspace(W, 1)
    assert float(bottom.S) == pytest.approx(values[positive - 1], rel=1e-12)
    assert float(bottom.V[positive - 1]) == 1.0
    assert bottom_subspace(W, positive).S.numel() == positive
    if positive < 4:
        with pytest.raises(ValueError, match=f"only {positive} of 4 singular values are positive"):
            bottom_subspace(W, positive + 1)


def test_bottom_of_a_wide_matrix_lies_in_its_row_space():
    W = spread(12, 40)
    rows = projector(torch.linalg.qr(W.mT).Q)
    for rank in (1, 5, 12):
        V = bottom_subspace(W, rank).V
        assert float((rows @ V - V).abs().max()) <= 1e-12
    everything = projector(bottom_subspace(W, 12).V)
    assert float((everything - rows).abs().max()) <= 1e-12


def test_top_and_bottom_split_the_row_space(case):
    W, positive = case
    parts = projector(top_subspace(W, 7).V) + projector(bottom_subspace(W, positive - 7).V)
    rows = projector(top_subspace(W, positive).V)
    assert float((parts - rows).abs().max()) <= 1e-10


@pytest.mark.parametrize("end", ENDS)
def test_singular_values_descend_and_signs_are_canonical(case, dtype, end):
    ours = ENDS[end](case[0].to(dtype), 9)
    assert bool((ours.S[:-1] >= ours.S[1:]).all())
    assert bool((ours.S > 0).all())
    assert torch.equal(ours.V.max(dim=0).values, ours.V.abs().max(dim=0).values)
    images = case[0].to(dtype).double() @ ours.V.double()
    assert bool(((images * ours.U.double()).sum(dim=0) > 0).all())  # U carries the same sign


@pytest.mark.parametrize("end", ENDS)
def test_twice_gives_the_same_bits(case, dtype, end):
    W = case[0].to(dtype)
    one, two = ENDS[end](W, 6), ENDS[end](W.clone(), 6)
    assert all(torch.equal(getattr(one, x), getattr(two, x)) for x in "USV")
    assert (one.residual, one.orthonormality, one.gap) == (
        two.residual,
        two.orthonormality,
        two.gap,
    )


@pytest.mark.parametrize("end", ENDS)
def test_the_argument_is_left_alone_and_no_gradient_leaks(end):
    W = torch.nn.Parameter(spread(20, 14).float())
    before = W.detach().clone()
    ours = ENDS[end](W, 3)
    assert torch.equal(W.detach(), before)
    assert not any(getattr(ours, x).requires_grad for x in "USV")


@pytest.mark.parametrize("end", ENDS)
def test_the_certificate_equals_a_recomputation_in_numpy(case, dtype, end):
    W, positive = case[0].to(dtype), case[1]
    S = np.linalg.svd(W.double().numpy(), compute_uv=False)
    for rank in ranks(positive):
        ours = ENDS[end](W, rank)
        residual, orthonormality = measure(W, ours)
        assert ours.residual == pytest.approx(residual, rel=1e-4, abs=1e-14), rank
        assert ours.orthonormality == pytest.approx(orthonormality, rel=1e-4, abs=1e-14), rank
        inside = rank - 1 if end == "top" else positive - rank
        outside = rank if end == "top" else positive - rank - 1
        gap = 1.0
        if 0 <= outside < len(S):
            gap = abs(S[inside] - S[outside]) / S[0]
        assert ours.gap == pytest.approx(gap, rel=1e-9), rank
        assert ours.path == "svd-float64"


def test_certificates_of_exact_subspaces_are_small(case, dtype):
    W = case[0].to(dtype)
    limit = 1e-13 if dtype == torch.float64 else 1e-6
    for subspace in (top_subspace(W, 8), bottom_subspace(W, 8)):
        assert subspace.residual <= limit
        assert subspace.orthonormality <= limit


def test_the_certificate_formula_rejects_a_perturbed_subspace():
    W = spread(30, 20)
    top = top_subspace(W, 4)
    noise = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residual, orthonormality = measure(W, top, top.U + 1e-3 * noise)
    assert residual > 1e-3
    assert orthonormality > 1e-4
    swapped, orthonormality = measure(W, top, top.U.flip(1))
    assert swapped > 0.1  # orthonormal columns of the right space, paired with the wrong values
    assert orthonormality <= 1e-12


@pytest.mark.parametrize("end", ENDS)
def test_the_certificate_exposes_an_inaccurate_solver(monkeypatch, end):
    W, exact = spread(30, 20), torch.linalg.svd

    def turned(X: Tensor, **options: bool) -> tuple[Tensor, Tensor, Tensor]:
        U, S, Vh = exact(X, **options)
        k = S.numel()
        noise = torch.randn(k, k, generator=torch.Generator().manual_seed(3), dtype=X.dtype)
        return U, S, torch.linalg.matrix_exp(1e-4 * (noise - noise.mT)) @ Vh

    def skewed(X: Tensor, **options: bool) -> tuple[Tensor, Tensor, Tensor]:
        U, S, Vh = exact(X, **options)
        return U * 1.001, S, Vh

    monkeypatch.setattr(torch.linalg, "svd", turned)
    wrong = ENDS[end](W, 4)
    assert wrong.residual > 1e-5
    assert wrong.orthonormality <= 1e-12
    monkeypatch.setattr(torch.linalg, "svd", skewed)
    assert ENDS[end](W, 4).orthonormality > 1e-3


@pytest.mark.parametrize("end", ENDS)
def test_an_ambiguous_group_has_gap_zero(end):
    assert ENDS[end](torch.eye(6, dtype=torch.float64), 2).gap == 0.0
    assert ENDS[end](torch.eye(6, dtype=torch.float64), 6).gap == 1.0


def test_a_zero_matrix_has_a_top_and_no_bottom():
    W = torch.zeros(5, 3)
    top = top_subspace(W, 2)
    assert float(top.S.abs().max()) == 0.0
    assert top.residual == 0.0
    assert top.orthonormality <= 1e-6
    with pytest.raises(ValueError, match="only 0 of 3 singular values are positive"):
        bottom_subspace(W, 1)


@pytest.mark.parametrize("rank", [0, -3, 31])
@pytest.mark.parametrize("end", ENDS)
def test_an_unfit_rank_is_refused_by_its_value(end, rank):
    with pytest.raises(ValueError, match=rf"rank {rank} does not fit a 48 x 30 weight.*1 to 30"):
        ENDS[end](torch.ones(48, 30), rank)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rank", [True, False, 2.0, "2", None])
def test_a_rank_that_is_no_int_is_refused_by_its_value(rank):
    for refuse in (lambda: check_rank(rank, (4, 4)), lambda: top_subspace(torch.eye(4), rank)):
        with pytest.raises(ValueError, match=rf"rank must be an int, got {rank!r}"):
            refuse()


def test_bottom_refuses_more_directions_than_positive_singular_values(case, dtype):
    W, positive = case[0].to(dtype), case[1]
    k = min(W.shape)
    if positive == k:
        assert bottom_subspace(W, k).S.numel() == k
        return
    with pytest.raises(
        ValueError,
        match=rf"rank {positive + 1} asks .* only {positive} of {k} .* at most {positive}",
    ):
        bottom_subspace(W, positive + 1)


def holed(*values: float) -> Tensor:
    W = torch.ones(4, 5)
    W.view(-1)[: len(values)] = torch.tensor(values)
    return W


NAN, INF = float("nan"), float("inf")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", [check_weight, *(lambda W, f=f: f(W, 1) for f in ENDS.values())])
@pytest.mark.parametrize(
    ("W", "message"),
    [
        (holed(NAN), "holds 1 NaN or Inf of 20 values"),
        (holed(INF, -INF), "holds 2 NaN or Inf of 20 values"),
        (holed(NAN).bfloat16(), "holds 1 NaN or Inf of 20 values"),
        (torch.ones(4, 5, dtype=torch.int64), "dtype torch.int64"),
        (torch.ones(4, 5, dtype=torch.int8), "dtype torch.int8"),
        (torch.ones(4, 5, dtype=torch.bool), "dtype torch.bool"),
        (torch.ones(4, 5, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.ones(4, 5).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn"),
        (torch.ones(0, 5), r"non-empty matrix \(m, n\), got shape \(0, 5\)"),
        (torch.ones(4, 0), r"got shape \(4, 0\)"),
        (torch.ones(4), r"got shape \(4,\)"),
        (torch.ones(2, 4, 5), r"got shape \(2, 4, 5\)"),
        (torch.ones(4, 5, device="meta"), "meta device"),
    ],
    ids=lambda x: None if isinstance(x, str) else f"{x.dtype}-{tuple(x.shape)}-{x.device}",
)
def test_what_is_no_finite_real_matrix_is_refused_by_its_value(check, W, message):
    with pytest.raises(ValueError, match=message):
        check(W)
