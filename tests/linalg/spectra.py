"""Weights of known kinds and spectra, and what LAPACK's SVD in float64 says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

KINDS = ("mp", "llm", "spiky")
_SPIKE = {"llm": 6.0, "spiky": 60.0}  # sigma_1 over the edge of the bulk


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@lru_cache(maxsize=32)
def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed, dtype=torch.float64))[0]


@lru_cache(maxsize=32)
def weight(kind: str, m: int, n: int, seed: int = 0) -> Tensor:
    """A float32 weight.

    ``"mp"`` is Gaussian; ``"llm"`` has Student-t entries, log-normal row and column scales, and
    min(m, n) / 4 power-law spikes, sigma_1 about six times the edge of the bulk; ``"spiky"`` sixty
    times.
    """
    Z = normal(m, n, seed=seed)
    if kind == "mp":
        return 0.02 * Z
    heavy = normal(4, m, n, seed=seed + 1).square().mean(dim=0).sqrt()
    rows, columns = (torch.exp(0.3 * normal(d, seed=seed + 2)) for d in (m, n))
    bulk = 0.02 * Z / heavy * rows[:, None] * columns
    count = min(m, n) // 4
    spikes = _SPIKE[kind] * 0.02 * (m**0.5 + n**0.5) * torch.arange(1, count + 1) ** -0.8
    U, V = orthonormal(m, count, seed + 3), orthonormal(n, count, seed + 4)
    return bulk + ((U * spikes) @ V.mT).float()


def with_spectrum(values: Sequence[float] | Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values, k of them, and random singular vectors."""
    S = torch.as_tensor(values, dtype=torch.float64)
    return (orthonormal(m, len(S), seed) * S) @ orthonormal(n, len(S), seed + 1).mT


@dataclass(frozen=True)
class Truth:
    """The thin SVD of X (float64); ``positive`` singular values are not zero to rounding."""

    X: Tensor

    @cached_property
    def S(self) -> Tensor:
        m, n = self.X.shape
        return torch.linalg.svdvals(self.X if m >= n else self.X.mT.contiguous())

    @cached_property
    def _vectors(self) -> tuple[Tensor, Tensor]:
        U, _, V = thin_svd(self.X)
        return U, V

    @property
    def U(self) -> Tensor:
        return self._vectors[0]

    @property
    def V(self) -> Tensor:
        return self._vectors[1]

    @property
    def positive(self) -> int:
        zero = max(self.X.shape) * torch.finfo(torch.float64).eps * float(self.S[0])
        return int((zero < self.S).sum())

    def inside(self, end: str, rank: int) -> slice:
        return slice(0, rank) if end == "top" else slice(self.positive - rank, self.positive)

    def values(self, end: str, rank: int) -> Tensor:
        return self.S[self.inside(end, rank)]

    def energy(self, end: str, rank: int) -> float:
        return float(self.values(end, rank).square().sum())

    def missed(self, end: str, V: Tensor, *, left: bool = False) -> float:
        """Energy that the span of right (or left) vectors misses, relative; never negative."""
        images = (self.X.mT if left else self.X) @ torch.linalg.qr(V.double())[0]
        own, true = float(images.square().sum()), self.energy(end, V.shape[1])
        return (true - own) / true if end == "top" else (own - true) / true

    def rounding(self, end: str, rank: int) -> float:
        """What rounding V to float32 may add to `missed`: noise of 2^-24 in every direction."""
        noise = rank * 2.0**-48 * float(self.X.square().sum()) / len(self.S)
        return 1e-12 + noise / self.energy(end, rank)

    def gap(self, end: str, rank: int) -> float:
        """Distance of the group's last singular value to the next, over that last one."""
        span = self.inside(end, rank)
        edge = span.stop - 1 if end == "top" else span.start
        outside = edge + 1 if end == "top" else edge - 1
        if not 0 <= outside < len(self.S):
            return 1.0
        return float((self.S[edge] - self.S[outside]).abs() / self.S[edge])

    def sine(self, end: str, V: Tensor, *, left: bool = False) -> float:
        """Sine of the largest angle to the true right (or left) vectors."""
        true = (self.U if left else self.V)[:, self.inside(end, V.shape[1])]
        Q = torch.linalg.qr(V.double())[0]
        return float(torch.linalg.matrix_norm(Q - true @ (true.mT @ Q), ord=2))


def truth(W: Tensor) -> Truth:
    return Truth(W.double())


def thin_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V in the dtype of W, on the tall orientation, where LAPACK is faster."""
    if W.shape[0] >= W.shape[1]:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return U, S, Vh.mT
    V, S, Uh = torch.linalg.svd(W.mT.contiguous(), full_matrices=False)
    return Uh.mT, S, V
