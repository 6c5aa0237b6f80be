"""Reads finished runs and says what they show: a terminal table, findings, and one HTML page.

Table, findings and page take their numbers from the same :func:`summary_rows`. "Clear" always means
that two bootstrap intervals do not overlap, which is a cautious rule.
"""

import json
import math
import os
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from orthora.figures import CHARTS, chart_html, legend_html

Table = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class RunView:
    """One run folder as read from disk; config and environment are empty where not recorded."""

    label: str
    method: str
    learning_rate: float
    seed: int
    folder: str
    metrics: Sequence[Table]
    result: Table
    config: Table
    environment: Table


class Row(NamedTuple):
    """The numbers of one run in the summary; None where a number was not recorded."""

    run: RunView
    pass_at_1: float | None
    interval: Interval | None
    base: float | None
    base_interval: Interval | None
    kl_update: float | None
    kl_base: float | None
    peak_grad_norm: float | None
    seconds: float | None


def load_runs(folder: Path | str) -> list[RunView]:
    """Reads every direct subfolder that holds a ``result.json``.

    Returns:
        The runs by method, falling learning rate, seed and folder name, with unique labels.

    Raises:
        ValueError: if the folder is missing or a file in it is corrupt.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder; give the one that holds the run folders")
    runs = [_load(path.parent) for path in sorted(Path(folder).glob("*/result.json"))]
    runs.sort(key=lambda run: (run.method, -run.learning_rate, run.seed, run.folder))
    for extra in (" seed {0.seed}", " ({0.folder})"):
        counts = Counter(run.label for run in runs)
        runs = [
            replace(run, label=run.label + extra.format(run) * (counts[run.label] > 1))
            for run in runs
        ]
    return runs


def summary_rows(runs: Iterable[RunView]) -> list[Row]:
    """The numbers of the summary, one row per run in the same order."""
    return [_row(run) for run in runs]


def print_table(runs: Sequence[RunView]) -> None:
    """Prints the summary as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(*(name for name, _ in COLUMNS))
    for row in summary_rows(runs):
        table.add_row(*(Text(cell(row)) for _, cell in COLUMNS))
    Console().print(table)


def findings(runs: Sequence[RunView]) -> list[str]:
    """Plain sentences on what the numbers show; comparisons use finished, evaluated runs only."""
    rows = summary_rows(runs)
    used = [
        row for row in rows
        if row.run.result["status"] == "finished" and row.interval and _finite(row.pass_at_1)
    ]  # fmt: skip
    texts = _incidents(rows)
    if len(used) < len(rows):
        texts.append(f"Comparisons use the {len(used)} of {len(rows)} runs that finished with a "
                     "finite held-out evaluation.")  # fmt: skip
    if used:
        texts += [*_differences(used), _best(used), *_base(used), *_rates(used), _correlation(used)]
        most = max(Counter((row.run.method, row.run.learning_rate) for row in used).values())
        seeds = "One seed per setting" if most == 1 else f"At most {most} seeds per setting"
        texts.append(f"{seeds}: differences inside the intervals tell nothing, and the intervals "
                     "leave out how much training varies from seed to seed.")  # fmt: skip
    return texts


def write_report(
    runs_folder: Path | str, out_path: Path | str, *, title: str, date: str | None = None
) -> Path:
    """Writes one self-contained HTML page about the runs, all of it or nothing.

    Args:
        runs_folder: folder of run folders.
        out_path: the page to write; its folder is made where missing.
        title: heading of the page.
        date: date on the page; today in UTC by default.

    Raises:
        ValueError: if there is no run or a file is corrupt.
    """
    runs, out = load_runs(runs_folder), Path(out_path)
    if not runs:
        raise ValueError(f"{runs_folder} holds no */result.json; give the folder of the runs")
    page = _page(runs, title, date or datetime.now(UTC).date().isoformat())
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(out)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return out


# Reading


