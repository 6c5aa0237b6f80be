"""What the runs of ``bench/steer.py`` say: ``python bench/evidence.py``.

Tables and a figure from ``results-steer/evidence.jsonl``. Settings are picked on the validation
problems and reported on the test problems. Comparisons are paired: by method and seed, on the seeds
for which every run of the grid is done; intervals are 95 % of a bootstrap over these pairs.

    python bench/evidence.py                      # print the tables
    python bench/evidence.py --docs docs          # put them and the figure into the pages
"""

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kl_share
import overhead
import steer

from orthora.watch import DEFAULT, Alarm, alarms, parse

Run = dict[str, Any]
Score = tuple[float, float]  # validation, test
SEEDS = 5
FALL, WINDOW, GOOD = 0.75, 5, 0.9


def score(run: Run, mark: int) -> Score:
    """Pass@1 on both sets after a number of steps."""
    found = run["scores"][str(mark)]
    return found["validation"], found["test"]


class Evidence:
    """The runs by setting.

    Attributes:
        runs: all that are done, by name.
        seeds: those for which the whole grid is done.
        main_seeds: those for which the main comparison is done; see `steer.is_main`.
    """

    def __init__(self, records: Sequence[Run]) -> None:
        self.runs = {record["name"]: record for record in records}
        wanted: dict[int, set[str]] = {}
        needed: dict[int, set[str]] = {}
        for run in steer.grid("evidence", SEEDS):
            wanted.setdefault(run["settings"]["seed"], set()).add(run["name"])
            if steer.is_main(run):
                needed.setdefault(run["settings"]["seed"], set()).add(run["name"])
        self.seeds = [seed for seed, names in wanted.items() if names <= self.runs.keys()]
        self.main_seeds = [seed for seed, names in needed.items() if names <= self.runs.keys()]

    def of(self, kind: str, method: str, lr: float, seed: int) -> Run:
        """One run."""
        return self.runs[f"{kind}/{method}/{lr:g}/{seed}"]

    def mean(self, kind: str, method: str, lr: float, mark: int) -> Score:
        """Over the seeds."""
        scores = [score(self.of(kind, method, lr, seed), mark) for seed in self.seeds]
        return statistics.fmean(v for v, _ in scores), statistics.fmean(t for _, t in scores)

    def best(self, kind: str, method: str, rates: Sequence[float], mark: int) -> float:
        """The method's best of the learning rates, by the validation problems of all seeds."""
        return max(rates, key=lambda lr: self.mean(kind, method, lr, mark)[0])

    def shared(self, kind: str, rates: Sequence[float], mark: int) -> float:
        """The best learning rate for all methods together, by the validation problems."""

        def over_methods(lr: float) -> float:
            return statistics.fmean(self.mean(kind, m, lr, mark)[0] for m in steer.METHODS)

        return max(rates, key=over_methods)


def interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % of the means of resampled values."""
    random_ = random.Random(0)
    means = sorted(statistics.fmean(random_.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def kinds() -> list[str]:
    """The settings of adaptive-kl."""
    return [f"adaptive {target:g}" for target in steer.TARGETS]


def table_of_methods(found: Evidence, mark: int) -> list[str]:
    """Pass@1 by method: each fixed rate, the swept best, each adaptive setting."""
    heads = [f"fixed {lr:g}" for lr in steer.FIXED] + ["best by validation"]
    heads += [f"{t:g} from {lr:g}" for t in steer.TARGETS for lr in steer.STARTS]
    lines = [f"| method | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    columns: list[list[float]] = []
    for method in steer.METHODS:
        cells = [found.mean("fixed", method, lr, mark)[1] for lr in steer.FIXED]
        best = found.best("fixed", method, steer.FIXED, mark)
        cells.append(found.mean("fixed", method, best, mark)[1])
        for kind in kinds():
            cells += [found.mean(kind, method, lr, mark)[1] for lr in steer.STARTS]
        columns.append(cells)
        lines.append(_row(f"`{method}`", cells))
    means = [statistics.fmean(column) for column in zip(*columns, strict=True)]
    return [*lines, _row("**mean**", means)]


def _row(name: str, cells: Sequence[float]) -> str:
    return f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |"


def comparison(found: Evidence, mark: int) -> list[str]:
    """Each adaptive setting against the best shared fixed rate and against each swept best."""
    shared = found.shared("fixed", steer.FIXED, mark)
    lines = [
        f"| adaptive-kl, {mark} steps | mean | less the best shared fixed rate ({shared:g}) | "
        "less each method's swept best | lowest share of it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in kinds():
        for lr in steer.STARTS:
            own, against_shared, against_best, shares = [], [], [], []
            for method in steer.METHODS:
                best = found.best("fixed", method, steer.FIXED, mark)
                for seed in found.seeds:
                    mine = score(found.of(kind, method, lr, seed), mark)[1]
                    swept = score(found.of("fixed", method, best, seed), mark)[1]
                    own.append(mine)
                    against_shared.append(
                        mine - score(found.of("fixed", method, shared, seed), mark)[1]
                    )
                    against_best.append(mine - swept)
                    shares.append(mine / swept)
            cells = [
                f"{statistics.fmean(own):.3f}",
                _with_interval(against_shared),
                _with_interval(against_best),
                f"{min(shares):.2f}",
            ]
            target = kind.split()[1]
            lines.append(f"| target {target}, from {lr:g} | {' | '.join(cells)} |")
    return lines


def main_comparison(found: Evidence) -> list[str]:
    """One adaptive setting against the fixed rates, on every seed that has these runs."""
    kind, first = f"adaptive {steer.TARGETS[1]:g}", steer.STARTS[1]
    rates = steer.FIXED[1:3]
    heads = [f"fixed {lr:g}" for lr in rates] + [f"{kind} from {first:g}", "less the shared rate"]
    lines = [f"| method | {' | '.join(heads)} |", "| --- | --- | --- | --- | --- |"]
    mark = steer.MARKS[-1]
    settings = [("fixed", lr) for lr in rates] + [(kind, first)]

    def scores(setting: tuple[str, float], method: str) -> list[Score]:
        return [score(found.of(setting[0], method, setting[1], s), mark) for s in found.main_seeds]

    means = {
        setting: [statistics.fmean(v for v, _ in scores(setting, m)) for m in steer.METHODS]
        for setting in settings[:-1]
    }
    shared = max(means, key=lambda setting: statistics.fmean(means[setting]))
    gains: list[float] = []
    for method in steer.METHODS:
        values = [[t for _, t in scores(setting, method)] for setting in settings]
        against = [t for _, t in scores(shared, method)]
        gain = [mine - theirs for mine, theirs in zip(values[-1], against, strict=True)]
        gains += gain
        cells = [f"{statistics.fmean(v):.3f}" for v in values] + [f"{statistics.fmean(gain):+.3f}"]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    overall = [
        statistics.fmean(t for m in steer.METHODS for _, t in scores(setting, m))
        for setting in settings
    ]
    cells = [f"{value:.3f}" for value in overall] + [_with_interval(gains)]
    return [*lines, f"| **mean** | {' | '.join(cells)} |"]


def _with_interval(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{statistics.fmean(values):+.3f} ({low:+.3f} to {high:+.3f})"


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


def first_alarms(run: Run) -> list[Alarm]:
    """The first alarm of each of the default rules."""
    series = run["series"]
    steps = len(series["pass_rate"])
    rows = [
        {"step": i + 1} | {key: values[i] for key, values in series.items()} for i in range(steps)
    ]
    rules = [rule for text in DEFAULT for rule in parse(text)]
    first: dict[str, Alarm] = {}
    for end in range(1, steps + 1):
        for alarm in alarms(rules, rows[:end]):
            first.setdefault(alarm.rule, alarm)
    return list(first.values())


def judged(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """How each run went, when its reward fell, and when each rule barked first.

    ``fell``: see `fall_of`. Of the others, ``good`` ends within a tenth of the best run of its
    method and seed, and ``below`` does not.
    """
    mark = steer.MARKS[-1]
    best: dict[tuple[str, int], float] = {}
    for run in runs.values():
        key = (run["settings"]["method"], run["settings"]["seed"])
        best[key] = max(best.get(key, 0.0), score(run, mark)[1])
    found = []
    for run in runs.values():
        share = score(run, mark)[1] / best[run["settings"]["method"], run["settings"]["seed"]]
        fall = fall_of(run)
        kind = "fell" if fall else "good" if share >= GOOD else "below"
        barks = {alarm.rule: alarm.step for alarm in first_alarms(run)}
        found.append({"name": run["name"], "kind": kind, "fall": fall, "alarms": barks})
    return found


def watchdog(runs: Mapping[str, Run]) -> list[str]:
    """How often each rule barks, by how the runs went, and how long before the reward falls."""
    found = judged(runs)
    counts = {kind: sum(one["kind"] == kind for one in found) for kind in ("good", "below", "fell")}
    heads = [f"{count} {kind}" for kind, count in counts.items()]
    lines = [
        f"| rule | {' | '.join(heads)} | steps before the fall |",
        "| --- | --- | --- | --- | --- |",
    ]
    rules = [str(rule) for text in DEFAULT for rule in parse(text)]
    for rule in [*rules, "any of them"]:
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
    from matplotlib import pyplot

    from orthora.figures import DEFAULT_STYLE, METHOD_COLOURS

    mark = steer.MARKS[-1]
    drawn, axes = pyplot.subplots(1, 3, figsize=(11, 4), sharey=True)
    titles = ["fixed", *(f"adaptive-kl, target {t:g}" for t in steer.TARGETS)]
    rates = [steer.FIXED, steer.STARTS, steer.STARTS]
    for panel, title, kind, lrs in zip(axes, titles, ["fixed", *kinds()], rates, strict=True):
        for method in steer.METHODS:
            style = METHOD_COLOURS.get(method, DEFAULT_STYLE)
            scores = [found.mean(kind, method, lr, mark)[1] for lr in lrs]
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
    tables: list[str] = []
    if found.main_seeds:
        size = f"{len(found.main_seeds)} seeds, {len(steer.METHODS) * len(found.main_seeds)} pairs"
        tables += [f"Test pass@1 after {steer.MARKS[-1]} steps, {size}:", ""]
        tables += main_comparison(found)
    if found.seeds:
        for mark in steer.MARKS:
            tables += ["", *comparison(found, mark)]
        pairs = len(steer.METHODS) * len(found.seeds)
        tables += ["", f"Test pass@1 after {steer.MARKS[-1]} steps, {len(found.seeds)} seed(s), "]
        tables[-1] += f"{pairs} pairs:"
        tables += ["", *table_of_methods(found, steer.MARKS[-1])]
    print("\n".join(tables))
    if options.docs:
        shares = steer.RESULTS / "kl-share.json"
        if shares.is_file():
            rows = json.loads(shares.read_text(encoding="utf-8"))["rows"]
            put(options.docs / "adaptive-kl.md", "bench-kl-share", kl_share.markdown(rows))
        costs = overhead.all_results()
        put(options.docs / "adaptive-kl.md", "bench-overhead", overhead.markdown(costs))
        put(options.docs / "watchdog.md", "bench-watchdog", dogs)
        if tables:
            put(options.docs / "adaptive-kl.md", "bench-steer", tables)
        if found.seeds:
            figure(found, options.docs / "adaptive-kl.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
