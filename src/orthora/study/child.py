"""A cell in a process of its own, which ends with the process that asked for it.

Processes are forked from one server that has imported everything and computed nothing: a cell
starts within a fraction of a second, in a state that no cell before it has touched.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from orthora.study.job import LOG, Job, run_job

_STALLED = 75
"""Exit code of a cell that has written nothing for too long."""


def start(job: Job, threads: int) -> ForkServerProcess:
    """Begin a cell.

    Args:
        job: the cell.
        threads: CPU threads, unless its config says another number.

    Returns:
        The process; `why_lost` reads its end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orthora.study.preload"])
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    try:
        process = context.Process(target=_main, args=(job, threads), name=job.name, daemon=False)
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def stop(process: ForkServerProcess, patience: float) -> None:
    """End a cell's process and all that it has started; after some seconds by force."""
    if process.pid is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.is_alive():
            _signal(process.pid, number)
            process.join(patience)
    _signal(process.pid, signal.SIGKILL)  # what it has left behind


def why_lost(process: ForkServerProcess) -> str | None:
    """Why a process that has ended leaves no ending of its cell; None if it leaves one."""
    code = process.exitcode
    if process.pid is not None:
        _signal(process.pid, signal.SIGKILL)
    if code == 0:
        return None
    if code == _STALLED:
        return "it wrote nothing for as long as stalled_after says"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return f"its process ended with exit code {code}"


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _main(job: Job, threads: int) -> None:
    """In the new process: a group of its own, its output in the cell's log."""
    os.setsid()
    os.environ |= job.environment | {"OMP_NUM_THREADS": str(threads)}
    _follow_parent()
    job.cell.mkdir(parents=True, exist_ok=True)
    with (job.cell / LOG).open("a", buffering=1, encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    if job.stalled_after is not None:
        _end_when_stalled(job, job.stalled_after * 60)
    from orthora.quiet import quiet_libraries, short_warnings
    from orthora.signals import terminable

    quiet_libraries()
    import torch

    torch.set_num_threads((job.config or {}).get("threads") or threads)
    with short_warnings(), terminable("the study goes on with the same command"):
        try:
            run_job(job)
        except KeyboardInterrupt as error:
            print(error, file=sys.stderr)
            sys.exit(130)


def _follow_parent() -> None:
    """End, with all that was started here, as soon as the parent is gone, however it went."""
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="follow parent").start()


def _end_when_stalled(job: Job, seconds: float) -> None:
    """End as soon as nothing in the run's folder or the log has changed for some seconds."""

    def watch() -> None:
        before, since = None, time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(min(seconds / 10, 5.0))
            if (now := _written(job)) != before:
                before, since = now, time.monotonic()
        print(f"nothing was written for {seconds / 60:g} minutes; ending", file=sys.stderr)
        os._exit(_STALLED)

    threading.Thread(target=watch, daemon=True, name="progress").start()


def _written(job: Job) -> set[tuple[str, int, int]]:
    """Size and time of everything that a cell writes while it goes on."""
    found = set()
    for file in (job.cell / LOG, *job.run.glob("*"), *job.run.glob("*/*")):
        try:
            status = file.stat()
        except FileNotFoundError:  # just replaced
            continue
        found.add((str(file), status.st_size, status.st_mtime_ns))
    return found
