"""Benchmark of the rewards for programs: MBPP's reference solutions per second.

Each row judges the same programs with another number at once; all must pass. The floor is a bare
interpreter that does nothing, started and awaited in the same way, without any sandbox.

    python bench/sandbox.py [--quick] [--data FILE] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from init import HERE, Row, cpu_name, machine, show, slug

from orthora.rewards.code import CodeJob, code_verdicts

DATA = HERE.parents[1] / "shared" / "data" / "mbpp" / "mbpp.jsonl"
RESULTS = HERE / "results-sandbox"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 programs: seconds")
    parser.add_argument("--data", type=Path, default=DATA, help="mbpp.jsonl")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{slug(cpu_name())}.json")
    options = parser.parse_args()
    jobs = references(options.data)[: 100 if options.quick else None]
    code_verdicts(jobs[:1])  # a copy of the interpreter, where one is needed
    cores = len(os.sched_getaffinity(0))
    rows = [measured(jobs, workers) for workers in sorted({1, cores, 2 * cores})]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "load": os.getloadavg(), "rows": rows}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    show("sandbox", rows)
    print(f"\n{options.json}")
    return 0


def references(path: Path) -> list[CodeJob]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        CodeJob(row["code"], row["test_list"] + row["challenge_test_list"], row["test_setup_code"])
        for row in rows
    ]


def measured(jobs: list[CodeJob], workers: int) -> Row:
    start = time.perf_counter()
    verdicts = code_verdicts(jobs, timeout=30.0, workers=workers)
    seconds = time.perf_counter() - start
    floor = bare(len(jobs), workers)
    return {
        "workers": workers,
        "programs": len(jobs),
        "passed": sum(verdict.correct for verdict in verdicts),
        "seconds": seconds,
        "programs_per_s": len(jobs) / seconds,
        "bare_python_per_s": len(jobs) / floor,
        "ratio": seconds / floor,
    }


def bare(count: int, workers: int) -> float:
    command = [sys.executable, "-I", "-S", "-c", "pass"]
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: subprocess.run(command, check=True), range(count)))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
