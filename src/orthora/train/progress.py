"""Live progress of one run: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class StepProgress:
    """Context manager with ``update(row)``; prints to stderr.

    Args:
        title: what runs.
        steps: training steps in all.
        shown: False prints nothing.
    """

    def __init__(self, title: str, steps: int, *, shown: bool = True) -> None:
        self._title, self._steps, self._shown = title, steps, shown
        self._bar: Progress | None = None
        self._started = self._printed = time.perf_counter()
        self._first: int | None = None
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=steps, text="")

    def __enter__(self) -> "StepProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show one training step's metrics."""
        text = describe(row)
        if self._bar:
            self._bar.update(self._task, completed=row["step"], text=text)
        elif self._shown:
            now = time.perf_counter()
            self._first = row["step"] - 1 if self._first is None else self._first
            if now - self._printed > _SECONDS_BETWEEN_LINES or row["step"] == self._steps:
                self._printed = now
                done = row["step"] - self._first
                left = (self._steps - row["step"]) * (now - self._started) / done
                print(
                    f"{self._title}: step {row['step']}/{self._steps}, {text}, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )


def describe(row: dict[str, Any]) -> str:
    """Pass rate, kept groups, KL of the update and gradient norm in a few words."""
    parts = []
    if row.get("draws", 1) > 1:
        parts.append(f"{row['groups_kept']} of {row['groups_drawn']} groups kept")
    for key, name, form in (
        ("pass_rate", "pass", ".2f"),
        ("kl_update_k3", "KL/update", ".1e"),
        ("grad_norm", "grad", ".2f"),
    ):
        value = row.get(key)
        if value is not None:
            parts.append(f"{name} {value:{form}}")
    return ", ".join(parts)
