"""How far one step tells the best learning rate: ``python bench/predict.py``.

Probes every method of ``bench/steer.py`` from the base, as the runs of each seed begin: the rate at
which its first step moves the policy as far as LoRA's at LoRA's best fixed rate, and the rate at
which its first update moves the weights as far. The tables say what these rates would have scored
on the test problems, beside the best of the fixed ones, picked on the validation problems.

    python bench/predict.py probe           # makes results-steer/probe.json
    python bench/predict.py                 # prints the tables
    python bench/predict.py --docs docs     # puts them into the page on the probe
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import evidence
import findings
import steer

from orthora.runs import rate_text
from orthora.study.estimates import estimate
from orthora.study.reread import read_table
from orthora.study.results import Results

FILE = steer.RESULTS / "probe.json"
RATE = 1e-3  # LoRA's best fixed rate; the tables check it
SETTING = (2e-3, 3e-4)
"""Of adaptive-kl: target and first rate, the defaults of the studies."""
Scores = Mapping[tuple[str, float], Mapping[int, Mapping[str, float]]]


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


class Predicted:
    """Rates by what one step did, by method; means of the probes in the logarithm.

    Attributes:
        by_kl: at which it moves the policy as far as LoRA's.
        by_norm: at which the first update moves the weights as far as LoRA's. None for a method
            whose product is not all of its change of the weights.
    """

    def __init__(self, probes: Sequence[Mapping[str, Any]]) -> None:
        lora = {one["seed"]: one["first_update_norm"] for one in probes if one["method"] == "lora"}
        self.by_kl: dict[str, float | None] = {}
        self.by_norm: dict[str, float | None] = {}
        for method in steer.METHODS:
            mine = [one for one in probes if one["method"] == method]
            self.by_kl[method] = _middle([one["matched_learning_rate"] for one in mine])
            norms = [(lora[one["seed"]], one["first_update_norm"]) for one in mine]
            self.by_norm[method] = _middle([RATE * a / b if b else None for a, b in norms])


def _middle(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate]
    return statistics.geometric_mean(known) if known else None


class Ran:
    """What the runs of a study scored.

    Attributes:
        fixed: by method and rate, then seed, on seeds that have all fixed rates.
        steered: on the test problems under adaptive-kl, by method and seed; of the same seeds.
    """

    def __init__(self, found: Results) -> None:
        by_seed: dict[int, dict[tuple[str, float], dict[str, float]]] = {}
        steered: dict[int, dict[str, float]] = {}
        for one in found.records:
            cell = one.cell
            scores = {name: float(score) for name, score in one.scores.items()}
            if not scores:
                continue
            if cell.get("schedule") == "constant":
                by_seed.setdefault(cell.seed, {})[cell.method, cell.rate] = scores
            elif (cell.get("kl_target"), cell.rate) == SETTING:
                steered.setdefault(cell.seed, {})[cell.method] = scores["test"]
        wanted = set(itertools.product(steer.METHODS, steer.FIXED))
        seeds = [seed for seed in by_seed if wanted <= by_seed[seed].keys()]
        self.fixed: Scores = {key: {seed: by_seed[seed][key] for seed in seeds} for key in wanted}
        self.steered = {m: {seed: steered[seed][m] for seed in seeds} for m in steer.METHODS}


def best(scores: Scores, method: str) -> float:
    """The rate with the best mean on the validation problems."""
    means = {
        rate: statistics.fmean(one["validation"] for one in scores[method, rate].values())
        for rate in steer.FIXED
    }
    return max(steer.FIXED, key=means.__getitem__)


def at(scores: Scores, method: str, rate: float) -> dict[int, float]:
    """Test score by seed at a rate, between two that ran linear in the logarithm.

    Beyond them it is that of the last.
    """
    xs = [math.log(lr) for lr in steer.FIXED]
    x = min(max(math.log(rate), xs[0]), xs[-1])
    i = max(k for k in range(len(xs) - 1) if xs[k] <= x)
    share = (x - xs[i]) / (xs[i + 1] - xs[i])
    low, high = (scores[method, lr] for lr in steer.FIXED[i : i + 2])
    return {seed: low[seed]["test"] * (1 - share) + high[seed]["test"] * share for seed in low}


def mean(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Of several methods, by seed."""
    return {seed: statistics.fmean(part[seed] for part in parts) for seed in parts[0]}


def table(found: Results, predicted: Predicted) -> list[str]:
    """By method, and in the mean, what rates for which nobody sweeps lose against the best of four.

    Beside the predicted ones: LoRA's own for all, and adaptive-kl.
    """
    ran = Ran(found)
    scores = ran.fixed
    if not scores["lora", RATE]:
        return []
    assert best(scores, "lora") == RATE, "the probes were made for LoRA's best rate"
    picked = {method: best(scores, method) for method in steer.METHODS}
    there = {method: at(scores, method, rate) for method, rate in picked.items()}

    def lost(rates: Mapping[str, float | None]) -> dict[str, dict[int, float]]:
        return {m: _less(at(scores, m, rate), there[m]) for m, rate in rates.items() if rate}

    shared = lost(dict.fromkeys(steer.METHODS, RATE))
    by_kl, by_norm = lost(predicted.by_kl), lost(predicted.by_norm)
    steered = {m: _less(ran.steered[m], there[m]) for m in steer.METHODS}
    columns = (shared, by_kl, by_norm, steered)
    lines = [
        "| method | best fixed rate | pass@1 there | LoRA's best rate | rate by KL | | "
        "rate by norm | | adaptive-kl |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in [*steer.METHODS, None]:
        if method is None:
            score = statistics.fmean(mean([*there.values()]).values())
            losses = [_text(mean([*column.values()])) for column in columns]
            cells, rates = ["mean", ""], ["", ""]
        else:
            score = statistics.fmean(there[method].values())
            losses = [_text(column[method]) if method in column else "" for column in columns]
            cells = [f"`{method}`", rate_text(picked[method])]
            both = (predicted.by_kl[method], predicted.by_norm[method])
            rates = [f"{rate:.1e}" if rate else "" for rate in both]
        cells += [f"{score:.3f}", losses[0], rates[0], losses[1], rates[1], *losses[2:]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _less(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    return {seed: a[seed] - b[seed] for seed in a}


def _text(by_seed: Mapping[int, float]) -> str:
    one = estimate([*by_seed.values()])
    if not any(by_seed.values()):
        return "0"  # the same runs
    return f"{one.mean:+.3f}" + (f" ({one.low:+.3f} to {one.high:+.3f})" if one.known else "")


def tables(docs: Path) -> dict[str, list[str]]:
    """The page's tables by their marks, out of the committed findings."""
    predicted = Predicted(json.loads(FILE.read_text(encoding="utf-8")))
    made = {}
    for mark, name in findings.STUDIES.items():
        found = read_table(findings.study(name), docs / "findings" / name / "results.csv")
        made[f"bench-predict-{mark}"] = table(found, predicted)
    return made


def main() -> int:
    """Probe, or print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["probe", "table"], nargs="?", default="table")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="folder of the pages to update")
    options = parser.parse_args()
    if options.what == "probe":
        make(options.seeds)
        return 0
    for mark, lines in tables(options.docs or findings.ROOT / "docs").items():
        print(mark, *lines, "", sep="\n")
        if options.docs:
            evidence.put(options.docs / "probe.md", mark, lines)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
