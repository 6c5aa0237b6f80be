"""What a cheaper KL signal loses: ``python bench/kl_share.py``.

Runs of adaptive-kl on the embedded model, where the KL of every step's updates is measured on all
tokens that were trained on. The responses' parts of it tell what a share of them would have said,
drawn by how surprising their tokens are, evenly, or as whole groups: its mean over the whole, and
its relative error.
Beside it how far another rollout of the same size would be (a bootstrap over groups), and a signal
that costs nothing, taken inside the last mini-batch's pass. The same for the KL to the base.

    python bench/kl_share.py [--steps 60] [--json FILE]
"""

import argparse
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import init
import torch

from orthora.adapters import base_policy
from orthora.config import TrainConfig, read_toml
from orthora.quiet import quiet_libraries
from orthora.train.loading import load_parts
from orthora.train.measure import kl_sums
from orthora.train.subsample import SPREAD, SPREAD_TO_BASE, chances, systematic
from orthora.train.trainer import RLVRTrainer
from orthora.train.updates import Sample
from orthora.train.world import World

SHARES = (0.5, 0.25, 0.125)
BASE_SHARES = (0.25, 0.125, 0.0625)
RESULTS = Path(__file__).parent / "results-steer" / "kl-share.json"
Step = dict[str, Any]
Part = tuple[float, int, float]  # nats, tokens, surprise
GROUP = 8


class Listener(RLVRTrainer):
    """Keeps each response's part of the KL, and that of the last pass, of every step."""

    steps: list[Step]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As ever; the last mini-batch is scored before its own update."""
        rows, _ = inputs
        if self._position == len(self._plan.passes):
            scores = self._scorer.logps([rows], shared=self._plan.shared)
            tokens = sum(len(row.ids) for row in rows)
            self._last = kl_sums("last", Sample([rows], [1.0] * len(rows), tokens), scores)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def finish_step(self) -> None:
        """As ever, with the responses' parts."""
        plan = self._plan
        parts = {}
        scores = self._scorer.logps(plan.once, shared=plan.shared)
        for row, values in zip(plan.rows, scores, strict=True):
            k3 = kl_sums("", Sample([[row]], [1.0], 0), [values])["_k3"]
            parts[id(row)] = (k3, len(values))
        last = self._last["last_k3"] / self._last["last_tokens"]
        rows = [(*parts[id(row)], size) for row, size in plan.surprise]
        with base_policy(self.policy):
            scores = self._scorer.logps(plan.once, shared=plan.shared, fold=False)
        far = {
            id(row): kl_sums("", Sample([[row]], [1.0], 0), [values])["_k1"]
            for row, values in zip(plan.rows, scores, strict=True)
        }
        base = [(far[id(row)], len(row.ids), size) for row, size in plan.surprise]
        self.steps.append({"rows": rows, "last": last, "base": base})
        super().finish_step()


def listen(method: str, prompts: int, steps: int, seed: int) -> list[Step]:
    """One run's steps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = read_toml("tiny") | {
            "out": folder, "eval_problems": 0, "device": "cpu", "method": method, "steps": steps,
            "schedule": "adaptive-kl", "learning_rate": 3e-4, "seed": seed,
            "prompts_per_step": prompts, "group_size": GROUP, "mini_batch_prompts": prompts // 4,
        }  # fmt: skip
        config = TrainConfig(**table)
        parts = load_parts(config, None, "cpu")
        trainer = Listener(config, parts, World(), Path(folder) / "c", lambda row: None)
        trainer.steps = []
        trainer.train()
        return trainer.steps


def mean_kl(rows: Sequence[Part]) -> float:
    """Nats per token."""
    return sum(k for k, _, _ in rows) / sum(t for _, t, _ in rows)


def judge(steps: list[Step], size: int) -> list[dict[str, Any]]:
    """Each signal against the whole, over all steps and 64 places where a sample may start.

    Args:
        steps: of a run.
        size: responses of a group.
    """
    draw = random.Random(0)
    rollouts = [step["rows"] for step in steps]
    found = []
    for kind in ("responses, surprising", "responses", "groups"):
        found += [sampled(rollouts, kind, share, size, draw, SPREAD) for share in SHARES]
    found.append(another(rollouts, size, draw))
    last = [step["last"] / mean_kl(step["rows"]) for step in steps]
    found.append({"signal": "inside the last pass", **_spread(last)})
    late = [step["base"] for step in steps[len(steps) // 2 :]]  # where there is a distance
    for share, spread in itertools.product(BASE_SHARES, (SPREAD, SPREAD_TO_BASE, 1.0)):
        found.append(sampled(late, "responses, surprising", share, size, draw, spread))
        found[-1]["signal"] = f"to the base: {share:g} of the responses, {spread:g} of it even"
    return [*found, another(late, size, draw) | {"signal": "to the base: another rollout"}]


def sampled(
    rollouts: Sequence[list[Part]],
    kind: str,
    share: float,
    size: int,
    draw: random.Random,
    spread: float,
) -> dict[str, Any]:
    """What a share of each rollout says over what all of it says."""
    ratios = []
    for rows in rollouts:
        units = cut(rows, size if kind == "groups" else 1)
        sizes = [unit[0][2] if "surp" in kind else 1.0 for unit in units]
        likely = chances(sizes, max(1, round(share * len(units))), spread)
        sums = [sum(k for k, _, _ in unit) for unit in units]
        for place in range(64):
            chosen = systematic(likely, (place + draw.random()) / 64)
            ratios.append(sum(sums[i] / likely[i] for i in chosen) / sum(sums))
    return {"signal": f"{share:g} of the {kind}", **_spread(ratios)}


def another(rollouts: Sequence[list[Part]], size: int, draw: random.Random) -> dict[str, Any]:
    """What a rollout of other groups would say, by a bootstrap."""
    ratios = []
    for rows in rollouts:
        groups = cut(rows, size)
        for _ in range(64):
            others = [row for group in draw.choices(groups, k=len(groups)) for row in group]
            ratios.append(mean_kl(others) / mean_kl(rows))
    return {"signal": "another rollout", **_spread(ratios)}


def cut(rows: list[Part], size: int) -> list[list[Part]]:
    """The rows of each group."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _spread(ratios: list[float]) -> dict[str, float]:
    quantiles = statistics.quantiles(ratios, n=20)
    return {
        "mean": statistics.fmean(ratios),
        "error": math.sqrt(statistics.fmean((r - 1) ** 2 for r in ratios)),
        "q05": quantiles[0],
        "q95": quantiles[-1],
    }


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The errors, by signal and rollout."""
    columns = list(dict.fromkeys((row["method"], row["prompts"]) for row in rows))
    heads = [f"`{method}`, {prompts} x {GROUP}" for method, prompts in columns]
    lines = [f"| signal | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for signal in dict.fromkeys(row["signal"] for row in rows):
        found = {(r["method"], r["prompts"]): r for r in rows if r["signal"] == signal}
        cells = [f"{found[column]['error']:.2f}" for column in columns]
        if signal.startswith("inside"):
            cells = [f"{found[column]['mean']:.2f} of it" for column in columns]
        lines.append(f"| {signal} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet_libraries()
    rows = []
    for prompts in (16, 64):
        for method in ("lora", "rlpo", "pissa"):
            steps = listen(method, prompts, options.steps * 16 // prompts, seed=2000)
            kept = steps[5:]  # the first ones look for the learning rate
            rows += [{"method": method, "prompts": prompts, **row} for row in judge(kept, GROUP)]
            print(method, prompts, file=sys.stderr, flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": init.machine(), "steps": options.steps, "rows": rows}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    init.show("a signal over the whole", rows)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
