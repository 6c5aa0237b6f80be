"""Orthonormal A that reads no weight: DCT and Haar wavelet rows."""

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg import dct_rows, haar_rows
from orthora.methods.registry import method, zeros_like_output
from orthora.types import Factors


@method(
    "dct",
    claim="A = first r DCT-II rows, B = 0: orthonormal without an SVD",
    reference="Zhang et al. 2026, arXiv 2606.31813 (DCT-LoRA ablation)",
    anchored=False,
    aliases=("dct-lora",),
)
def dct(W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator) -> Factors:
    """A = the r lowest frequencies of the DCT-II, B = 0; ``scale`` does not enter."""
    return Factors(dct_rows(rank, W.shape[1]), zeros_like_output(W, rank))


@method(
    "wavelet",
    claim="A = the r coarsest Haar wavelets, B = 0: orthonormal without an SVD",
    reference="Zhang et al. 2026, arXiv 2606.31813 (Wavelet-LoRA ablation)",
    anchored=False,
    aliases=("wavelet-lora",),
)
def wavelet(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A = the r coarsest Haar functions, B = 0; ``scale`` does not enter.

    Departs from the paper's code, which Haar-transforms a Gaussian matrix and takes its QR: a
    Gaussian is invariant under an orthogonal transform, so that start is a random orthonormal A.
    Here the rows are the wavelets themselves.
    """
    return Factors(haar_rows(rank, W.shape[1]), zeros_like_output(W, rank))
