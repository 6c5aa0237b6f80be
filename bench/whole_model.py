"""A whole checkpoint: ``orthora init`` against loading the model and PEFT's own starts."""

import os
import shutil
import statistics
import sys
import tempfile
import time
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


def run_one(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak resident MB of a process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        pid = os.posix_spawnp(
            command[0],
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - begun
        if status:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command[:5])} failed:\n{log.read().decode()[-2000:]}")
    peak = usage.ru_maxrss / 1024
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": peak}


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
