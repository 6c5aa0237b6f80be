"""Starting factors of many weights at once."""

import hashlib
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from torch import Tensor

from orthora.linalg import decomposed, recorded
from orthora.methods import initialize, registry
from orthora.types import Certificate, Factors

Item = TypeVar("Item")
_BATCH = 8  # equal shapes decomposed together on a GPU: 24 bytes k^2 each


@dataclass(frozen=True)
class How:
    """What decides a start, besides the weight: method, rank and scale, seed."""

    method: str
    scale: float
    seed: int


@dataclass(frozen=True)
class Start:
    """Starting factors of one weight, and how they came about.

    Attributes:
        factors: A (r, n), B (m, r).
        certificates: of the singular subspaces used; empty for methods that use none.
        seconds: CPU time of the computation.
        norm: ``|B A|_F``, the size of what the anchor takes away; 0 without an anchor.
    """

    factors: Factors
    certificates: tuple[Certificate, ...]
    seconds: float
    norm: float


def compute(W: Tensor, name: str, rank: int, how: How) -> Start:
    """The start of one weight.

    Raises:
        ValueError: naming the module, if the weight or the rank won't do.
    """
    before = time.thread_time()
    seed = module_seed(how.seed, name)
    try:
        with recorded() as certificates:
            A, B = initialize(W, how.method, rank, scale=how.scale, seed=seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    norm = (A.double() @ A.double().mT * (B.double().mT @ B.double())).sum().clamp_min(0.0).sqrt()
    return Start(Factors(A, B), tuple(certificates), time.thread_time() - before, float(norm))


def compute_in_batches(
    items: Iterable[Item],
    load: Callable[[Item], Tensor],
    start: Callable[[Tensor, Item], Start],
    *,
    alike: Callable[[Item], object],
    method: str,
) -> Generator[tuple[Item, Start]]:
    """Starts of many weights on a GPU: decompositions of equal shapes are made together.

    Args:
        items: what to compute; those alike next to each other.
        load: the weight of an item, on the GPU.
        start: its start.
        alike: what is the same for items of one batch: their shape and device.
        method: name; a batch of decompositions is made only for methods that use one.
    """
    for _, group in groupby(items, key=alike):
        equal = list(group)
        for i in range(0, len(equal), _BATCH):
            weights = [(item, load(item)) for item in equal[i : i + _BATCH]]
            spectral = registry.get(method).spectral
            with decomposed([W for _, W in weights]) if spectral else nullcontext():
                for item, W in weights:
                    yield item, start(W, item)


def module_seed(seed: int, name: str) -> int:
    """A seed that depends on the run's seed and the module's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little")


def workspace(shape: tuple[int, int]) -> int:
    """Bytes that one weight (m, n) needs while it is computed: itself in float32, and k x k."""
    m, n = shape
    k = min(m, n)
    return 4 * m * n + 4 * 4 * k * k


def cost(shape: tuple[int, int]) -> int:
    """Work of one weight, up to a factor: its Gram matrix, and the rest on k x k."""
    m, n = shape
    k = min(m, n)
    return max(m, n) * k * k + 2 * k * k * k
