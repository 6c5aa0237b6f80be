"""Exact magnitude thresholds and masks at any size.

``torch.quantile`` refuses more than 2^24 elements, which every MLP matrix of a 7B model exceeds,
and a sort needs several copies. The magnitudes of floats order like their bit patterns, so a
histogram of the high 16 bits finds the bin, and a selection inside that bin the exact value. Both
passes read the matrix by blocks of rows, which may be computed on the way.
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orthora.linalg.precision import float32_products
from orthora.linalg.products import product
from orthora.linalg.subspace import check_weight
from orthora.types import Subspace

_BINS = 1 << 15  # the sign bit is cleared, 15 high bits remain
_BLOCK = 1 << 18  # entries of a block, about: it stays in cache

Blocks = Callable[[], Iterator[Tensor]]
"""The same row blocks (rows, n) of a matrix, from the top, every time it is called."""


def rows_of(W: Float[Tensor, "m n"]) -> Blocks:
    """A matrix as its row blocks."""
    return lambda: iter(W.detach().split(_rows(W.shape[1])))


def reconstruction(subspace: Subspace) -> Blocks:
    """``U diag(S) V'`` as row blocks, computed anew whenever they are read."""
    return product_rows(subspace.U * subspace.S, subspace.V.mT)


def product_rows(left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]) -> Blocks:
    """``left right`` as row blocks, computed anew whenever they are read."""

    def blocks() -> Iterator[Tensor]:
        for part in left.split(_rows(right.shape[1])):
            with float32_products():
                block = product(part, right)
            yield block

    return blocks


def _rows(n: int) -> int:
    return max(1, _BLOCK // n)


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
    return threshold_of(rows_of(W), W.numel(), share)


def threshold_of(blocks: Blocks, size: int, share: float) -> float:
    """`magnitude_threshold` of a matrix of ``size`` entries that is read by blocks.

    Raises:
        ValueError: if ``share`` is outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1], got {share!r}")
    rank = math.ceil(Fraction(share).limit_denominator(10**9) * size)  # 0.2 is 1/5
    counts: Tensor | int = 0
    for block in blocks():
        counts = counts + torch.bincount(_bits(block) >> 16, minlength=_BINS)
    assert isinstance(counts, Tensor), "no blocks"
    cumulative = counts.cumsum(0)
    bin_index = int(torch.searchsorted(cumulative, rank))
    below = int(cumulative[bin_index - 1]) if bin_index else 0
    inside = [bits[(bits >> 16) == bin_index] for bits in map(_bits, blocks())]
    selected = torch.cat(inside).kthvalue(rank - below).values
    return float(selected.view(torch.float32))


def _bits(block: Tensor) -> Tensor:
    """Bit patterns of the magnitudes, which order as they do."""
    return block.float().contiguous().view(torch.int32).flatten() & 0x7FFF_FFFF


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
    check_weight(W)
    return smallest_of(rows_of(W), W.numel(), share)


def smallest_of(blocks: Blocks, size: int, share: float) -> Bool[Tensor, "m n"]:
    """`smallest_mask` of a matrix of ``size`` entries that is read by blocks.

    Raises:
        ValueError: if ``share`` is outside (0, 1].
    """
    threshold = threshold_of(blocks, size, share)
    return torch.cat([block.float().abs() <= threshold for block in blocks()])
