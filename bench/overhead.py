"""What the diagnostics of a step cost: ``python bench/overhead.py``.

The same training step without diagnostics (no KL of the updates, no KL to the base, no geometry, no
watchdog), with the default ones, with the KL of the updates on all responses, and with adaptive-kl:
steps alternate in one process, in CPU time, medians of the ratio to the step without. That one is
taken first and last of each round, and the mean of both counts; their own ratios say how far the
machine is to be trusted. The learning rate is 0 (1e-9 for adaptive-kl), so that all draw the same
responses.

    python bench/overhead.py [--steps 24] [--json FILE]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import init
import step
import torch

from orthora import tiny
from orthora.quiet import quiet_libraries

OFF: dict[str, Any] = {
    "kl_update_share": 0.0, "kl_base_share": 0.0, "geometry": False, "watch": (),
}  # fmt: skip
STEERED: dict[str, Any] = {
    "schedule": "adaptive-kl", "learning_rate": 1e-9, "kl_lr_bounds": (1e-9, 1.01e-9),
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "none": OFF,
    "default": {},
    "KL of updates on all responses": {"kl_update_share": 1.0},
    "geometry alone": OFF | {"geometry": True},
    "default, adaptive-kl": STEERED,
    "none, once more": OFF,
}
NONE = ("none", "none, once more")
RESULTS = step.RESULTS.parent / "results-overhead"


def compare(case: step.Case, steps: int) -> list[dict[str, Any]]:
    """All variants of a case, a step of each in turn."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: step.ours(case, steps, f"{folder}/{i}", **changes)
            for i, (name, changes) in enumerate(VARIANTS.items())
        }
        step.interleave(list(runs.values()))
    watches = {name: watch.steps[1:] for name, (_, watch) in runs.items()}
    totals = {name: [lap["total"] for lap in laps] for name, laps in watches.items()}
    without = [statistics.fmean(pair) for pair in zip(*(totals[n] for n in NONE), strict=True)]
    rows = []
    for name, laps in watches.items():
        ratios = [mine / off for mine, off in zip(totals[name], without, strict=True)]
        rows.append(
            {
                "case": case.name,
                "diagnostics": name,
                "step_s": statistics.median(totals[name]),
                "measuring_s": statistics.median(lap.get("measure", 0.0) for lap in laps),
                "ratio": statistics.median(ratios),
            }
        )
    return rows


def all_results() -> list[dict[str, Any]]:
    """Every machine's, the newest first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda one: one["machine"]["time"], reverse=True)


def markdown(results: list[dict[str, Any]]) -> list[str]:
    """A table for each machine."""
    lines = []
    for found in results:
        machine, rows = found["machine"], found["rows"]
        cases = list(dict.fromkeys(row["case"] for row in rows))
        lines += [f"**{machine['cpu']}**, torch {machine['torch']}, {machine['time'][:10]}:", ""]
        lines += [f"| measured | {' | '.join(cases)} |", f"| --- |{' --- |' * len(cases)}"]
        for name in VARIANTS:
            cells = [f"{r['ratio']:.3f}" for r in rows if r["diagnostics"] == name]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def main() -> int:
    """Print a table, and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    default = RESULTS / f"{init.slug(init.cpu_name())}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the numbers go")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="of the model")
    options = parser.parse_args()
    quiet_libraries()
    rows = compare(step.Case("embedded, natural length", str(tiny.path())), options.steps)
    larger = step.larger_model(options.folder)
    rows += compare(step.Case("256 x 6, 32 tokens", larger, 32), options.steps // 2)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": init.machine(), "rows": rows}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    init.show("diagnostics of a step", rows)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
