"""Starting factors of many weights at once: a pool of layers, one BLAS thread each.

Layers are independent, so this scales better than threads inside LAPACK; and because each layer is
computed by one thread, the factors are the same bits however many layers run side by side.
"""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch
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


def compute_all(
    items: Iterable[Item],
    load: Callable[[Item], Tensor],
    start: Callable[[Tensor, Item], Start],
    *,
    workers: int,
) -> Generator[tuple[Item, Start]]:
    """Starts of many weights, in the order in which they are done.

    The caller's thread loads the next weights while ``workers`` threads compute; at most one loaded
    weight waits. Closing the iterator early waits for the weights in work, no longer.

    Args:
        items: what to compute; similar shapes next to each other keep the workers in step.
        load: the weight of an item, called in the caller's thread.
        start: its start, called in a worker.
        workers: number of threads, each with one BLAS thread.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    pending: dict[Future[Start], Item] = {}
    try:
        for item in items:
            while len(pending) > workers:
                yield from _finished(pending)
            pending[pool.submit(start, load(item), item)] = item
        while pending:
            yield from _finished(pending)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


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


def _finished(pending: dict[Future[Start], Item]) -> list[tuple[Item, Start]]:
    """Wait for at least one, and take all that are done out of ``pending``."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    return [(pending.pop(future), future.result()) for future in done]


def module_seed(seed: int, name: str) -> int:
    """A seed that depends on the run's seed and the module's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little")


def default_workers(workspace: int = 0) -> int:
    """One per core this process may use, as far as half of the free memory holds their workspace.

    Args:
        workspace: bytes that one worker needs.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return max(1, min(cores, _free_memory() // 2 // max(workspace, 1)))


def _free_memory() -> int:
    """Bytes to be had, those of the page cache included; all there are, where that is unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = 1024 * int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _cgroup(name: str) -> str:
    """What this process's container says, e.g. ``"max"``; empty where there is none."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return ""


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
