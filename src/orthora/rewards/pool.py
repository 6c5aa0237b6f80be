"""Symbolic comparison in processes that can be killed.

Math-Verify guards itself with SIGALRM: that works on the main thread only, disturbs a caller's
alarm, and cannot interrupt one long operation on integers. Here it runs in a few worker processes
instead. Whoever asks waits at most `TIMEOUT`; a worker that takes longer is killed and replaced.

The workers are fresh interpreters (`worker.py`), never forks: the parent may have torch loaded and
threads running. They start with the first question, serve every thread, end with the parent however
that ends, and belong to one process: a forked child starts its own.
"""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection
from pathlib import Path

WORKERS = 2
"""Processes of the shared pool."""
TIMEOUT = 2.0
"""Seconds for parsing gold and answer and comparing them; most comparisons need hundredths."""
MEMORY = 1 << 30
"""Bytes of address space of a worker; it starts with about 60 MB."""
STARTUP = 120.0
"""Seconds in which a worker must have loaded Math-Verify, on however busy a machine."""

ENDED = "symbolic error: the worker ended"
"""The reason where a process ended in the middle: killed, or out of memory."""

_SCRIPT = Path(__file__).with_name("worker.py")


class WorkersError(RuntimeError):
    """No worker can be had; that says nothing about an answer."""


class Worker:
    """One process that compares expressions; started here, ready a moment later.

    Args:
        timeout: seconds for one comparison.
        memory: bytes of its address space.
    """

    def __init__(self, timeout: float, memory: int) -> None:
        self.timeout = timeout
        self._ready = False
        inputs, outputs = os.pipe(), os.pipe()
        self._requests = Connection(inputs[1], readable=False)
        self._replies = Connection(outputs[0], writable=False)
        try:
            self.process = subprocess.Popen(
                # -P: the folder of worker.py must not come before the standard library
                [sys.executable, "-P", _SCRIPT, str(os.getpid()), str(memory), str(timeout)],
                stdin=inputs[0],
                stdout=outputs[1],
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONHASHSEED": "0"},  # sympy's orders follow hashes
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        except BaseException:
            self.forget()
            raise
        finally:
            os.close(inputs[0])
            os.close(outputs[1])

    def alive(self) -> bool:
        """Say whether the process can be asked.

        Returns:
            True while it runs.
        """
        return not self._requests.closed and self.process.poll() is None

    def wait(self) -> str:
        """Wait until the process has loaded Math-Verify.

        Returns:
            "" once it is ready, else why it is not; then it has been killed.
        """
        if self._ready:
            return ""
        problem = "it ended"
        with contextlib.suppress(EOFError, OSError):
            if self._replies.poll(STARTUP):
                problem = json.loads(self._replies.recv_bytes())
            else:
                problem = f"it was not ready in {STARTUP:g} s"
        self._ready = problem == "symbolically equal"
        if not self._ready:
            self.kill()
            return problem
        return ""

    def equal(self, answer: str, gold: str) -> tuple[bool, str]:
        """Compare two expressions; kill the process if that takes too long or breaks it.

        Args:
            answer: LaTeX without math delimiters.
            gold: likewise.

        Returns:
            Whether they are equal, and why.
        """
        try:
            self._requests.send_bytes(json.dumps([answer, gold]).encode())
            if self._replies.poll(self.timeout):
                equal, reason = json.loads(self._replies.recv_bytes())
                return equal, reason
            self.kill()
            return False, "symbolic timeout"
        except (EOFError, OSError):  # what the memory limit looks like from here
            self.kill()
            return False, ENDED
        except BaseException:  # Ctrl-C: the reply that is still to come must reach nobody
            self.kill()
            raise

    def kill(self) -> None:
        """End the process and collect it."""
        self.process.kill()
        self.process.wait()
        self.forget()

    def forget(self) -> None:
        """Close this side of the pipes; an idle process then ends by itself."""
        self._requests.close()
        self._replies.close()


class Pool:
    """Workers that any thread may ask; each is started when it is first needed.

    Args:
        workers: processes at most.
        timeout: seconds for one comparison.
        memory: bytes of address space of each process.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(
        self, workers: int = WORKERS, *, timeout: float = TIMEOUT, memory: int = MEMORY
    ) -> None:
        if min(workers, timeout, memory) <= 0:
            raise ValueError(
                f"workers is {workers}, timeout {timeout}, memory {memory}; all must be positive"
            )
        self.workers, self.timeout, self.memory = workers, timeout, memory
        self.reset()
        _POOLS.add(self)

    def reset(self) -> None:
        """Start anew with no processes; those there were are neither used nor killed.

        A forked child calls it. The pipes are closed here, so they stay the parent's alone.
        """
        for worker in getattr(self, "_all", ()):
            worker.forget()
            worker.process.returncode = 0  # the parent's to collect; Popen would warn
        self._all: set[Worker] = set()
        self._closed = False
        self._slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._slots.put(None)

    def equal(self, answer: str, gold: str) -> tuple[bool, str]:
        """Compare two expressions in whichever process is free; may be called from any thread.

        Args:
            answer: LaTeX without math delimiters.
            gold: likewise.

        Returns:
            Whether they are equal, and why: "symbolically equal", "different", "symbolic timeout"
            or "symbolic error: ...".

        Raises:
            WorkersError: no worker can be started. A verdict would blame the answer.
            RuntimeError: the pool is closed.
        """
        slots = self._slots
        worker = slots.get()
        try:
            if worker is None or not worker.alive() or worker.wait():
                worker = self._start()
            verdict = worker.equal(answer, gold)
            if verdict[1] == ENDED and not self._closed:  # somebody else's fault, or the answer's?
                worker = self._start()
                verdict = worker.equal(answer, gold)
            if not worker.alive() and not self._closed:
                worker = self._spawn()  # it loads while the caller goes on
            return verdict
        finally:
            slots.put(worker)

    def close(self) -> None:
        """Kill all processes. The pool cannot be asked any more."""
        self._closed = True
        for worker in tuple(self._all):  # the pipes stay: a thread may be waiting at one
            worker.process.kill()
            worker.process.wait()

    def _spawn(self) -> Worker:
        if self._closed:
            raise RuntimeError("the pool of symbolic workers is closed")
        for dead in [worker for worker in tuple(self._all) if not worker.alive()]:
            self._all.discard(dead)
        worker = Worker(self.timeout, self.memory)
        self._all.add(worker)
        return worker

    def _start(self) -> Worker:
        """Start a process and wait until it is ready; a second try, then the error."""
        problem = ""
        for _ in range(2):
            worker = self._spawn()
            problem = worker.wait()
            if not problem:
                return worker
        raise WorkersError(
            f"no worker for symbolic comparison could be started: {problem}; "
            f"try {sys.executable} -c 'import math_verify', "
            f"and more memory than {self.memory} bytes"
        )


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()
_LOCK = threading.Lock()
_shared: Pool | None = None


def shared_pool() -> Pool:
    """Give the pool of this process; its workers start when it is asked.

    Returns:
        The one pool, with the defaults of this module.
    """
    global _shared
    with _LOCK:
        if _shared is None:
            _shared = Pool()
        return _shared


def _after_fork() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it
    for pool in tuple(_POOLS):
        pool.reset()


def _at_exit() -> None:
    for pool in tuple(_POOLS):
        pool.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
