"""Orthonormal rows that need no data: DCT-II and Haar wavelet."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.subspace import check_rank


def dct_rows(rank: int, n: int) -> Float[Tensor, "r n"]:
    """The first ``rank`` rows of the orthonormal DCT-II matrix of size ``n``.

    Row k, column j: ``sqrt((2 - [k = 0]) / n) cos(pi (j + 1/2) k / n)``; low frequencies first.

    Args:
        rank: r, 1 to n.
        n: number of columns.

    Returns:
        (r, n) float64, rows orthonormal.

    Raises:
        ValueError: if ``rank`` is not in 1..n.
    """
    check_rank(rank, (n, n))
    k = torch.arange(rank, dtype=torch.float64)[:, None]
    j = torch.arange(n, dtype=torch.float64)[None, :]
    rows = math.sqrt(2.0 / n) * torch.cos(math.pi * (j + 0.5) * k / n)
    rows[0] = 1.0 / math.sqrt(n)
    return rows


def haar_rows(rank: int, n: int) -> Float[Tensor, "r n"]:
    """The ``rank`` coarsest functions of the orthonormal Haar wavelet basis on ``n`` points.

    Row 0 is constant. Each next row splits an interval, coarse to fine and left to right, into a
    left part of a points and a right part of b points, and is ``sqrt(b / (a (a + b)))`` on the left
    and ``-sqrt(a / (b (a + b)))`` on the right. For n a power of two this is the classical Haar
    basis; for any other n it is the unbalanced Haar basis, orthonormal just the same.

    Args:
        rank: r, 1 to n.
        n: number of columns.

    Returns:
        (r, n) float64, rows orthonormal.

    Raises:
        ValueError: if ``rank`` is not in 1..n.
    """
    check_rank(rank, (n, n))
    rows = torch.zeros(rank, n, dtype=torch.float64)
    rows[0] = 1.0 / math.sqrt(n)
    level, filled = [(0, n)], 1
    while filled < rank:
        finer = []
        for start, stop in level:
            middle = start + (stop - start + 1) // 2
            if stop - start < 2:
                continue
            finer += [(start, middle), (middle, stop)]
            if filled < rank:
                a, b = middle - start, stop - middle
                rows[filled, start:middle] = math.sqrt(b / (a * (a + b)))
                rows[filled, middle:stop] = -math.sqrt(a / (b * (a + b)))
                filled += 1
        level = finer
    return rows
