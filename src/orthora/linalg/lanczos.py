"""Block Lanczos with full reorthogonalisation, for the largest eigenvalues of a symmetric operator.

Golub and Underwood 1977; Golub and Van Loan, Matrix Computations, section 10.3. A small block (16)
gives a higher polynomial degree per product than a block of the wanted size: the same accuracy
with about half the products.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.products import product

BLOCK = 16
_BASIS = 7  # basis vectors per wanted vector before a thick restart
_SMALL_BASIS = 256  # and at least so many: they cost little
_KEEP = 0.6  # of them, kept by it
_CHEAP_LOOK = 128  # basis vectors up to which a look costs less than a product
_RATE = 1.2  # nats per block step, the decay to expect of the estimate before it was seen
_DEFICIENT = 1e-5  # of the operator's norm: a new direction this small is mostly rounding


@dataclass(frozen=True)
class Ritz:
    """What a run found.

    Attributes:
        values: Ritz values, descending, all of the basis.
        vectors: (k, wanted) Ritz vectors of the largest ones, orthonormal to rounding.
        smallest: (k, b) Ritz vectors of the b smallest values.
        sine: estimate of the sine of the angle to the true subspace; optimistic while the
            neighbours of the group are not resolved.
        steps: block products used.
    """

    values: Float[Tensor, " j"]
    vectors: Float[Tensor, "k wanted"]
    smallest: Float[Tensor, "k b"]
    sine: float
    steps: int


class _Basis:
    """The orthonormal Krylov basis Q and the projection T = Q' M Q."""

    def __init__(self, start: Tensor, size: int) -> None:
        k, self.block = start.shape
        self.Q = start.new_empty(size + self.block, k).mT  # column-major: a block is contiguous
        self.T = start.new_zeros(size, size)
        self.Q[:, : self.block] = torch.linalg.qr(start)[0]
        self.coupling = start.new_zeros(self.block, self.block)
        self.used = 0
        self.restarted = False

    def extend(self, apply: Callable[[Tensor], Tensor]) -> None:
        """One block step: orthogonalise first against its neighbours in T, then against all."""
        b, s = self.block, self.used
        e = s + b
        Z = apply(self.Q[:, s:e])
        first = 0 if self.restarted else max(0, s - b)
        near, everything = self.Q[:, first:e], self.Q[:, :e]
        h = product(near.mT, Z)
        Z = Z - product(near, h)
        correction = product(everything.mT, Z)
        Z -= product(everything, correction)
        h += correction[first:]
        self.T[first:e, s:e] = h
        self.T[s:e, first:s] = h[:-b].mT
        self.T[s:e, s:e] = 0.5 * (h[-b:] + h[-b:].mT)
        new, self.coupling = torch.linalg.qr(Z)
        if float(self.coupling.diagonal().abs().min()) < _DEFICIENT * float(self.T[:b, :b].norm()):
            new -= everything @ (everything.mT @ new)  # rounding, now orthogonal: a fresh start
            new = torch.linalg.qr(new)[0]
        self.Q[:, e : e + b] = new
        self.used, self.restarted = e, False

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, descending, and their coordinates in the basis."""
        values, Y = torch.linalg.eigh(self.T[: self.used, : self.used])
        return values.flip(0), Y.flip(1)

    def restart(self, values: Tensor, Y: Tensor, keep: int) -> None:
        """Keep the ``keep`` largest Ritz vectors and the newest block (Wu and Simon 2000)."""
        e, b = self.used, self.block
        newest = self.Q[:, e : e + b].clone()
        self.Q[:, :keep] = product(self.Q[:, :e], Y[:, :keep])
        self.Q[:, keep : keep + b] = newest
        self.T.zero_()
        self.T[:keep, :keep] = torch.diag(values[:keep])
        self.used, self.restarted = keep, True


def block_lanczos(
    apply: Callable[[Tensor], Tensor],
    start: Float[Tensor, "k b"],
    wanted: int,
    *,
    group: int,
    tolerance: float,
    most: int,
    least: int = 1,
    relative_gap: float = 2e-3,
) -> Ritz:
    """The ``group`` largest eigenvalues of a symmetric operator, and guards beyond them.

    Stops when the residuals over the gaps of the group fall under ``tolerance``; the number of
    steps to the next look is extrapolated from the last two, because a look costs as much as
    several products.

    Args:
        apply: the operator M on a (k, b) block.
        start: (k, b) block, b columns of full rank.
        wanted: number of Ritz vectors to return, at least ``group``.
        group: size of the group whose convergence counts.
        tolerance: on the estimated sine.
        most: block steps at most.
        least: block steps before the first look.
        relative_gap: a gap under this share of the group's last value counts as this large: a
            group without a gap is not chased.

    Returns:
        Ritz pairs and the estimate.

    Raises:
        FloatingPointError: if the operator overflows.
    """
    b = start.shape[1]
    size = min(start.shape[0] // b, math.ceil(max(_BASIS * wanted, _SMALL_BASIS) / b)) * b
    if size + b > start.shape[0]:  # the basis fills the space: there is nothing to restart with
        most = min(most, size // b)
    basis = _Basis(start, size)
    steps, look = 0, max(least, math.ceil((wanted + 1) / b))
    history: list[tuple[int, float]] = []
    while True:
        look = min(look, most, steps + (size - basis.used) // b)
        while steps < look:
            basis.extend(apply)
            steps += 1
        values, Y = basis.ritz()
        sine = _sine(values, basis.coupling @ Y[-b:], group, relative_gap)
        if math.isnan(sine):
            raise FloatingPointError("NaN in the Krylov basis")
        history.append((look, math.log(max(sine, 1e-30))))
        if sine <= tolerance or look >= most:
            break
        look = _next_look(history, math.log(tolerance)) if look * b > _CHEAP_LOOK else look + 1
        if basis.used == size:
            basis.restart(values, Y, int(_KEEP * size) // b * b)
    Q = basis.Q[:, : basis.used]
    return Ritz(values, product(Q, Y[:, :wanted]), product(Q, Y[:, -b:]), sine, steps)


def _sine(values: Tensor, residuals: Tensor, group: int, relative_gap: float) -> float:
    """Residuals over gaps, Davis and Kahan, with the next Ritz value as the group's neighbour."""
    if values.numel() <= group:
        return math.inf if values.numel() < residuals.shape[1] else 0.0
    edge = float(values[group - 1])
    gaps = (values[:group] - values[group]).clamp_min(max(relative_gap * edge, 1e-30))
    return float((residuals[:, :group].norm(dim=0) / gaps).norm())


def _next_look(history: list[tuple[int, float]], target: float) -> int:
    """Where the estimate should reach the target; before it falls, half as many steps again."""
    step, now = history[-1]
    if now > 0.0:
        return step + math.ceil(step / 2)
    rate = _RATE
    if len(history) > 1 and now < history[-2][1] <= 0.0:
        rate = (history[-2][1] - now) / (step - history[-2][0])
    return step + min(max(1, math.ceil((now - target) / rate)), math.ceil(step / 2))
