"""Which arithmetic a float32 product may use, held for every thread of the process at once.

PyTorch keeps the precision of float32 products in process-wide switches. Products of entries that
are exact in bfloat16 are the same with bfloat16 units (bfloat16 products, float32 sums), and two to
ten times faster on CPUs that have them; any other product would be ruined, as by a caller's own
TF32. So the two kinds of work never overlap: each has a room, threads share a room, and a room
opens when the other is empty.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

EXACT_IN_BF16 = "bf16"
FLOAT32 = "ieee"


_BACKENDS: Any = torch.backends  # modules whose attributes are switches, which stubs don't know
_CPU, _GPU = _BACKENDS.mkldnn.matmul, _BACKENDS.cuda.matmul


class _Rooms:
    """A lock that any number of threads may hold together, as long as they want the same mode.

    Who waits for the other mode comes next: newcomers to the open room then wait as well, but for
    those that are inside already. When a room opens, all that wait for it get a pass at once, or
    threads would follow each other one by one while both rooms are wanted.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._outer = (_CPU.fp32_precision, _GPU.fp32_precision)
        self._inside = 0
        self._passes = 0
        self._mode = FLOAT32
        self._waiting = {FLOAT32: 0, EXACT_IN_BF16: 0}
        self._mine = threading.local()

    def _may_enter(self, mode: str, nested: bool) -> bool:
        if nested:
            return True
        others = sum(count for name, count in self._waiting.items() if name != mode)
        if self._inside == self._passes == 0:
            return others == 0 or self._mode != mode  # the room that was open last lets the other
        return self._mode == mode and (self._passes > 0 or others == 0)

    def _wait(self, mode: str, *, nested: bool) -> None:
        """Until this thread may enter; whoever opens the room hands out the passes."""
        self._waiting[mode] += 1
        came = False
        try:
            self._changed.wait_for(lambda: self._may_enter(mode, nested))
            came = True
        finally:
            self._waiting[mode] -= 1
            if came and self._inside == self._passes == 0:
                self._mode, self._passes = mode, self._waiting[mode]
            elif came and not nested and self._passes:
                self._passes -= 1
            self._passes = min(self._passes, self._waiting[self._mode])  # one that does not come
            self._changed.notify_all()

    @contextlib.contextmanager
    def enter(self, mode: str) -> Iterator[None]:
        depth = getattr(self._mine, "depth", 0)
        with self._changed:
            if depth and self._mode != mode:
                raise RuntimeError("a thread can't be in both rooms")
            self._wait(mode, nested=depth > 0)
            if self._inside == 0:
                self._outer = (_CPU.fp32_precision, _GPU.fp32_precision)
                _CPU.fp32_precision, _GPU.fp32_precision = mode, FLOAT32
            self._inside += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            with self._changed:
                self._inside -= 1
                if self._inside == 0:
                    _CPU.fp32_precision, _GPU.fp32_precision = self._outer
                    self._changed.notify_all()


_rooms = _Rooms()


def float32_products(*, bf16_operands: bool = False) -> contextlib._GeneratorContextManager[None]:
    """Inside, float32 products have float32 accuracy, in this thread and in every other.

    A context manager and a decorator. A thread may enter again in the same mode, not in the other.

    Args:
        bf16_operands: every operand multiplied inside is exactly representable in bfloat16, so that
            bfloat16 units may be used without loss.
    """
    return _rooms.enter(EXACT_IN_BF16 if bf16_operands else FLOAT32)
