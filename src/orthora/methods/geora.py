"""GeoRA: the principal part of the weight restricted to where RLVR is said to move."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orthora.linalg import reconstruction, smallest_mask, smallest_of, top_subspace
from orthora.methods.registry import method
from orthora.types import Factors

SHARE = 0.2
"""rho, the share of entries that each of the two masks keeps (the paper's fixed value)."""


@method(
    "geora",
    claim="top-r of W on the union of its smallest entries and its least principal entries",
    reference="Zhang et al. 2026, arXiv 2601.09361, eqs. 1-8",
    anchored=True,
    spectral=True,
)
def geora(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = sqrt(S_G) V_G', B = U_G sqrt(S_G), the top-r triplets of ``W * geometry_mask(W, r)``.

    As in the paper's eqs. 2-3 the singular values are *not* divided by s (unlike `pissa` and
    `milora`): for s != 1 the adapter carries s times the rank-r part of W_Geo. The function at the
    start is W's all the same, because the layer is anchored.
    """
    masked = W.detach().to(torch.float32, copy=True)
    masked *= geometry_mask(W, rank)
    top = top_subspace(masked, rank)
    root = top.S.sqrt()
    return Factors(root[:, None] * top.V.mT, top.U * root)


def geometry_mask(W: Float[Tensor, "m n"], rank: int, share: float = SHARE) -> Bool[Tensor, "m n"]:
    """M_Spec or M_Euc (eqs. 6-8).

    M_Spec holds the ``share`` of entries that are smallest in the rank-r reconstruction of W, M_Euc
    the ``share`` smallest in W itself. The reconstruction is never held whole.

    Args:
        W: (m, n) weight.
        rank: r of the reconstruction; the paper uses the adapter's.
        share: rho, in (0, 1].

    Returns:
        (m, n) mask; its density is 2 rho - rho^2 if the two were independent.

    Raises:
        ValueError: if ``rank`` or ``share`` does not fit, or ``W`` is not finite.
    """
    blocks = reconstruction(top_subspace(W, rank))
    mask = smallest_of(blocks, W.numel(), share)
    mask |= smallest_mask(W, share)
    return mask
