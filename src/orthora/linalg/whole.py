"""The whole spectrum of a weight, and what an update does to it.

To a short side of 128 everything is LAPACK's SVD in float64. Above, the Gram matrix of the short
side is formed and decomposed in float64, once per weight. Singular values are then right to 1e-8 of
the largest; what is below 1e-7 of it is taken for zero.

In that eigenbasis the Gram matrix after a low-rank update is a diagonal plus a matrix of rank 2k.
What the update does to the leading singular values and subspaces is found there, to about twelve
digits and without a second decomposition. All singular values after the update are the eigenvalues
of that matrix: to a short side of 512 they are computed, above only where asked for, and their
shift is bounded instead.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.davidson import leading
from orthora.linalg.geometry import principal_angles, spectral_shift
from orthora.linalg.gram import gram, tall
from orthora.linalg.subspace import check_weight
from orthora.linalg.updates import Dense, LowRank, Update, blocks, double

_SVD_SIDE = 128
_VALUES_SIDE = 512  # short side to which all singular values after an update are found
_CACHED = 1 << 17  # entries of a block that is converted to float64
_FLOOR = 64.0  # units of rounding of the largest eigenvalue: a smaller one is noise


@dataclass(frozen=True)
class Whole:
    """All singular triplets of a weight.

    Attributes:
        A: (p, k) the weight or its transpose, whichever is tall; a view.
        wide: whether it is the transpose.
        S: (k,) float64 singular values, descending.
        short: (k, k) float64 singular vectors of the short side, by columns: right ones of a tall
            weight, left ones of a wide one.
        long: (p, k) float64 of the long side, where an SVD gave them; None otherwise.
    """

    A: Float[Tensor, "p k"]
    wide: bool
    S: Float[Tensor, " k"]
    short: Float[Tensor, "k k"]
    long: Float[Tensor, "p k"] | None

    @property
    def norm(self) -> float:
        """``|W|_F``."""
        return float(torch.linalg.vector_norm(self.S))

    @property
    def rank(self) -> int:
        """Singular values that stand out of rounding."""
        eps = torch.finfo(torch.float64).eps
        floor = max(self.A.shape) * eps if self.long is not None else 0.0
        return int((floor * self.S[0] < self.S).sum())

    def right(self, columns: slice) -> Float[Tensor, "n q"]:
        """Right singular vectors."""
        return self.long_side(columns) if self.wide else self.short[:, columns]

    def left(self, columns: slice) -> Float[Tensor, "m q"]:
        """Left singular vectors."""
        return self.short[:, columns] if self.wide else self.long_side(columns)

    def top(self, q: int) -> slice:
        """The columns of the q largest singular values."""
        return slice(0, q)

    def bottom(self, q: int) -> slice:
        """The columns of the q smallest positive singular values."""
        return slice(self.rank - q, self.rank)

    def long_side(self, columns: slice) -> Float[Tensor, "p q"]:
        """Singular vectors of the long side."""
        if self.long is not None:
            return self.long[:, columns]
        Q, R = torch.linalg.qr(product(self.A, self.short[:, columns]))
        return torch.where(R.diagonal() < 0, -Q, Q)  # QR turns some of the directions about


def decompose(W: Float[Tensor, "m n"]) -> Whole:
    """The whole singular value decomposition of a weight.

    Args:
        W: (m, n), any floating dtype.

    Raises:
        ValueError: if it is not a finite matrix.
    """
    check_weight(W)
    A, wide = tall(W.detach()), W.shape[0] < W.shape[1]
    if A.shape[1] <= _SVD_SIDE:
        long, S, short = torch.linalg.svd(double(A), full_matrices=False)
        return Whole(A, wide, S, short.mT, long)
    values, vectors = torch.linalg.eigh(gram(A, bf16=False, dtype=torch.float64))
    return Whole(A, wide, _roots(values), vectors.flip(1), None)


def _roots(squares: Tensor) -> Tensor:
    """Singular values, descending, from the eigenvalues of a Gram matrix; 0 where it is noise."""
    noise = _FLOOR * torch.finfo(torch.float64).eps * squares[-1]
    return torch.where(squares > noise, squares.clamp_min(0.0).sqrt(), 0.0).flip(0)


@dataclass(frozen=True)
class Moved:
    """What an update did to the spectrum of a weight.

    Attributes:
        values: (q,) leading singular values of W + dW, descending.
        left: (q,) principal angles between the leading left subspaces, ascending, in radians.
        right: the same of the right ones.
        shift: normalised spectral shift over all singular values; None where it is only bounded.
        shift_low: a lower bound on it, from the leading values and the sum of squares of the rest.
        shift_high: an upper bound, ``|dW|_F / |W|_F`` (Mirsky 1960).
    """

    values: Float[Tensor, " q"]
    left: Float[Tensor, " q"]
    right: Float[Tensor, " q"]
    shift: float | None
    shift_low: float
    shift_high: float


class _Coordinates(NamedTuple):
    """A low-rank update of A, ``X Y``, in the singular basis of A = U S V'.

    ``(A + X Y)'(A + X Y)`` is there ``diag(S^2) + P R' + R P' + R K R'``.

    Attributes:
        P: (k, r) ``V' A' X``, that is ``S U' X``.
        R: (k, r) ``(Y V)'``.
        K: (r, r) ``X' X``.
    """

    P: Tensor
    R: Tensor
    K: Tensor


class Change:
    """An update of a weight, seen from the weight's spectrum."""

    def __init__(self, whole: Whole, update: Update) -> None:
        """Nothing is computed yet.

        Args:
            whole: of W.
            update: dW.
        """
        self._whole = whole
        self._update = update
        self._turned = update.mT if whole.wide else update

    @cached_property
    def _coordinates(self) -> _Coordinates | None:
        """None where the SVD or a dense update asks for other ways."""
        whole, turned = self._whole, self._turned
        if whole.long is not None or not isinstance(turned, LowRank):
            return None
        X = double(turned.X)
        P = whole.short.mT @ transposed_product(whole.A, X)
        return _Coordinates(P, (double(turned.Y) @ whole.short).mT, X.mT @ X)

    def along(self) -> Float[Tensor, " k"]:
        """``u_i' dW v_i`` for all singular pairs; 0 where the singular value is rounding.

        To first order this is the change of the i-th singular value.
        """
        whole, turned = self._whole, self._turned
        if self._coordinates is not None:
            P, R, _ = self._coordinates
            found = (P * R).sum(1) / whole.S.clamp_min(1e-300)
        elif whole.long is not None:
            found = turned.along(whole.long, whole.short)
        else:
            assert isinstance(turned, Dense), "low rank has coordinates"
            images = transposed_product(whole.A, turned.D) @ whole.short
            found = (whole.short * images).sum(0) / whole.S.clamp_min(1e-300)
        found[whole.rank :] = 0.0
        return found

    def moved(self, q: int, *, exact: bool = False) -> Moved:
        """The leading q singular values and subspaces of W + dW, beside those of W.

        Args:
            q: 1 to k.
            exact: find all singular values of W + dW, at the cost of a k x k eigenvalue problem.
                Always so to a short side of 512, and for dense updates.

        Raises:
            ValueError: if q is out of range, or W + dW is not finite.
        """
        whole = self._whole
        if not 1 <= q <= len(whole.S):
            raise ValueError(f"{q} singular pairs asked for; the weight has {len(whole.S)}")
        high = self._update.norm() / whole.norm
        if not high:
            still = torch.zeros(q, dtype=torch.float64)
            return Moved(whole.S[:q], still, still, 0.0, 0.0, 0.0)
        if self._coordinates is not None:
            values, short, long, trace = _in_basis(whole, self._coordinates, q)
            shift, low = None, min(_lower(whole, values, trace), high)
            if exact or len(whole.S) <= _VALUES_SIDE:
                after = _all_values(whole, self._coordinates)
                shift = low = min(spectral_shift(whole.S, after), high)
        else:
            other = decompose(_sum(whole.A, self._turned))
            values = other.S[:q]
            short = principal_angles(whole.short[:, :q], other.short[:, :q])
            long = principal_angles(whole.long_side(slice(q)), other.long_side(slice(q)))
            shift = low = min(spectral_shift(whole.S, other.S), high)
        left, right = (short, long) if whole.wide else (long, short)
        return Moved(values, left, right, shift, low, high)


