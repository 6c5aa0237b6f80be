"""Both ends by the whole eigendecomposition of a Gram matrix: short sides, and GPUs.

In float64 it resolves singular values down to about 1e-7 sigma_1. In float32, with products that
are exact for bfloat16 weights, it serves where the spectrum is narrow, which the certificate
decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    energy_error,
    rayleigh_ritz,
    times,
)
from orthora.linalg.corrections import Refined, mend_long_side, refine_bottom
from orthora.linalg.gram import gram
from orthora.linalg.precision import float32_products
from orthora.types import End, Subspace

_FLOOR = 64.0  # units of rounding of lambda_1: a smaller eigenvalue is noise


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of A'A, ascending, for one or both ends.

    Attributes:
        values: (k,) ascending.
        vectors: (k, k).
        path: name of the algorithm.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k k"]
    path: str


def spectrum(A: Float[Tensor, "p k"], dtype: torch.dtype, *, bf16: bool) -> Spectrum:
    """The eigendecomposition of A'A in ``dtype``."""
    values, vectors = torch.linalg.eigh(gram(A.to(dtype), bf16=bf16))
    return Spectrum(values, vectors, path(dtype))


def spectra(matrices: Sequence[Float[Tensor, "p k"]]) -> list[Spectrum]:
    """The decompositions of equal-sided matrices in float64, as one batch."""
    double = torch.float64
    G = torch.stack([gram(A.to(double), bf16=False) for A in matrices])
    values, vectors = torch.linalg.eigh(G)
    return [Spectrum(*pair, path(double)) for pair in zip(values, vectors, strict=True)]


def path(dtype: torch.dtype) -> str:
    """Name of the algorithm in ``dtype``."""
    return f"gram-eigh-{str(dtype).removeprefix('torch.')}"


@float32_products()
def end_of_spectrum(
    A: Float[Tensor, "p k"], found: Spectrum, end: End, rank: int, *, wide: bool
) -> Subspace:
    """One end of a decomposition, certified against A.

    Args:
        A: (p, k) float32 or float64.
        found: eigenpairs of A'A.
        end: which end.
        rank: r.
        wide: A is the transpose of the weight.

    Raises:
        NotCertified: if the group reaches into the rounding of the Gram matrix, or a check fails.
    """
    largest = float(found.values[-1])
    noise = _FLOOR * torch.finfo(found.values.dtype).eps * largest
    edge = float(found.values[0] if end == "bottom" else found.values[-rank])
    if not edge > noise:
        raise NotCertified(DROWNED)
    long = None
    if end == "top":
        ritz, R, energy = _top(A, found, rank, noise)
    else:
        refined = _bottom(A, found, rank, noise)
        ritz, R, energy = refined.ritz, refined.R, refined.energy(rank)
        if wide:
            R, long = mend_long_side(A, refined, rank, ENERGY[end])
    return certify(
        ritz,
        R,
        long=long,
        end=end,
        rank=rank,
        wide=wide,
        sigma_1=largest**0.5,
        energy=energy,
        evidence="decomposition",
        path=found.path,
        limit=ENERGY[end],
    )


def _top(A: Tensor, found: Spectrum, rank: int, noise: float) -> tuple[Ritz, Tensor, float]:
    """Ritz pairs with guards, residuals and energy bound at the top."""
    keep = min(A.shape[1], rank + GUARDS)
    V = torch.linalg.qr(found.vectors[:, -keep:].double())[0]
    ritz = rayleigh_ritz(V, times(A, V.to(found.vectors.dtype)), "top", keep)
    R = ritz.residual(A, found.values.dtype)
    if keep == A.shape[1]:
        return ritz, R, 0.0
    margin = float(ritz.theta[rank - 1]) - float(found.values[-keep - 1]) - noise
    if not margin > 0.0:
        raise NotCertified("the group has no gap, not even to its guards")
    return ritz, R, energy_error(ritz, "top", rank, R.mT @ R / margin)


def _bottom(A: Tensor, found: Spectrum, rank: int, noise: float) -> Refined:
    """The same at the bottom, corrected with the decomposition as an approximate inverse."""
    Q, weights = found.vectors, found.values.clamp_min(noise).reciprocal()

    def solve(B: Tensor) -> Tensor:
        return Q @ (weights[:, None] * (Q.mT @ B.to(Q.dtype)))

    V = solve(Q[:, : rank + GUARDS])  # damps rounding that A V would magnify
    limit = ENERGY["bottom"]
    return refine_bottom(A, solve, V, rank, shift=0.0, dtype=Q.dtype, limit=limit)
