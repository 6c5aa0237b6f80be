"""One worker of the pool: answers comparisons from its standard input until that closes.

It is run as a file (``python -P worker.py``), so it loads Math-Verify and nothing of this package:
no torch, some 60 MB. Messages are JSON, framed by `multiprocessing.connection.Connection`. The
limits are the kernel's, not Python's: one long multiplication of integers would outlast any Python
handler.
"""

import json
import math
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any


def compare(answer: str, gold: str) -> tuple[bool, str]:
    """Ask Math-Verify about two formulas; it reads them as LaTeX only, never as Python.

    Args:
        answer: LaTeX without math delimiters.
        gold: likewise.

    Returns:
        Whether they are equal, and "symbolically equal", "different" or "symbolic error: TYPE".

    Raises:
        MemoryError: the memory limit was reached.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig()]
    try:
        wanted, given = (
            parse(f"${text}$", config, parsing_timeout=0, raise_on_error=True)
            for text in (gold, answer)
        )
        equal = verify(wanted, given, timeout_seconds=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception as error:  # sympy raises nearly every type there is on odd input
        return False, f"symbolic error: {type(error).__name__}"
    return (True, "symbolically equal") if equal else (False, "different")


def limit(memory: int) -> None:
    """Cap this process for good: its memory, and no files written, no core dumped.

    Args:
        memory: bytes of address space.
    """
    for what, size in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        size = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(what, (size, size))


def serve(requests: Connection, replies: Connection, parent: int, seconds: float) -> None:
    """Answer requests until the parent is gone.

    Args:
        requests: where pairs of answer and gold come from.
        replies: where pairs of verdict and reason go to.
        parent: process id of the parent. It is looked up too, because a process that the parent
            forked may hold the other end of `requests` open after the parent's death.
        seconds: after which the kernel ends this process if one comparison still runs.
    """
    while True:
        while not requests.poll(1.0):
            if os.getppid() != parent:
                return
        answer, gold = json.loads(requests.recv_bytes())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        reply: Any = compare(answer, gold)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.send_bytes(json.dumps(reply).encode())


def main() -> None:
    """Load Math-Verify, say so or why not, then serve."""
    parent, memory, timeout = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    requests = Connection(os.dup(0), writable=False)
    replies = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # a library that prints must not break the framing
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever mask the parent's thread had
    try:
        _, problem = compare(r"\frac{\sqrt{9}}{2}", "1.5")  # also fills the parser's tables
    except Exception as error:
        problem = repr(error)
    try:
        limit(memory)
        replies.send_bytes(json.dumps(problem).encode())
        serve(requests, replies, parent, math.ceil(timeout) + 1.0)
    except (EOFError, BrokenPipeError, MemoryError):
        os._exit(1)  # nobody is left to tell, or no memory to tell it with


if __name__ == "__main__":
    main()
