"""What the runs of ``bench/steer.py`` say: ``python bench/evidence.py``.

How early the watchdog barks, and pass@1 over the first learning rate on the seeds for which every
run of the grid is done, from ``results-steer/evidence.jsonl``. What the runs say of adaptive-kl is
in the studies that ``bench/findings.py`` makes of them.

    python bench/evidence.py                      # print the table
    python bench/evidence.py --docs docs          # put it and the figure into the pages
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kl_share
import overhead
import steer

from orthora.watch import alarms, rules_of

Run = dict[str, Any]
SEEDS = 5
FALL, WINDOW, GOOD = 0.75, 5, 0.9
RULES = [str(rule) for rule in rules_of(["default"])]


def score(run: Run, mark: int) -> float:
    """Pass@1 on the test problems after a number of steps."""
    return run["scores"][str(mark)]["test"]


class Evidence:
    """The runs by setting.

    Attributes:
        runs: all that are done, by name.
        seeds: those for which the whole grid is done.
    """

    def __init__(self, records: Sequence[Run]) -> None:
        self.runs = {record["name"]: record for record in records}
        wanted: dict[int, set[str]] = {}
        for run in steer.grid("evidence", SEEDS):
            wanted.setdefault(run["settings"]["seed"], set()).add(run["name"])
        self.seeds = [seed for seed, names in wanted.items() if names <= self.runs.keys()]

    def of(self, kind: str, method: str, lr: float, seed: int) -> Run:
        """One run."""
        return self.runs[f"{kind}/{method}/{lr:g}/{seed}"]

    def mean(self, kind: str, method: str, lr: float, mark: int) -> float:
        """Pass@1 over the seeds."""
        return statistics.fmean(score(self.of(kind, method, lr, seed), mark) for seed in self.seeds)


def kinds() -> list[str]:
    """The settings of adaptive-kl."""
    return [f"adaptive {target:g}" for target in steer.TARGETS]


def fall_of(run: Run) -> int | None:
    """First step at which the training pass rate is below 0.75 of its best so far, in means over 5.

    A run that ended early, without a signal left, falls there at the latest. None where it never
    does.
    """
    rates = [value or 0.0 for value in run["series"]["pass_rate"]]
    means = [statistics.fmean(rates[i : i + WINDOW]) for i in range(len(rates) - WINDOW + 1)]
    for i, (mean, peak) in enumerate(zip(means, itertools.accumulate(means, max), strict=True)):
        if mean < FALL * peak:
            return i + WINDOW
    return len(rates) + 1 if run["failure"] else None


def first_alarms(run: Run) -> dict[str, int]:
    """The step at which each of the default rules first barked, by the rule."""
    series = run["series"]
    steps = len(series["pass_rate"])
    rows = [
        {"step": i + 1} | {key: values[i] for key, values in series.items()} for i in range(steps)
    ]
    target = run["settings"].get("kl_target") if steered(run) else None
    names = {
        str(rule): name for rule, name in zip(rules_of(["default"], target), RULES, strict=True)
    }
    first: dict[str, int] = {}
    for end in range(1, steps + 1):
        for alarm in alarms(rules_of(["default"], target), rows[:end]):
            first.setdefault(names[alarm.rule], alarm.step)
    return first


def steered(run: Run) -> bool:
    """Whether its learning rate follows the KL."""
    return run["settings"].get("schedule") == "adaptive-kl"


def judged(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """How each run went, when its reward fell, and when each rule barked first.

    ``fell``: see `fall_of`. Of the others, ``good`` ends within a tenth of the best run of its
    method and seed, and ``below`` does not; those under adaptive-kl, which takes back what goes far
    beyond its target, are told apart.
    """
    mark = steer.MARKS[-1]
    best: dict[tuple[str, int], float] = {}
    for run in runs.values():
        key = (run["settings"]["method"], run["settings"]["seed"])
        best[key] = max(best.get(key, 0.0), score(run, mark))
    found = []
    for run in runs.values():
        share = score(run, mark) / best[run["settings"]["method"], run["settings"]["seed"]]
        fall = fall_of(run)
        kind = "fell" if fall else "good" if share >= GOOD else "below"
        kind += ", adaptive-kl" * steered(run)
        found.append({"name": run["name"], "kind": kind, "fall": fall, "alarms": first_alarms(run)})
    return found


def watchdog(runs: Mapping[str, Run]) -> list[str]:
    """How often each rule barks, by how the runs went, and how long before the reward falls."""
    found = judged(runs)
    kinds = [
        f"{kind}{more}" for more in ("", ", adaptive-kl") for kind in ("good", "below", "fell")
    ]
    counts = {kind: sum(one["kind"] == kind for one in found) for kind in kinds}
    counts = {kind: count for kind, count in counts.items() if count}
    heads = [f"{count} {kind}" for kind, count in counts.items()]
    lines = [
        f"| rule | {' | '.join(heads)} | steps before the fall |",
        f"| --- |{' --- |' * len(heads)} --- |",
    ]
    for rule in [*RULES, "any of them"]:
        barks = dict.fromkeys(counts, 0)
        leads = []
        for one in found:
            steps = [step for name, step in one["alarms"].items() if rule in (name, "any of them")]
            barks[one["kind"]] += bool(steps)
            if steps and one["fall"]:
                leads.append(one["fall"] - min(steps))
        cells = " | ".join(str(count) for count in barks.values())
        middle = f"median {statistics.median(leads):.0f}, " if len(leads) > 2 else ""
        lead = f"{middle}{min(leads)} to {max(leads)}" if leads else ""
        lines.append(f"| {rule if rule == 'any of them' else f'`{rule}`'} | {cells} | {lead} |")
    return lines


def figure(found: Evidence, path: Path) -> None:
    """Pass@1 against the first learning rate, fixed and adaptive, by method."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = path.name  # the same bits each time
    from matplotlib import pyplot

    from orthora.figures import DEFAULT_STYLE, METHOD_COLOURS

    mark = steer.MARKS[-1]
    drawn, axes = pyplot.subplots(1, 3, figsize=(11, 4), sharey=True)
    titles = ["fixed", *(f"adaptive-kl, target {t:g}" for t in steer.TARGETS)]
    rates = [steer.FIXED, steer.STARTS, steer.STARTS]
    for panel, title, kind, lrs in zip(axes, titles, ["fixed", *kinds()], rates, strict=True):
        for method in steer.METHODS:
            style = METHOD_COLOURS.get(method, DEFAULT_STYLE)
            scores = [found.mean(kind, method, lr, mark) for lr in lrs]
            panel.plot(lrs, scores, color=style.colour, marker=style.marker, label=method)
        panel.set_xscale("log")
        panel.set_title(title)
        panel.set_xlabel("learning rate" if kind == "fixed" else "first learning rate")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel(f"test pass@1 after {mark} steps")
    axes[-1].legend(fontsize=8, loc="lower left")
    drawn.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)


def put(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what stands between a page's marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    page.write_text("\n".join([before + begin, *lines, end]) + after, encoding="utf-8")


def main() -> int:
    """Print, or put into the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, help="folder of the pages to update")
    options = parser.parse_args()
    records = steer.records(steer.RESULTS / "evidence.jsonl")
    found = Evidence(records)
    print(f"{len(records)} runs; complete seeds: {found.seeds}")
    dogs = watchdog(found.runs)
    print("\n".join(dogs))
    if options.docs:
        shares = steer.RESULTS / "kl-share.json"
        if shares.is_file():
            rows = json.loads(shares.read_text(encoding="utf-8"))["rows"]
            put(options.docs / "adaptive-kl.md", "bench-kl-share", kl_share.markdown(rows))
        costs = overhead.all_results()
        put(options.docs / "adaptive-kl.md", "bench-overhead", overhead.markdown(costs))
        put(options.docs / "watchdog.md", "bench-watchdog", dogs)
        if found.seeds:
            figure(found, options.docs / "adaptive-kl.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
