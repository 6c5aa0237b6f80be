"""``orthora init`` as people see it: progress with time left, and a summary of the proof."""

import ctypes
import sys
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from orthora import adapters
from orthora.adapters import InitResult
from orthora.models import pick_device

_MALLOC = (  # option of malloc.h, value
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
    (-3, 1 << 30),  # M_MMAP_THRESHOLD
    (-1, 1 << 30),  # M_TRIM_THRESHOLD
    (-2, 1 << 26),  # M_TOP_PAD
)


class Options(Protocol):
    """What the command line asks for; see `orthora.adapters.init_adapter`."""

    model: str
    out: Path
    method: str
    rank: int
    alpha: float
    target_modules: list[str]
    seed: int
    unfit: Any
    device: str
    workers: int | None


def start_adapter(options: Options) -> None:
    """Start an adapter with a progress bar on stderr, then print what was made.

    Tunes this process's allocator; for calls from a process of your own, use
    `orthora.adapters.init_adapter`.

    Raises:
        ValueError: as `orthora.adapters.init_adapter`.
    """
    _keep_memory()
    targets = options.target_modules
    with _Bar() as bar:
        result = adapters.init_adapter(
            options.model,
            options.method,
            out=options.out,
            rank=options.rank,
            alpha=options.alpha,
            target_modules=targets[0] if len(targets) == 1 else targets,
            seed=options.seed,
            unfit=options.unfit,
            device=pick_device(options.device),
            workers=options.workers,
            report=bar,
        )
    print(summary(result))


def summary(result: InitResult) -> str:
    """A few lines: how many weights by which algorithm, and the worst figures of all."""
    found = [subspace for entry in result.modules.values() for subspace in entry["subspaces"]]
    resumed = f", {result.resumed} of them earlier" if result.resumed else ""
    lines = [f"{result.out}: {len(result.modules)} weights in {result.seconds:.1f} s{resumed}"]
    if found:
        paths = [subspace["path"] for subspace in found]
        counts = ", ".join(f"{paths.count(path)} by {path}" for path in sorted(set(paths)))
        worst = {
            key: max(subspace[key] for subspace in found)
            for key in ("residual", "orthonormality", "energy_error")
        }
        lines.append(f"subspaces: {counts}")
        lines.append(
            f"worst residual {worst['residual']:.1e}, orthonormality "
            f"{worst['orthonormality']:.1e}, energy error at most {worst['energy_error']:.1e}"
        )
        replaced = sum(bool(subspace["replaced"]) for subspace in found)
        if replaced:
            lines.append(f"{replaced} fast results failed their checks and were replaced")
    return "\n".join(lines)


def _keep_memory() -> None:
    """Let the C library reuse large blocks instead of handing them back after every layer.

    Otherwise each layer pays for new pages, a tenth of the time. Only glibc knows these options.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in _MALLOC:
        mallopt(option, value)


class _Bar:
    """A progress bar in units of work; on a stream that is no terminal, a line per tenth."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._terminal = sys.stderr.isatty()
        self._bar = Progress(
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

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, now: adapters.Progress) -> None:
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
