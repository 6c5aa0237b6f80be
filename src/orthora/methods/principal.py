"""Starts from the top of the spectrum: RLPO, PiSSA, OLoRA."""

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg import top_subspace
from orthora.methods.registry import method, zeros_like_output
from orthora.types import Factors


@method(
    "rlpo",
    claim="A = top-r right singular vectors, B = 0: principal directions without their scale",
    reference="Zhang et al. 2026, arXiv 2606.31813, section 5.2 (LoRA-RLPO)",
    anchored=False,
    spectral=True,
    aliases=("lora-rlpo",),
)
def rlpo(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = V_r', B = 0; A A' = I, and ``scale`` does not enter."""
    return Factors(top_subspace(W, rank).V.mT, zeros_like_output(W, rank))


@method(
    "pissa",
    claim="s B A = the rank-r principal part of W, the singular values split evenly",
    reference="Meng et al. 2024, arXiv 2404.02948, eqs. 2-5; scale as PEFT's init 'pissa'",
    anchored=True,
    spectral=True,
)
def pissa(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = sqrt(S_r / s) V_r', B = U_r sqrt(S_r / s).

    The singular values are divided by s (PEFT's convention), so that ``s B A`` is the principal
    part for every s, not only for alpha = r as in the paper.
    """
    top = top_subspace(W, rank)
    root = (top.S / scale).sqrt()
    return Factors(root[:, None] * top.V.mT, top.U * root)


@method(
    "olora",
    claim="A = V_r', B = U_r: orthonormal principal factors without singular values",
    reference="Zhang et al. 2026, arXiv 2606.31813 (OLoRA baseline); Mind Lab 2026, arXiv "
    "2606.02437, section 4.1.2",
    anchored=True,
    spectral=True,
)
def olora(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = V_r', B = U_r. The RLVR papers' OLoRA; for PEFT's QR form see `olora_qr`.

    ``scale`` does not enter: ``|s B A|_F = s sqrt(r)``.
    """
    top = top_subspace(W, rank)
    return Factors(top.V.mT, top.U)


@method(
    "olora-qr",
    claim="W = Q R; B = first r columns of Q, A = first r rows of R: the OLoRA that PEFT ships",
    reference="Büyükakyüz 2024, arXiv 2406.01775; PEFT's init 'olora'",
    anchored=True,
)
def olora_qr(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """B = Q[:, :r], A = R[:r] of the reduced QR decomposition, in float64.

    Not a singular subspace: Q's first columns span the first r columns of W. ``scale`` does not
    enter, as in PEFT.
    """
    Q, R = torch.linalg.qr(W.detach().double(), mode="reduced")
    return Factors(R[:rank], Q[:, :rank])
