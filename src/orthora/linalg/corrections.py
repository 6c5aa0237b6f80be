"""Davidson corrections: from rough bottom vectors to certified ones.

Given an approximate inverse of ``A'A - shift``, the residual R of Ritz vectors V says how to mend
them: ``D = (A'A - shift)^-1 R``, kept outside span V, is what V lacks to first order, and its size
is about the sine of V's error. ``|R| / gap`` is not: rounding in the directions of the largest
singular values dominates it.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.certificate import (
    GUARDS,
    Ritz,
    energy_error,
    long_side_energy,
    middle,
    polish,
    rayleigh_ritz,
    times,
)

Solve = Callable[[Tensor], Tensor]
"""An approximation of ``(A'A - shift)^-1`` on a block (k, c) of float64, in any precision."""

_SINE = 1e-3  # corrections smaller than this: done
_ROUNDS = 3


@dataclass(frozen=True)
class Refined:
    """What the corrections left.

    Attributes:
        ritz: pairs with guards, ascending.
        R: their residuals.
        D: (k, c) the corrections that R still asks for.
        shift: of the inverse that made D.
        first: size of the first correction: the error of what came in.
    """

    ritz: Ritz
    R: Float[Tensor, "k c"]
    D: Float[Tensor, "k c"]
    shift: float
    first: float

    def energy(self, rank: int, mu: float | None = None) -> float:
        """The energy bound from ``R' D``: ``(A'A - shift)^-1`` in place of ``(A'A - theta)^-1``.

        ``1 / (lambda - theta) <= 1 / (lambda - shift) * (mu - shift) / (mu - theta)`` for every
        lambda from mu on.

        Args:
            rank: r.
            mu: below every eigenvalue outside span V; the middle of the guards if not given.
        """
        theta = float(self.ritz.theta[rank - 1])
        if self.ritz.theta.numel() == self.ritz.V.shape[0]:
            return 0.0  # nothing is outside
        mu = middle(self.ritz, rank) if mu is None else mu
        if not mu > theta:
            return math.inf
        factor = (mu - self.shift) / (mu - theta)
        return energy_error(self.ritz, "bottom", rank, self.R.mT @ self.D * factor)

    def size(self, rank: int) -> float:
        """Norm of the group's corrections: about the sine of its error."""
        return float(torch.linalg.matrix_norm(self.D[:, :rank]))


def refine_bottom(
    A: Float[Tensor, "p k"],
    solve: Solve,
    V: Float[Tensor, "k c"],
    rank: int,
    *,
    shift: float,
    dtype: torch.dtype,
    limit: float,
    noise: float = 0.0,
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
        noise: what a proof of completeness will take off the guards' middle.
    """
    keep = min(A.shape[1], rank + GUARDS)
    V = torch.linalg.qr(V.double())[0]
    ritz = rayleigh_ritz(V, times(A, V.to(dtype)), "bottom", keep)
    now = _corrected(A, solve, ritz, shift)
    first, before = now.size(rank), math.inf
    for _ in range(_ROUNDS):
        size = now.size(rank)
        mu = middle(ritz, rank) - noise
        good = size <= _SINE and now.energy(rank, mu) <= 0.95 * limit
        if good or size > 0.5 * before:
            break
        V = torch.cat([ritz.V, _new_directions(ritz.V, now.D)], dim=1)
        Y = torch.cat([ritz.Y.to(A.dtype), times(A, V[:, keep:].to(A.dtype))], dim=1)
        ritz = rayleigh_ritz(V, Y, "bottom", keep)
        if dtype != A.dtype:
            ritz = rayleigh_ritz(ritz.V, times(A, ritz.V.to(dtype)), "bottom", keep)
        before = size
        now = _corrected(A, solve, ritz, shift)
    return dataclasses.replace(now, first=first)


def mend_long_side(
    A: Float[Tensor, "p k"], found: Refined, rank: int, limit: float
) -> tuple[Float[Tensor, "k c"], Float[Tensor, "p r"] | None]:
    """Long-side vectors better than ``Y / sigma``, where the rounding of Y would show in them.

    The right vectors of a wide weight are ``v = Y / sigma``, and ``W v = sigma u + R / sigma``. The
    rounding e of the product Y = A V, of the size of eps sigma_1, reaches R as ``A' e``, magnified
    by sigma_1 / sigma. ``A D`` is the part of e in the range of A.

    Args:
        A: (p, k) tall.
        found: pairs, residuals and corrections.
        rank: r.
        limit: on the energy error, a tenth of which is let pass.

    Returns:
        Residuals and long-side vectors as `certify` takes them; None for ``Y / sigma``.
    """
    ritz = found.ritz
    if long_side_energy(found.R, ritz.theta, rank) <= 0.1 * limit:
        return found.R, None
    Y = ritz.Y - times(A, found.D.to(A.dtype)).to(ritz.Y.dtype)
    R = dataclasses.replace(ritz, Y=Y).residual(A)
    return R, polish(Y[:, :rank] / ritz.theta[:rank].sqrt().to(Y.dtype))


def _corrected(A: Tensor, solve: Solve, ritz: Ritz, shift: float) -> Refined:
    """Residuals R, and the corrections D outside span V."""
    R = ritz.residual(A)
    norms = R.norm(dim=0).clamp_min(1e-300)
    D = solve(R / norms).double() * norms
    return Refined(ritz, R, D - ritz.V @ (ritz.V.mT @ D), shift, math.nan)


def _new_directions(V: Tensor, D: Tensor) -> Tensor:
    """An orthonormal basis of D outside span V, orthogonal to it to rounding."""
    D = torch.linalg.qr(D)[0]
    return torch.linalg.qr(D - V @ (V.mT @ D))[0]
