"""From approximate singular vectors to a certified subspace.

Everything happens on the tall orientation A (p, k) of a weight, in terms of its short side: the
columns of V are approximate eigenvectors of A'A, the group asked for first, then a few guards.

**Energy.** Let ``R = A'A V - V Theta`` be the residual, Theta the Ritz values (squared singular
values), and let every eigenvalue of A'A outside span V lie beyond mu (below it for the top end,
above it for the bottom end). Eliminating the outside block, the eigenvalues of the group are
bounded by those of the small matrix ``Theta + C`` (top) or ``Theta - C`` (bottom), where C bounds
``R' |A'A - theta_r|^-1 R``. So the energy that the group misses is at most the change of their sum,
which is of second order in R; the guards keep mu away from theta_r where the group has no gap.

**Completeness.** That nothing outside lies beyond mu is *proved* where a Gram matrix is at hand:
``mu I - A'A + V Theta V'`` (or its mirror image) has a Cholesky factorisation. By interlacing this
holds however inaccurate V may be.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.cholesky import cholesky_
from orthora.linalg.products import product
from orthora.types import End, Evidence, Subspace

GUARDS = 8
DROWNED = "singular values drown in the rounding of the Gram matrix"
ORTHONORMALITY = 1e-6
ENERGY = {"top": 1e-8, "bottom": 1e-6, "bottom-square": 1e-5}
_ROWS = 256


class NotCertified(Exception):
    """A fast result failed the check that the message names; never leaves `orthora.linalg`."""


@dataclass(frozen=True)
class Ritz:
    """Rayleigh-Ritz pairs of A'A on a subspace, from the group's extreme end inwards.

    Attributes:
        V: (k, c) float64, orthonormal.
        Y: (p, c), A V, in the dtype of the product.
        theta: (c,) float64, Ritz values of A'A.
    """

    V: Float[Tensor, "k c"]
    Y: Float[Tensor, "p c"]
    theta: Float[Tensor, " c"]

    def residual(
        self, A: Float[Tensor, "p k"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "k c"]:
        """R = A'A V - V diag(theta), float64 with products of ``dtype`` or wider."""
        wide = torch.promote_types(A.dtype, dtype)
        return times(A.mT, self.Y.to(wide)).double() - self.V * self.theta


def times(A: Float[Tensor, "p k"], X: Float[Tensor, "k c"]) -> Float[Tensor, "p c"]:
    """``A X`` in the dtype of ``X``, converting A by row blocks, so never copying it whole."""
    if A.dtype == X.dtype:
        return product(A, X)
    Y = X.new_empty(A.shape[0], X.shape[1])
    for row in range(0, A.shape[0], _ROWS):
        torch.mm(A[row : row + _ROWS].to(X.dtype), X, out=Y[row : row + _ROWS])
    return Y


def rayleigh_ritz(V: Float[Tensor, "k b"], Y: Float[Tensor, "p b"], end: End, keep: int) -> Ritz:
    """The ``keep`` Ritz pairs of A'A on span V nearest to the end.

    Args:
        V: (k, b) float64, orthonormal.
        Y: (p, b) A V, float32 or float64.
        end: which end comes first.
        keep: c, number of pairs.
    """
    theta, P = torch.linalg.eigh(_small_gram(Y))
    if end == "top":
        theta, P = theta.flip(0), P.flip(1)
    theta, P = theta[:keep].clamp_min(0.0), P[:, :keep]
    return Ritz(V @ P, product(Y, P.to(Y.dtype)), theta)


def _small_gram(Y: Tensor) -> Tensor:
    """``Y' Y`` in float64, by row blocks."""
    G = torch.zeros(Y.shape[1], Y.shape[1], dtype=torch.float64, device=Y.device)
    for rows in Y.split(_ROWS):
        G.addmm_(rows.double().mT, rows.double())
    return G


def middle(ritz: Ritz, rank: int) -> float:
    """A value between the group and the last guard, in units of A'A."""
    return 0.5 * float(ritz.theta[rank - 1] + ritz.theta[-1])


def gram_noise(G: Float[Tensor, "k k"]) -> float:
    """What rounding may do to an eigenvalue of a float32 Gram matrix and its factorisation.

    Entry errors are independent and of the size of eps |G_ij|, so their spectral norm is about
    ``2 sqrt(k) eps max_i G_ii``; four times that.
    """
    return 8 * torch.finfo(G.dtype).eps * math.sqrt(G.shape[0]) * float(G.diagonal().max())


