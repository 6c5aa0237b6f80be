"""Rows of the table -> lines with bands: over the weights of a run, over the seeds of a setting."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orthora.figures.panels import Numbers, Series
from orthora.figures.source import Frame, order_of
from orthora.figures.style import Style, styles_of
from orthora.stats import t_interval
from orthora.table import BASE

OF_UPDATE = frozenset(
    {
        "alignment",
        "effective_rank",
        "energy",
        "energy_cumulative",
        "head_energy",
        "stable_rank",
        "subspace_similarity",
        "tail_energy",
    }
)
"""Quantities that say nothing of an update that is zero."""
_WEIGHT = ["run", "step", "layer", "module"]


@dataclass(frozen=True)
class Lines:
    """What a chart draws, and what its caption says of it."""

    series: tuple[Series, ...]
    notes: tuple[str, ...]


def of_training(table: Frame, quantity: str) -> Frame:
    """Rows of a training run's own quantity."""
    return table[(table["quantity"] == quantity) & (table["module"] == "")]


def of_weights(table: Frame, quantity: str) -> Frame:
    """Rows of a quantity of single weights, those of the base left out.

    Of an update that is zero there are no shares: such rows, of a start, are left out too.
    """
    own = (table["quantity"] == quantity) & (table["module"] != "") & (table["run"] != BASE)
    rows = table[own]
    if quantity not in OF_UPDATE or not len(rows):
        return rows
    zero = (table["quantity"] == "update_norm") & (table["module"] != "") & (table["value"] == 0)
    still = pd.MultiIndex.from_frame(table.loc[zero, _WEIGHT])
    return rows[~pd.MultiIndex.from_frame(rows[_WEIGHT]).isin(still)]


def of_end(table: Frame, quantity: str) -> Frame:
    """Rows of single weights at each run's last measured step; none of a run without any there."""
    rows = of_weights(table, quantity)
    return rows[rows["step"] == rows["run"].map(_last_steps(table))]


def of_course(table: Frame, quantity: str) -> Frame:
    """Rows of single weights, without runs that have them at the start alone, but go on."""
    rows = of_weights(table, quantity)
    last = rows.groupby("run")["step"].transform("max")
    return rows[(last > 0) | (last == rows["run"].map(_last_steps(table)))]


def _last_steps(table: Frame) -> Any:
    """The last step of each run at which any quantity of its weights was measured."""
    own = (table["module"] != "") & (table["run"] != BASE)
    return table.loc[own, ["run", "step"]].groupby("run")["step"].max()


def without_update(table: Frame) -> list[str]:
    """Labels of runs whose update is zero in all weights at the end."""
    norms = of_end(table, "update_norm")
    most = norms.groupby("label")["value"].agg(lambda values: values.abs().max(skipna=False))
    return [label for label, *_ in order_of(table) if most.get(label) == 0]


def shift_is_known(table: Frame) -> bool:
    """Whether the spectral shift of every weight is known, not only bounded.

    Of a model with short and long sides it is known for the short ones alone, which say nothing of
    the others.
    """
    known, bounded = of_weights(table, "nss"), of_weights(table, "nss_low")
    return len(known) > 0 and len(known) >= len(bounded)


def of_base(table: Frame, quantity: str) -> Frame:
    """Rows of a quantity of the base model's weights."""
    return table[(table["quantity"] == quantity) & (table["run"] == BASE)]


def at_end(rows: Frame) -> Frame:
    """The rows of each run's last step among them."""
    return rows[rows["step"] == rows.groupby("run")["step"].transform("max")]


def end_note(rows: Frame) -> str:
    """Which steps `at_end` took."""
    last = sorted(set(rows.groupby("run")["step"].max()))
    if last == [-1]:
        return "The step is not recorded."
    if len(last) == 1:
        return f"At step {last[0]}, the last one measured."
    return f"At each run's last measured step ({last[0]} to {last[-1]})."