def _in_basis(whole: Whole, seen: _Coordinates, q: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Leading values, angles of the short and the long side, growth of the sum of squares.

    The leading long vectors ``U S C + X R' C`` are taken apart into the span of U and the rest of
    X, whose Gram matrix is ``K - (U'X)'(U'X)``; so no vector of the long side is formed.
    """
    P, R, K = seen
    k = len(whole.S)
    theta, C = leading(whole.S**2, P, R, K, q)
    short = principal_angles(torch.eye(k, q, dtype=torch.float64), C)
    inside = torch.zeros_like(P)
    inside[: whole.rank] = P[: whole.rank] / whole.S[: whole.rank, None]
    G = R.mT @ C
    squares, axes = torch.linalg.eigh(K - inside.mT @ inside)
    outside = squares.clamp_min(0.0).sqrt()[:, None] * (axes.mT @ G)
    images = torch.cat([whole.S[:, None] * C + inside @ G, outside])
    before = torch.eye(len(images), q, dtype=torch.float64)
    long = principal_angles(before, torch.linalg.qr(images)[0])
    trace = float(2 * (P * R).sum() + ((R @ K) * R).sum())
    return theta.clamp_min(0.0).sqrt(), short, long, trace


def _all_values(whole: Whole, seen: _Coordinates) -> Tensor:
    """Every singular value after the update, descending."""
    half = seen.R @ (seen.P + seen.R @ seen.K / 2).mT
    return _roots(torch.linalg.eigvalsh(torch.diag(whole.S**2) + half + half.mT))


def _lower(whole: Whole, values: Tensor, trace: float) -> float:
    """Lower bound: the leading shifts, and the rest's by the triangle inequality of its norm."""
    q = len(values)
    before = float((whole.S[q:] ** 2).sum())
    after = max(before + trace - float((values**2 - whole.S[:q] ** 2).sum()), 0.0)
    shifted = float(((values - whole.S[:q]) ** 2).sum())
    rest = (after - before) / (after**0.5 + before**0.5) if after + before else 0.0
    return (shifted + rest**2) ** 0.5 / whole.norm


def product(A: Float[Tensor, "p k"], B: Float[Tensor, "k q"]) -> Float[Tensor, "p q"]:
    """``A B`` in float64, A converted by blocks of rows that stay in cache."""
    return torch.cat([double(A[i:j]) @ B for i, j in blocks(A.shape[0], A.shape[1], _CACHED)])


def transposed_product(A: Float[Tensor, "p k"], B: Float[Tensor, "p q"]) -> Float[Tensor, "k q"]:
    """``A' B`` in float64, both converted by blocks of rows that stay in cache."""
    found = torch.zeros(B.shape[1], A.shape[1], dtype=torch.float64)  # the faster way round
    for i, j in blocks(A.shape[0], A.shape[1], _CACHED):
        found.addmm_(double(B[i:j]).mT, double(A[i:j]))
    return found.mT


def _sum(A: Tensor, update: LowRank | Dense) -> Tensor:
    change = update.X.double() @ update.Y.double() if isinstance(update, LowRank) else update.D
    return double(A) + double(change)
