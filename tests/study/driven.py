"""A study whose cells take a second each, and the driver of its command line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SETTINGS = """\
steps = 3
prompts_per_step = 2
mini_batch_prompts = 1
group_size = 4
max_draws = 2
dynamic_sampling = false
max_response_tokens = 16
eval_problems = 0
save_every = 1
threads = 1
"""
EVALUATION = """
[evaluations.test]
task = "arithmetic"
problems = 8
samples = 2
max_response_tokens = 16
"""
GRID = """
[[grid]]
method = ["lora", "pissa"]
learning_rate = [1e-3, 3e-3]
seed = [0]
"""


def write_study(
    folder: Path, *, grid: str = GRID, more: str = "", name: str = "small", settings: str = SETTINGS
) -> Path:
    """A study's file; its folder is ``out`` beside it."""
    file = folder / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\nbase = "tiny"\nout = "{folder / "out"}"\n'
        f'differences = ["learning_rate"]\n{more}\n[settings]\n{settings}{grid}{EVALUATION}',
        encoding="utf-8",
    )
    return file


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "orthora", "study", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(*arguments: str | Path, code: int = 0) -> str:
    """What the command printed; it must end with that exit code."""
    done = subprocess.run(
        command(*arguments), env=environment(), text=True, capture_output=True, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(file: Path) -> str:
    """The result table after a report, as text that a kill must not change."""
    run("report", file)
    return (file.parent / "out" / "report" / "results.csv").read_text()


def cell_processes(driver: int) -> list[psutil.Process]:
    """Those that do a cell: leaders of a session of their own below the driver."""
    try:
        below = psutil.Process(driver).children(recursive=True)
        return [one for one in below if os.getsid(one.pid) == one.pid]
    except (psutil.NoSuchProcess, ProcessLookupError):
        return []


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> None:
    """Until something is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def kill(pid: int) -> None:
    """As the kernel does when memory is out."""
    os.kill(pid, signal.SIGKILL)
