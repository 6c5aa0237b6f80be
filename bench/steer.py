"""The evidence on learning rates: ``python bench/steer.py run``, then ``summary``.

Every run is DAPO on the embedded model, 120 training steps, scored after 60 and after 120: with a
constant schedule, or adaptive-kl with a constant target, the first 60 steps of both are the same
steps. Settings are picked on 256 validation problems and reported on 256 test problems, four
samples each; neither occurs in training. Runs of one seed share base model, prompts and random
streams. Workers take the runs from one list, seed by seed, and append to one file, so that any
number of them may be started and killed.

    python bench/steer.py run --grid evidence --seeds 5 --workers 2 --minutes 60
    python bench/steer.py summary
"""

import argparse
import fcntl
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results-steer"
MARKS = (60, 120)
PROBLEMS, SAMPLES = 256, 4
METHODS = (
    "lora",
    "rlpo",
    "rlmo",
    "pissa",
    "milora",
    "olora",
    "olora-tail",
    "geora",
    "dct",
    "dora",
)
FIXED = (1e-4, 3e-4, 1e-3, 3e-3)
STARTS, TARGETS = (3e-5, 3e-4, 3e-3), (1e-3, 2e-3)
FIRSTS = (3e-4, 3e-3, 3e-5)
"""`STARTS` by how much their runs are wanted."""
KEPT = (  # of every step's row, for the watchdog's evidence
    "lr",
    "kl_update_k3",
    "kl_base_k1",
    "pass_rate",
    "reward",
    "entropy",
    "length",
    "truncated",
    "grad_norm",
    "grad_norm_max",
    "undone",
    "update_norm",
    "head_energy",
)

Run = dict[str, Any]


def grid(name: str, seeds: int) -> Iterator[Run]:
    """The runs of a grid, the most informative first: changes of `TrainConfig` by name."""
    if name == "rules":  # which law? on seeds that the evidence does not use
        laws = {
            "sqrt": {},
            "sqrt-quick": {"kl_max_change": 2.0},
            "sqrt-rough": {"kl_smoothing": 0.0},
            "step": {"kl_rule": "step", "kl_max_change": 1.5},
            "keep": {"kl_undo": 0.0},
            "whole": {"kl_update_share": 1.0},
            "eighth": {"kl_update_share": 0.125},
        }
        for seed in range(1000, 1000 + seeds):
            for method in ("lora", "pissa", "rlmo"):
                for lr in (3e-5, 3e-3):
                    for law, changes in laws.items():
                        setting = {"schedule": "adaptive-kl"} | changes
                        yield _run(f"{law}", method, lr, seed, setting, steps=60)
        return
    everything = [run for seed in range(seeds) for run in _cells(seed)]
    # the first seed, what the main comparison needs of every seed, then setting by setting the rest
    yield from sorted(everything, key=_turn)


def _cells(seed: int) -> Iterator[Run]:
    """All cells of the evidence of one seed."""
    for method in METHODS:
        for lr in FIXED:
            yield _run("fixed", method, lr, seed, {})
        for target in TARGETS:
            for lr in STARTS:
                setting = {"schedule": "adaptive-kl", "kl_target": target}
                yield _run(f"adaptive {target:g}", method, lr, seed, setting)


def _turn(run: Run) -> tuple[int, int]:
    """When a run's turn is, the earlier the smaller."""
    settings = run["settings"]
    lr, adaptive = settings["learning_rate"], settings.get("schedule") == "adaptive-kl"
    if settings["seed"] == 0:
        return 0, 0
    if adaptive:
        place = (TARGETS[::-1].index(settings["kl_target"]), FIRSTS.index(lr))
        return (1, 0) if place == (0, 0) else (2, 10 * place[0] + place[1])
    return (1, 0) if lr in FIXED[1:3] else (3, FIXED.index(lr))


def _run(
    kind: str, method: str, lr: float, seed: int, changes: dict[str, Any], steps: int = MARKS[-1]
) -> Run:
    settings = {"method": method, "learning_rate": lr, "seed": seed, "steps": steps, **changes}
    return {"name": f"{kind}/{method}/{lr:g}/{seed}", "kind": kind, "settings": settings}


