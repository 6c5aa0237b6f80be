"""A whole checkpoint: ``orthora init`` against loading the model and PEFT's own starts."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import weights

_TURNS = 3
_ONCE = ("load, PEFT pissa", "orthora init --method pissa")  # minutes; and the cost of rlpo

_PEFT = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
config = LoraConfig(
    r=int(sys.argv[3]), lora_alpha=int(sys.argv[3]), target_modules="all-linear",
    init_lora_weights=sys.argv[4],
)
get_peft_model(model, config).save_pretrained(sys.argv[2])
"""


def commands(model: Path, out: Path, rank: int) -> dict[str, list[str]]:
    """One process per way to start."""
    ours = [sys.executable, "-m", "orthora", "init", str(model), "--rank", str(rank)]
    theirs = [sys.executable, "-c", _PEFT, str(model), str(out), str(rank)]
    return {
        "orthora init --method rlpo": [*ours, "--method", "rlpo", "--out", str(out)],
        "orthora init --method rlmo": [*ours, "--method", "rlmo", "--out", str(out)],
        "orthora init --method pissa": [*ours, "--method", "pissa", "--out", str(out)],
        "orthora init --method geora": [*ours, "--method", "geora", "--out", str(out)],
        "load, PEFT pissa_niter_16": [*theirs, "pissa_niter_16"],
        "load, PEFT pissa": [*theirs, "pissa"],
    }


_MEASURE = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps({
    "wall_s": time.perf_counter() - begun,
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "peak_mb": usage.ru_maxrss / 1024,
}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_one(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak resident MB of a process.

    A small process between this one and it: a child's peak begins with its parent's memory.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def run(folder: Path, *, quick: bool, rank: int = 16) -> list[dict[str, Any]]:
    """Every way on a checkpoint of 1.5B shapes, alternating; the full SVD runs once.

    Args:
        folder: where the checkpoint is kept between runs (2.9 GB).
        quick: two layers.
        rank: r.
    """
    layers = 2 if quick else None
    model = weights.write_checkpoint(folder / f"qwen2-1.5B-{layers or 28}-layers", "1.5B", layers)
    runs: dict[str, list[dict[str, float]]] = {}
    for turn in range(1 if quick else _TURNS):
        with tempfile.TemporaryDirectory() as scratch:
            for name, command in commands(model, Path(scratch) / "out", rank).items():
                if turn > 0 and name in _ONCE:
                    continue
                print(f"{name}, turn {turn + 1}", file=sys.stderr, flush=True)
                runs.setdefault(name, []).append(run_one(command))
                shutil.rmtree(Path(scratch) / "out")
    rows = []
    for name, these in runs.items():
        row = {key: statistics.median(run[key] for run in these) for key in these[0]}
        row["peak_mb"] = max(run["peak_mb"] for run in these)
        rows.append({"method": name, "rank": rank, "layers": layers or 28, **row})
    slowest = next(row["wall_s"] for row in rows if row["method"].endswith("PEFT pissa"))
    for row in rows:
        row["ratio"] = slowest / row["wall_s"]
    return rows
