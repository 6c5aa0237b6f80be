"""Where an update of a weight lies in the weight's spectrum, and what it does to it.

Updates are those of `orthora.linalg.updates`; spectra those of `orthora.linalg.whole`. Inner
products are taken in float64. Dimension legend: m = out features, n = in features, q = number of
singular pairs looked at.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orthora.linalg.updates import Update, blocks, double

_CACHED = 1 << 18  # entries of a block of rows


def energy_shares(values: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
    """``c_i^2 / sum c_j^2``, whose running sum is the cumulative energy; zeros for all zeros.

    With ``c_i = |u_i' dW v_i|`` these are the source paper's p_i (arXiv 2606.31813, Fig. 3).
    """
    squares = double(values) ** 2
    whole = squares.sum()
    return squares / whole if whole > 0 else squares


def input_energy(update: Update, V: Float[Tensor, "n q"]) -> Float[Tensor, " q"]:
    """``|dW v_j|^2 / |dW|_F^2``: share of the update's energy that reads along each direction.

    The sum over a head of right singular vectors is the head energy; the root of one entry is
    GeoRA's spectral alignment ``|dW v_j| / |dW|_F`` (arXiv 2601.09361, eq. 10).

    Args:
        update: of an (m, n) weight.
        V: (n, q) orthonormal columns.

    Returns:
        (q,) float64, each in [0, 1], sum at most 1; zeros where the update is zero.
    """
    whole = update.norm() ** 2
    if not whole:
        return torch.zeros(V.shape[1], dtype=torch.float64)
    return (update.images(V) ** 2).sum(0) / whole


def row_alignment(A: Float[Tensor, "r n"], V: Float[Tensor, "n q"]) -> float:
    """``|A V|_F / |A|_F``: share of A's rows in the span of V, 1 if all, about sqrt(q/n) by chance.

    The source paper's Fig. 7 (arXiv 2606.31813), with the top-r and the bottom-r right vectors.

    Args:
        A: (r, n) down-projection.
        V: (n, q) orthonormal columns.

    Returns:
        In [0, 1]; 0 where A is zero.
    """
    whole = float(torch.linalg.vector_norm(double(A)))
    return float(torch.linalg.vector_norm(double(A) @ double(V))) / whole if whole else 0.0


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
    A, B = (double(V), double(W)) if V.shape[1] >= W.shape[1] else (double(W), double(V))
    inner = A.mT @ B
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(B - A @ inner).flip(0).clamp(max=1.0)
    return torch.where(cosines**2 < 0.5, cosines.acos(), sines[: len(cosines)].asin())


def projector_distance(angles: Float[Tensor, " q"]) -> float:
    """``|V V' - W W'|_F / sqrt(2 q)`` of two q-dimensional subspaces: 0 equal, 1 orthogonal.

    It is the root mean square sine of their principal angles.

    Args:
        angles: (q,) in radians, from `principal_angles` of subspaces of equal dimension.
    """
    return float((double(angles).sin() ** 2).mean().sqrt())


def similarity(V: Float[Tensor, "n p"], W: Float[Tensor, "n q"]) -> float | None:
    """``|V' W|_F^2 / min(p, q)``: mean squared cosine; 1 if one span holds the other, 0 if apart.

    None where one of them is empty. With the top right vectors of dW at two steps this is the
    subspace similarity of arXiv 2606.07082.
    """
    least = min(V.shape[1], W.shape[1])
    return float(((double(V).mT @ double(W)) ** 2).sum()) / least if least else None


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
    old, new = (double(x).sort(descending=True).values for x in (before, after))
    whole = float(torch.linalg.vector_norm(old))
    if whole == 0.0:
        raise ValueError("all singular values are zero; there is nothing to be relative to")
    return float(torch.linalg.vector_norm(new - old)) / whole


def stable_rank(values: Float[Tensor, " q"]) -> float:
    """``sum sigma^2 / sigma_1^2``; 0 where all are zero."""
    squares = double(values) ** 2
    top = float(squares.max()) if len(squares) else 0.0
    return float(squares.sum()) / top if top else 0.0


def effective_rank(values: Float[Tensor, " q"]) -> float:
    """``exp`` of the entropy of ``sigma_i / sum sigma`` (Roy and Vetterli 2007); 0 for zeros."""
    sizes = double(values).abs()
    whole = sizes.sum()
    if whole == 0:
        return 0.0
    shares = sizes[sizes > 0] / whole
    return math.exp(float(-(shares * shares.log()).sum()))


def changed_entries(
    W: Float[Tensor, "m n"], update: Update, rounded: Float[Tensor, "m n"] | None = None
) -> Iterable[Bool[Tensor, "b n"]]:
    """Entries that differ in bfloat16 before and after the update, by blocks of rows from the top.

    What a merge into bfloat16 weights would show (arXiv 2511.08567, whose tolerance of 1e-3 stands
    for this test). The sum is formed in float32.

    Args:
        W: (m, n) weight.
        update: of it.
        rounded: W in bfloat16, where many updates of it are looked at.

    Yields:
        (b, n) masks.
    """
    for start, stop in blocks(*update.shape, _CACHED):
        block = W[start:stop]
        before = block.to(torch.bfloat16) if rounded is None else rounded[start:stop]
        yield update.added_to(block, start).to(torch.bfloat16) != before


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


def overlaps(changed: Iterable[Tensor], *masks: Bool[Tensor, "m n"]) -> list[Overlap]:
    """Compare the entries that changed with masks, such as M_princ and M_low, in one pass.

    Args:
        changed: blocks of rows, from `changed_entries`.
        masks: (m, n) each, of one shape; at least one.

    Returns:
        One per mask.

    Raises:
        ValueError: if the blocks have another number of rows than the masks.
    """
    row = moved = 0
    both = [0] * len(masks)
    for block in changed:
        parts = [mask[row : row + len(block)] for mask in masks]
        if any(part.shape != block.shape for part in parts):
            raise ValueError(f"changed entries and mask {tuple(masks[0].shape)} differ in shape")
        for i, part in enumerate(parts):
            both[i] += _count(block & part)
        moved += _count(block)
        row += len(block)
    if row != len(masks[0]):
        raise ValueError(f"changed entries have {row} rows, and the mask {len(masks[0])}")
    size = masks[0].numel()
    return [
        Overlap(_count(mask) / size, hit / moved if moved else None, moved / size)
        for mask, hit in zip(masks, both, strict=True)
    ]


def _count(mask: Tensor) -> int:
    """Entries that are True; NumPy's count takes a tenth of the time of torch's on a CPU."""
    return int(np.count_nonzero(mask.numpy(force=True)))
