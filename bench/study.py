"""What a study costs beside its runs: ``python bench/study.py``.

*Overhead per cell*: the same cells (embedded model, 10 steps, one evaluation) as a study with one
process at a time, and as bare runs: one Python process each that calls ``orthora.train`` and
``orthora.evaluate``. Both alternate; CPU seconds and wall seconds per cell, medians of the turns.
*Cells per hour* with one and with two processes. *Planning*: CPU seconds and peak resident memory
of planning 10,000 cells, and of the driver that runs the first of them.

    python bench/study.py [--quick] [--turns 3] [--cells 6]
    python bench/study.py --docs docs/studies.md     # render its table from the JSON files
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from init import machine, slug

HERE = Path(__file__).parent
RESULTS = HERE / "results-study"
BEGIN, END = "<!-- bench-study -->", "<!-- /bench-study -->"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

_STUDY = """\
name = "bench"
base = "tiny"
out = "{out}"
differences = ["learning_rate"]

[settings]
steps = {steps}
eval_problems = 0
save_every = 5
threads = 1

[[grid]]
method = {methods}
learning_rate = {rates}
seed = {seeds}

[evaluations.test]
task = "arithmetic"
problems = 64
samples = 2
max_response_tokens = 56
"""
_BARE = """
import json, sys
import orthora
from orthora.quiet import quiet_libraries
quiet_libraries()
run, evaluation = json.loads(sys.argv[1])
orthora.train(run, progress=False)
orthora.evaluate(evaluation)
"""
_PLAN = """
import sys, time
from pathlib import Path
from orthora.study.plan import plan
from orthora.study.spec import load_study
spec = load_study(sys.argv[1])
began = time.process_time()
cells = plan(spec)
seconds = time.process_time() - began
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(len(cells), seconds, int(peak.split()[1]) / 1024)
"""


def study_file(folder: Path, *, seeds: int, steps: int = 10, wide: bool = False) -> Path:
    """A study of ``seeds`` cells; ``wide`` of a thousand times as many."""
    rates = [round(1e-4 * place, 6) for place in range(1, 101 if wide else 2)]
    methods = ["lora", "rlpo", "rlmo", "pissa", "milora", "olora", "dct", "dora", "geora", "miss"]
    file = folder / "study.toml"
    file.write_text(
        _STUDY.format(
            out=folder / "out",
            steps=steps,
            methods=json.dumps(methods if wide else methods[:1]),
            rates=rates,
            seeds=list(range(seeds)),
        )
    )
    return file


def timed(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds of the process and all below it, and peak MB of itself alone."""
    began = time.perf_counter()
    process = psutil.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    cpu: dict[int, float] = {}
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                cpu[one.pid] = times.user + times.system
        except psutil.Error:
            continue
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - began, sum(cpu.values()), peak / 2**20


def as_study(folder: Path, cells: int, jobs: int) -> tuple[float, float]:
    """Wall and CPU seconds of a study."""
    file = study_file(folder, seeds=cells)
    command = [sys.executable, "-m", "orthora", "study", "run", str(file), "--jobs", str(jobs)]
    return timed(command)[:2]


def as_runs(folder: Path, cells: int) -> tuple[float, float]:
    """Wall and CPU seconds of the same runs, one process each; a study also scores the base."""
    from orthora.study import load_study, plan

    wall = cpu = 0.0
    spec = load_study(study_file(folder, seeds=cells))
    evaluation = {"task": "arithmetic", "problems": 64, "samples": 2, "max_response_tokens": 56}
    for cell in plan(spec):
        run = cell.settings | {"out": str(folder / "bare" / cell.name)}
        work = json.dumps([run, evaluation | {"adapter": run["out"], "out": run["out"] + "-eval"}])
        one = timed([sys.executable, "-c", _BARE, work])
        wall, cpu = wall + one[0], cpu + one[1]
    return wall, cpu


def planning() -> dict[str, float]:
    """Of 10,000 cells."""
    with tempfile.TemporaryDirectory() as folder:
        file = study_file(Path(folder), seeds=10, steps=1, wide=True)
        done = subprocess.run(
            [sys.executable, "-c", _PLAN, str(file)],
            env=ENVIRONMENT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        cells, seconds, memory = done.stdout.split()
        _, _, driver = timed(
            [sys.executable, "-m", "orthora", "study", "run", str(file), "--limit", "2"]
        )
    return {
        "cells": float(cells),
        "plan_cpu_seconds": float(seconds),
        "plan_mb": float(memory),
        "driver_mb": driver,
    }


def measure(turns: int, cells: int) -> dict[str, Any]:
    """Everything, alternating."""
    study: list[tuple[float, float]] = []
    pair: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    for turn in range(turns):
        for found, work in (
            (study, lambda folder: as_study(folder, cells, 1)),
            (bare, lambda folder: as_runs(folder, cells)),
            (pair, lambda folder: as_study(folder, cells, 2)),
        ):
            with tempfile.TemporaryDirectory() as folder:
                found.append(work(Path(folder)))
        print(f"turn {turn + 1}: study {study[-1]}, bare {bare[-1]}, two {pair[-1]}", flush=True)

    def each(found: list[tuple[float, float]], which: int) -> float:
        return statistics.median(one[which] for one in found) / cells

    return {
        "machine": machine(),
        "turns": turns,
        "cells": cells,
        "study_wall": each(study, 0),
        "study_cpu": each(study, 1),
        "bare_wall": each(bare, 0),
        "bare_cpu": each(bare, 1),
        "two_wall": each(pair, 0),
        "planning": planning(),
    }


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    plan = found["planning"]
    rows = [
        ("a cell of a study, one at a time", f"{found['study_cpu']:.1f} CPU s",
         f"{found['study_wall']:.1f} s"),
        ("the same as a bare run", f"{found['bare_cpu']:.1f} CPU s", f"{found['bare_wall']:.1f} s"),
        ("**overhead per cell**", f"{found['study_cpu'] - found['bare_cpu']:+.1f} CPU s",
         f"{found['study_wall'] - found['bare_wall']:+.1f} s"),
        ("cells per hour, 1 process", f"{3600 / found['study_wall']:.0f}", ""),
        ("cells per hour, 2 processes", f"{3600 / found['two_wall']:.0f}", ""),
        (f"planning {plan['cells']:,.0f} cells", f"{plan['plan_cpu_seconds']:.2f} CPU s",
         f"{plan['plan_mb']:.0f} MB"),
        (f"the driver of {plan['cells']:,.0f} cells", "", f"{plan['driver_mb']:.0f} MB"),
    ]  # fmt: skip
    lines = ["| | CPU | wall or memory |", "| --- | --- | --- |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    about = found["machine"]
    head = f"**{about['cpu']}**, {about['time'][:10]}; {found['cells']} cells of 10 steps, "
    head += f"medians of {found['turns']} turns, one thread:"
    return head + "\n\n" + "\n".join(lines) + "\n"


def render(page: Path) -> None:
    """Put the newest tables into a page, between the marks."""
    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n".join(table(one) for one in found)
    page.write_text(f"{before}{BEGIN}\n{body}{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, keep; or render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn of two cells")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cells", type=int, default=6)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    if options.docs:
        render(options.docs)
        return
    turns, cells = (1, 2) if options.quick else (options.turns, options.cells)
    found = measure(turns, cells)
    print(table(found))
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{slug(found['machine']['cpu'])}.json"
        file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
