"""The runs of ``bench/steer.py`` as findings of two studies: ``python bench/findings.py``.

``studies/adaptive-kl-settings-tiny.toml`` and its twin of 120 steps have the cells of the grid
``evidence``: a run of 120 steps, scored after 60 as well, is a cell of both, as schedule and target
are constant. After 60 steps, cells that ``adaptive-kl-tiny`` has run are taken from its committed
table; of those that both programs ran, how many have the same scores is printed. What has not run
yet is missing.

    python bench/findings.py [--out docs/findings]
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import steer

from orthora.study import StudySpec, load_study, plan
from orthora.study.arms import Arm, arms_of
from orthora.study.plan import Cell
from orthora.study.report import write_report
from orthora.study.reread import read_table
from orthora.study.results import NUMBERS, Record, Results, exact, missing

ROOT = Path(__file__).parents[1]
STUDIES = {60: "adaptive-kl-settings-tiny", 120: "adaptive-kl-settings-120-tiny"}
EARLIER = "adaptive-kl-tiny"
SPLITS = ("validation", "test")


def study(name: str) -> StudySpec:
    """One of those in the repository."""
    return load_study(ROOT / "studies" / f"{name}.toml")


def run_name(cell: Cell) -> str:
    """What `steer` calls the run of a cell."""
    adaptive = cell.get("schedule") == "adaptive-kl"
    kind = f"adaptive {cell.get('kl_target'):g}" if adaptive else "fixed"
    return f"{kind}/{cell.method}/{cell.rate:g}/{cell.seed}"


def record_of(cell: Cell, arm: Arm, run: steer.Run | None, mark: int) -> Record:
    """What a run gave after a number of steps; a missing cell without one."""
    if run is None:
        return missing(cell, arm)
    series = {key: values[:mark] for key, values in run["series"].items()}
    steps = len(series["lr"])
    ended = bool(run["failure"]) and steps < mark
    scores = {split: exact(run["scores"][str(mark)][split]) for split in SPLITS}
    rates = [rate for rate in series["pass_rate"] if rate is not None]
    return Record(
        cell=cell,
        arm=arm,
        state="failed" if ended else "finished",
        reason=run["failure"] if ended else None,
        by_training=ended,
        step=steps,
        scores=scores,
        numbers=_numbers(series, rates),
        pass_rates=rates,
        seconds=None,
        parameters=None,
    )


def _numbers(series: dict[str, list[Any]], rates: list[float]) -> dict[str, float | None]:
    """As `orthora.train.result` and `orthora.study.results` have them, from four digits."""
    undone = series.get("undone") or [0] * len(series["lr"])
    moved = [
        k for k, u in zip(series["kl_update_k3"], undone, strict=True) if k is not None and not u
    ]
    far = [k for k in series["kl_base_k1"][-10:] if k is not None]
    peaks = [g for g in series["grad_norm_max"] if g is not None]
    late = rates[-max(1, len(rates) // 10) :]
    return dict.fromkeys(NUMBERS) | {
        "kl_update": statistics.fmean(moved) if moved else None,
        "kl_base": statistics.fmean(far) if far else None,
        "peak_grad": max(peaks, default=None),
        "end_pass_rate": statistics.fmean(late) if late else None,
    }


def results(mark: int, runs: dict[str, steer.Run], out: Path) -> Results:
    """A study's results after a number of steps."""
    spec, before = study(STUDIES[mark]), study(EARLIER)
    assert spec.evaluations == before.evaluations, f"{spec.name} and {EARLIER} score alike"
    earlier = read_table(before, out / EARLIER / "results.csv")
    known = {one.cell.hash: one for one in earlier.records}
    cells = plan(spec)
    arms = arms_of(spec, cells)
    records, twice, alike = [], 0, 0
    for cell in cells:
        found = record_of(cell, arms[cell.name], runs.get(run_name(cell)), mark)
        kept = known.get(cell.hash)
        if kept and kept.state == "missing":
            kept = None
        if kept and found.state != "missing":
            twice, alike = twice + 1, alike + (kept.scores == found.scores)
        found = replace(kept, cell=cell, arm=found.arm) if kept else found
        # curves of some of the cells are no comparison
        records.append(found if mark > 60 else replace(found, pass_rates=()))
    if twice:
        print(f"{alike} of {twice} cells that both programs ran have the same scores, bit for bit")
    return Results(spec, records, earlier.bases)


def main() -> int:
    """Write both studies' tables, figures and verdicts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/findings")
    options = parser.parse_args()
    runs = {one["name"]: one for one in steer.records(steer.RESULTS / "evidence.jsonl")}
    for mark, name in STUDIES.items():
        found = results(mark, runs, options.out)
        made = write_report(found, options.out / name)
        made.page.unlink()  # an HTML page is no thing to commit
        print(name, found.states())
        for verdict in made.verdicts:
            print(f"  {verdict.ruling}: {verdict.claim.says}")
            for text in verdict.numbers[-2:]:
                print(f"    {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
