"""The whole spectrum of a weight, and what an update does to it.

To a short side of 512 everything is LAPACK's SVD in float64. Above, the Gram matrix of the short
side is decomposed in float64, once per weight; what a low-rank update does to the leading singular
values and subspaces is then found in that eigenbasis, where the updated Gram matrix is a diagonal
plus a matrix of rank 2k, to about twelve digits and without a second decomposition. All singular
values after the update would need one, so their shift is bounded instead.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.geometry import principal_angles, spectral_shift
from orthora.linalg.gram import gram, tall
from orthora.linalg.subspace import check_weight
from orthora.linalg.updates import Dense, LowRank, Update, blocks, double

_EXACT_SIDE = 512
_GUARDS = 16  # further Ritz pairs that are carried along
_SWEEPS = 12  # of corrections, before the whole matrix is decomposed
_DONE = 1e-13  # residual, relative to the largest eigenvalue
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
        floor = max(self.A.shape) * eps if self.long is not None else (_FLOOR * eps) ** 0.5
        return int((floor * self.S[0] < self.S).sum())

    def right(self, columns: slice) -> Float[Tensor, "n q"]:
        """Right singular vectors."""
        return self._long(columns) if self.wide else self.short[:, columns]

    def left(self, columns: slice) -> Float[Tensor, "m q"]:
        """Left singular vectors."""
        return self.short[:, columns] if self.wide else self._long(columns)

    def top(self, q: int) -> slice:
        """The columns of the q largest singular values."""
        return slice(0, q)

    def bottom(self, q: int) -> slice:
        """The columns of the q smallest positive singular values."""
        return slice(self.rank - q, self.rank)

    def _long(self, columns: slice) -> Tensor:
        if self.long is not None:
            return self.long[:, columns]
        images = product(self.A, self.short[:, columns])
        return torch.linalg.qr(images)[0] * _signs(images)

    def along(self, update: Update) -> Float[Tensor, " k"]:
        """``u_i' dW v_i`` for all singular pairs; 0 where the singular value is rounding.

        To first order this is the change of the i-th singular value.
        """
        turned = update.mT if self.wide else update
        if self.long is not None:
            found = turned.along(self.long, self.short)
        elif isinstance(turned, LowRank):
            found = (
                (self.short.mT @ transposed_product(self.A, turned.X))
                * (double(turned.Y) @ self.short).mT
            ).sum(1) / self.S.clamp_min(1e-300)
        else:
            images = transposed_product(self.A, turned.D) @ self.short
            found = (self.short * images).sum(0) / self.S.clamp_min(1e-300)
        found[self.rank :] = 0.0
        return found


def decompose(W: Float[Tensor, "m n"]) -> Whole:
    """The whole singular value decomposition of a weight.

    Args:
        W: (m, n), any floating dtype.

    Raises:
        ValueError: if it is not a finite matrix.
    """
    check_weight(W)
    A, wide = tall(W.detach()), W.shape[0] < W.shape[1]
    if A.shape[1] <= _EXACT_SIDE:
        long, S, short = torch.linalg.svd(double(A), full_matrices=False)
        return Whole(A, wide, S, short.mT, long)
    values, vectors = torch.linalg.eigh(gram(double(A), bf16=False))
    return Whole(A, wide, values.clamp_min(0.0).sqrt().flip(0), vectors.flip(1), None)


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


def moved(whole: Whole, update: Update, q: int, *, exact: bool = False) -> Moved:
    """The leading q singular values and subspaces of W + dW, beside those of W.

    Args:
        whole: of W.
        update: dW.
        q: 1 to k.
        exact: find all singular values of W + dW, at the cost of a decomposition. Always so to a
            short side of 512, and for dense updates.

    Raises:
        ValueError: if q is out of range, or W + dW is not finite.
    """
    if not 1 <= q <= len(whole.S):
        raise ValueError(f"{q} singular pairs asked for; the weight has {len(whole.S)}")
    turned = update.mT if whole.wide else update
    if isinstance(turned, LowRank) and whole.long is None and not exact:
        values, short, long, trace = _in_eigenbasis(whole, turned, q)
        after = None
    else:
        other = decompose(_sum(whole.A, turned))
        values, after, trace = other.S[:q], other.S, None
        short, long = (
            principal_angles(whole.short[:, :q], other.short[:, :q]),
            principal_angles(whole._long(slice(q)), other._long(slice(q))),
        )
    shift = None if after is None else spectral_shift(whole.S, after)
    left, right = (short, long) if whole.wide else (long, short)
    high = update.norm() / whole.norm
    low = _lower(whole, values, trace) if shift is None else shift
    return Moved(values, left, right, shift, min(low, high), high)


def _lower(whole: Whole, values: Tensor, trace: float | None) -> float:
    """Lower bound: the leading shifts, and the rest's by the triangle inequality of its norm."""
    assert trace is not None, "of the eigenbasis"
    q = len(values)
    before = float((whole.S[q:] ** 2).sum())
    after = max(before + trace - float((values**2 - whole.S[:q] ** 2).sum()), 0.0)
    leading = float(((values - whole.S[:q]) ** 2).sum())
    rest = (after - before) / (after**0.5 + before**0.5) if after + before else 0.0
    return (leading + rest**2) ** 0.5 / whole.norm


