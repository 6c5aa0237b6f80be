"""Random A, zero B: the two conventions in use for plain LoRA."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.methods.registry import method, zeros_like_output
from orthora.types import Factors


@method(
    "lora",
    claim="random uniform A with rows of norm about 1/sqrt(3), B = 0: PEFT's default",
    reference="Hu et al. 2022, arXiv 2106.09685, section 4.1; PEFT's kaiming_uniform(a = sqrt 5)",
    anchored=False,
)
def lora(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A ~ U(-1/sqrt n, 1/sqrt n), B = 0.

    The distribution of PEFT's ``init_lora_weights=True``; ``scale`` does not enter.
    """
    n = W.shape[1]
    A = (torch.rand(rank, n, generator=generator) * 2.0 - 1.0) / math.sqrt(n)
    return Factors(A, zeros_like_output(W, rank))


@method(
    "lora-gaussian",
    claim="Gaussian A with rows of norm about 1, B = 0: the source paper's LoRA",
    reference="Zhang et al. 2026, arXiv 2606.31813 (LoRA baseline)",
    anchored=False,
)
def lora_gaussian(
    W: Float[Tensor, "m n"], rank: int, *, scale: float, generator: torch.Generator
) -> Factors:
    """A ~ N(0, 1/n), B = 0, so that E[A A'] = I.

    Departs from PEFT's ``"gaussian"``, whose standard deviation is 1/r.
    """
    n = W.shape[1]
    A = torch.randn(rank, n, generator=generator) / math.sqrt(n)
    return Factors(A, zeros_like_output(W, rank))