def prove_outside(G: Tensor, ritz: Ritz, end: End, rank: int) -> float:
    """Prove that A'A has no eigenvalue beyond `middle` outside span V; consumes ``G``.

    Args:
        G: (k, k) the Gram matrix in float32.
        ritz: pairs with guards.
        end: of the group.
        rank: r.

    Returns:
        mu: the proved bound, the rounding of G and its factorisation allowed for.

    Raises:
        NotCertified: if the factorisation fails, because a direction was missed; or if the bound is
            not beyond the group's edge.
    """
    mu, noise = middle(ritz, rank), gram_noise(G)
    V = ritz.V.to(G.dtype)
    if end == "top":
        G.neg_().add_(product(V * ritz.theta.to(G.dtype), V.mT)).diagonal().add_(mu)
    else:
        G.add_(product(V * (2 * mu - ritz.theta).to(G.dtype), V.mT)).diagonal().sub_(mu)
    if not cholesky_(G):
        raise NotCertified("a direction beyond the group's edge was missed")
    mu, edge = mu + noise if end == "top" else mu - noise, float(ritz.theta[rank - 1])
    if not (mu < edge if end == "top" else mu > edge):
        raise NotCertified("the group has no gap, not even to its guards")
    return mu


def energy_error(ritz: Ritz, end: End, rank: int, C: Float[Tensor, "c c"]) -> float:
    """Upper bound on the relative energy that the group misses, given ``C`` (see the module)."""
    sign = 1.0 if end == "top" else -1.0
    values = torch.linalg.eigvalsh(torch.diag(ritz.theta) + sign * 0.5 * (C + C.mT))
    bound = values.flip(0)[:rank] if end == "top" else values[:rank]
    energy = float(ritz.theta[:rank].sum())
    if not energy > 0.0:
        raise NotCertified("the group holds no energy")
    return max(0.0, sign * float(bound.sum() - energy) / energy)


def long_side_energy(R: Float[Tensor, "k c"], theta: Float[Tensor, " c"], rank: int) -> float:
    """What R adds to the relative energy of ``v = Y / sigma``: ``W v = sigma u + R / sigma``."""
    R, theta = R[:, :rank], theta[:rank]
    return float((R.square() / theta).sum() / theta.sum())


def certify(
    ritz: Ritz,
    R: Float[Tensor, "k c"],
    *,
    end: End,
    rank: int,
    wide: bool,
    sigma_1: float,
    energy: float,
    evidence: Evidence,
    path: str,
    limit: float,
    long: Float[Tensor, "p r"] | None = None,
) -> Subspace:
    """The subspace in the weight's own orientation, checked.

    Args:
        ritz: pairs of the tall orientation, group first.
        R: their residuals.
        end: ``"top"`` or ``"bottom"``.
        rank: r.
        wide: the weight is the transpose of A.
        sigma_1: largest singular value, or a lower estimate of it.
        energy: bound from `energy_error`.
        evidence: how completeness is known.
        path: name of the algorithm.
        limit: largest energy error to accept.
        long: nearly orthonormal long-side vectors and, with them, R = (A' long - V sigma) sigma;
            without them they are A V / sigma.

    Raises:
        NotCertified: naming the check that failed.
    """
    sigma = ritz.theta[:rank].sqrt()
    Y, V = ritz.Y[:, :rank], ritz.V[:, :rank]
    long = polish(Y / sigma.to(Y.dtype)) if long is None else long
    right = torch.linalg.matrix_norm((Y - long * sigma.to(Y.dtype)).double(), ord=2)
    left = torch.linalg.matrix_norm(R[:, :rank] / sigma, ord=2)
    if wide and end == "bottom":
        energy += long_side_energy(R, ritz.theta, rank)
    short, long, S = (x.float() if end == "top" else x.float().flip(-1) for x in (V, long, sigma))
    U, V = (short, long) if wide else (long, short)
    U, V = with_canonical_signs(U, V)
    outside = float(ritz.theta[rank].sqrt()) if ritz.theta.numel() > rank else None
    edge = float(sigma[rank - 1])
    subspace = Subspace(
        U=U.contiguous(),
        S=S.contiguous(),
        V=V.contiguous(),
        residual=float(torch.maximum(right, left)) / sigma_1,
        orthonormality=max(orthonormality(U), orthonormality(V)),
        gap=1.0 if outside is None else abs(edge - outside) / sigma_1,
        energy_error=energy,
        evidence=evidence,
        path=path,
    )
    if not energy <= limit:
        raise NotCertified(f"energy error up to {energy:.1e} against {limit:.0e} allowed")
    if not subspace.orthonormality <= ORTHONORMALITY:
        raise NotCertified(f"orthonormality {subspace.orthonormality:.1e}")
    return subspace


def polish(U: Float[Tensor, "p r"]) -> Float[Tensor, "p r"]:
    """Make nearly orthonormal columns orthonormal to rounding: one Newton step, float64 inside."""
    error = _small_gram(U) - torch.eye(U.shape[1], dtype=torch.float64, device=U.device)
    return U - product(U, (0.5 * error).to(U.dtype))


def with_canonical_signs(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Signs such that the largest entry of each column of V is positive."""
    largest = V.abs().argmax(dim=0)
    signs = torch.sign(V.gather(0, largest[None, :]).squeeze(0))
    return U * signs, V * signs


def orthonormality(X: Float[Tensor, "d r"]) -> float:
    """``|X'X - I|_max`` in float64."""
    eye = torch.eye(X.shape[1], dtype=torch.float64, device=X.device)
    return float((_small_gram(X) - eye).abs().max())
