"""The processes of a run: who they are, what they tell each other, and the traps of launchers."""

import atexit
import gc
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import PartialState
from torch import distributed

Value = TypeVar("Value")
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_BACKENDS = r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket"
_HOURS = 6  # that a process may wait for the others: rollouts are long, and evaluation runs on one


class LostProcess(ConnectionError):
    """Another process of the run died or failed."""


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """``value`` of every process, by rank; every process must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _clear_errors():
            distributed.all_gather_object(values, value)
        return values

    def from_main(self, value: Value | None) -> Value:
        """The main process's ``value``, everywhere; every process must call it."""
        if self.size == 1:
            assert value is not None, "the main process has a value"
            return value
        told: list[Any] = [value]
        with _clear_errors():
            distributed.broadcast_object_list(told, src=0)
        return told[0]

    def clear_errors(self) -> AbstractContextManager[None]:
        """Inside, where a backend says that it lost a process, `LostProcess` says so instead."""
        return _clear_errors(_BACKENDS) if self.size > 1 else nullcontext()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block together: an error in one process is an error in all.

        Raises:
            LostProcess: where another process failed, with its reason.
        """
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:
            failure = error
        reasons = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise LostProcess(f"process {rank} failed: {reason}")


def is_first() -> bool:
    """Whether this is the process that speaks: the only one, or rank 0 of the launcher's."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str, expected: int) -> World:
    """Take part in the run that the launcher started.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        expected: number of processes that the config asks for; 0 takes any.

    Raises:
        ValueError: if it is another number, or the launcher started fewer than it was asked for.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    alone = not any(name in os.environ for name in ("WORLD_SIZE", *_MPI))
    if alone and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys():
        raise ValueError(
            "accelerate launch was asked for several processes and started one, as it does on "
            "CPUs; start them with: torchrun --nproc_per_node N -m orthora train ..."
        )
    if asked > 1:
        state = PartialState(cpu=device == "cpu", timeout=timedelta(hours=_HOURS))
        world = World(state.process_index, state.num_processes)
        atexit.unregister(_leave)  # once, however many runs
        atexit.register(_leave)
    else:
        world = World()
    if world.size != asked:
        raise ValueError(
            f"the launcher asked for {asked} processes, and {world.size} joined; start them with "
            "torchrun --nproc_per_node"
        )
    if expected and world.size != expected:
        raise ValueError(
            f"the config asks for {expected} processes, and this run has {world.size}; start it "
            f"with: torchrun --nproc_per_node {expected} -m orthora train ..."
        )
    return world


def _leave() -> None:
    """End the backend's threads while the interpreter is whole.

    Those left to its teardown have ended a finished process in "terminate called without an active
    exception", for which torchrun then ends the other processes.
    """
    gc.collect()  # trainers of runs that are over hold the group
    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_engine(accelerator: Any) -> None:
    """Refuse a sharding engine that was asked for and is not there: accelerate only trains slower.

    Raises:
        ValueError: naming the engine.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    for name, wanted in (("FSDP", "FSDP"), ("DEEPSPEED", "DEEPSPEED")):
        asked = os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"
        if asked and kind != wanted:
            raise ValueError(
                f"the launcher asked for {name}, and the run would be {kind}: {name} needs GPUs; "
                "start it there, or without that setting"
            )


@contextmanager
def _clear_errors(words: str = "") -> Iterator[None]:
    """One line instead of a backend's stack where another process is gone.

    Args:
        words: pattern that tells the backend's errors from others.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search(words, str(error), re.IGNORECASE):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LostProcess(
            f"another process of the run is gone ({line[:120]}); its own output says why. Start "
            "the run again with --resume"
        ) from error