def _load(folder: Path) -> RunView:
    """Reads one run folder; only ``result.json`` must be there."""
    result = _read(folder / "result.json", _result)
    rate = float(result["learning_rate"])
    return RunView(
        label=f"{result['method']} {_rate(rate)}",
        method=result["method"],
        learning_rate=rate,
        seed=result["seed"],
        folder=folder.name,
        metrics=_read(folder / "metrics.jsonl", _metrics) or (),
        result=result,
        config=_read(folder / "config.toml", lambda text: _flat(tomllib.loads(text))) or {},
        environment=_read(folder / "environment.json", lambda text: _flat(json.loads(text))) or {},
    )


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Parses a file, or returns None where there is none."""
    if not path.exists():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"no key {error}" if isinstance(error, KeyError) else str(error)
        message = f"{path} is corrupt: {why}; repair the file or move its run folder away"
        raise ValueError(message) from error


def _result(text: str) -> Table:
    result = json.loads(text)
    if result["status"] not in ("finished", "failed", "stopped"):
        raise ValueError(f"status {result['status']!r} is not finished, failed or stopped")
    if not isinstance(result["method"], str) or not isinstance(result["seed"], int):
        raise ValueError(f"method {result['method']!r} or seed {result['seed']!r} has a wrong type")
    if not math.isfinite(float(result["learning_rate"])):
        raise ValueError(f"learning_rate {result['learning_rate']!r} is not a finite number")
    _numbers(result)
    return result


def _metrics(text: str) -> Sequence[Table]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            for value in row.values():
                _number(value)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"line {number} ({line[:40]!r}): {error!r}") from error
    return rows


def _flat(data: Table, prefix: str = "") -> dict[str, str]:
    """Nested tables as text under dotted keys."""
    flat = {}
    for key, value in data.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": str(value)}
    return flat


# Numbers


def _number(value: Any) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise ValueError(f"{value!r} is not a number or null")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _numbers(result: Table) -> dict[str, Any]:
    """The summary's numbers out of a result; raises where one is of the wrong type."""
    numbers: dict[str, Any] = {
        key: _number(result.get(source))
        for key, source in (
            ("kl_update", "mean_kl_update"),
            ("kl_base", "kl_base"),
            ("peak_grad_norm", "peak_grad_norm"),
            ("seconds", "seconds"),
        )
    }
    for value, interval, source in (
        ("pass_at_1", "interval", "evaluation"),
        ("base", "base_interval", "base_evaluation"),
    ):
        evaluation = result.get(source) or {"pass_at_1": None, "interval": None}
        numbers[value] = _number(evaluation["pass_at_1"])
        low, high = (_number(bound) for bound in evaluation["interval"] or (None, None))
        whole = low is not None and high is not None and math.isfinite(low + high)
        numbers[interval] = (low, high) if whole else None
    return numbers


def _row(run: RunView) -> Row:
    return Row(run, **_numbers(run.result))


def _rate(rate: float) -> str:
    """A learning rate in the short form of papers: 1e-5, 2.5e-6."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _text(value: float | None, pattern: str) -> str:
    return "not recorded" if value is None else format(value, pattern)


def _pass(value: float | None, interval: Interval | None) -> str:
    return _text(value, ".3f") + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _clear(one: Interval | None, other: Interval | None) -> str:
    if one is None or other is None:
        return "no interval"
    (low, high), (floor, roof) = ([round(bound, 3) for bound in pair] for pair in (one, other))
    return "clear" if low > roof or high < floor else "not clear"  # as printed, to three digits


def _change(row: Row) -> str:
    if row.pass_at_1 is None or row.base is None:
        return "not recorded"
    return f"{row.pass_at_1 - row.base:+.3f} ({_clear(row.interval, row.base_interval)})"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Method", lambda row: row.run.method),
    ("Learning rate", lambda row: _rate(row.run.learning_rate)),
    ("Held-out pass@1", lambda row: _pass(row.pass_at_1, row.interval)),
    ("Change vs base", _change),
    ("KL per update", lambda row: _text(row.kl_update, ".3g")),
    ("KL to base", lambda row: _text(row.kl_base, ".3g")),
    ("Peak grad norm", lambda row: _text(row.peak_grad_norm, ".3g")),
    ("Seconds", lambda row: _text(row.seconds, ",.0f")),
    ("Seed", lambda row: str(row.run.seed)),
    ("Status", lambda row: row.run.result["status"]),
)
"""Heading and cell text of the summary, for the terminal and the page alike."""


# Findings


def _names(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


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
    return [f"The compared runs differ in {_names(differ)}, so differences mix with the method's."]


def _group(rows: Iterable[Row]) -> tuple[float, Interval]:
    """Mean pass@1 over seeds, with the range that the seeds' intervals cover together."""
    parts = [(row.pass_at_1, row.interval) for row in rows]
    means = [value for value, _ in parts if value is not None]
    intervals = [interval for _, interval in parts if interval is not None]
    low, high = min(i[0] for i in intervals), max(i[1] for i in intervals)
    return sum(means) / len(means), (low, high)


def _groups(used: Sequence[Row]) -> dict[tuple[str, float], tuple[float, Interval]]:
    keys = dict.fromkeys((row.run.method, row.run.learning_rate) for row in used)
    return {
        key: _group(row for row in used if (row.run.method, row.run.learning_rate) == key)
        for key in keys
    }


