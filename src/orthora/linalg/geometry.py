"""Where an update of a weight lies in the weight's spectrum, and what it does to it.

An update comes as a product of thin factors, ``dW = X Y`` with X (m, k) and Y (k, n): k is r for
``s B A``, and 2r for ``s (B A - B0 A0)`` with X = s [B, B0], Y = [A; -A0]. Only `changed_entries`
forms dW, by blocks of rows. A dense update is ``X = dW, Y = I``.

Inner products are taken in float64. Dimension legend: m = out features, n = in features, k = inner
dimension of the update, q = number of singular pairs looked at.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orthora.types import Subspace

_BLOCK = 1 << 20  # entries of a block of rows


def _double(X: Tensor) -> Tensor:
    return X.detach().to(torch.float64)


def update_norm(X: Float[Tensor, "m k"], Y: Float[Tensor, "k n"]) -> float:
    """``|X Y|_F``, from singular values: no cancellation where the two halves nearly cancel."""
    return float(torch.linalg.vector_norm(update_values(X, Y)))


def update_values(X: Float[Tensor, "m k"], Y: Float[Tensor, "k n"]) -> Float[Tensor, " q"]:
    """Singular values of ``X Y``, descending: min(m, n, k) of them; the others are 0.

    By two thin QR factorisations and one SVD of a (k, k) matrix, in float64.
    """
    left = torch.linalg.qr(_double(X), mode="r")[1]
    right = torch.linalg.qr(_double(Y).mT, mode="r")[1]
    return torch.linalg.svdvals(left @ right.mT)


def along(
    X: Float[Tensor, "m k"], Y: Float[Tensor, "k n"], subspace: Subspace
) -> Float[Tensor, " q"]:
    """``u_i' dW v_i`` for the singular pairs of a weight: how much the update scales each one.

    To first order this is the change of the i-th singular value.

    Args:
        X: (m, k).
        Y: (k, n).
        subspace: q singular pairs of the weight.

    Returns:
        (q,) float64, signed.
    """
    left, right = _double(subspace.U).mT @ _double(X), _double(Y) @ _double(subspace.V)
    return (left * right.mT).sum(1)


def energy_shares(values: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
    """``c_i^2 / sum c_j^2``, whose running sum is the cumulative energy; zeros for all zeros."""
    squares = _double(values) ** 2
    whole = squares.sum()
    return squares / whole if whole > 0 else squares


def input_energy(
    X: Float[Tensor, "m k"], Y: Float[Tensor, "k n"], V: Float[Tensor, "n q"]
) -> Float[Tensor, " q"]:
    """``|dW v_j|^2 / |dW|_F^2``: share of the update's energy that reads along each direction.

    The sum over a head of right singular vectors is the head energy; the root of one entry is
    GeoRA's spectral alignment ``|dW v_j| / |dW|_F`` (arXiv 2601.09361, eq. 10).

    Args:
        X: (m, k).
        Y: (k, n).
        V: (n, q) orthonormal columns.

    Returns:
        (q,) float64, each in [0, 1], sum at most 1; zeros where the update is zero.
    """
    images = torch.linalg.qr(_double(X), mode="r")[1] @ (_double(Y) @ _double(V))
    whole = update_norm(X, Y) ** 2
    return (images**2).sum(0) / whole if whole > 0 else torch.zeros(V.shape[1], dtype=torch.float64)


def row_alignment(A: Float[Tensor, "r n"], V: Float[Tensor, "n q"]) -> float:
    """``|A V|_F / |A|_F``: share of A's rows in the span of V, 1 if all, about sqrt(q/n) by chance.

    Args:
        A: (r, n) down-projection.
        V: (n, q) orthonormal columns.

    Returns:
        In [0, 1]; 0 where A is zero.
    """
    whole = float(torch.linalg.vector_norm(_double(A)))
    return float(torch.linalg.vector_norm(_double(A) @ _double(V))) / whole if whole else 0.0


def principal_angles(V: Float[Tensor, "n p"], W: Float[Tensor, "n q"]) -> Float[Tensor, " a"]:
    """Principal angles between two subspaces, ascending, in radians; min(p, q) of them.

    By sines where an angle is small and by cosines where it is large, so that both ends are exact
    (Björck and Golub 1973; Knyazev and Argentati 2002).

    Args:
        V: (n, p) orthonormal columns.
        W: (n, q) orthonormal columns.

    Returns:
        (min(p, q),) float64 in [0, pi / 2].
    """
    A, B = (_double(V), _double(W)) if V.shape[1] >= W.shape[1] else (_double(W), _double(V))
    inner = A.mT @ B
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(B - A @ inner).flip(0).clamp(max=1.0)
    return torch.where(cosines**2 < 0.5, cosines.acos(), sines[: len(cosines)].asin())


def projector_distance(V: Float[Tensor, "n p"], W: Float[Tensor, "n q"]) -> float:
    """``|V V' - W W'|_F / sqrt(2 p)``: root mean square sine of the angles; 0 equal, 1 orthogonal.

    Args:
        V: (n, p) orthonormal columns.
        W: as many.

    Raises:
        ValueError: if the dimensions differ.
    """
    if V.shape != W.shape:
        raise ValueError(
            f"subspaces have shapes {tuple(V.shape)} and {tuple(W.shape)}; compare equals"
        )
    return float((principal_angles(V, W).sin() ** 2).mean().sqrt())


def spectral_shift(before: Float[Tensor, " q"], after: Float[Tensor, " p"]) -> float:
    """``|sigma(W+) - sigma(W)|_2 / |sigma(W)|_2``, sorted (arXiv 2511.08567, NSS).

    Args:
        before: singular values.
        after: as many.

    Raises:
        ValueError: if the numbers differ, or all values before are zero.
    """
    if before.shape != after.shape:
        raise ValueError(f"{len(before)} singular values before and {len(after)} after")
    old, new = (_double(x).sort(descending=True).values for x in (before, after))
    whole = float(torch.linalg.vector_norm(old))
    if whole == 0.0:
        raise ValueError("all singular values are zero; there is nothing to be relative to")
    return float(torch.linalg.vector_norm(new - old)) / whole


@dataclass(frozen=True)
class ShiftBounds:
    """What is known of a spectral shift without the spectrum after the update.

    Attributes:
        first_order: from ``u_i' dW v_i`` of the pairs looked at, others taken as unmoved.
        upper: ``|dW|_F / |W|_F``, which no shift exceeds (Mirsky 1960).
    """

    first_order: float
    upper: float


def shift_bounds(
    X: Float[Tensor, "m k"], Y: Float[Tensor, "k n"], subspace: Subspace, weight_norm: float
) -> ShiftBounds:
    """Estimate and bound the normalised spectral shift without forming W + dW.

    Args:
        X: (m, k).
        Y: (k, n).
        subspace: singular pairs of the weight, as many as there are.
        weight_norm: ``|W|_F``, above 0.

    Returns:
        The first-order shift over these pairs, and Mirsky's bound over all.
    """
    first = float(torch.linalg.vector_norm(along(X, Y, subspace))) / weight_norm
    return ShiftBounds(first, update_norm(X, Y) / weight_norm)


def stable_rank(values: Float[Tensor, " q"]) -> float:
    """``sum sigma^2 / sigma_1^2``; 0 where all are zero."""
    squares = _double(values) ** 2
    top = float(squares.max()) if len(squares) else 0.0
    return float(squares.sum()) / top if top else 0.0


def effective_rank(values: Float[Tensor, " q"]) -> float:
    """``exp`` of the entropy of ``sigma_i / sum sigma`` (Roy and Vetterli 2007); 0 for zeros."""
    sizes = _double(values).abs()
    whole = sizes.sum()
    if whole == 0:
        return 0.0
    shares = sizes[sizes > 0] / whole
    return math.exp(float(-(shares * shares.log()).sum()))


def changed_entries(
    W: Float[Tensor, "m n"], X: Float[Tensor, "m k"], Y: Float[Tensor, "k n"]
) -> Iterable[Bool[Tensor, "b n"]]:
    """Entries that differ in bfloat16 before and after the update, by blocks of rows from the top.

    What a merge into bfloat16 weights would show (arXiv 2511.08567, whose tolerance of 1e-3 stands
    for this test). The sum is formed in float32.

    Args:
        W: (m, n) weight.
        X: (m, k).
        Y: (k, n).

    Yields:
        (b, n) masks.
    """
    rows = max(1, _BLOCK // W.shape[1])
    for start in range(0, W.shape[0], rows):
        block = W[start : start + rows].float()
        moved = block + X[start : start + rows].float() @ Y.float()
        yield moved.to(torch.bfloat16) != block.to(torch.bfloat16)


@dataclass(frozen=True)
class Overlap:
    """How a mask of changed entries meets a fixed mask.

    Attributes:
        density: share of all entries that the fixed mask holds: the overlap by chance.
        overlap: share of the changed entries inside the fixed mask; None where nothing changed.
        changed: share of all entries that changed.
    """

    density: float
    overlap: float | None
    changed: float

    @property
    def lift(self) -> float | None:
        """Overlap over chance; None where nothing changed or the mask is empty."""
        return self.overlap / self.density if self.overlap is not None and self.density else None


def overlap(changed: Iterable[Tensor], mask: Bool[Tensor, "m n"]) -> Overlap:
    """Compare the entries that changed with a mask, such as M_princ or M_low.

    Args:
        changed: blocks of rows, from `changed_entries`.
        mask: (m, n).

    Raises:
        ValueError: if the blocks have another number of rows than the mask.
    """
    row = both = moved = 0
    for block in changed:
        part = mask[row : row + len(block)]
        if part.shape != block.shape:
            raise ValueError(f"changed entries and mask {tuple(mask.shape)} differ in shape")
        both += int((block & part).sum())
        moved += int(block.sum())
        row += len(block)
    if row != len(mask):
        raise ValueError(f"changed entries have {row} rows, and the mask {len(mask)}")
    share = float(mask.sum()) / mask.numel()
    return Overlap(share, both / moved if moved else None, moved / mask.numel())
