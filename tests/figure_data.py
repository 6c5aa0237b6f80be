"""Runs and tables of made-up numbers that have every quantity."""

import json
import math
import random

from orthora.table import BASE, Row, frame

MARKER = "orthora_checkpoint.json"

MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
ALL_MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
KEYS = (
    "reward", "pass_rate", "kl_update_k3", "kl_base_k1", "grad_norm", "entropy", "length", "lr",
    "truncated", "clip_low", "clip_high", "delta_norm", "update_norm", "head_energy",
)  # fmt: skip
SINGLE = {
    "start_norm": 0.1, "row_alignment_top": 0.6, "row_alignment_bottom": 0.3,
    "row_space_kept": 0.9, "update_norm": 0.5, "update_relative": 0.01, "update_spectral": 0.3,
    "stable_rank": 4.0, "effective_rank": 6.0, "head_energy": 0.2, "tail_energy": 0.05,
    "chance_energy": 0.03, "subspace_similarity": 0.7, "projector_left": 0.02,
    "projector_right": 0.03, "nss": 1e-4, "nss_low": 1e-4, "nss_high": 1e-3, "changed": 0.2,
    "princ_overlap": 0.25, "princ_lift": 0.8, "low_overlap": 0.35, "low_lift": 1.2,
}  # fmt: skip
NAN = math.nan


def run_rows(run, method, *, steps=(0, 5, 10), layers=4, modules=MODULES, seed=0, sigmas=12):
    """Geometry of one run."""
    draw, rows = random.Random(f"{run} {seed}"), []
    level = 1 + sum(map(ord, method)) % 7 / 4
    for step in steps:
        for layer in range(layers):
            for module in modules:

                def add(quantity, value, at=NAN, where=(step, layer, module)):
                    rows.append(Row(run, method, *where, quantity, at, value))

                for name, value in SINGLE.items():
                    grown = value if step else value / 10
                    add(name, grown * level / 2 * draw.uniform(0.8, 1.2))
                for i in range(1, sigmas + 1):
                    noise = draw.uniform(0.7, 1.3)
                    add("update_sigma", level * 0.5**i * noise, i)
                    add("alignment", level * 0.05 / i * noise, i)
                    add("angle_left", 0.1 * i * level * noise, i)
                    add("angle_right", 0.12 * i * level * noise, i)
                    add("sigma_shift", 1e-4 * (i - 4) * level * noise, i)
                    add("energy", 0.02 * level / i * noise, i if i < 7 else 52 + i)
                for k in range(9):
                    add("energy_cumulative", (k / 8) ** (0.3 + level / 2), k / 8)
    return rows


def base_rows(layers=4, modules=MODULES, sigmas=12):
    """Geometry of the base model."""
    rows = []
    for layer in range(layers):
        for place, module in enumerate(modules):

            def add(quantity, value, at=NAN, where=(0, layer, module)):
                rows.append(Row(BASE, "", *where, quantity, at, value))

            add("weight_norm", 10.0 + layer)
            add("weight_stable_rank", 5.0 + place + layer / 2)
            add("weight_effective_rank", 20.0 + place)
            for i in range(1, sigmas + 1):
                add("sigma", (10 + place) / (i**0.6) * (1 + layer / 10), i)
    return rows


def geometry(names, **how):
    """The table that `orthora measure` would leave for runs, by name and method."""
    base = {key: how[key] for key in ("layers", "modules", "sigmas") if key in how}
    rows = [row for run, method in names.items() for row in run_rows(run, method, **how)]
    return frame([*base_rows(**base), *rows])


def write_run(root, name, method, *, rate=1e-3, seed=0, steps=10, score=0.5, **extra):
    """One run folder."""
    folder, draw = root / name, random.Random(name)
    folder.mkdir(parents=True)
    config = {"method": method, "learning_rate": rate, "seed": seed, "rank": 8, "alpha": 16.0,
              "out": str(folder), "steps": steps} | extra  # fmt: skip

    def held_out(value):
        return {"pass_at_1": value, "interval": [value - 0.05, value + 0.06], "problems": 64,
                "samples": 4, "pass_at_k": {"1": value}, "truncated": 0.0}  # fmt: skip

    result = config | {
        "status": "finished", "reason": None, "seconds": 12.5, "peak_grad_norm": 0.7,
        "mean_kl_update": 1e-3, "kl_base": 0.01, "first_update_norm": 0.1 * (1 + len(method) % 4),
        "trained_parameters": 61440, "final": {},
        "evaluation": None if score is None else held_out(score),
        "base_evaluation": held_out(0.42),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    (folder / "config.toml").write_text(lines)
    rows = [
        {"step": n} | {key: (1 + place) * 0.01 * n * draw.uniform(0.8, 1.2)
                       for place, key in enumerate(KEYS)}
        for n in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_scores(folder, task, adapter, value):
    """One folder of `orthora eval`."""
    folder.mkdir(parents=True)
    (folder / "problems.jsonl").write_text("")
    scores = {
        "config": {"task": task, "data": None, "model": "tiny", "adapter": str(adapter)},
        "pass_at_1": value, "interval": [value - 0.04, value + 0.04], "problems": 64, "samples": 4,
        "pass_at_k": {"1": value}, "truncated": 0.0, "no_answer": 0.0, "unscored": 0,
        "disagreement": None, "contamination": None,
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))


def write_start(folder, method, seconds):
    """One folder of `orthora init`."""
    folder.mkdir(parents=True)
    modules = {f"layers.{i}.q_proj": {"seconds": seconds / 4} for i in range(3)}
    record = {"method": method, "rank": 8, "seconds": seconds, "modules": modules}
    (folder / "orthora.json").write_text(json.dumps(record))


def write_checkpoint(run, step, updates):
    """One checkpoint of a run, as far as its record goes; its name counts updates."""
    folder = run / "checkpoints" / f"checkpoint-{updates}"
    folder.mkdir(parents=True)
    record = {"step": step, "config": {}, "upkeep": {}, "files": {}}
    (folder / MARKER).write_text(json.dumps(record))
    return folder
