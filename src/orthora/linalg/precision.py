"""Which arithmetic a float32 product may use, held for every thread of the process at once.

PyTorch keeps the precision of float32 products in one process-wide switch. Products of entries that
are exact in bfloat16 are the same in ``"medium"`` (bfloat16 products, float32 sums), and two to ten
times faster on CPUs with bfloat16 units; any other product would be ruined by it, and by a caller's
``"high"``. So the two kinds of work never overlap: each has a room, threads share a room, and a
room opens when the other is empty.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch

EXACT_IN_BF16 = "medium"
FLOAT32 = "highest"


class _Rooms:
    """A lock that any number of threads may hold together, as long as they want the same mode."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._mode = FLOAT32
        self._outer = FLOAT32

    @contextlib.contextmanager
    def enter(self, mode: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0 or self._mode == mode)
            if self._inside == 0:
                self._outer = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision(mode)
                self._mode = mode
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._inside == 0:
                    torch.set_float32_matmul_precision(self._outer)
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
