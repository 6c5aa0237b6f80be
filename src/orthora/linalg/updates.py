"""An update of a weight: a product of thin factors, or a whole matrix.

``dW = X Y`` with X (m, k) and Y (k, n): k is r for ``s B A``, and 2r for ``s (B A - B0 A0)`` with
X = s [B - B0, B0], Y = [A; A - A0]. Everything that can be is read off the factors; only
`added_to` forms dW, a block of rows at a time. A dense update answers the same questions.

Inner products are taken in float64. Dimension legend: m = out features, n = in features, k = inner
dimension, q = number of singular pairs looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.gram import gram, tall

_BLOCK = 1 << 20  # entries of a block of rows
_SIDE = 512  # short side to which singular values come from an SVD


def double(X: Tensor) -> Tensor:
    """In float64, without a gradient."""
    return X.detach().to(torch.float64)


@dataclass(frozen=True)
class LowRank:
    """``X Y``.

    Attributes:
        X: (m, k).
        Y: (k, n).
    """

    X: Float[Tensor, "m k"]
    Y: Float[Tensor, "k n"]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.X.shape[0], self.Y.shape[1]

    @property
    def mT(self) -> "LowRank":
        """The transpose."""
        return LowRank(self.Y.mT, self.X.mT)

    @cached_property
    def _left(self) -> Tensor:
        """R of X = Q R."""
        return torch.linalg.qr(double(self.X), mode="r")[1]

    @cached_property
    def _right(self) -> tuple[Tensor, Tensor]:
        """Q and R of Y' = Q R."""
        return torch.linalg.qr(double(self.Y).mT)

    @cached_property
    def _values(self) -> Tensor:
        return torch.linalg.svdvals(self._left @ self._right[1].mT)

    def values(self) -> Float[Tensor, " q"]:
        """Singular values, descending: min(m, n, k) of them; the others are 0.

        By two thin QR factorisations and one SVD of a (k, k) matrix: there is no cancellation where
        two halves of the product nearly cancel.
        """
        return self._values

    def norm(self) -> float:
        """``|X Y|_F``."""
        return float(torch.linalg.vector_norm(self.values()))

    def along(self, U: Float[Tensor, "m q"], V: Float[Tensor, "n q"]) -> Float[Tensor, " q"]:
        """``u_i' dW v_i`` for pairs of columns."""
        left, right = double(U).mT @ double(self.X), double(self.Y) @ double(V)
        return (left * right.mT).sum(1)

    def images(self, V: Float[Tensor, "n q"]) -> Float[Tensor, "p q"]:
        """``dW V`` up to a rotation from the left, which keeps norms and inner products."""
        return self._left @ (double(self.Y) @ double(V))

    def inputs(self, rank: int) -> Float[Tensor, "n q"]:
        """The top right singular vectors, at most ``rank`` and as many as are not zero."""
        basis, R = self._right
        _, S, Vh = torch.linalg.svd(self._left @ R.mT, full_matrices=False)
        return basis @ Vh[: _count(S, rank)].mT

    def added_to(self, block: Float[Tensor, "b n"], start: int) -> Float[Tensor, "b n"]:
        """A block of W's rows in float32, moved by dW; the block stays as it is."""
        X = self.X[start : start + len(block)]
        return torch.addmm(block.float(), X.float(), self.Y.float())


@dataclass(frozen=True)
class Dense:
    """A matrix.

    Attributes:
        D: (m, n).
    """

    D: Float[Tensor, "m n"]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.D.shape[0], self.D.shape[1]

    @property
    def mT(self) -> "Dense":
        """The transpose."""
        return Dense(self.D.mT)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Of the Gram matrix of the short side, ascending."""
        return torch.linalg.eigh(gram(tall(self.D.detach()), bf16=False, dtype=torch.float64))

    def values(self) -> Float[Tensor, " q"]:
        """Singular values, descending; above a short side of 512 from the Gram matrix.

        Those below 1e-8 of the largest are then rounding.
        """
        if min(self.shape) <= _SIDE:
            return torch.linalg.svdvals(double(tall(self.D)))
        return self._eigen[0].clamp_min(0.0).sqrt().flip(0)

    def norm(self) -> float:
        """``|D|_F``."""
        return float(torch.linalg.vector_norm(self.D.detach(), dtype=torch.float64))

    def along(self, U: Float[Tensor, "m q"], V: Float[Tensor, "n q"]) -> Float[Tensor, " q"]:
        """``u_i' dW v_i`` for pairs of columns."""
        return (double(U) * self.images(V)).sum(0)

    def images(self, V: Float[Tensor, "n q"]) -> Float[Tensor, "m q"]:
        """``dW V``."""
        return torch.cat([double(self.D[i:j]) @ double(V) for i, j in blocks(*self.shape)])

    def inputs(self, rank: int) -> Float[Tensor, "n q"]:
        """The top right singular vectors, at most ``rank`` and as many as are not zero."""
        values, vectors = self._eigen
        count = _count(values.clamp_min(0.0).sqrt().flip(0), rank)
        short = vectors.flip(1)[:, :count]
        if self.shape[0] >= self.shape[1]:
            return short
        return torch.linalg.qr(double(tall(self.D)) @ short)[0]

    def added_to(self, block: Float[Tensor, "b n"], start: int) -> Float[Tensor, "b n"]:
        """A block of W's rows in float32, moved by dW; the block stays as it is."""
        return block.float() + self.D[start : start + len(block)].detach().float()


Update = LowRank | Dense


def blocks(m: int, n: int, entries: int = _BLOCK) -> Iterator[tuple[int, int]]:
    """Ranges of rows of an (m, n) matrix, from the top, of about so many entries each."""
    step = max(1, entries // n)
    for start in range(0, m, step):
        yield start, min(start + step, m)


def _count(S: Tensor, rank: int) -> int:
    """How many of the leading values stand out of rounding."""
    if not len(S) or not float(S[0]) > 0.0:
        return 0
    return min(rank, int((1e-7 * S[0] < S).sum()))
