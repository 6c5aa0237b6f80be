"""One program in one bubblewrap sandbox, asked over a pipe; it knows nothing of tests or verdicts.

The sandbox has no network, no files of the host but ``/usr`` and the interpreter (read-only), an
empty environment, no capabilities, no further user namespaces, and an unprivileged uid outside as
well as inside: as root the launcher steps down first, or the limit on processes would not hold.
Everything dies with the launcher. Where this cannot be had, nothing runs.
"""

import json
import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from orthora.rewards import child
from orthora.rewards.launch import REMEDY, SandboxError, command, syscall_filter

START_SECONDS = 30.0
ATTEMPTS = 3


class Stopped(Exception):
    """The program's run is over before its time; the text says why."""


@dataclass(frozen=True)
class Limits:
    """What one program may use, beside its time.

    Attributes:
        memory_mb: address space of each process.
        processes: processes and threads at once, the sandbox's own two included.
        open_files: descriptors of each process.
        file_mb: size of one file, in memory as well.
        tmp_mb: size of ``/tmp``, the only place that can be written.
        answer_bytes: of one answer's text.
    """

    memory_mb: int = 512
    processes: int = 8
    open_files: int = 32
    file_mb: int = 1
    tmp_mb: int = 16
    answer_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")


class Sandbox:
    """A started sandbox, waiting for its first request; leave the ``with`` block to kill it.

    Args:
        limits: what the program may use.
        cpu_seconds: processor time of each process.

    Raises:
        SandboxError: if it does not start.
    """

    def __init__(self, limits: Limits, cpu_seconds: int) -> None:
        self._cap = limits.answer_bytes
        self._number = 0
        self._buffer = bytearray()
        self._inner: int | None = None
        filter_file = syscall_filter()
        info, info_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command(limits.tmp_mb, filter_file, info_end), *_arguments(limits, cpu_seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[filter_file, info_end],
                bufsize=0,
                cwd="/",
                env={},
                start_new_session=True,
            )
        except BaseException as error:
            os.close(info)
            if isinstance(error, OSError):
                raise SandboxError(f"the sandbox did not start: {error}; {REMEDY}") from error
            raise
        finally:
            os.close(filter_file)
            os.close(info_end)
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._in, self._out, self._err = (pipe.fileno() for pipe in pipes if pipe)
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        try:
            self._await_start()
            self._inner = json.loads(os.read(info, 4096))["child-pid"]
        finally:
            os.close(info)

    def _await_start(self) -> None:
        try:
            line = self._exchange(b"", time.monotonic() + START_SECONDS)
            if line != b"0 ready":
                raise Stopped(f"said {line[:80]!r}")
        except Stopped as stop:
            self._kill()
            os.set_blocking(self._err, False)
            try:
                said = os.read(self._err, 4096).decode(errors="replace").strip()
            except BlockingIOError:
                said = ""
            self.close()
            raise SandboxError(f"the sandbox did not start: {said or stop}; {REMEDY}") from stop

    @classmethod
    def start(cls, limits: Limits, cpu_seconds: int) -> Self:
        """A sandbox, after up to ``ATTEMPTS`` attempts.

        Args:
            limits: what the program may use.
            cpu_seconds: processor time of each process.

        Returns:
            The sandbox, which has run nothing of the program yet.

        Raises:
            SandboxError: if none starts; the text says what the machine lacks.
        """
        for attempt in range(1, ATTEMPTS):
            try:
                return cls(limits, cpu_seconds)
            except SandboxError:
                time.sleep(0.2 * attempt)
        return cls(limits, cpu_seconds)

    def ask(self, kind: str, source: str, deadline: float) -> tuple[str, str]:
        """Have source executed or evaluated among the program's names.

        Args:
            kind: ``"exec"`` or ``"eval"``.
            source: Python.
            deadline: of `time.monotonic`.

        Returns:
            ``("v", packed value)`` or ``("e", name of the exception)``: hearsay in either case.

        Raises:
            Stopped: if there is no answer, or more than one.
        """
        self._number += 1
        text = f"{source}\n".encode("utf-8", "surrogatepass").hex()
        line = self._exchange(f"{self._number} {kind} {text}\n".encode(), deadline)
        parts = line.decode("ascii", errors="replace").split(" ", 2)
        if self._buffer or len(parts) != 3 or parts[0] != str(self._number):
            raise Stopped("forged answer")
        return parts[1], parts[2]

    def _exchange(self, data: bytes, deadline: float) -> bytes:
        """Write the data, and read one line."""
        rest = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            if rest:
                selector.register(self._in, selectors.EVENT_WRITE)
            while True:
                if not rest and b"\n" in self._buffer:
                    line, _, self._buffer = self._buffer.partition(b"\n")
                    return bytes(line)
                if len(self._buffer) > self._cap:
                    raise Stopped("answer too large")
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise Stopped("timeout")
                for key, _ in selector.select(seconds):
                    if key.fd == self._out:
                        self._read()
                        continue
                    rest = rest[self._write(rest) :]
                    if not rest:
                        selector.unregister(self._in)

    def _read(self) -> None:
        found = os.read(self._out, 1 << 16)
        if not found:
            status = self._wait(1.0)
            raise Stopped("timeout" if status == 128 + signal.SIGXCPU else "exited")
        self._buffer += found

    def _write(self, rest: memoryview) -> int:
        try:
            return os.write(self._in, rest)
        except BrokenPipeError:
            raise Stopped("exited") from None

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _kill(self) -> None:
        """Kill the first process inside, and with it all others; the launcher buries it and ends.

        Killing the launcher would do as well, but leave a zombie to whoever is process 1 here.
        """
        if self._process.poll() is None and self._inner is not None:
            with suppress(ProcessLookupError):
                os.kill(self._inner, signal.SIGKILL)
            self._wait(10.0)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Kill everything inside, and wait until the last process has let go of the pipe."""
        self._kill()
        deadline = time.monotonic() + 10
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                if not os.read(self._out, 1 << 16):
                    break
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _arguments(limits: Limits, cpu_seconds: int) -> list[str]:
    """The child's text, and its limits: it sets them itself, before it looks at the program."""
    values = {
        "AS": limits.memory_mb << 20,
        "CPU": cpu_seconds,
        "FSIZE": limits.file_mb << 20,
        "NOFILE": limits.open_files,
        "NPROC": limits.processes,
        "CORE": 0,
        "MSGQUEUE": 0,
        "MEMLOCK": 0,
    }
    return ["-c", _child_text(), *(f"{name}={value}" for name, value in values.items())]


@cache
def _child_text() -> str:
    return Path(child.__file__).read_text("utf-8")
