"""The numbers of one weight: the base's, and those of every moment's update."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from orthora.adapters.saved import Rows
from orthora.linalg import product_rows, smallest_mask, smallest_of
from orthora.linalg.geometry import (
    changed_entries,
    effective_rank,
    energy_shares,
    input_energy,
    overlaps,
    projector_distance,
    row_alignment,
    similarity,
    stable_rank,
)
from orthora.linalg.updates import Update
from orthora.linalg.whole import Change, Whole, decompose

_GRID = 64  # points of the cumulative energy
_UPDATE_VALUES = 64  # singular values of dW that are kept

Value = tuple[str, float, float]
"""Quantity, place in its series (NaN for a single number), value."""


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        head: dimension of the leading and the last subspace that are looked at, and rank of the
            reconstruction behind M_princ; at most what a weight has.
        mask_share: share of the entries in M_princ and in M_low.
        exact: find all singular values after the update, also of large weights.
    """

    head: int = 16
    mask_share: float = 0.3
    exact: bool = False


class State(NamedTuple):
    """One moment of one run at this weight: its update, and its factors where it has some."""

    update: Update
    rows: Rows | None


class Weight:
    """One weight, decomposed once for all the updates of it."""

    def __init__(self, W: Tensor, options: Options) -> None:
        """Decompose.

        Args:
            W: (m, n).
            options: how to measure.

        Raises:
            ValueError: if it is not finite.
        """
        self.W, self.rounded = W, W.to(torch.bfloat16)
        self.options = options
        self.whole: Whole = decompose(W)
        self.head = min(options.head, self.whole.rank)
        self._ends: tuple[Tensor, Tensor] | None = None
        self.top, self.bottom = self.ends(self.head)
        left = self.whole.left(self.whole.top(self.head)) * self.whole.S[: self.head]
        princ = product_rows(left.float(), self.top.mT.float())
        self.princ = ~smallest_of(princ, W.numel(), 1 - options.mask_share)
        self.low = smallest_mask(W, options.mask_share)

    def ends(self, q: int) -> tuple[Tensor, Tensor]:
        """(n, q) leading and last right singular vectors of W."""
        if self._ends is None or self._ends[0].shape[1] < q:
            most = min(max(q, 2 * self.options.head), self.whole.rank)
            columns = self.whole.top(most), self.whole.bottom(most)
            self._ends = self.whole.right(columns[0]), self.whole.right(columns[1])
        top, bottom = self._ends
        return top[:, :q], bottom[:, bottom.shape[1] - q :]

    def base(self) -> Iterator[Value]:
        """Numbers of the base weight itself."""
        yield _one("weight_norm", self.whole.norm)
        yield _one("weight_stable_rank", stable_rank(self.whole.S))
        yield _one("weight_effective_rank", effective_rank(self.whole.S))
        yield from _series("sigma", self.whole.S)

    def numbers(self, state: State, end: Tensor) -> Iterator[Value]:
        """Numbers of one moment.

        Args:
            state: the moment's.
            end: (n, q) leading right vectors of the run's last update, from `inputs`.
        """
        update = state.update
        yield from self._sizes(update)
        if not self.whole.rank:  # a weight of zeros has no directions
            return
        change = Change(self.whole, update)
        yield from self._places(update, change.along())
        yield from self._after(change)
        yield from self._entries(update)
        if state.rows is not None:
            yield from self._rows(state.rows)
        alike = similarity(self.inputs(update), end)
        if alike is not None:
            yield _one("subspace_similarity", alike)

    def inputs(self, update: Update) -> Tensor:
        """(n, q) leading right singular vectors of an update, q at most the head's dimension."""
        return update.inputs(self.head)

    def _sizes(self, update: Update) -> Iterator[Value]:
        values = update.values()
        norm = float(torch.linalg.vector_norm(values))
        yield _one("update_norm", norm)
        if self.whole.rank:
            yield _one("update_relative", norm / self.whole.norm)
        yield _one("update_spectral", float(values[0]))
        yield _one("stable_rank", stable_rank(values))
        yield _one("effective_rank", effective_rank(values))
        yield from _series("update_sigma", values[:_UPDATE_VALUES])

    def _places(self, update: Update, along: Tensor) -> Iterator[Value]:
        """Where the update lies in the spectrum of W."""
        shares = energy_shares(along)
        k, rank = len(shares), self.whole.rank
        yield from _series("energy", shares[: self.head])
        last = max(self.head, rank - self.head)
        yield from _series("energy", shares[last:rank], first=last + 1)
        cumulative = shares.cumsum(0)
        for point in range(_GRID + 1):
            count = round(point * k / _GRID)
            reached = float(cumulative[count - 1]) if count else 0.0
            yield "energy_cumulative", point / _GRID, reached
        head = input_energy(update, self.top)
        yield from _series("alignment", head.sqrt())
        yield _one("head_energy", float(head.sum()))
        yield _one("tail_energy", float(input_energy(update, self.bottom).sum()))
        yield _one("chance_energy", self.head / self.W.shape[1])

    def _after(self, change: Change) -> Iterator[Value]:
        """The leading values and subspaces of W + dW."""
        after = change.moved(self.head, exact=self.options.exact)
        before = self.whole.S[: self.head]
        yield from _series("sigma_shift", (after.values - before) / before)
        for side, angles in (("left", after.left), ("right", after.right)):
            yield from _series(f"angle_{side}", angles.rad2deg())
            yield _one(f"projector_{side}", projector_distance(angles))
        if after.shift is not None:
            yield _one("nss", after.shift)
        yield _one("nss_low", after.shift_low)
        yield _one("nss_high", after.shift_high)

    def _entries(self, update: Update) -> Iterator[Value]:
        """Entries that a merge into bfloat16 would change, and where they are."""
        met = overlaps(changed_entries(self.W, update, self.rounded), self.princ, self.low)
        yield _one("changed", met[0].changed)
        for name, one in zip(("princ", "low"), met, strict=True):
            if one.overlap is not None and one.lift is not None:
                yield _one(f"{name}_overlap", one.overlap)
                yield _one(f"{name}_lift", one.lift)

    def _rows(self, rows: Rows) -> Iterator[Value]:
        """What A reads, and how it started."""
        r = min(len(rows.A), self.whole.rank)
        for name, V in zip(("top", "bottom"), self.ends(r), strict=True):
            yield _one(f"row_alignment_{name}", row_alignment(rows.A, V))
        if rows.A0 is not None:
            yield _one("row_space_kept", _kept(rows.A, rows.A0))
            if rows.B0 is not None:
                product = torch.linalg.multi_dot([rows.B0.double().mT, rows.B0.double()])
                gram = rows.A0.double() @ rows.A0.double().mT
                yield _one("start_norm", float((product * gram).sum().clamp_min(0.0).sqrt()))


