"""Exact magnitude thresholds and masks at any size.

``torch.quantile`` refuses more than 2^24 elements, which every MLP matrix of a 7B model exceeds,
and a sort needs several copies. The magnitudes of floats order like their bit patterns, so a
histogram of the high 16 bits finds the bin, and a selection inside that bin the exact value.
"""

import math
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orthora.linalg.subspace import check_weight

_BINS = 1 << 15  # the sign bit is cleared, 15 high bits remain


def magnitude_threshold(W: Float[Tensor, "m n"], share: float) -> float:
    """The ``share``-quantile of ``|W|``: the ceil(share * size)-th smallest magnitude, exact.

    Args:
        W: (m, n) finite weight; float64 is rounded to float32 first.
        share: in (0, 1].

    Returns:
        A threshold t with ``share <= mean(|W| <= t)``, equal up to ties.

    Raises:
        ValueError: if ``share`` is outside (0, 1], or ``W`` is not a finite matrix.
    """
    check_weight(W)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1], got {share!r}")
    rank = math.ceil(Fraction(share).limit_denominator(10**9) * W.numel())  # 0.2 is 1/5
    bits = W.detach().float().contiguous().view(torch.int32).flatten() & 0x7FFF_FFFF
    high = bits >> 16
    cumulative = torch.bincount(high, minlength=_BINS).cumsum(0)
    bin_index = int(torch.searchsorted(cumulative, rank))
    below = int(cumulative[bin_index - 1]) if bin_index else 0
    selected = bits[high == bin_index].kthvalue(rank - below).values
    return float(selected.view(torch.float32))


def smallest_mask(W: Float[Tensor, "m n"], share: float) -> Bool[Tensor, "m n"]:
    """True on the ``share`` of entries that are smallest in magnitude, ties included.

    Args:
        W: (m, n) finite weight.
        share: in (0, 1].

    Returns:
        (m, n) mask, ``|W| <= magnitude_threshold(W, share)``.

    Raises:
        ValueError: as `magnitude_threshold`.
    """
    return W.detach().float().abs() <= magnitude_threshold(W, share)
