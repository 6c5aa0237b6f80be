"""Top-r and bottom-r singular subspaces of a weight matrix, exact, with certificates.

Everything runs in float64 on the tall orientation of the matrix (LAPACK's wide path is up to four
times slower), and the certificate is measured on the tensors that are handed back.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.types import Subspace

EXACT_PATH = "svd-float64"


def check_weight(W: Tensor) -> None:
    """Refuse what has no meaningful singular value decomposition.

    Raises:
        ValueError: if ``W`` is not a matrix, is empty, on the meta device, not of a real floating
            dtype, or holds NaN or Inf.
    """
    if W.ndim != 2 or 0 in W.shape:
        raise ValueError(
            f"the weight must be a non-empty matrix (m, n), got shape {tuple(W.shape)}; "
            "reshape it, or pass one matrix at a time"
        )
    if W.is_meta:
        raise ValueError(
            "the weight is on the meta device and has no values; load the checkpoint first"
        )
    if not W.is_floating_point() or W.element_size() < 2:
        raise ValueError(
            f"the weight has dtype {W.dtype}; dequantise it to float32 or bfloat16 first"
        )
    if not bool(torch.isfinite(W).all()):
        bad = int((~torch.isfinite(W)).sum())
        raise ValueError(
            f"the weight holds {bad} NaN or Inf of {W.numel()} values; the checkpoint is corrupt, "
            "fetch or export it again"
        )


def check_rank(rank: int, shape: tuple[int, int]) -> None:
    """Refuse a rank that a matrix of this shape (m, n) can't hold.

    Raises:
        ValueError: if ``rank`` is not an int in 1..min(m, n).
    """
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise ValueError(f"rank must be an int, got {rank!r}")
    limit = min(shape)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"rank {rank} does not fit a {shape[0]} x {shape[1]} weight; choose 1 to {limit}"
        )


def top_subspace(W: Float[Tensor, "m n"], rank: int) -> Subspace:
    """The ``rank`` largest singular triplets of ``W``.

    By Eckart and Young, ``U diag(S) V'`` is the best rank-r approximation of ``W``.

    Args:
        W: (m, n) weight, any floating dtype, read in float64.
        rank: r, 1 to min(m, n).

    Returns:
        Subspace with U (m, r), S (r,), V (n, r), in float64 if ``W`` is float64, else float32.

    Raises:
        ValueError: if ``W`` is not a finite real matrix, or ``rank`` does not fit it.
    """
    check_weight(W)
    check_rank(rank, (W.shape[0], W.shape[1]))
    U, S, V = _thin_svd(W)
    inside = slice(0, rank)
    neighbour = S[rank] if rank < S.numel() else None
    return _certify(W, U[:, inside], S[inside], V[:, inside], S[0], S[rank - 1], neighbour)


def bottom_subspace(W: Float[Tensor, "m n"], rank: int) -> Subspace:
    """The ``rank`` smallest *positive* singular triplets of ``W``.

    The null space of a wide matrix, or of one with zero or duplicated rows or columns, is never
    part of the answer: there ``|W v| = 0``, so no gradient direction is "minor", it is absent.
    Singular values up to ``max(m, n) * eps64 * sigma_1`` count as zero. Naive ``svd(W)[-r:]``
    returns null vectors for rank-deficient weights.

    Args:
        W: (m, n) weight, any floating dtype, read in float64.
        rank: r, 1 to the number of positive singular values.

    Returns:
        Subspace with U (m, r), S (r,) descending, V (n, r), in float64 if ``W`` is float64, else
        float32.

    Raises:
        ValueError: if ``W`` is not a finite real matrix, ``rank`` does not fit its shape, or ``W``
            has fewer than ``rank`` positive singular values.
    """
    check_weight(W)
    check_rank(rank, (W.shape[0], W.shape[1]))
    U, S, V = _thin_svd(W)
    positive = int((max(W.shape) * torch.finfo(torch.float64).eps * S[0] < S).sum())
    if rank > positive:
        raise ValueError(
            f"rank {rank} asks for more minor directions than the weight has: only {positive} of "
            f"{S.numel()} singular values are positive; choose a rank of at most {positive}"
        )
    inside = slice(positive - rank, positive)
    neighbour = S[positive - rank - 1] if rank < positive else None
    return _certify(W, U[:, inside], S[inside], V[:, inside], S[0], S[positive - rank], neighbour)


def _thin_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD in float64 with canonical signs: U (m, k), S (k,), V (n, k)."""
    X = W.detach().to(torch.float64)
    if W.shape[0] >= W.shape[1]:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        V = Vh.mT
    else:
        V, S, Uh = torch.linalg.svd(X.mT.contiguous(), full_matrices=False)
        U = Uh.mT
    largest = V.abs().argmax(dim=0)
    signs = torch.sign(V.gather(0, largest[None, :]).squeeze(0))
    return U * signs, S, V * signs


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
    eye = torch.eye(S.numel(), dtype=torch.float64, device=S.device)
    orthonormality = max(
        float((U64.mT @ U64 - eye).abs().max()), float((V64.mT @ V64 - eye).abs().max())
    )
    scale = float(top) or 1.0  # a zero matrix has residual 0 and gap 0
    gap = 1.0 if neighbour is None else float((neighbour - edge).abs()) / scale
    return Subspace(
        U=U,
        S=S,
        V=V,
        residual=float(torch.maximum(right, left)) / scale,
        orthonormality=orthonormality,
        gap=gap,
        path=EXACT_PATH,
    )
