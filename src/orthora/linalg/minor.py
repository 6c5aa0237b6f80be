"""The bottom of the spectrum: block Lanczos on an inverse, then Davidson corrections.

A square weight is inverted through its own LU factors, because its smallest singular values lie far
below the rounding of a Gram matrix. A rectangular one has a bulk edge instead, where inverse
iteration stalls unless it is shifted close to the edge; its Gram matrix, shifted, is factorised by
Cholesky, whose success proves that the shift lies below the whole spectrum. (An indefinite shift
is faster, and can lock on interior vectors with converged residuals.)
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.certificate import (
    DROWNED,
    ENERGY,
    GUARDS,
    NotCertified,
    Ritz,
    certify,
    gram_noise,
    prove_outside,
    times,
)
from orthora.linalg.cholesky import cholesky_
from orthora.linalg.corrections import Solve, mend_long_side, refine_bottom
from orthora.linalg.lanczos import BLOCK, block_lanczos
from orthora.linalg.precision import float32_products
from orthora.linalg.principal import start_block
from orthora.linalg.products import product
from orthora.types import Subspace

GRAM_PATH = "gram+cholesky+lanczos"

_SQUARE_SINE = 4e-2  # to which Lanczos runs on a square weight, where a step is dear,
_GRAM_SINE = 1e-2  # and on a rectangular one, where a correction is
_STEPS = 24
_SCOUT_STEPS = 2
_DOMINANT = 1e3  # eigenvalues of the inverse so far above the edge are projected out
_EDGE_STEPS = 12
_SHIFTS = (0.93, 0.8, 0.5, 0.0)  # of an upper bound on the smallest eigenvalue
_REFINED_SIDE = 2048  # above this LU in float32 grows too much without iterative refinement
_INACCURATE = 0.1  # a first correction this large says that the factors are
_GRAM_FLOOR = 4e-3  # sigma / sigma_1 under which the rounding of a float32 Gram matrix may count
_LU_FLOOR = {torch.float32: 2e-7, torch.float64: 1e-11}  # sigma / sigma_1; below it: singular?
_PROBE_RISK = 1e-8
_CLUSTER = 1e-2  # spread of a block of singular values so near each other that more may be hidden
_NORM_STEPS = 3


@float32_products()
def bottom_of_square(A: Float[Tensor, "k k"], rank: int, *, wide: bool) -> Subspace:
    """The bottom-r subspace of a square matrix by inverse iteration on its LU factors.

    Args:
        A: (k, k) float32, or float64 for smallest singular values under 2e-7 sigma_1.
        rank: r.
        wide: A is the transpose of the weight.

    Raises:
        NotCertified: if A is singular to its precision, or a check of the certificate fails.
    """
    k, limit = A.shape[0], ENERGY["bottom-square"]
    factors, pivots, failed = torch.linalg.lu_factor_ex(A.mT)
    if int(failed):
        raise NotCertified(f"exactly singular in {A.dtype}")
    refined = k > _REFINED_SIDE and A.dtype == torch.float32
    while True:
        half = _half_solve(A, factors, pivots, refined)
        solve = partial(_normal_solve, half)
        start = torch.linalg.lu_solve(
            factors, pivots, start_block(k, A.device).to(A.dtype), adjoint=True
        )
        V = _without_dominant(solve, start, rank)
        found = refine_bottom(A, solve, V, rank, shift=0.0, dtype=torch.float64, limit=limit)
        if refined or A.dtype == torch.float64 or found.first <= _INACCURATE:
            break
        refined = True
    smallest, sigma_1 = float(found.ritz.theta[0].sqrt()), _norm_estimate(A)
    if smallest < _LU_FLOOR[A.dtype] * sigma_1:
        raise NotCertified(f"sigma_k = {smallest:.1e} is zero to {A.dtype}")
    _refuse_clusters(found.ritz.theta)
    _probe(solve, found.ritz, rank)
    sigma = found.ritz.theta[:rank].sqrt()
    long = _left_vectors(half, found.ritz.V[:, :rank])
    left = times(A.mT, long.to(A.dtype)).double() - found.ritz.V[:, :rank] * sigma
    return certify(
        found.ritz,
        left * sigma,
        long=long,
        end="bottom",
        rank=rank,
        wide=wide,
        sigma_1=sigma_1,
        energy=found.energy(rank),
        evidence="probed",
        path=square_path(A.dtype),
        limit=limit,
    )


def square_path(dtype: torch.dtype) -> str:
    """Name of the algorithm in ``dtype``."""
    return f"lu+lanczos-{str(dtype).removeprefix('torch.')}"


def _half_solve(
    A: Tensor, factors: Tensor, pivots: Tensor, refined: bool
) -> Callable[[Tensor, bool], Tensor]:
    """``A'^-1`` and its adjoint from LU factors of A', refined by one fixed-precision step."""

    def half(B: Tensor, adjoint: bool) -> Tensor:
        B = B.to(A.dtype)
        X = torch.linalg.lu_solve(factors, pivots, B, adjoint=adjoint)
        if not refined:
            return X
        rest = B - product(A if adjoint else A.mT, X)
        return X + torch.linalg.lu_solve(factors, pivots, rest, adjoint=adjoint)

    return half


def _normal_solve(half: Callable[[Tensor, bool], Tensor], B: Tensor) -> Tensor:
    """``(A'A)^-1 B``."""
    return half(half(B, False), True)


@float32_products()
def bottom_of_gram(
    A: Float[Tensor, "p k"], G: Float[Tensor, "k k"], rank: int, *, wide: bool
) -> Subspace:
    """The bottom-r subspace of a tall float32 matrix from its Gram matrix.

    Args:
        A: (p, k) float32, p > k.
        G: (k, k) float32, A'A; overwritten.
        rank: r.
        wide: A is the transpose of the weight.

    Raises:
        NotCertified: if the smallest singular values drown in the rounding of G, or a check fails.
    """
    k, limit = A.shape[1], ENERGY["bottom"]
    edge = block_lanczos(
        lambda X: product(G, X),
        start_block(k, A.device),
        BLOCK,
        group=BLOCK,
        tolerance=1e-30,
        most=_EDGE_STEPS,
        least=_EDGE_STEPS,
    )
    largest, above_smallest = float(edge.values[0]), float(edge.values[-1])
    if above_smallest < _GRAM_FLOOR**2 * largest:
        raise NotCertified(DROWNED)
    L, shift = _factorise(G, above_smallest)

    def solve(B: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(L, B.to(L.dtype), upper=False)
        return torch.linalg.solve_triangular(L.mT, half, upper=True)  # cholesky_solve copies L

    V = _damped(solve, _largest_of(solve, edge.smallest, rank + GUARDS, rank, _GRAM_SINE))
    noise = gram_noise(G)
    found = refine_bottom(
        A, solve, V, rank, shift=shift, dtype=torch.float32, limit=limit, noise=noise
    )
    if float(found.ritz.theta[0]) < _GRAM_FLOOR**2 * largest:
        raise NotCertified(DROWNED)
    energy = found.energy(rank, prove_outside(G, found.ritz, "bottom", rank))
    R, long = mend_long_side(A, found, rank, limit) if wide else (found.R, None)
    return certify(
        found.ritz,
        R,
        long=long,
        end="bottom",
        rank=rank,
        wide=wide,
        sigma_1=largest**0.5,
        energy=energy,
        evidence="proved",
        path=GRAM_PATH,
        limit=limit,
    )


def _factorise(G: Tensor, above_smallest: float) -> tuple[Tensor, float]:
    """Cholesky factor of G - shift I for the largest shift of a ladder that leaves it definite."""
    for share in _SHIFTS:
        L = G.clone()
        L.diagonal().sub_(share * above_smallest)
        if cholesky_(L):
            return L, share * above_smallest
    raise NotCertified("the Gram matrix is not positive definite in float32")


def _left_vectors(half: Callable[[Tensor, bool], Tensor], V: Tensor) -> Tensor:
    """Left singular vectors ``A'^-1 V``, orthonormalised from the smallest singular value on.

    ``A V`` would magnify the rounding of V in the largest directions, which the inverse damps. What
    the inverse magnifies instead lies along vectors of smaller singular values, that come earlier.
    """
    U = half(V, False).double()
    Q, corner = torch.linalg.qr(U / U.norm(dim=0))
    return Q * torch.sign(corner.diagonal())


def _without_dominant(solve: Solve, start: Tensor, rank: int) -> Tensor:
    """The r + guards bottom vectors of a square matrix, to about 1e-4.

    The smallest singular values make the inverse so large in their directions that its rounding
    hides the rest. They converge in a few steps, and are then projected out.
    """
    b = start.shape[1]
    scout = block_lanczos(
        solve, start, b, group=b, tolerance=1e-30, most=_SCOUT_STEPS, least=_SCOUT_STEPS
    )
    edge = scout.values[min(rank, scout.values.numel()) - 1]
    dominant = min(int((scout.values[:b] > _DOMINANT * edge).sum()), rank - 1)
    locked = torch.linalg.qr(scout.vectors[:, :dominant])[0]

    def outside(X: Tensor) -> Tensor:
        Z = solve(X - locked @ (locked.mT @ X))
        return Z - locked @ (locked.mT @ Z)

    rest = _largest_of(
        outside, outside(start), rank + GUARDS - dominant, rank - dominant, _SQUARE_SINE
    )
    return _damped(solve, torch.cat([locked, rest], dim=1))


def _damped(solve: Solve, V: Tensor) -> Tensor:
    """One more solve: what rounding left in the largest directions would be magnified in A V."""
    V = solve(V)
    return V / V.norm(dim=0)


def _largest_of(inverse: Solve, start: Tensor, wanted: int, group: int, sine: float) -> Tensor:
    """The ``wanted`` largest eigenvectors of an inverse, the first ``group`` to about ``sine``."""
    return block_lanczos(
        inverse,
        start,
        wanted,
        group=group,
        tolerance=sine,
        most=_STEPS,
        least=math.ceil(1.5 * group / start.shape[1]),
    ).vectors


def _refuse_clusters(theta: Tensor) -> None:
    """Refuse if a whole block of values is nearly equal: a Krylov basis holds no further copy.

    What it then holds instead may lie anywhere, and the probe would not see the copy.
    """
    values = theta.sqrt()
    last = BLOCK - 1
    if values.numel() > BLOCK and bool((values[last:] < (1 + _CLUSTER) * values[:-last]).any()):
        raise NotCertified(f"{BLOCK} nearly equal singular values may hide another")


def _probe(solve: Solve, ritz: Ritz, rank: int) -> None:
    """Refuse if random directions outside span V show a singular value under half of the edge.

    For a Gaussian vector w, ``P(|M w| < |M| sqrt(pi / 2) / a) <= 1 / a`` (Halko, Martinsson and
    Tropp 2011, lemma 4.1); here M is the square of the inverse, projected on the outside.
    """
    outside = start_block(ritz.V.shape[0], ritz.V.device, seed=1).double()
    for _ in range(2):
        outside -= ritz.V @ (ritz.V.mT @ outside)
        outside = solve(outside).double()
    outside -= ritz.V @ (ritz.V.mT @ outside)
    a = _PROBE_RISK ** (-1.0 / outside.shape[1])
    bound = a * math.sqrt(2.0 / math.pi) * float(outside.norm(dim=0).max())  # of |M| = sigma^-4
    if bound**-0.25 < 0.5 * float(ritz.theta[rank - 1].sqrt()):
        raise NotCertified("random probes do not exclude a missed direction")


def _norm_estimate(A: Float[Tensor, "k k"]) -> float:
    """A lower estimate of sigma_1, to a few per cent, by power iteration on one block."""
    X = start_block(A.shape[1], A.device).to(A.dtype)
    for _ in range(_NORM_STEPS):
        X = torch.linalg.qr(product(A.mT, product(A, X)))[0]
    return float(torch.linalg.matrix_norm(product(A, X).double(), ord=2))