def train(run: Run) -> Run:
    """One run's record: scores at the marks, per-problem means, and the kept metrics."""
    import torch

    from orthora.adapters import folded, folds_exactly
    from orthora.config import TrainConfig, read_toml
    from orthora.evaluate import score
    from orthora.sampling import Sampling
    from orthora.tasks import arithmetic
    from orthora.train.loading import load_parts
    from orthora.train.trainer import Metrics, RLVRTrainer
    from orthora.train.world import World

    torch.set_num_threads(1)
    rows: list[Metrics] = []
    scores: dict[str, Any] = {}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        table = read_toml("tiny") | {"out": folder, "eval_problems": 0, "device": "cpu"}
        config = TrainConfig(**(table | run["settings"]))
        parts = load_parts(config, None, "cpu")
        held_out = {s: arithmetic.problems(s, PROBLEMS) for s in ("validation", "test")}

        def measured() -> dict[str, Any]:
            how = Sampling(max_tokens=config.max_response_tokens)
            with folded(parts.model) if folds_exactly(parts.model) else torch.no_grad():
                found = {
                    split: score(
                        parts.model,
                        parts.tokenizer,
                        problems,
                        how,
                        SAMPLES,
                        rule=config.reward_rule,
                    )
                    for split, problems in held_out.items()
                }
            return {split: result.pass_at_1 for split, result in found.items()} | {
                "interval": found["test"].interval,
                "pass_at_4": found["test"].pass_at_k["4"],
                "length": found["test"].mean_length,
            }

        def on_step(row: Metrics) -> None:
            rows.append(row)
            if row["step"] in MARKS:
                scores[str(row["step"])] = measured()

        trainer = RLVRTrainer(config, parts, World(), Path(folder) / "checkpoints", on_step)
        failure = None
        try:
            trainer.train()
        except ValueError as error:  # no signal left, or a loss that is not finite: an outcome
            failure = str(error)
            missing = {str(mark) for mark in MARKS if mark <= config.steps} - scores.keys()
            scores |= dict.fromkeys(sorted(missing), measured()) if missing else {}
    series = {key: [_short(row.get(key)) for row in rows] for key in KEPT}
    series = {k: v for k, v in series.items() if any(x is not None for x in v)}
    seconds = round(time.process_time() - started, 1)
    return {**run, "scores": scores, "failure": failure, "cpu_seconds": seconds, "series": series}


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def work(name: str, seeds: int, part: str, until: float) -> None:
    """Take runs whose names have a part from the list, until there are none or time is over."""
    from orthora.quiet import quiet_libraries

    quiet_libraries()
    file = RESULTS / f"{name}.jsonl"
    claims = Path(tempfile.gettempdir()) / f"orthora-steer-{name}"
    claims.mkdir(exist_ok=True)
    for run in grid(name, seeds):
        if time.time() > until:
            return
        claim = claims / run["name"].replace("/", "_").replace(" ", "_")
        if part not in run["name"] or run["name"] in done(file) or not _claimed(claim):
            continue
        try:
            record = train(run)
        finally:
            claim.unlink()
        with file.open("a", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.write(json.dumps(record) + "\n")
        last = record["scores"].get(str(run["settings"]["steps"]), {})
        print(f"{record['name']:40s} {last.get('test', float('nan')):.3f}", flush=True)


def _claimed(claim: Path) -> bool:
    """Whether the run is this worker's now; a dead worker's claim is taken over."""
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        owner = claim.read_text() or "0"
        if Path(f"/proc/{owner}").exists():
            return False
    claim.write_text(str(os.getpid()))
    return True


def records(file: Path) -> list[Run]:
    """What has been run."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def done(file: Path) -> set[str]:
    """Names of what has been run."""
    return {record["name"] for record in records(file)}


def main() -> None:
    """Run or sum up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["run", "summary"])
    parser.add_argument("--grid", choices=["evidence", "rules"], default="evidence")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", default="", help="of the names of the runs, e.g. fixed/")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if options.what == "summary":
        for record in records(RESULTS / f"{options.grid}.jsonl"):
            marks = {m: round(s["test"], 3) for m, s in record["scores"].items()}
            print(f"{record['name']:40s} {marks} {record['failure'] or ''}")
        return
    until = time.time() + 60 * options.minutes
    context = multiprocessing.get_context("spawn")
    arguments = (options.grid, options.seeds, options.part, until)
    workers = [context.Process(target=work, args=arguments) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(worker.exitcode or 0 for worker in workers))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
