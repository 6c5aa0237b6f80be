"""Starts from the bottom of the spectrum: RLMO, MiLoRA, OLoRA-tail.

"Bottom" is the last r positive singular values; see `orthora.linalg.bottom_subspace`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg import bottom_subspace
from orthora.methods.registry import method, zeros_like_output
from orthora.types import Factors


@method(
    "rlmo",
    claim="A = bottom-r right singular vectors, B = 0: minor directions without their scale",
    reference="Zhang et al. 2026, arXiv 2606.31813, section 5.2 (LoRA-RLMO)",
    anchored=False,
    spectral=True,
    aliases=("lora-rlmo",),
)
def rlmo(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = V_-r', B = 0; A A' = I, and ``scale`` does not enter."""
    return Factors(bottom_subspace(W, rank).V.mT, zeros_like_output(W, rank))


@method(
    "milora",
    claim="s B A = the rank-r minor part of W, the singular values split evenly",
    reference="Wang et al. 2024, arXiv 2406.09044; scale as PEFT divides PiSSA's",
    anchored=True,
    spectral=True,
)
def milora(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = sqrt(S_-r / s) V_-r', B = U_-r sqrt(S_-r / s).

    The singular values are divided by s, so that ``s B A`` is the minor part for every s. The
    published RLVR comparisons reach the same by forcing alpha = r.
    """
    bottom = bottom_subspace(W, rank)
    root = (bottom.S / scale).sqrt()
    return Factors(root[:, None] * bottom.V.mT, bottom.U * root)


@method(
    "olora-tail",
    claim="A = V_-r', B = U_-r: orthonormal minor factors without singular values",
    reference="Mind Lab 2026, arXiv 2606.02437, section 4.1.2",
    anchored=True,
    spectral=True,
)
def olora_tail(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = V_-r', B = U_-r.

    The paper does not say whether the base is compensated. Since ``|s B A|_F = s sqrt(r)`` is large
    against many weights, an uncompensated start would be a different function, so it is anchored.
    """
    bottom = bottom_subspace(W, rank)
    return Factors(bottom.V.mT, bottom.U)
