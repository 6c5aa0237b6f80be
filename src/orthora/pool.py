"""Work on many weights at once: a pool of threads, each with one BLAS thread.

Layers are independent, so this scales better than threads inside LAPACK; and because each layer is
computed by one thread, the results are the same bits however many layers run side by side.
"""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def compute_all(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    work: Callable[[Loaded, Item], Result],
    *,
    workers: int,
) -> Generator[tuple[Item, Result]]:
    """Results for many weights, in the order in which they are done.

    The caller's thread loads the next weights while ``workers`` threads compute; at most one loaded
    weight waits. Closing the iterator early waits for the weights in work, no longer.

    Args:
        items: what to compute; similar shapes next to each other keep the workers in step.
        load: the weight of an item, called in the caller's thread.
        work: what is computed of it, called in a worker.
        workers: number of threads, each with one BLAS thread.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    pending: dict[Future[Result], Item] = {}
    try:
        for item in items:
            while len(pending) > workers:
                yield from _finished(pending)
            pending[pool.submit(work, load(item), item)] = item
        while pending:
            yield from _finished(pending)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _finished(pending: dict[Future[Result], Item]) -> list[tuple[Item, Result]]:
    """Wait for at least one, and take all that are done out of ``pending``."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    return [(pending.pop(future), future.result()) for future in done]


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
