"""How a study stands: one live table, or lines where there is no terminal."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orthora.runs import rate_text
from orthora.study.folder import Work
from orthora.study.job import LOG

_LAST_BYTES = 1 << 14
_ENDED_ROWS = 5
_LINE_EVERY = 30.0


@dataclass
class Running:
    """A cell at work.

    Attributes:
        work: the cell.
        since: when it was started, of `time.monotonic`.
        handed: the same, of the wall clock.
        first: step at which it was.
    """

    work: Work
    since: float
    handed: float
    first: int

    @property
    def state(self) -> str:
        """A cluster may have no room for it yet."""
        try:
            begun = (self.work.job.cell / LOG).stat().st_mtime >= self.handed - 1
        except OSError:
            begun = False
        return "running" if begun else "handed over"


@dataclass
class View:
    """What is told of a study while it runs.

    Attributes:
        total: cells in all, base models included.
        jobs: at a time.
        ended: state of every cell that has ended.
        running: those at work, by name.
        recent: the last that ended, as rows of the table.
        seconds: of cells that this process saw to their end.
    """

    total: int
    jobs: int
    ended: Counter[str]
    running: dict[str, Running] = field(default_factory=dict)
    recent: list[tuple[str, ...]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _told: float = 0.0
    _live: Live | None = None

    def __enter__(self) -> "View":
        if sys.stdout.isatty():
            self._live = Live(console=Console(), refresh_per_second=2)
            self._live.start()
        else:
            print(self._summary(), flush=True)
            self._told = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.update(self.table())
            self._live.stop()
        else:
            print(self._summary(), flush=True)

    def started(self, work: Work) -> None:
        """A cell has begun, or goes on."""
        first = last_row(work.job.run).get("step", 0)
        self.running[work.job.name] = Running(work, time.monotonic(), time.time(), first)

    def lost(self, work: Work, why: str, again: bool) -> None:
        """A cell's process was lost."""
        self.running.pop(work.job.name, None)
        self._say(work, f"lost: {why}{'; it goes on' if again else ''}")

    def finished(self, work: Work) -> None:
        """A cell has ended."""
        assert work.ending is not None, "it has ended"
        running = self.running.pop(work.job.name, None)
        if running and work.cell:
            self.seconds.append(time.monotonic() - running.since)
        self.ended[work.ending.state] += 1
        self._say(work, work.ending.reason or work.ending.state)

    def _say(self, work: Work, what: str) -> None:
        row = last_row(work.job.run)
        self.recent.append(_row(work, what, row))
        del self.recent[:-_ENDED_ROWS]
        if not self._live:
            print(f"{work.job.name}: {what}", flush=True)

    def show(self) -> None:
        """Show how things stand now."""
        if self._live:
            self._live.update(self.table())
        elif time.monotonic() - self._told > _LINE_EVERY:
            self._told = time.monotonic()
            print(self._summary(), flush=True)

    def table(self) -> Table:
        """Everything that runs, and the last that ended."""
        table = Table(title=self._summary(), title_justify="left")
        for name in ("method", "learning rate", "seed", "state", "step", "reward", "KL", "left"):
            table.add_column(name)
        for row in self.recent:
            table.add_row(*row)
        for one in self.running.values():
            now = last_row(one.work.job.run)
            table.add_row(*_row(one.work, one.state, now, self._left(one, now)))
        return table

    def _left(self, one: Running, now: dict[str, Any]) -> str:
        if one.work.cell is None:
            return ""
        done = now.get("step", 0) - one.first
        todo = one.work.cell.get("steps") - now.get("step", 0)
        return duration((time.monotonic() - one.since) / done * todo) if done > 0 else ""

    def _summary(self) -> str:
        ended = sum(self.ended.values())
        waiting = self.total - ended - len(self.running)
        states = [f"{count} {state}" for state, count in sorted(self.ended.items()) if count]
        states += [f"{len(self.running)} running"] if self.running else []
        states += [f"{waiting} waiting"] if waiting else []
        left = self._eta(waiting)
        return f"{self.total} cells: {', '.join(states)}{left and f'; about {left} left'}"

    def _eta(self, waiting: int) -> str:
        """From the cells of this process that have ended, else from the steps of those at work."""
        own = [
            (time.monotonic() - one.since) / (done / one.work.cell.get("steps"))
            for one in self.running.values()
            if one.work.cell and (done := last_row(one.work.job.run).get("step", 0) - one.first) > 0
        ]
        each = self.seconds or own
        if not each or not (waiting or self.running):
            return ""
        mean = sum(each) / len(each)
        spent = sum(time.monotonic() - one.since for one in self.running.values())
        return duration(max(0.0, (waiting + len(self.running)) * mean - spent) / self.jobs)


def _row(work: Work, state: str, now: dict[str, Any], left: str = "") -> tuple[str, ...]:
    if work.cell is None:
        return (work.job.name, "", "", state, "", "", "", "")
    step = f"{now.get('step', 0)}/{work.cell.get('steps')}"
    reward, kl = (_number(now.get(key)) for key in ("reward", "kl_update_k3"))
    rate = rate_text(now.get("lr") or work.cell.rate)
    return (work.cell.method, rate, str(work.cell.seed), state[:60], step, reward, kl, left)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | int) else "–"


def last_row(run: Path) -> dict[str, Any]:
    """The last whole row of a run's metrics log; empty where there is none."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LAST_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}


def duration(seconds: float) -> str:
    """Seconds in words: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for unit, size, places in (("days", 86400.0, 1), ("h", 3600.0, 1), ("min", 60.0, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{places}f} {unit}"
    return f"{seconds:.0f} s"


def states(found: Sequence[Work]) -> Counter[str]:
    """How many cells ended how."""
    return Counter(one.ending.state for one in found if one.ending and one.complete)
