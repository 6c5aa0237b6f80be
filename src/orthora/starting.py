"""``orthora init`` as people see it: progress with time left, and a summary of the proof."""

import ctypes
from pathlib import Path
from typing import Any, Protocol

from orthora import adapters
from orthora.adapters import InitResult
from orthora.bar import Bar
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
    with Bar() as bar:
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