def _in_eigenbasis(whole: Whole, update: LowRank, q: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Leading values, angles of both sides, and the growth of the sum of squares.

    ``(A + X Y)'(A + X Y)`` in the basis of the short singular vectors is
    ``diag(S^2) + P R' + R P' + R K R'`` with P = short' A' X, R = (Y short)', K = X' X.
    """
    X = double(update.X)
    P = whole.short.mT @ transposed_product(whole.A, X)
    R, K = (double(update.Y) @ whole.short).mT, X.mT @ X
    theta, C = leading(whole.S**2, P, R, K, q)
    trace = float(2 * (P * R).sum() + ((R @ K) * R).sum())
    cosines_first = torch.eye(len(whole.S), q, dtype=torch.float64)
    short = principal_angles(cosines_first, C)
    before = whole._long(slice(q))
    images = product(whole.A, whole.short @ C) + X @ (R.mT @ C)
    long = principal_angles(before, torch.linalg.qr(images)[0])
    return theta.clamp_min(0.0).sqrt(), short, long, trace


def leading(
    values: Float[Tensor, " k"],
    P: Float[Tensor, "k r"],
    R: Float[Tensor, "k r"],
    K: Float[Tensor, "r r"],
    q: int,
) -> tuple[Float[Tensor, " q"], Float[Tensor, "k q"]]:
    """Largest eigenpairs of ``diag(values) + P R' + R P' + R K R'``, by Davidson's corrections.

    Args:
        values: (k,) descending.
        P: (k, r).
        R: (k, r).
        K: (r, r) symmetric.
        q: how many.

    Returns:
        (q,) descending and (k, q). Where the corrections don't settle, of the whole matrix.
    """

    def times(C: Tensor) -> Tensor:
        inner = R.mT @ C
        return values[:, None] * C + P @ inner + R @ (P.mT @ C + K @ inner)

    k = len(values)
    basis = torch.eye(k, min(k, q + _GUARDS), dtype=values.dtype)
    images = times(basis)
    limit = _DONE * float(values[0]) * k**0.5
    for _ in range(_SWEEPS):
        theta, Z = torch.linalg.eigh(basis.mT @ images)
        theta, Z = theta.flip(0)[: q + _GUARDS], Z.flip(1)[:, : q + _GUARDS]
        residual = images @ Z - (basis @ Z) * theta
        if float(torch.linalg.vector_norm(residual[:, :q], dim=0).max()) <= limit:
            return theta[:q], torch.linalg.qr(basis @ Z[:, :q])[0]
        gap = theta - values[:, None]
        step = residual / torch.where(gap.abs() < limit, limit, gap)
        for _ in range(2):
            step = step - basis @ (basis.mT @ step)
        step = torch.linalg.qr(step)[0]
        if basis.shape[1] + step.shape[1] > k:
            break
        basis = torch.cat([basis, step], 1)
        images = torch.cat([images, times(step)], 1)
    whole = times(torch.eye(k, dtype=values.dtype))
    theta, Z = torch.linalg.eigh((whole + whole.mT) / 2)
    return theta.flip(0)[:q], Z.flip(1)[:, :q]


def product(A: Float[Tensor, "p k"], B: Float[Tensor, "k q"]) -> Float[Tensor, "p q"]:
    """``A B`` in float64, A converted by blocks of rows."""
    return torch.cat([double(A[i:j]) @ B for i, j in blocks(*A.shape)])


def transposed_product(A: Float[Tensor, "p k"], B: Float[Tensor, "p q"]) -> Float[Tensor, "k q"]:
    """``A' B`` in float64, both converted by blocks of rows."""
    found = torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64)
    for i, j in blocks(*A.shape):
        found.addmm_(double(A[i:j]).mT, double(B[i:j]))
    return found


def _sum(A: Tensor, update: LowRank | Dense) -> Tensor:
    change = update.X.double() @ update.Y.double() if isinstance(update, LowRank) else update.D
    return double(A) + double(change)


def _signs(images: Tensor) -> Tensor:
    """Of the diagonal that QR gave to nearly orthogonal columns, to keep their directions."""
    diagonal = torch.linalg.qr(images, mode="r")[1].diagonal()
    return torch.where(diagonal < 0, -1.0, 1.0).to(images)
