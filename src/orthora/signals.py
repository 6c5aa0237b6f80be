"""SIGTERM as an interruption that can be told of."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FOLLOW = "ORTHORA_FOLLOW"
"""Environment variable with the number of a process, with which a training process ends."""
_LOOK_EVERY = 0.5


def follow() -> None:
    """End this process at once when the one that `FOLLOW` names is gone.

    Launchers' children are in sessions of their own, which no signal to a group reaches.
    """
    if not (leader := os.environ.get(FOLLOW, "")).isdigit():
        return

    def watch() -> None:
        while True:
            try:
                os.kill(int(leader), 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGKILL)
            except PermissionError:
                return
            time.sleep(_LOOK_EVERY)

    threading.Thread(target=watch, daemon=True, name="follow").start()


@contextmanager
def terminable(go_on: str = "") -> Iterator[Callable[[], None]]:
    """Inside, SIGTERM interrupts as Ctrl-C does, so that there is time to say what happened.

    Batch systems send it before they kill, and torchrun does to the processes that are left when
    one has failed: often just while those write down the failure that they have seen themselves.
    So whoever handles an error first calls what this yields, after which SIGTERM changes nothing
    until the end of the block. Blocks may be nested. Processes forked inside end by SIGTERM as
    usual; in threads other than the main one nothing changes, as signals are the main thread's.

    Args:
        go_on: what is left to do, for the message.

    Raises:
        KeyboardInterrupt: once, where the signal comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    owner = os.getpid()

    def settle() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def interrupt(*_: Any) -> None:
        if os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        settle()  # once is enough
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        who = ", as launchers do where another process is gone" if several else ""
        raise KeyboardInterrupt(f"terminated (SIGTERM{who}){go_on and '; ' + go_on}")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield settle
    finally:
        signal.signal(signal.SIGTERM, before)