def styles(table: Frame) -> dict[str, Style]:
    """The style of every label of a table."""
    return styles_of(order_of(table))


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the finite values among the last ``window`` ones; NaN where the value itself is not.

    Raises:
        ValueError: if the window is smaller than 1.
    """
    if window < 1:
        raise ValueError(f"smoothing window {window} is smaller than 1; use 1 for no smoothing")
    means = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i + 1 - window) : i + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if math.isfinite(value) else math.nan)
    return means


def root_of_squares(values: Any) -> float:
    """Frobenius norm of all weights from those of each; NaN if one is missing."""
    return float(np.sqrt(np.square(np.asarray(values)).sum()))


def lines(
    table: Frame,
    rows: Frame,
    key: str = "step",
    *,
    whole: Callable[[Any], float] | None = None,
    smooth: int = 1,
) -> Lines:
    """One line per label.

    Of a quantity of single weights each run has its median over them, with a band between the
    quartiles. Labels with several seeds are the mean over their seeds, where all of them have a
    value, with the 95 % t interval over seeds as band; for weights this is so only if every label
    has several seeds, so that all bands of a chart mean the same.

    Args:
        table: the whole table, for the styles.
        rows: of one quantity.
        key: column of the places, ``step`` or ``at``.
        whole: what makes one number of a run's weights; then there are no quartiles.
        smooth: window of a running mean over each run's values.
    """
    looks = styles(table)
    of_one = bool((rows["module"] == "").all())
    parts = {label: part for label in looks if len(part := rows[rows["label"] == label])}
    runs = {label: _by_run(part, key, whole, smooth) for label, part in parts.items()}
    seeds = {label: values.shape[1] for label, values in runs.items()}
    quartiles = not of_one and whole is None and min(seeds.values(), default=1) < 2
    series, apart, empty = [], [], []
    for label, values in runs.items():
        shared = values.dropna()
        if not len(shared):
            (empty if values.isna().all(axis=None) else apart).append(label)
            continue
        band = _quartiles(parts[label], key, shared) if quartiles else _over_seeds(shared)
        places = tuple(float(place) for place in shared.index)
        mean = tuple(float(value) for value in shared.mean(axis=1))
        series.append(Series(label, looks[label], places, mean, *band))
    notes = _notes(seeds, of_one, whole is not None, quartiles, smooth)
    return Lines(tuple(series), (*notes, *_absent(apart, empty)))


def _quartiles(rows: Frame, key: str, shared: Frame) -> tuple[Numbers, Numbers]:
    """Quartiles of all values at the places of a line."""
    found = rows.groupby(key)["value"].quantile([0.25, 0.75]).unstack().loc[shared.index]
    return tuple(found[0.25]), tuple(found[0.75])


def _over_seeds(shared: Frame) -> tuple[Numbers, Numbers]:
    """Bounds over the columns, or none of a single one."""
    if shared.shape[1] < 2:
        return (), ()
    with np.errstate(invalid="ignore"):  # of values that are not finite
        low, high = t_interval(shared.to_numpy().T)
    return tuple(map(float, low)), tuple(map(float, high))


def _by_run(rows: Frame, key: str, whole: Callable[[Any], float] | None, smooth: int) -> Frame:
    """One number per place (rows) and run (columns)."""
    grouped = rows.groupby([key, "run"])["value"]
    values = (grouped.median() if whole is None else grouped.agg(whole)).unstack("run")
    if smooth > 1:
        for run in values:
            known = values[run].dropna()
            values[run] = pd.Series(running_mean(list(known), smooth), index=known.index)
    return values


def _notes(
    seeds: dict[str, int], of_one: bool, total: bool, quartiles: bool, smooth: int
) -> list[str]:
    """What lines and bands are."""
    notes = []
    counts = sorted(set(seeds.values()))
    several = counts[-1:] > [1]
    number = (
        str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else ""
    )
    if smooth > 1:
        notes.append(f"Running mean of {smooth} steps.")
    what = (
        "the run"
        if of_one
        else "all weights of a run"
        if total
        else "the median over a run's weights"
    )
    if several:
        notes.append(f"Lines: {what}, mean over {number} seeds.")
    else:
        notes.append(f"Lines: {what}; one seed." if not of_one else "One seed, so no band.")
    if quartiles:
        notes.append("Bands: quartiles over weights.")
    elif several:
        alone = [label for label, count in seeds.items() if count == 1]
        without = f" (none for {', '.join(alone)}: one seed)" if alone else ""
        notes.append(f"Bands: 95 % t interval over seeds{without}.")
    return notes


def _absent(apart: Sequence[str], empty: Sequence[str]) -> list[str]:
    texts = []
    if apart:
        texts.append(f"Not drawn, as its seeds have no place in common: {', '.join(apart)}.")
    if empty:
        texts.append(f"Not drawn, as all its values are missing: {', '.join(empty)}.")
    return texts
