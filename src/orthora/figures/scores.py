"""Figures of scores: held-out pass@1 by method, over learning rates, ranks and checkpoints."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orthora.figures.lines import of_training, styles
from orthora.figures.panels import Drawing, Panel, Series
from orthora.figures.source import Frame, order_of
from orthora.figures.style import DOUBLE, styles_of
from orthora.stats import t_interval


class Score(NamedTuple):
    """A score of runs that differ in the seed alone.

    Attributes:
        value: mean over the seeds.
        low: lower bound of the 95 % interval; NaN where there is none.
        high: upper bound.
        seeds: how many have a score.
        over: what the interval is over, ``seeds``, ``problems`` or nothing.
    """

    value: float
    low: float
    high: float
    seeds: int
    over: str


def score(rows: Frame, table: Frame, quantity: str = "pass_at_1") -> Score:
    """Mean over seeds with its t interval; of one seed, its interval over problems.

    Args:
        rows: of the runs to sum up, of any quantity.
        table: the whole table, with the bounds.
        quantity: the score.
    """
    runs = table[table["run"].isin(rows["run"]) & (table["module"] == "")]
    name, slash, task = quantity.partition("/")
    own = runs[runs["quantity"] == quantity].dropna(subset="value")
    values = own.groupby("run")["value"].last().to_numpy()
    if len(values) == 0:
        return Score(math.nan, math.nan, math.nan, 0, "")
    if len(values) > 1:
        low, high = t_interval(values)
        return Score(float(values.mean()), float(low), float(high), len(values), "seeds")
    bounds = [
        runs.loc[runs["quantity"] == f"{name}{end}{slash}{task}", "value"].to_numpy()
        for end in ("_low", "_high")
    ]
    low, high = (float(bound[0]) if len(bound) else math.nan for bound in bounds)
    over = "problems" if math.isfinite(low + high) else ""
    return Score(float(values[0]), low, high, 1, over)


def interval_note(scores: Sequence[Score]) -> str:
    """What the intervals of some scores are, in sentences."""
    texts = []
    if any(one.over == "seeds" for one in scores):
        texts.append("95 % t interval over seeds where there are several")
    if any(one.over == "problems" for one in scores):
        texts.append("of one seed, 95 % bootstrap interval over problems, which says nothing of "
                     "other seeds")  # fmt: skip
    text = "; ".join(texts)
    return f"Intervals: {text}." if text else "No intervals are recorded."


def _final(table: Frame) -> Frame:
    return of_training(table, "pass_at_1")


def held_out(table: Frame) -> Drawing:
    """Held-out pass@1 after training, by method and setting, and that of the base model."""
    rows, looks = _final(table), styles(table)
    labels = [label for label, *_ in order_of(table) if (rows["label"] == label).any()]
    found = [score(rows[rows["label"] == label], table) for label in labels]
    series = tuple(
        Series(label, looks[label], (float(place),), (one.value,), (one.low,), (one.high,))
        for place, (label, one) in enumerate(zip(labels, found, strict=True))
    )
    panel = Panel(
        "Held-out score", "", "pass@1", series, levels=_base_level(table), categories=tuple(labels)
    )
    return Drawing("Held-out score", (panel,), ("Pass@1 after training.", interval_note(found)))


def checkpoints(table: Frame) -> Drawing:
    """Held-out pass@1 over training, from evaluations of checkpoints, a panel per task."""
    own = table[table["quantity"].str.startswith("pass_at_1/") & (table["module"] == "")]
    looks, panels, found = styles(table), [], []
    for quantity in sorted(set(own["quantity"])):
        rows, series = own[own["quantity"] == quantity], []
        for label in (label for label in looks if (rows["label"] == label).any()):
            part = rows[rows["label"] == label]
            steps = sorted(set(part["step"]))
            now = {step: table[table["step"] == step] for step in steps}
            at = [score(part[part["step"] == step], now[step], quantity) for step in steps]
            found += at
            bounds = tuple(one.low for one in at), tuple(one.high for one in at)
            values = tuple(one.value for one in at)
            series.append(Series(label, looks[label], tuple(map(float, steps)), values, *bounds))
        task = quantity.partition("/")[2]
        panels.append(Panel(task, "training step", "pass@1", tuple(series), whole=True, bars=True))
    width = {"columns": 2, "width": DOUBLE} if len(panels) > 1 else {}
    return Drawing("Held-out score over training", tuple(panels),
                   ("Pass@1 of checkpoints.", interval_note(found)), **width)  # fmt: skip


def _placed(table: Frame, quantity: str) -> Frame:
    """Scores with the place on a sweep's axis, and what else of the setting tells lines apart.

    Learning rates that follow the KL, or that a probe found, are no places on an axis of rates.
    """
    rows = _final(table)
    place = of_training(table, f"run_{quantity}").set_index("run")["value"]
    rows = rows.assign(place=rows["run"].map(place), rest=rows["setting"].map(_rest(quantity)))
    if quantity == "rank":  # alpha may go with the rank; where it varies on its own, it stays
        alphas = rows.groupby(["method", "rest", "place"])["setting"].transform("nunique")
        alone = alphas.groupby([rows["method"], rows["rest"]]).transform("max") > 1
        rows = rows.assign(rest=rows["rest"].where(~alone, rows["setting"].map(_rest("alpha"))))
    if quantity == "learning_rate":
        rows = rows[rows["setting"].str[:1].str.isdigit()]
    return rows.dropna(subset="place")


def varies(table: Frame, quantity: str) -> bool:
    """Whether a line of a sweep has two points.

    Args:
        table: of everything.
        quantity: setting that the sweep is over.
    """
    rows = _placed(table, quantity)
    return len(rows) > 0 and int(rows.groupby(["method", "rest"])["place"].nunique().max()) > 1


def _sweep(table: Frame, quantity: str, title: str, xlabel: str) -> Drawing:
    """Pass@1 over a setting, a line per method; runs that differ otherwise are lines apart."""
    rows = _placed(table, quantity)
    pairs = sorted({*zip(rows["method"], rows["rest"], strict=True)})
    groups = [(f"{method} {rest}".strip(), method, rest) for method, rest in pairs]
    looks, series, found = styles_of(groups), [], []
    for label, method, rest in groups:
        part = rows[(rows["method"] == method) & (rows["rest"] == rest)]
        places = sorted(set(part["place"]))
        at = [score(part[part["place"] == p], table) for p in places]
        found += at
        bounds = tuple(one.low for one in at), tuple(one.high for one in at)
        values = tuple(one.value for one in at)
        series.append(Series(label, looks[label], tuple(places), values, *bounds))
    panel = Panel(
        title, xlabel, "held-out pass@1", tuple(series), log_x=True, bars=True,
        levels=_base_level(table),
    )  # fmt: skip
    others = sorted({*_final(table)["label"]} - {*rows["label"]})
    without = (f"Without rates that follow a measurement: {', '.join(others)}.",) if others else ()
    says = ("Pass@1 after training.", interval_note(found), *without)
    return Drawing(title, (panel,), says)


def _base_level(table: Frame) -> tuple[tuple[float, str], ...]:
    base = of_training(table, "base_pass_at_1")["value"]
    return ((float(base.mean()), "base model"),) if len(base) else ()


def _rest(quantity: str) -> Callable[[str], str]:
    """What of a setting is left without one of its parts; ``alpha`` leaves it, without the rank."""

    def rest(setting: str) -> str:
        parts = setting.split(", ")
        if quantity == "learning_rate":
            return ", ".join(parts[1:])
        gone = ("rank ",) if quantity == "alpha" else ("rank ", "alpha ")
        return ", ".join(p for p in parts if not p.startswith(gone))

    return rest


def rate_sweep(table: Frame) -> Drawing:
    """Held-out pass@1 over learning rates, a line per method."""
    return _sweep(table, "learning_rate", "Learning rates", "learning rate")


def rank_sweep(table: Frame) -> Drawing:
    """Held-out pass@1 over ranks, a line per method."""
    return _sweep(table, "rank", "Ranks", "rank")
