"""The main job on the embedded model: DAPO with five initialisations, compared on one page.

Five methods train at one shared learning rate, LoRA's best on this model, and two of them once more
from that rate under adaptive-kl, which holds the policy's movement. Same seed, same stream of
prompts, same random stream per response; only the start of the adapter differs. Runs go side by
side in worker processes.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orthora.config import TrainConfig, build, read_toml, to_toml
from orthora.measure import measure
from orthora.report import load_runs, print_table, write_report
from orthora.store import read_metrics
from orthora.table import NAME
from orthora.train.progress import describe

SHARED_RATE = 1e-3
SHARED = ("lora", "rlpo", "rlmo", "milora", "pissa")
ADAPTIVE = ("rlpo", "pissa")
CHECKPOINTS = 5
"""States of every run that are measured, about."""


def plan(
    out: Path, *, steps: int, eval_problems: int, seed: int, threads: int
) -> list[TrainConfig]:
    """The demo's runs, as configs that differ in method and schedule alone."""
    preset = read_toml("tiny") | {
        "steps": steps,
        "seed": seed,
        "threads": threads,
        "eval_problems": eval_problems,
        "eval_base": bool(eval_problems),
        "learning_rate": SHARED_RATE,
        "save_every": max(1, steps // CHECKPOINTS),
        "keep_checkpoints": 2 * CHECKPOINTS,
    }
    runs = [(method, "constant", f"{method}-{SHARED_RATE:g}") for method in SHARED]
    runs += [(method, "adaptive-kl", f"{method}-adaptive-kl") for method in ADAPTIVE]
    return [
        build(
            TrainConfig, preset | {"method": method, "schedule": schedule, "out": str(out / name)}
        )
        for method, schedule, name in runs
    ]


def demo(
    out: str | Path = "runs/demo",
    *,
    steps: int = 50,
    eval_problems: int = 256,
    seed: int = 42,
    jobs: int = 0,
) -> Path:
    """Run the comparison, print its table, and write ``report.html``.

    Finished runs with the same settings are kept, so that a second call only writes the page anew,
    and a call after an interruption does what is missing.

    Args:
        out: folder of the runs and the page.
        steps: training steps per run.
        eval_problems: held-out problems, 4 samples each.
        seed: shared by all runs.
        jobs: runs at a time; 0 takes up to two, as the cores allow.

    Returns:
        The page.

    Raises:
        ValueError: if ``out`` holds a run with other settings, or a run fails.
    """
    out = Path(out)
    cores = os.cpu_count() or 1
    jobs = jobs or min(2, cores)
    threads = 1  # sums depend on the thread count: the same everywhere gives the same numbers
    configs = plan(out, steps=steps, eval_problems=eval_problems, seed=seed, threads=threads)
    todo = [config for config in configs if not _finished(config)]
    print(
        f"{len(configs)} runs of {steps} DAPO steps on the embedded model, {jobs} at a time; "
        f"{len(configs) - len(todo)} are already in {out}",
        flush=True,
    )
    started = time.perf_counter()
    failures = _run_all(todo, jobs, steps)
    _measure(out, configs, anew=bool(todo))
    runs = load_runs(out)
    print_table(runs)
    page = write_report(out, out / "report.html", title="orthora demo: DAPO by initialisation")
    print(f"{page} written; {time.perf_counter() - started:.0f} s")
    if failures:
        raise ValueError("; ".join(failures))
    return page


def _measure(out: Path, configs: list[TrainConfig], *, anew: bool) -> None:
    """Write the table of what training did to the weights of all finished runs."""
    finished = [config.out for config in configs if _status(Path(config.out)) == "finished"]
    table = out / NAME
    if anew:
        table.unlink(missing_ok=True)
    if finished and not table.exists():
        measure(finished, out=table)


def _status(folder: Path) -> str | None:
    """How a run ended; None where it has not."""
    result = folder / "result.json"
    return json.loads(result.read_text())["status"] if result.is_file() else None


def _finished(config: TrainConfig) -> bool:
    """Whether the run is there with the same settings; an unfinished one of the demo is removed.

    Raises:
        ValueError: if the folder is of another kind or was run with other settings.
    """
    folder = Path(config.out)
    if not folder.exists():
        return False
    recorded = folder / "config.toml"
    if not recorded.is_file() or recorded.read_text() != to_toml(config):
        raise ValueError(
            f"{folder} holds something else than this demo's run with these settings; choose "
            "another --out, or remove it"
        )
    if _status(folder) == "finished":
        return True
    shutil.rmtree(folder)
    return False


def _run_all(configs: list[TrainConfig], jobs: int, steps: int) -> list[str]:
    """Train in worker processes with live progress; return what failed, one line each."""
    if not configs:
        return []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(configs)), mp_context=context) as pool:
        futures = {config.out: pool.submit(_worker, config.model_dump()) for config in configs}
        try:
            _watch(configs, futures, steps)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [
        f"{Path(name).name}: {error}"
        for name, future in futures.items()
        if (error := future.exception()) is not None
    ]


def _worker(config: dict[str, Any]) -> None:
    """One run in a process of its own; it reports through its metrics log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from orthora.quiet import quiet_libraries, short_warnings
    from orthora.train import train

    quiet_libraries()
    with short_warnings():
        train(config, progress=False)


def _watch(configs: list[TrainConfig], futures: dict[str, Future[None]], steps: int) -> None:
    """Show every run's state until all are done: a live table, or lines where there is no tty."""
    started = time.perf_counter()
    if sys.stdout.isatty():
        with Live(console=Console(), refresh_per_second=2) as live:
            while not all(future.done() for future in futures.values()):
                live.update(_table(configs, futures, steps, started))
                time.sleep(0.5)
            live.update(_table(configs, futures, steps, started))
        return
    while not all(future.done() for future in futures.values()):
        time.sleep(10)
        running = [c for c in configs if not futures[c.out].done() and _steps_done(c)]
        done = sum(future.done() for future in futures.values())
        states = [f"{Path(c.out).name} {_steps_done(c)}/{steps}" for c in running]
        eta = _eta(configs, steps, started)
        print(f"{done}/{len(configs)} runs done; {', '.join(states)}; {eta}", flush=True)


def _table(
    configs: list[TrainConfig], futures: dict[str, Future[None]], steps: int, started: float
) -> Table:
    """One row per run: method, learning rate, step, last metrics."""
    table = Table(title=_eta(configs, steps, started))
    for column in ("run", "step", "last"):
        table.add_column(column)
    for config in configs:
        rows = _rows(config)
        failed = futures[config.out].done() and futures[config.out].exception() is not None
        state = "failed" if failed else describe(rows[-1]) if rows else "waiting"
        table.add_row(Path(config.out).name, f"{len(rows)}/{steps}", state)
    return table


def _rows(config: TrainConfig) -> list[dict[str, Any]]:
    log = Path(config.out) / "metrics.jsonl"
    return read_metrics(log) if log.is_file() else []


def _steps_done(config: TrainConfig) -> int:
    return len(_rows(config))


def _eta(configs: list[TrainConfig], steps: int, started: float) -> str:
    """Time left, from the steps done so far over all runs."""
    done, total = sum(_steps_done(c) for c in configs), steps * len(configs)
    elapsed = time.perf_counter() - started
    left = f"about {elapsed / done * (total - done):.0f} s left" if done else "starting"
    return f"{elapsed:.0f} s, {left}"
