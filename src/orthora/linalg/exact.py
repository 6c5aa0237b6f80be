"""Both ends by a full SVD in float64: for small matrices, and the last resort for all.

LAPACK's wide path is up to four times slower, so it runs on the tall orientation. The certificate
is measured on the tensors that are handed back.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.certificate import orthonormality, with_canonical_signs
from orthora.types import End, Subspace

PATH = "svd-float64"


def exact(W: Float[Tensor, "m n"], end: End, rank: int) -> Subspace:
    """One end of the thin SVD; the bottom end starts at the last positive singular value.

    Raises:
        ValueError: if the bottom end has fewer than ``rank`` positive singular values.
    """
    U, S, V = _thin_svd(W)
    count = S.numel()
    if end == "bottom":
        count = int((max(W.shape) * torch.finfo(torch.float64).eps * S[0] < S).sum())
        if rank > count:
            raise ValueError(
                f"rank {rank} asks for more minor directions than the weight has: only {count} of "
                f"{S.numel()} singular values are positive; choose a rank of at most {count}"
            )
    inside = slice(0, rank) if end == "top" else slice(count - rank, count)
    if end == "top":
        edge, neighbour = S[rank - 1], S[rank] if rank < count else None
    else:
        edge, neighbour = S[count - rank], S[count - rank - 1] if rank < count else None
    return _certify(W, U[:, inside], S[inside], V[:, inside], S[0], edge, neighbour)


def _thin_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD in float64 with canonical signs: U (m, k), S (k,), V (n, k)."""
    X = W.detach().to(torch.float64)
    if W.shape[0] >= W.shape[1]:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        V = Vh.mT
    else:
        V, S, Uh = torch.linalg.svd(X.mT.contiguous(), full_matrices=False)
        U = Uh.mT
    U, V = with_canonical_signs(U, V)
    return U, S, V


def _certify(
    W: Tensor, U: Tensor, S: Tensor, V: Tensor, top: Tensor, edge: Tensor, neighbour: Tensor | None
) -> Subspace:
    """Round to the output dtype, then measure residual and orthonormality of the rounded tensors.

    ``top`` is sigma_1; ``edge`` and ``neighbour`` stand on the two sides of the group's boundary.
    """
    dtype = torch.float64 if W.dtype == torch.float64 else torch.float32
    U, S, V = (x.to(dtype).contiguous() for x in (U, S, V))
    U64, S64, V64, X = U.double(), S.double(), V.double(), W.detach().double()
    right = torch.linalg.matrix_norm(X @ V64 - U64 * S64, ord=2)
    left = torch.linalg.matrix_norm(X.mT @ U64 - V64 * S64, ord=2)
    scale = float(top) or 1.0  # a zero matrix has residual 0 and gap 0
    return Subspace(
        U=U,
        S=S,
        V=V,
        residual=float(torch.maximum(right, left)) / scale,
        orthonormality=max(orthonormality(U), orthonormality(V)),
        gap=1.0 if neighbour is None else float((neighbour - edge).abs()) / scale,
        path=PATH,
    )
