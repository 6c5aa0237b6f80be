"""Progress over the weights of a model, as people see it."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


@dataclass(frozen=True)
class Progress:
    """How far work on a model's weights is, reported after every weight.

    Attributes:
        name: of the weight just done, or "" at the beginning.
        done: weights done, those of an earlier process included.
        total: weights in all.
        work_done: work done, in the units of ``work``.
        work: all work, about proportional to time.
    """

    name: str
    done: int
    total: int
    work_done: int
    work: int


class Teller:
    """Counts finished weights and their work, and reports both."""

    def __init__(
        self,
        report: Callable[[Progress], None] | None,
        work: Mapping[str, int],
        left: Collection[str],
    ) -> None:
        """Report the beginning.

        Args:
            report: told after every weight; None tells nobody.
            work: of every weight, by name.
            left: names of the weights that are still to be done.
        """
        self._report, self._work = report, work
        self._done, self._total = len(work) - len(left), len(work)
        self._work_done = sum(work.values()) - sum(work[name] for name in left)
        self._tell("")

    def _tell(self, name: str) -> None:
        if self._report is not None:
            whole = sum(self._work.values())
            self._report(Progress(name, self._done, self._total, self._work_done, whole))

    def __call__(self, name: str) -> None:
        """One weight is done."""
        self._done += 1
        self._work_done += self._work[name]
        self._tell(name)


class Bar:
    """A progress bar in units of work; on a stream that is no terminal, a line per tenth."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._terminal = sys.stderr.isatty()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[weights]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not self._terminal,
        )
        self._task: TaskID | None = None
        self._tenth = 0

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, now: Progress) -> None:
        """Show how far it is."""
        weights = f"{now.done}/{now.total}"
        if self._task is None:
            self._task = self._bar.add_task("", total=now.work, weights=weights)
        self._bar.update(
            self._task, completed=now.work_done, description=now.name[-48:], weights=weights
        )
        tenth = 10 * now.work_done // max(now.work, 1)
        if not self._terminal and tenth > self._tenth:
            self._tenth = tenth
            print(f"{10 * tenth} %  {weights} weights", file=sys.stderr, flush=True)
