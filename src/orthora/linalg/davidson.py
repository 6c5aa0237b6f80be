"""Leading eigenpairs of a diagonal matrix plus one of low rank (Davidson 1975)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_GUARDS = 16  # further Ritz pairs that are carried along
_SWEEPS = 12  # of corrections, before the whole matrix is decomposed
_DONE = 1e-13  # residual, relative to the largest eigenvalue


def leading(
    values: Float[Tensor, " k"],
    P: Float[Tensor, "k r"],
    R: Float[Tensor, "k r"],
    K: Float[Tensor, "r r"],
    q: int,
) -> tuple[Float[Tensor, " q"], Float[Tensor, "k q"]]:
    """Largest eigenpairs of ``diag(values) + P R' + R P' + R K R'``, by Davidson's corrections.

    The search begins in the span of the leading coordinates and of all that the update touches.
    Outside of it the matrix is no larger than the largest of ``values`` left out, so that no pair
    is missed where the q-th one is above that; otherwise the whole matrix is decomposed.

    Args:
        values: (k,) descending.
        P: (k, r).
        R: (k, r).
        K: (r, r) symmetric.
        q: how many.

    Returns:
        (q,) descending and (k, q).
    """

    def times(C: Tensor) -> Tensor:
        inner = R.mT @ C
        return values[:, None] * C + P @ inner + R @ (P.mT @ C + K @ inner)

    k, most = len(values), q + _GUARDS
    limit = _DONE * float(values[0]) * k**0.5
    if most + 2 * P.shape[1] < k:
        floor = float(values[most])
        basis = torch.linalg.qr(torch.cat([torch.eye(k, most, dtype=values.dtype), P, R], 1))[0]
        found = _corrected(values, times, basis, q, limit)
        if found is not None and float(found[0][-1]) >= floor:
            return found
    whole = times(torch.eye(k, dtype=values.dtype))
    theta, Z = torch.linalg.eigh((whole + whole.mT) / 2)
    return theta.flip(0)[:q], Z.flip(1)[:, :q]


def _corrected(
    values: Tensor, times: Callable[[Tensor], Tensor], basis: Tensor, q: int, limit: float
) -> tuple[Tensor, Tensor] | None:
    """Leading pairs from a growing basis; None where they don't settle."""
    images = times(basis)
    for _ in range(_SWEEPS):
        theta, Z = torch.linalg.eigh(basis.mT @ images)
        theta, Z = theta.flip(0)[: q + _GUARDS], Z.flip(1)[:, : q + _GUARDS]
        residual = images @ Z - (basis @ Z) * theta
        if float(torch.linalg.vector_norm(residual[:, :q], dim=0).max()) <= limit:
            return theta[:q], torch.linalg.qr(basis @ Z[:, :q])[0]
        gap = theta - values[:, None]
        step = residual / torch.where(gap.abs() < limit, limit, gap)
        for _ in range(2):
            step = step - basis @ (basis.mT @ step)
        step = torch.linalg.qr(step)[0]
        if basis.shape[1] + step.shape[1] > len(values):
            return None
        basis = torch.cat([basis, step], 1)
        images = torch.cat([images, times(step)], 1)
    return None
