"""The starting factors of one weight matrix."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg import check_matrix, check_rank, check_weight
from orthora.methods.compose import compose
from orthora.types import Factors


def initialize(
    W: Float[Tensor, "m n"], method: str, rank: int, *, scale: float = 2.0, seed: int = 0
) -> Factors:
    """Starting factors of ``method`` for one weight matrix.

    Args:
        W: (m, n) weight as ``y = W x`` applies it (transpose a GPT-2 ``Conv1D`` weight first).
        method: a name or alias of an initialisation, or a composition, e.g. ``"rlpo+dora"``, of
            which the start of A and B is computed.
        rank: r, 1 to min(m, n).
        scale: s = alpha / r with which the layer will multiply B A; must be positive.
        seed: of the random methods; the others ignore it.

    Returns:
        Factors A (r, n) and B (m, r), float32, on the device of ``W``. B is zeros unless the method
        is anchored.

    Raises:
        ValueError: unknown method or one without A and B, unfit rank, NaN or Inf in ``W``, or a
            scale not above 0.
    """
    composition = compose(method)
    if not composition.has_factors:
        reasons = [one.unstarted for one in composition.structures if one.unstarted]
        raise ValueError(f"{composition.name} has no starting factors: {reasons[0]}")
    record = composition.init
    if record.spectral:
        check_matrix(W)  # its values are checked on the way to their subspaces
    else:
        check_weight(W)
    check_rank(rank, (W.shape[0], W.shape[1]))
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite (alpha / rank), got {scale!r}")
    if W.dtype == torch.float64 and float(W.abs().max()) > torch.finfo(torch.float32).max:
        raise ValueError("the weight exceeds the range of float32, in which factors are kept")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        A, B = record.init(W, rank, scale=scale, generator=generator)
    return Factors(
        A.to(W.device, torch.float32).contiguous(), B.to(W.device, torch.float32).contiguous()
    )
