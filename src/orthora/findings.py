"""Plain sentences on what the runs show. "Clear" means that two intervals do not overlap."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from orthora.runs import (
    Interval,
    Row,
    RunView,
    change_text,
    clear_text,
    is_finite,
    join_names,
    pass_text,
    summary_rows,
)


def findings(runs: Sequence[RunView]) -> list[str]:
    """Plain sentences on what the numbers show; comparisons use finished, evaluated runs only."""
    rows = summary_rows(runs)
    used = [
        row for row in rows
        if row.run.result["status"] == "finished" and row.interval and is_finite(row.pass_at_1)
    ]  # fmt: skip
    texts = _incidents(rows)
    if len(used) < len(rows):
        texts.append(f"Comparisons use the {len(used)} of {len(rows)} runs that finished with a "
                     "finite held-out evaluation.")  # fmt: skip
    if used:
        texts += [*_differences(used), _best(used), *_base(used), *_rates(used), _correlation(used)]
        most = max(Counter((row.run.method, row.run.setting) for row in used).values())
        seeds = "One seed per setting" if most == 1 else f"At most {most} seeds per setting"
        texts.append(f"{seeds}: differences inside the intervals tell nothing, and the intervals "
                     "leave out how much training varies from seed to seed.")  # fmt: skip
    return texts


def _incidents(rows: Sequence[Row]) -> list[str]:
    """Runs that did not finish, and runs with numbers that are not finite."""
    texts = []
    for row in rows:
        result, label = row.run.result, row.run.label
        if result["status"] != "finished":
            reason = str(result.get("reason") or "no reason given").rstrip(".")
            texts.append(f"{label} {result['status']}: {reason}.")
        values = [value for step in row.run.metrics for value in step.values()]
        values += [value for value in row[1:] if not isinstance(value, tuple)]
        broken = sum(value is not None and not math.isfinite(value) for value in values)
        if broken:
            texts.append(f"{label} has {broken} recorded numbers that are not finite.")
    return texts


def _differences(used: Sequence[Row]) -> list[str]:
    """Settings that should be equal for a comparison of methods, and are not."""
    keys = ("rank", "alpha", "steps")
    differ = [key for key in keys if len({row.run.result.get(key) for row in used}) > 1]
    keys = ("problems", "samples")
    differ += [
        f"evaluation {key}"
        for key in keys
        if len({row.run.result["evaluation"].get(key) for row in used}) > 1
    ]
    if not differ:
        return []
    return [
        f"The compared runs differ in {join_names(differ)}, so differences mix with the method's."
    ]


def _group(rows: Iterable[Row]) -> tuple[float, Interval]:
    """Mean pass@1 over seeds, with the range that the seeds' intervals cover together."""
    parts = [(row.pass_at_1, row.interval) for row in rows]
    means = [value for value, _ in parts if value is not None]
    intervals = [interval for _, interval in parts if interval is not None]
    low, high = min(i[0] for i in intervals), max(i[1] for i in intervals)
    return sum(means) / len(means), (low, high)


def _groups(used: Sequence[Row]) -> dict[tuple[str, str], tuple[float, Interval]]:
    keys = dict.fromkeys((row.run.method, row.run.setting) for row in used)
    return {
        key: _group(row for row in used if (row.run.method, row.run.setting) == key) for key in keys
    }


def _ordered(used: Sequence[Row]) -> list[str]:
    """The settings of the learning rate, fixed ones first, from the highest."""
    runs = sorted((row.run for row in used), key=lambda run: run.setting_order)
    return list(dict.fromkeys(run.setting for run in runs))


def _best(used: Sequence[Row]) -> str:
    """Who has the highest pass@1 at the setting that most methods share, and if that separates."""
    groups = _groups(used)
    shared = Counter(rate for _, rate in groups)
    rate = max(_ordered(used), key=lambda key: shared[key])
    if shared[rate] < 2:
        return "No two methods finished at the same learning rate, so methods are not compared."
    at_rate = {method: value for (method, lr), value in groups.items() if lr == rate}
    top = max(mean for mean, _ in at_rate.values())
    best = [method for method, (mean, _) in at_rate.items() if mean == top]
    lead = at_rate[best[0]][1]
    others = [method for method in at_rate if method != best[0]]
    close = [method for method in others if clear_text(lead, at_rate[method][1]) != "clear"]
    apart = [method for method in others if method not in close]
    text = (
        f"At the learning rate {rate}, which {shared[rate]} methods share, the highest "
        f"held-out pass@1 is {top:.3f} ({join_names(best)})."
    )
    if not close:
        return f"{text} Its interval lies above the intervals of all the others."
    text += f" Its interval overlaps with {join_names(close)}: no method is shown to be best."
    return text + (f" It lies above {join_names(apart)}." if apart else "")


def _base(used: Sequence[Row]) -> list[str]:
    """What the base model scores, and the runs below it."""
    known = [row for row in used if row.base is not None]
    if not known:
        return ["The base model was not evaluated, so changes against it are not known."]
    scores = dict.fromkeys(pass_text(row.base, row.base_interval) for row in known)
    text = f"The base model's held-out pass@1 is {join_names(scores)}."
    if len(scores) > 1:
        text += " It was measured more than once; each run is compared with its own measurement."
    below = [
        f"{row.run.label} {change_text(row)}"
        for row in known
        if (row.pass_at_1 or 0) < (row.base or 0)
    ]
    return [text, f"Below the base model: {join_names(below)}." if below else
            "No compared run scored below the base model."]  # fmt: skip


def _rates(used: Sequence[Row]) -> list[str]:
    """How pass@1 changed for methods that ran at more than one setting of the learning rate."""
    groups, texts = _groups(used), []
    for method in dict.fromkeys(method for method, _ in groups):
        high, *others = (rate for rate in _ordered(used) if (method, rate) in groups)
        for rate in others:
            (before, wide), (after, other) = groups[method, high], groups[method, rate]
            same_rate = rate.partition(", ")[0] == high.partition(", ")[0]
            which = "with the other setting" if same_rate else "at the lower rate"
            which = "with adaptive-kl" if rate.startswith("adaptive-kl") else which
            texts.append(
                f"{method}: pass@1 {before:.3f} at {high} and {after:.3f} at {rate}, "
                f"{after - before:+.3f} {which} ({clear_text(wide, other)})."
            )
    return texts


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where all values of one side are equal."""
    a, b = _ranks(xs), _ranks(ys)
    centre = (len(a) - 1) / 2
    top = sum((i - centre) * (j - centre) for i, j in zip(a, b, strict=True))
    bottom = math.sqrt(sum((i - centre) ** 2 for i in a) * sum((j - centre) ** 2 for j in b))
    return top / bottom if bottom else None


def _correlation(used: Sequence[Row]) -> str:
    pairs = [
        (row.kl_update, row.pass_at_1)
        for row in used
        if row.kl_update is not None and row.pass_at_1 is not None and math.isfinite(row.kl_update)
    ]
    what = "between mean KL per update and held-out pass@1"
    if len(pairs) < 4:
        return f"The rank correlation {what} is not computed: n = {len(pairs)} runs is too few."
    value = rank_correlation(*zip(*pairs, strict=True))
    if value is None:
        return f"The rank correlation {what} is not defined: one side does not vary."
    return (
        f"Exploratory: the rank correlation (Spearman) {what} is {value:+.2f}, n = {len(pairs)} "
        "runs, all methods and learning rates together; it does not show cause."
    )