def _kept(A: Tensor, A0: Tensor) -> float:
    """Mean squared cosine between two row spaces of equal dimension."""
    now, then = (torch.linalg.qr(X.double().mT)[0] for X in (A, A0))
    return float(((now.mT @ then) ** 2).sum()) / len(A)


Moments = Mapping[str, Sequence[Callable[[], State]]]
"""How to read the moments of every run, in order; one at a time is in memory."""


def values_of(W: Tensor, runs: Moments, options: Options) -> Iterator[tuple[str, int, Value]]:
    """All numbers of one weight.

    Args:
        W: (m, n) the base's weight.
        runs: what to read.
        options: how to measure.

    Yields:
        Run (empty for the base), index of the moment, and the value.
    """
    weight = Weight(W, options)
    for value in weight.base():
        yield "", 0, value
    for run, states in runs.items():
        last = states[-1]()
        end = weight.inputs(last.update)
        for index, read in enumerate(states[:-1]):
            for value in weight.numbers(read(), end):
                yield run, index, value
        for value in weight.numbers(last, end):
            yield run, len(states) - 1, value


def _one(quantity: str, value: float) -> Value:
    return quantity, math.nan, value


def _series(quantity: str, values: Tensor, first: int = 1) -> Iterator[Value]:
    for place, value in enumerate(values.tolist(), start=first):
        yield quantity, float(place), value
