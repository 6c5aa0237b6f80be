"""Top-r and bottom-r singular subspaces of a weight matrix, fast, with certificates.

Each matrix goes down a ladder of algorithms until one passes its own checks; the last is a full SVD
in float64. What failed on the way stands in the certificate.

The rungs, by the short side k of the weight:

- to 128, or float64 weights: SVD in float64.
- to 512, or rank over k / 6: Gram + eigh in float32, in float64, SVD. On a GPU, of any size: Gram +
  eigh in float64, SVD.
- above, top: Gram + Lanczos, Gram + eigh in float64, SVD.
- above, bottom of a rectangular weight: Gram + Cholesky + Lanczos, Gram + eigh in float64, SVD.
- above, bottom of a square weight: LU + Lanczos in float32, in float64, SVD.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg import full, minor, principal, records
from orthora.linalg.certificate import GUARDS, NotCertified
from orthora.linalg.exact import exact
from orthora.linalg.gram import gram, holds_bf16, tall
from orthora.types import End, Subspace

_EXACT_SIDE = 128
_FULL_SIDE = 512
_LANCZOS_SHARE = 6
_SAFE = (1e-6, 1e6)  # largest magnitude within which squares and fourth powers fit float32

_NOT_CONVERGED: type[Exception] = vars(torch.linalg)["LinAlgError"]  # no public name in stubs

Attempt = tuple[str, Callable[[], Subspace]]


def check_matrix(W: Tensor) -> None:
    """Refuse what is no matrix of real numbers, without reading its values.

    Raises:
        ValueError: if ``W`` is not a matrix, is empty, on the meta device, or not of a real
            floating dtype.
    """
    if W.ndim != 2 or 0 in W.shape:
        raise ValueError(
            f"the weight must be a non-empty matrix (m, n), got shape {tuple(W.shape)}; "
            "reshape it, or pass one matrix at a time"
        )
    if W.is_meta:
        raise ValueError(
            "the weight is on the meta device and has no values; load the checkpoint first"
        )
    if not W.is_floating_point() or W.element_size() < 2:
        raise ValueError(
            f"the weight has dtype {W.dtype}; dequantise it to float32 or bfloat16 first"
        )


def check_weight(W: Tensor) -> float:
    """Refuse what has no meaningful singular value decomposition.

    Returns:
        The largest magnitude.

    Raises:
        ValueError: if ``W`` is not a matrix, is empty, on the meta device, not of a real floating
            dtype, or holds NaN or Inf.
    """
    check_matrix(W)
    largest = _largest(W)
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(W)).sum())
        raise ValueError(
            f"the weight holds {bad} NaN or Inf of {W.numel()} values; the checkpoint is corrupt, "
            "fetch or export it again"
        )
    return largest


def check_rank(rank: int, shape: tuple[int, int]) -> None:
    """Refuse a rank that a matrix of this shape (m, n) can't hold.

    Raises:
        ValueError: if ``rank`` is not an int in 1..min(m, n).
    """
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise ValueError(f"rank must be an int, got {rank!r}")
    limit = min(shape)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"rank {rank} does not fit a {shape[0]} x {shape[1]} weight; choose 1 to {limit}"
        )


def top_subspace(W: Float[Tensor, "m n"], rank: int) -> Subspace:
    """The ``rank`` largest singular triplets of ``W``.

    By Eckart and Young, ``U diag(S) V'`` is the best rank-r approximation of ``W``.

    Args:
        W: (m, n) weight, any floating dtype.
        rank: r, 1 to min(m, n).

    Returns:
        Subspace with U (m, r), S (r,), V (n, r), in float64 if ``W`` is float64, else float32. The
        same bits every time at the same number of threads.

    Raises:
        ValueError: if ``W`` is not a finite real matrix, or ``rank`` does not fit it.
    """
    return _subspaces(W, rank, ("top",))[0]


def bottom_subspace(W: Float[Tensor, "m n"], rank: int) -> Subspace:
    """The ``rank`` smallest *positive* singular triplets of ``W``.

    The null space of a wide matrix, or of one with zero or duplicated rows or columns, is never
    part of the answer: there ``|W v| = 0``, so no gradient direction is "minor", it is absent.
    Singular values up to ``max(m, n) * eps64 * sigma_1`` count as zero. Naive ``svd(W)[-r:]``
    returns null vectors for rank-deficient weights.

    Args:
        W: (m, n) weight, any floating dtype.
        rank: r, 1 to the number of positive singular values.

    Returns:
        Subspace with U (m, r), S (r,) descending, V (n, r), in float64 if ``W`` is float64, else
        float32. The same bits every time at the same number of threads.

    Raises:
        ValueError: if ``W`` is not a finite real matrix, ``rank`` does not fit its shape, or ``W``
            has fewer than ``rank`` positive singular values.
    """
    return _subspaces(W, rank, ("bottom",))[0]


def both_subspaces(W: Float[Tensor, "m n"], rank: int) -> tuple[Subspace, Subspace]:
    """`top_subspace` and `bottom_subspace` of one matrix, sharing its Gram matrix.

    The same bits as the two calls, for less.

    Raises:
        ValueError: as the two.
    """
    top, bottom = _subspaces(W, rank, ("top", "bottom"))
    return top, bottom


def _subspaces(W: Tensor, rank: int, ends: tuple[End, ...]) -> list[Subspace]:
    """Each end by the first algorithm whose checks pass; each is noted in `records`."""
    largest = check_weight(W)
    check_rank(rank, (W.shape[0], W.shape[1]))
    with torch.autocast(W.device.type, enabled=False):
        found = _certified(W.detach(), largest, rank, ends)
    for end, subspace in zip(ends, found, strict=True):
        records.note(end, subspace)
    return found


def _certified(W: Tensor, largest: float, rank: int, ends: tuple[End, ...]) -> list[Subspace]:
    if W.dtype == torch.float64 or min(W.shape) <= _EXACT_SIDE or largest == 0.0:
        return [exact(W, end, rank) for end in ends]
    power = 0 if _SAFE[0] < largest < _SAFE[1] else -round(math.log2(largest))
    matrix = _Matrix(W, 2.0**power, shared=len(ends) > 1)
    return [_first_certified(matrix.attempts(end, rank), W, end, rank, -power) for end in ends]


class _Matrix:
    """One weight on its way down the ladder: what several attempts or ends share is kept."""

    def __init__(self, W: Tensor, scale: float, shared: bool) -> None:
        self.wide = W.shape[0] < W.shape[1]
        self.bf16 = holds_bf16(W)
        X = W.float()
        self.A = tall(X if scale == 1.0 else X * scale)
        self._shared = shared
        self._gram: Tensor | None = None
        self._spectra: dict[torch.dtype, full.Spectrum] = {}
        ready = records.ready(W) if scale == 1.0 else None
        if ready is not None:
            self._spectra[torch.float64] = ready

    def attempts(self, end: End, rank: int) -> Iterator[Attempt]:
        """The fast algorithms for this shape and end, in order."""
        p, k = self.A.shape
        single, double = torch.float32, torch.float64
        if self.A.is_cuda:
            yield full.path(double), partial(self._decomposition, end, rank, double)
        elif k <= _FULL_SIDE or k < _LANCZOS_SHARE * (rank + GUARDS):
            yield full.path(single), partial(self._decomposition, end, rank, single)
            yield full.path(double), partial(self._decomposition, end, rank, double)
        elif end == "bottom" and p == k:
            yield minor.square_path(single), partial(self._bottom_of_square, rank, single)
            yield minor.square_path(double), partial(self._bottom_of_square, rank, double)
        else:
            path = principal.PATH if end == "top" else minor.GRAM_PATH
            yield path, partial(self._by_gram, end, rank)
            yield full.path(double), partial(self._decomposition, end, rank, double)

    def _by_gram(self, end: End, rank: int) -> Subspace:
        G = self._gram if self._gram is not None else gram(self.A, bf16=self.bf16)
        self._gram = G.clone() if self._shared else None  # the algorithms overwrite theirs
        algorithm = principal.top if end == "top" else minor.bottom_of_gram
        return algorithm(self.A, G, rank, wide=self.wide)

    def _bottom_of_square(self, rank: int, dtype: torch.dtype) -> Subspace:
        return minor.bottom_of_square(self.A.to(dtype), rank, wide=self.wide)

    def _decomposition(self, end: End, rank: int, dtype: torch.dtype) -> Subspace:
        if dtype not in self._spectra:
            self._spectra[dtype] = full.spectrum(self.A, dtype, bf16=self.bf16)
        return full.end_of_spectrum(self.A, self._spectra[dtype], end, rank, wide=self.wide)


def _first_certified(
    attempts: Iterator[Attempt], W: Tensor, end: End, rank: int, power: int
) -> Subspace:
    """The first attempt that passes its checks, else the exact SVD; S times 2^power."""
    failed: list[str] = []
    for path, attempt in attempts:
        try:
            found = attempt()
        except (NotCertified, FloatingPointError, _NOT_CONVERGED) as reason:
            failed.append(f"{path}: {str(reason).splitlines()[0]}")
            continue
        S = found.S if power == 0 else found.S * 2.0**power
        return dataclasses.replace(found, S=S, replaced="; ".join(failed))
    return dataclasses.replace(exact(W, end, rank), replaced="; ".join(failed))


def _largest(W: Tensor) -> float:
    """The largest magnitude, or NaN or Inf if there is one, in one pass without a copy."""
    low, high = torch.aminmax(W.detach())
    return max(-float(low), float(high)) if not math.isnan(float(low)) else math.nan
