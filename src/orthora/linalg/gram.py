"""Gram matrices of tall matrices, and the tall orientation of a weight."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.precision import float32_products

_BLOCK = 256  # columns of a block of the upper triangle; torch has no syrk
_ROWS = 2048  # rows summed in one product: stays in cache, and rounding does not grow with p
_PROBE = 64  # rows whose low 16 bits, which bfloat16 does not have, are looked at in one go


def tall(W: Float[Tensor, "m n"]) -> Float[Tensor, "p k"]:
    """``W`` or its transpose, whichever has p >= k rows; a view."""
    return W if W.shape[0] >= W.shape[1] else W.mT


def holds_bf16(W: Float[Tensor, "m n"]) -> bool:
    """Whether every entry is exactly representable in bfloat16, as in most checkpoints."""
    if W.dtype == torch.bfloat16:
        return True
    if W.dtype != torch.float32:
        return False
    bits = W.detach().view(torch.int32)
    if bool((bits[0] << 16).any()):
        return False
    return all(_is_zero(rows << 16) for rows in bits.split(_PROBE))


def _is_zero(X: Tensor) -> bool:
    low, high = torch.aminmax(X)  # one pass, unlike any()
    return int(low) == 0 == int(high)


def gram(
    A: Float[Tensor, "p k"], *, bf16: bool, dtype: torch.dtype | None = None
) -> Float[Tensor, "k k"]:
    """``A' A``: the upper block triangle, mirrored.

    Args:
        A: (p, k) float32 or float64, tall or a transposed wide matrix.
        bf16: the entries are exact in bfloat16, so that products on bfloat16 units are exact.
        dtype: to compute in, converting a block of rows at a time; None takes that of ``A``.

    Returns:
        (k, k) symmetric, with a relative error in spectral norm of a few units of rounding.
    """
    p, k = A.shape
    width = math.ceil(k / math.ceil(k / _BLOCK))  # blocks of one width: a narrow one sums badly
    dtype = A.dtype if dtype is None else dtype
    G = torch.zeros(k, k, dtype=dtype, device=A.device)
    with float32_products(bf16_operands=bf16 and dtype == torch.float32):
        for row in range(0, p, _ROWS):
            chunk = A[row : row + _ROWS].to(dtype)
            for i in range(0, k, width):
                G[i : i + width, i:].addmm_(chunk[:, i : i + width].mT, chunk[:, i:])
    for i in range(width, k, width):
        G[i:, i - width : i] = G[i - width : i, i:].mT
    return G