def _best(used: Sequence[Row]) -> str:
    """Who has the highest pass@1 at the rate that most methods share, and if that separates."""
    groups = _groups(used)
    shared = Counter(rate for _, rate in groups)
    rate = max(shared, key=lambda key: (shared[key], key))
    if shared[rate] < 2:
        return "No two methods finished at the same learning rate, so methods are not compared."
    at_rate = {method: value for (method, lr), value in groups.items() if lr == rate}
    top = max(mean for mean, _ in at_rate.values())
    best = [method for method, (mean, _) in at_rate.items() if mean == top]
    lead = at_rate[best[0]][1]
    others = [method for method in at_rate if method != best[0]]
    close = [method for method in others if _clear(lead, at_rate[method][1]) != "clear"]
    apart = [method for method in others if method not in close]
    text = (
        f"At the learning rate {_rate(rate)}, which {shared[rate]} methods share, the highest "
        f"held-out pass@1 is {top:.3f} ({_names(best)})."
    )
    if not close:
        return f"{text} Its interval lies above the intervals of all the others."
    text += f" Its interval overlaps with {_names(close)}: no method is shown to be best."
    return text + (f" It lies above {_names(apart)}." if apart else "")


def _base(used: Sequence[Row]) -> list[str]:
    """What the base model scores, and the runs below it."""
    known = [row for row in used if row.base is not None]
    if not known:
        return ["The base model was not evaluated, so changes against it are not known."]
    scores = dict.fromkeys(_pass(row.base, row.base_interval) for row in known)
    text = f"The base model's held-out pass@1 is {_names(scores)}."
    if len(scores) > 1:
        text += " It was measured more than once; each run is compared with its own measurement."
    below = [
        f"{row.run.label} {_change(row)}" for row in known if (row.pass_at_1 or 0) < (row.base or 0)
    ]
    return [text, f"Below the base model: {_names(below)}." if below else
            "No compared run scored below the base model."]  # fmt: skip


