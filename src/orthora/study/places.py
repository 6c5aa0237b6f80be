"""Where cells run: processes on this machine, or tasks of a Ray cluster."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from orthora.pool import default_workers
from orthora.study import child
from orthora.study.job import Job

_SECONDS = 5.0
"""That a process has to say goodbye, and an address to answer."""


class Ended(NamedTuple):
    """A cell whose process has ended.

    Attributes:
        name: of the cell.
        lost: why it leaves no ending; None if it leaves one.
    """

    name: str
    lost: str | None


class Place(Protocol):
    """Where cells run."""

    @property
    def jobs(self) -> int:
        """How many cells it holds."""
        ...

    def room(self) -> int:
        """How many more cells can be started now."""
        ...

    def start(self, job: Job) -> None:
        """Begin a cell."""
        ...

    def ended(self) -> list[Ended]:
        """Cells that have ended since the last call."""
        ...

    def close(self) -> None:
        """End everything that still runs."""
        ...


class Local:
    """Processes on this machine."""

    def __init__(self, jobs: int, cpus: int, gpus: float) -> None:
        """Share the machine out.

        Args:
            jobs: cells at a time; 0 takes as many as cores, or GPUs, allow.
            cpus: cores per cell.
            gpus: GPUs per cell.

        Raises:
            ValueError: if a cell needs more GPUs than there are.
        """
        self._cpus = cpus
        self._devices = _devices(gpus)
        most = len(self._devices) if gpus else max(1, default_workers() // cpus)
        self.jobs = min(jobs, most) if jobs and gpus else jobs or most
        self._slots: dict[str, int] = {}
        self._running: dict[str, ForkServerProcess] = {}

    def room(self) -> int:
        """How many more cells can be started now."""
        return self.jobs - len(self._running)

    def start(self, job: Job) -> None:
        """Begin a cell, with GPUs of its own if it needs any."""
        if self._devices:
            slot = min(set(range(len(self._devices))) - set(self._slots.values()))
            self._slots[job.name] = slot
            job.environment["CUDA_VISIBLE_DEVICES"] = self._devices[slot]
        self._running[job.name] = child.start(job, self._cpus)

    def ended(self) -> list[Ended]:
        """Cells that have ended since the last call."""
        done = [name for name, process in self._running.items() if not process.is_alive()]
        return [Ended(name, child.why_lost(self._forget(name))) for name in done]

    def _forget(self, name: str) -> ForkServerProcess:
        self._slots.pop(name, None)
        return self._running.pop(name)

    def close(self) -> None:
        """End everything that still runs."""
        for process in self._running.values():
            child.stop(process, _SECONDS)
        self._running.clear()


def _devices(gpus: float) -> list[str]:
    """For every place on a GPU, or on several, what CUDA_VISIBLE_DEVICES must be there."""
    if not gpus:
        return []
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(n) for n in range(torch.cuda.device_count())]
    if gpus < 1 and names:
        return [name for name in names for _ in range(int(1 / gpus))]
    each = max(1, int(gpus))
    groups = [",".join(names[n : n + each]) for n in range(0, len(names) - each + 1, each)]
    if not groups:
        raise ValueError(
            f"a cell needs {gpus:g} GPUs, and this machine has {len(names)}; run it with --ray on "
            "a cluster that has them, or lower gpus in the study"
        )
    return groups


class Cluster:
    """Tasks of an existing Ray cluster, whose nodes share a file system and have orthora."""

    def __init__(self, address: str, cpus: int, gpus: float) -> None:
        """Join it.

        Args:
            address: ``HOST:PORT`` of its head, ``ray://HOST:PORT``, or ``auto``.
            cpus: cores per cell.
            gpus: GPUs per cell.

        Raises:
            ValueError: if Ray is not installed, or nothing answers.
        """
        try:
            import ray
        except ImportError as error:
            raise ValueError("--ray needs Ray; pip install 'orthora[ray]'") from error
        self._ray = ray
        self._needs: dict[str, float] = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        _check_answers(address)
        variables = {k: v for k, v in os.environ.items() if k.startswith(("HF_", "ORTHORA_"))}
        try:
            ray.init(
                address,
                namespace="orthora",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"no Ray cluster answers at {address!r}: {line}; start one with ray start --head, "
                "or leave --ray out"
            ) from error
        self._task = ray.remote(_in_task).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=0, name="orthora cell"
        )
        self._running: dict[Any, str] = {}
        self._cpus = cpus
        self._told = False

    @property
    def jobs(self) -> int:
        """How many cells all its nodes hold together, at least 1: a node may come."""
        total = self._ray.cluster_resources()
        held = int(min(total.get(kind, 0) / need for kind, need in self._needs.items()))
        if not held and not self._told:
            self._told = True
            needs = ", ".join(f"{need:g} {kind}" for kind, need in self._needs.items())
            print(f"the cluster has no room for a cell ({needs}); waiting for a node", flush=True)
        return max(1, held)

    def room(self) -> int:
        """How many more cells can be handed over; a few wait there for a node that comes."""
        return self.jobs + 2 - len(self._running)

    def start(self, job: Job) -> None:
        """Hand a cell over."""
        where = str(Path.cwd())
        self._running[self._task.remote(job, self._cpus, where)] = job.name

    def ended(self) -> list[Ended]:
        """Cells that have ended since the last call; of a node that died, they are lost."""
        if not self._running:
            return []
        tasks = list(self._running)
        done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
        return [Ended(self._running.pop(task), self._why(task)) for task in done]

    def _why(self, task: Any) -> str | None:
        from ray.exceptions import RayError

        try:
            return self._ray.get(task)
        except RayError as error:
            line = (str(error).splitlines() or [""])[0]
            return f"Ray lost it ({type(error).__name__}: {line[:160]})"

    def close(self) -> None:
        """End everything that still runs there, and leave the cluster."""
        for task in self._running:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _check_answers(address: str) -> None:
    """Ask whether anything listens, as Ray itself waits for minutes.

    Raises:
        ValueError: if nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdigit():
        raise ValueError(f"Ray address {address!r} is not HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r}: {error}; start one with ray start --head, or "
            "leave --ray out"
        ) from error


def _in_task(job: Job, cpus: int, where: str) -> str | None:
    """In a Ray worker: the cell in a process of its own, as on one machine."""
    os.chdir(where)
    if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
        job.environment["CUDA_VISIBLE_DEVICES"] = devices
    process = child.start(job, cpus)
    try:
        process.join()
    finally:
        child.stop(process, _SECONDS)
    return child.why_lost(process)


@contextlib.contextmanager
def closing(place: Place) -> Iterator[Place]:
    """A place that is left in any case."""
    try:
        yield place
    finally:
        place.close()
