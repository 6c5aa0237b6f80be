"""Davidson corrections: from rough bottom vectors to certified ones.

Given an approximate inverse of ``A'A - shift``, the residual R of Ritz vectors V says how to mend
them: ``D = (A'A - shift)^-1 R``, kept outside span V, is what V lacks to first order, and its size
is about the sine of V's error. ``|R| / gap`` is not: rounding in the directions of the largest
singular values dominates it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.certificate import GUARDS, Ritz, energy_error, middle, rayleigh_ritz, times

Solve = Callable[[Tensor], Tensor]
"""An approximation of ``(A'A - shift)^-1`` on a block (k, c) of float64, in any precision."""

_SINE = 1.5e-3  # corrections smaller than this: done
_ROUNDS = 3


@dataclass(frozen=True)
class Refined:
    """What the corrections left.

    Attributes:
        ritz: pairs with guards, ascending.
        R: their residuals.
        energy: bound on the energy error, valid if nothing outside lies below the guards' middle.
        first: size of the first correction: the error of what came in.
    """

    ritz: Ritz
    R: Float[Tensor, "k c"]
    energy: float
    first: float


def refine_bottom(
    A: Float[Tensor, "p k"],
    solve: Solve,
    V: Float[Tensor, "k c"],
    rank: int,
    *,
    shift: float,
    dtype: torch.dtype,
    limit: float,
) -> Refined:
    """Correct approximate bottom vectors until the corrections are small, or stop shrinking.

    Args:
        A: (p, k) tall.
        solve: approximate inverse of ``A'A - shift``.
        V: (k, r + guards) vectors to start from.
        rank: r.
        shift: below the spectrum of A'A.
        dtype: of the last product A V; float64 where sigma is small against sigma_1.
        limit: on the energy error.
    """
    keep = min(A.shape[1], rank + GUARDS)
    V = torch.linalg.qr(V.double())[0]
    ritz = rayleigh_ritz(V, times(A, V.to(dtype)), "bottom", keep)
    R, D = _correction(A, solve, ritz)
    first, before = _size(D, rank), math.inf
    for _ in range(_ROUNDS):
        size = _size(D, rank)
        good = size <= _SINE and _energy(ritz, R, D, rank, shift) <= 0.8 * limit
        if good or size > 0.5 * before:
            break
        V = torch.cat([ritz.V, _new_directions(ritz.V, D)], dim=1)
        Y = torch.cat([ritz.Y.to(A.dtype), times(A, V[:, keep:].to(A.dtype))], dim=1)
        ritz = rayleigh_ritz(V, Y, "bottom", keep)
        if dtype != A.dtype:
            ritz = rayleigh_ritz(ritz.V, times(A, ritz.V.to(dtype)), "bottom", keep)
        before = size
        R, D = _correction(A, solve, ritz)
    return Refined(ritz, R, _energy(ritz, R, D, rank, shift), first)


def _correction(A: Tensor, solve: Solve, ritz: Ritz) -> tuple[Tensor, Tensor]:
    """Residuals R, and the corrections D outside span V."""
    R = ritz.residual(A)
    norms = R.norm(dim=0).clamp_min(1e-300)
    D = solve(R / norms).double() * norms
    return R, D - ritz.V @ (ritz.V.mT @ D)


def _size(D: Tensor, rank: int) -> float:
    """Norm of the group's corrections: about the sine of its error."""
    return float(torch.linalg.matrix_norm(D[:, :rank]))


def _energy(ritz: Ritz, R: Tensor, D: Tensor, rank: int, shift: float) -> float:
    """The energy bound from ``R' D``, with ``(A'A - theta)^-1`` bounded by ``(A'A - shift)^-1``.

    ``1 / (lambda - theta) <= 1 / (lambda - shift) * (mu - shift) / (mu - theta)`` for every lambda
    from mu on.
    """
    mu, theta = middle(ritz, rank), float(ritz.theta[rank - 1])
    if ritz.theta.numel() == rank:
        return 0.0 if ritz.V.shape[0] == rank else math.inf
    if not mu > theta:
        return math.inf
    return energy_error(ritz, "bottom", rank, R.mT @ D * ((mu - shift) / (mu - theta)))


def _new_directions(V: Tensor, D: Tensor) -> Tensor:
    """An orthonormal basis of D outside span V, orthogonal to it to rounding."""
    D = torch.linalg.qr(D)[0]
    return torch.linalg.qr(D - V @ (V.mT @ D))[0]
