"""How far one step tells the best learning rate: ``python bench/predict.py``.

Probes every method of ``bench/steer.py`` from the base, as the runs of each seed begin: the rate at
which its first step moves the policy as far as LoRA's at LoRA's best fixed rate, and the rate at
which its first update moves the weights as far. Beside them the best fixed rate in training.

    python bench/predict.py probe     # makes results-steer/probe.json
    python bench/predict.py           # the table, with what the runs say
"""

import argparse
import json
import math
import os
import statistics
import sys
from dataclasses import asdict
from typing import Any

import steer

FILE = steer.RESULTS / "probe.json"
RATE = 1e-3  # LoRA's best fixed rate; bench/evidence.py checks it


def make(seeds: int) -> None:
    """Probe, and keep what was found."""
    import torch

    from orthora.config import read_toml
    from orthora.quiet import quiet_libraries
    from orthora.train.probing import probe

    quiet_libraries()
    torch.set_num_threads(1)
    found = []
    for seed in range(seeds):
        table = read_toml("tiny") | {"out": "unused", "learning_rate": RATE, "seed": seed}
        table |= {"eval_problems": 0, "steps": 120}
        for one in probe(table, steer.METHODS, rollouts=4):
            found.append({"seed": seed, **asdict(one)})
            print(seed, one.method, one.matched_learning_rate, flush=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def peak(rates: tuple[float, ...], scores: list[float]) -> float:
    """Where a parabola over log rates through the best rate and its neighbours is highest.

    The best rate itself, where it is the first or the last.
    """
    best = max(range(len(rates)), key=scores.__getitem__)
    if best in (0, len(rates) - 1):
        return rates[best]
    xs = [math.log(rates[best + k]) for k in (-1, 0, 1)]
    ys = [scores[best + k] for k in (-1, 0, 1)]
    left, right = (ys[1] - ys[0]) / (xs[1] - xs[0]), (ys[2] - ys[1]) / (xs[2] - xs[1])
    curve = (right - left) / (xs[2] - xs[0])
    middle = (xs[0] + xs[1]) / 2
    if curve >= 0:
        return rates[best]
    return math.exp(min(max(middle - left / (2 * curve), xs[0]), xs[2]))


def table(runs: dict[str, Any], seeds: list[int]) -> list[str]:
    """Predicted and best rates by method, and the pass@1 that the predicted rate would have had.

    Between the fixed rates the score is interpolated over the logarithm of the rate.
    """
    probes = json.loads(FILE.read_text(encoding="utf-8"))
    mark = str(steer.MARKS[-1])
    lines = [
        "| method | best of the fixed rates | best (parabola) | by KL | score there | by norm | "
        "score there |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lora = {one["seed"]: one for one in probes if one["method"] == "lora"}
    for method in steer.METHODS:
        scores = [
            statistics.fmean(
                runs[f"fixed/{method}/{lr:g}/{seed}"]["scores"][mark]["validation"]
                for seed in seeds
            )
            for lr in steer.FIXED
        ]
        mine = [one for one in probes if one["method"] == method]
        by_kl = [one["matched_learning_rate"] for one in mine if one["matched_learning_rate"]]
        by_norm = [
            RATE * lora[one["seed"]]["first_update_norm"] / one["first_update_norm"]
            for one in mine
            if one["first_update_norm"]
        ]
        best = max(range(len(scores)), key=scores.__getitem__)
        cells = [f"{steer.FIXED[best]:g} ({scores[best]:.3f})", f"{peak(steer.FIXED, scores):.1e}"]
        for rates in (by_kl, by_norm):
            rate = statistics.geometric_mean(rates) if rates else None
            cells += [f"{rate:.1e}", f"{_at(rate, scores):.3f}"] if rate else ["", ""]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return lines


def _at(rate: float, scores: list[float]) -> float:
    """The score between two fixed rates; beyond them, that of the last."""
    xs = [math.log(lr) for lr in steer.FIXED]
    x = min(max(math.log(rate), xs[0]), xs[-1])
    i = max(k for k in range(len(xs) - 1) if xs[k] <= x)
    share = (x - xs[i]) / (xs[i + 1] - xs[i])
    return scores[i] * (1 - share) + scores[i + 1] * share


def main() -> int:
    """Probe, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["probe", "table"], nargs="?", default="table")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "probe":
        make(options.seeds)
        return 0
    runs = {record["name"]: record for record in steer.records(steer.RESULTS / "evidence.jsonl")}
    wanted = {(m, lr) for m in steer.METHODS for lr in steer.FIXED}
    seeds = [s for s in range(5) if all(f"fixed/{m}/{lr:g}/{s}" in runs for m, lr in wanted)]
    print("\n".join(table(runs, seeds)) if seeds else "no seed of fixed rates is complete")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
