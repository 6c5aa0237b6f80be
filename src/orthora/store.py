"""Run folders: atomic writes, an append-only metrics log, and what a run was made of.

A run folder holds ``config.toml``, ``environment.json``, ``problems.json``, ``metrics.jsonl`` (one
object per training step), ``checkpoints/``, ``adapter/`` (plain PEFT) and ``result.json``.
"""

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orthora import __version__

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


def write_atomic(path: str | Path, text: str) -> Path:
    """Write ``text`` so that readers see the old file or the whole new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def check_new_file(path: str | Path) -> None:
    """A file can be written here at the end of long work.

    Raises:
        ValueError: if it is there already, or its folder can't be written to.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; choose another file, or remove it")
    check_writable(path)


def check_writable(path: Path) -> None:
    """The nearest existing parent of a path is a folder that can be written to.

    Raises:
        ValueError: if it is none.
    """
    parent = next(above for above in (path, *path.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"can't create {path}: {parent} is not a folder that can be written to")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path``, safe on the disk, if the block succeeds.

    Its folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> Path:
    """`write_atomic` of strict JSON: NaN and Inf become null."""
    return write_atomic(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` with every NaN or Inf inside dicts and lists replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` if the block succeeds, else vanishes.

    Raises:
        ValueError: if ``path`` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not empty; choose another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def locked(folder: Path) -> int | None:
    """A handle on the folder that no other process holds; None where there are no such locks.

    Raises:
        ValueError: if another process is at work here.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise FileNotFoundError  # it took its name while we looked
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(handle)
        raise ValueError(f"another process is writing {folder}; wait for it, or end it") from error
    except OSError:  # some network file systems have none
        os.close(handle)
        return None
    return handle


def append_metrics(path: str | Path, row: dict[str, Any]) -> None:
    """Append one JSON line, flushed to the disk, so that a kill loses at most the current step."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a metrics log.

    Raises:
        ValueError: naming the file and line that is not JSON.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON; remove that line") from error
    return rows


def environment(threads: int) -> dict[str, Any]:
    """What a run was made of: versions, machine, threads, commit, time (UTC)."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "git_commit": _git_commit(),
        "orthora": __version__,
        **{name: version(name) for name in _PACKAGES},
    }


def _git_commit() -> str | None:
    """The commit of the working folder, or None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
