"""Run folders as values: reading them, and the numbers of the summary."""

import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from orthora.watch import NOT_FINITE

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

    @property
    def adaptive(self) -> bool:
        """Whether its learning rate followed the measured KL."""
        return self.config.get("schedule") == "adaptive-kl"

    @property
    def rate(self) -> str:
        """What its learning rate was: ``1e-3``, or ``adaptive-kl 2e-3 from 1e-3``."""
        rate = rate_text(self.learning_rate)
        if not self.adaptive:
            return rate
        return f"adaptive-kl {rate_text(float(self.config['kl_target']))} from {rate}"

    @property
    def ways(self) -> tuple[str, ...]:
        """What else steered its learning rate or its end: a schedule, and what a watch may do."""
        schedule = self.config.get("schedule", "constant")
        action = self.config.get("watch_action", "warn")
        ways = [] if self.adaptive or schedule == "constant" else [f"schedule {schedule}"]
        ways += [] if action == "warn" else [f"watch_action {action}"]
        if action == "rollback" and "watch_lr_factor" in self.config:
            ways.append(f"watch_lr_factor {self.config['watch_lr_factor']}")
        return tuple(ways)

    @property
    def setting(self) -> str:
        """Its learning rate, and whatever else steered it: ``1e-3, schedule cosine``."""
        return ", ".join((self.rate, *self.ways))

    @property
    def setting_order(self) -> tuple[bool, float, str]:
        """Fixed rates first, from the highest."""
        return (self.adaptive, -self.learning_rate, self.setting)


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
        The runs by method, fixed rates before adaptive ones, falling learning rate, seed and folder
        name, with unique labels.

    Raises:
        ValueError: if the folder is missing or a file in it is corrupt.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder; give the one that holds the run folders")
    runs = [load_run(path.parent) for path in sorted(Path(folder).glob("*/result.json"))]
    runs.sort(key=lambda run: (run.method, run.setting_order, run.seed, run.folder))
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


# Reading


def load_run(folder: Path) -> RunView:
    """Reads one run folder; only ``result.json`` must be there.

    Raises:
        ValueError: if a file is corrupt.
    """
    result = _read(folder / "result.json", _result)
    run = RunView(
        label="",
        method=result["method"],
        learning_rate=float(result["learning_rate"]),
        seed=result["seed"],
        folder=folder.name,
        metrics=_read(folder / "metrics.jsonl", _metrics) or (),
        result=result,
        config=_read(folder / "config.toml", lambda text: flatten(tomllib.loads(text))) or {},
        environment=_read(folder / "environment.json", lambda text: flatten(json.loads(text)))
        or {},
    )
    return replace(run, label=f"{run.method} {run.setting}")


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
            row.pop(NOT_FINITE, None)  # they are null in the row
            for value in row.values():
                _number(value)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"line {number} ({line[:40]!r}): {error!r}") from error
    return rows


def flatten(data: Table, prefix: str = "") -> dict[str, str]:
    """Nested tables as text under dotted keys."""
    flat = {}
    for key, value in data.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": str(value)}
    return flat


# Numbers


def _number(value: Any) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise ValueError(f"{value!r} is not a number or null")


def is_finite(value: float | None) -> bool:
    """Whether a number is there and finite."""
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


def rate_text(rate: float) -> str:
    """A learning rate in the short form of papers: 1e-5, 2.5e-6."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _text(value: float | None, pattern: str) -> str:
    return "not recorded" if value is None else format(value, pattern)


def pass_text(value: float | None, interval: Interval | None) -> str:
    """A pass rate with its interval."""
    return _text(value, ".3f") + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def clear_text(one: Interval | None, other: Interval | None) -> str:
    """Whether two intervals, as printed, do not overlap."""
    if one is None or other is None:
        return "no interval"
    (low, high), (floor, roof) = ([round(bound, 3) for bound in pair] for pair in (one, other))
    return "clear" if low > roof or high < floor else "not clear"  # as printed, to three digits


def change_text(row: Row) -> str:
    """The change against the base model."""
    if row.pass_at_1 is None or row.base is None:
        return "not recorded"
    return f"{row.pass_at_1 - row.base:+.3f} ({clear_text(row.interval, row.base_interval)})"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Method", lambda row: row.run.method),
    ("Learning rate", lambda row: row.run.setting),
    ("Held-out pass@1", lambda row: pass_text(row.pass_at_1, row.interval)),
    ("Change vs base", change_text),
    ("KL per update", lambda row: _text(row.kl_update, ".3g")),
    ("KL to base", lambda row: _text(row.kl_base, ".3g")),
    ("Peak grad norm", lambda row: _text(row.peak_grad_norm, ".3g")),
    ("Seconds", lambda row: _text(row.seconds, ",.0f")),
    ("Seed", lambda row: str(row.run.seed)),
    ("Status", lambda row: row.run.result["status"]),
)
"""Heading and cell text of the summary, for the terminal and the page alike."""


def join_names(names: Iterable[str]) -> str:
    """Names as an English list."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