def _rates(used: Sequence[Row]) -> list[str]:
    """How pass@1 changed for methods that ran at more than one learning rate."""
    groups, texts = _groups(used), []
    for method in dict.fromkeys(method for method, _ in groups):
        high, *lower = sorted((lr for name, lr in groups if name == method), reverse=True)
        for low in lower:
            (before, wide), (after, other) = groups[method, high], groups[method, low]
            texts.append(
                f"{method}: pass@1 {before:.3f} at {_rate(high)} and {after:.3f} at {_rate(low)}, "
                f"{after - before:+.3f} at the lower rate ({_clear(wide, other)})."
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


# Page


_CSS = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5a626d;--back:#f6f7f9;--card:#fff;
--rule:#d9dde3}
@media (prefers-color-scheme:dark){
:root{--ink:#e7eaee;--soft:#a5adb8;--back:#14171b;--card:#1e2228;--rule:#383f48}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
header,main{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:32px}main{padding-bottom:48px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.2rem 0 .7rem}
p,li,dd{overflow-wrap:anywhere}.soft,caption,figcaption,dt{color:var(--soft)}
.prose{max-width:78ch}.prose li{margin:.35rem 0}.prose{padding-left:1.2rem}p.prose{padding-left:0}
.box{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.7rem .65rem .4rem;font-size:.88rem}
caption span{display:inline-block;position:sticky;left:.65rem;max-width:calc(100vw - 60px)}
th,td{padding:.45rem .65rem;text-align:left;border-top:1px solid var(--rule);white-space:nowrap}
thead th{font-weight:600;color:var(--soft)}tbody th{font-weight:600}
dl.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:.5rem 1.5rem;
margin:0;padding:.9rem;font-size:.9rem}dl.grid dt{font-size:.82rem}dl.grid dd{margin:0}
dl.grid dt,dl.grid dd{overflow-wrap:anywhere}
.legend{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;
margin:0 0 14px;padding:.5rem .8rem;list-style:none;background:#fff;color:#1d2126;
border:1px solid var(--rule);border-radius:10px;font-size:.88rem}
.legend li{display:flex;align-items:center;gap:.4rem}.legend svg{width:46px;height:15px;flex:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:14px}
figure{margin:0;padding:10px 10px 8px;background:#fff;border:1px solid var(--rule);
border-radius:10px;break-inside:avoid}
figure svg{display:block;width:100%;height:auto}
figure text{font-family:system-ui,sans-serif!important}
figcaption{font-size:.8rem;color:#5a626d;padding:2px 4px}
details{margin:.5rem 0}summary{cursor:pointer;padding:.4rem 0}
h3{font-size:1rem;margin:.8rem 0 .4rem}
@media (max-width:700px){header,main{padding-left:12px;padding-right:12px}h1{font-size:1.5rem}
dl.grid{grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:.4rem 1rem}
.charts{grid-template-columns:minmax(0,1fr)}
.legend{font-size:.78rem;gap:0 .7rem;padding:.35rem .5rem}
figure{padding:6px 4px}th,td{padding:.4rem .6rem}
tbody th{position:sticky;left:0;background:var(--card)}}
@media print{@page{margin:12mm}:root{--ink:#000;--soft:#444;--back:#fff;--card:#fff;--rule:#bbb}
body{font-size:10.5pt}header,main{padding:0;max-width:none}.legend{position:static}
.box{overflow:visible}table{font-size:7.6pt}th,td{padding:3px 4px;white-space:normal}
.charts{grid-template-columns:1fr 1fr;gap:8px}.legend,.box{break-inside:avoid}
dl.grid{grid-template-columns:repeat(3,1fr);padding:.5rem}.legend{break-after:avoid}
h2{margin:1.2rem 0 .4rem}.prose{max-width:none}.prose li{margin:.1rem 0}details{margin:0}
tr,li,dl.grid>div{break-inside:avoid}h2,h3,summary{break-after:avoid}}
"""

_NOTES = {
    "KL": "The k3 estimator on the tokens of the rollouts, in nats per token. KL per update: "
    "rollout policy to updated policy; the table has the mean over the run. KL to base: to the "
    "base model; the table has the last step.",
    "Held-out pass@1": "Mean share of correct samples over held-out problems, after training.",
    "Interval": "Bootstrap over the held-out problems. It says how much the choice of problems "
    "moves the number, and nothing of the training seed.",
    "Clear": "The two intervals, as printed, do not overlap. This is a cautious rule: a difference "
    "that is not clear may still be real.",
    "Peak grad norm": "The largest gradient norm of the run.",
    "Seconds": "Wall time of the run.",
    "Reward and pass rate in the charts": "On the training rollouts of each step, not held-out.",
}


def _pairs(table: Table) -> str:
    """A definition list out of a mapping."""
    if not table:
        return '<p class="soft">Not recorded.</p>'
    items = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in table.items()
    )
    return f'<div class="box"><dl class="grid">{items}</dl></div>'


def _summary_html(rows: Sequence[Row]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in COLUMNS)
    body = ""
    for row in rows:
        first, *rest = (escape(cell(row)) for _, cell in COLUMNS)
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>\n'
    return (
        '<div class="box" role="region" aria-label="Summary table" tabindex="0"><table>'
        "<caption><span>One row per run. Brackets: interval; clear: the intervals do not overlap."
        f"</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _charts_html(runs: Sequence[RunView]) -> str:
    drawn = [run for run in runs if run.metrics]
    if not drawn:
        return '<p class="soft">No run recorded a training step.</p>'
    missing = [run.label for run in runs if not run.metrics]
    note = f'<p class="soft">No steps recorded: {escape(_names(missing))}.</p>' if missing else ""
    smooth = max(1, max(len(run.metrics) for run in drawn) // 12)
    charts = "\n".join(chart_html(drawn, *chart, smooth) for chart in CHARTS)
    return f'{note}<ul class="legend">{legend_html(drawn)}</ul>\n<div class="charts">{charts}</div>'


def _run_html(run: RunView) -> str:
    parts = (
        ("Result", _flat(run.result)), ("Config", run.config), ("Environment", run.environment)
    )  # fmt: skip
    tables = "".join(f"<h3>{name}</h3>{_pairs(table)}" for name, table in parts)
    status = escape(f"{run.label} — {run.result['status']}, folder {run.folder}")
    return f"<details><summary>{status}</summary>{tables}</details>"


def _page(runs: Sequence[RunView], title: str, date: str) -> str:
    configs = [run.config for run in runs if run.config]
    shared = {
        key: value
        for key, value in (configs[0] if configs else {}).items()
        if all(config.get(key) == value for config in configs)
    }
    methods = dict.fromkeys(run.method for run in runs)
    counts = Counter(run.result["status"] for run in runs)
    what = f"{len(runs)} runs ({', '.join(f'{n} {status}' for status, n in counts.items())}) of "
    what += f"{_names(methods)}. Settings that all recorded configurations share:"
    sections = (
        ("What was run", f'<p class="prose">{escape(what)}</p>{_pairs(shared)}'),
        ("Findings", _list(findings(runs))),
        ("Summary", _summary_html(summary_rows(runs))),
        ("Training curves", _charts_html(runs)),
        ("How the numbers are defined", _pairs(_NOTES)),
        ("Runs in detail", "\n".join(map(_run_html, runs))),
    )
    main = "\n".join(f"<section><h2>{name}</h2>\n{body}</section>" for name, body in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">'
        f'<time datetime="{escape(date)}">{escape(date)}</time></p></header>\n'
        f"<main>\n{main}\n</main>\n</body>\n</html>\n"
    )


def _list(texts: Iterable[str]) -> str:
    return '<ul class="prose">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
