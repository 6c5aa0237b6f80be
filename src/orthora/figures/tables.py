"""Tables: rows of text out of the table of numbers, as terminal, Markdown, CSV or LaTeX."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from orthora.figures.lines import (
    at_end,
    end_note,
    of_end,
    of_training,
    of_weights,
    root_of_squares,
    shift_is_known,
)
from orthora.figures.maps import module_types
from orthora.figures.panels import number, with_interval
from orthora.figures.scores import Score, interval_note, score
from orthora.figures.source import Frame, order_of
from orthora.stats import t_interval


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        title: of the whole.
        head: names of the columns.
        rows: cells.
        caption: sentences.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The caption."""
        return " ".join(self.caption)

    def markdown(self) -> str:
        """As Markdown, the caption below."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in lines)
        return f"{body}\n\n{self.text}\n"

    def csv(self) -> str:
        """As CSV, without the caption."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.head, *self.rows])
        return buffer.getvalue()

    def latex(self) -> str:
        """As a LaTeX table in the style of booktabs."""
        rows = [" & ".join(map(latex_text, row)) + r" \\" for row in (self.head, *self.rows)]
        return "\n".join(
            [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(self.text)}}}",
             rf"\begin{{tabular}}{{{'l' * len(self.head)}}}", r"\toprule", rows[0], r"\midrule",
             *rows[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
        )  # fmt: skip


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with the characters that LaTeX reads as commands written out."""
    return "".join(_LATEX.get(character, character) for character in text)


def _groups(table: Frame, rows: Frame) -> list[tuple[str, str, str, Frame]]:
    """Label, method, setting and rows of every group that has any."""
    found = [(a, b, c, rows[rows["label"] == a]) for a, b, c in order_of(table)]
    return [one for one in found if len(one[3])]


def _over_seeds(rows: Frame, pattern: Callable[[float], str] = number) -> str:
    """Mean over runs, with the t interval over seeds where there are several."""
    values = rows.groupby("run")["value"].last().dropna().to_numpy()
    if len(values) < 2:
        return pattern(float(values[0])) if len(values) else "–"
    low, high = t_interval(values)
    return with_interval(float(values.mean()), float(low), float(high))


def _cell(one: Score) -> str:
    if one.seeds == 0:
        return "–"
    return f"{one.value:.3f}" + (
        f" [{one.low:.3f}, {one.high:.3f}]" if math.isfinite(one.low + one.high) else ""
    )


def scores(table: Frame) -> TextTable:
    """Scores of every method and setting, a column per held-out task."""
    own = table[table["module"] == ""]
    names = sorted({q for q in own["quantity"] if q == "pass_at_1" or q.startswith("pass_at_1/")})
    rows: list[tuple[str, ...]] = []
    found: list[Score] = []
    for _, method, setting, part in _groups(table, own[own["quantity"].isin(names)]):
        cells = []
        for name in names:
            here = at_end(part[part["quantity"] == name])
            found.append(score(here, _same_moments(table, here), name))
            cells.append(_cell(found[-1]))
        rows.append((method, setting, str(part["run"].nunique()), *cells))
    base = [_base_cell(table) if name == "pass_at_1" else "–" for name in names]
    if any(cell != "–" for cell in base):
        rows.insert(0, ("base", "", "", *base))
    head = ("method", "setting", "seeds",
            *(n.partition("/")[2] or "held-out" for n in names))  # fmt: skip
    says = "Pass@1 after training, mean over seeds."
    trained = {*of_training(table, "run_rank")["run"], *of_training(table, "reward")["run"]}
    without = trained - {*own.loc[own["quantity"].isin(names), "run"]}
    lost = (f"Without a score: {', '.join(sorted(without))}.",) if without else ()
    return TextTable("Scores", head, tuple(rows), (says, interval_note(found), *lost))


def _same_moments(table: Frame, rows: Frame) -> Frame:
    """All rows of the runs and steps of some rows."""
    pairs = pd.MultiIndex.from_frame(rows[["run", "step"]])
    return table[pd.MultiIndex.from_frame(table[["run", "step"]]).isin(pairs)]


def _base_cell(table: Frame) -> str:
    values = {
        end: of_training(table, f"base_pass_at_1{end}")["value"] for end in ("", "_low", "_high")
    }
    if not len(values[""]):
        return "–"
    if values[""].nunique() > 1:
        return f"{values[''].min():.3f} to {values[''].max():.3f}"
    low, high = (values[end].iloc[0] if len(values[end]) else math.nan for end in ("_low", "_high"))
    return _cell(Score(float(values[""].iloc[0]), float(low), float(high), 1, "problems"))


def best_rates(table: Frame) -> TextTable:
    """The learning rate at which each method scores highest, and how near the others are."""
    final, rows, found = of_training(table, "pass_at_1"), [], []
    for method in sorted(set(final["method"])):
        part = final[final["method"] == method]
        by = {s: score(part[part["setting"] == s], table) for s in sorted(set(part["setting"]))}
        found += by.values()
        best = max(by, key=lambda setting: by[setting].value)
        top = by[best]
        close = [s for s, one in by.items() if s != best and one.high >= top.low]
        rows.append((method, best, _cell(top), str(len(by)), ", ".join(close) or "none"))
    head = ("method", "best setting", "held-out pass@1", "settings tried", "interval overlaps")
    says = "The best of several settings is chosen on the score itself, which flatters it."
    return TextTable("Best learning rates", head, tuple(rows), (says, interval_note(found)))


def training(table: Frame) -> TextTable:
    """How training ended: means over the last tenth of the steps."""
    columns = (("reward", "reward"), ("pass_rate", "accuracy"), ("kl_update_k3", "KL per step"),
               ("entropy", "entropy"), ("length", "length"))  # fmt: skip
    rows = []
    steps = of_training(table, "reward")
    for label, method, setting, part in _groups(table, steps):
        cells = [_over_seeds(_last_tenth(table, label, quantity)) for quantity, _ in columns]
        own = table[table["label"] == label]
        peak, seconds = (
            _over_seeds(of_training(own, f"run_{name}")) for name in ("peak_grad_norm", "seconds")
        )
        rows.append((method, setting, str(part["run"].nunique()), *cells, peak, seconds))
    head = ("method", "setting", "seeds", *(n for _, n in columns), "peak grad norm", "seconds")
    says = "Means over the last tenth of the steps; brackets: 95 % t interval over seeds."
    return TextTable("End of training", head, tuple(rows), (says,))


def _last_tenth(table: Frame, label: str, quantity: str) -> Frame:
    rows = of_training(table[table["label"] == label], quantity)
    late = rows["step"] > 0.9 * rows.groupby("run")["step"].transform("max")
    return rows[late].groupby("run", as_index=False)["value"].mean()


def first_step(table: Frame) -> TextTable:
    """How far the first update moved the weights, beside LoRA's."""
    norms = of_training(table, "run_first_update_norm")
    lora = norms[norms["method"] == "lora"]
    rows = []
    for _, method, setting, part in _groups(table, norms):
        same = lora[lora["setting"] == setting]["value"]
        ratio = part["value"].mean() / same.mean() if len(same) and same.mean() else math.nan
        rows.append((method, setting, _over_seeds(part), number(float(ratio))))
    head = ("method", "setting", "|dW| of the first update", "over lora's")
    says = "Frobenius norm over all adapted weights; the ratio is to lora at the same setting."
    return TextTable("First update", head, tuple(rows), (says,))


def start_norms(table: Frame) -> TextTable:
    """Norm of B0 A0 by method and module type, and over all weights."""
    rows = of_weights(table, "start_norm")
    first = rows[rows["step"] == rows.groupby("run")["step"].transform("min")]
    kinds = module_types(first)
    first = first.assign(kind=first["module"].map(kinds))
    names = sorted(set(first["kind"]))
    out = []
    for _, method, setting, part in _groups(table, first):
        each = part.groupby(["kind", "run"])["value"].median().groupby("kind").mean()
        whole = part.groupby("run")["value"].agg(root_of_squares).mean()
        cells = (number(float(each.get(name, math.nan))) for name in names)
        out.append((method, setting, *cells, number(float(whole))))
    says = ("|B0 A0|_F without the scale: median over layers, and last the norm over all weights. "
            "Methods that start at B = 0 have 0.")  # fmt: skip
    return TextTable("Norm of the start", ("method", "setting", *names, "all"), tuple(out), (says,))


def init_cost(table: Frame) -> TextTable:
    """Time that starting an adapter took, from the folders of `orthora init`."""
    rows = of_training(table, "init_seconds")
    out = []
    for _, method, _, part in _groups(table, rows):
        for run in sorted(set(part["run"])):
            own = table[table["run"] == run].set_index("quantity")["value"]
            counts = (f"{own[key]:.0f}" for key in ("init_rank", "init_weights"))
            times = (f"{own[key]:.1f}" for key in ("init_seconds", "init_cpu_seconds"))
            out.append((method, run, *counts, *times))
    head = ("method", "folder", "rank", "weights", "seconds", "CPU seconds")
    says = ("Seconds: wall time of orthora init, reading the checkpoint included. "
            "CPU seconds: of the computation alone. Memory is not recorded.")  # fmt: skip
    return TextTable("Cost of initialisation", head, tuple(out), (says,))


GEOMETRY = (
    "update_relative", "head_energy", "tail_energy", "chance_energy", "stable_rank",
    "row_alignment_top", "row_alignment_bottom", "projector_right", "nss", "nss_low", "nss_high",
    "changed",
)  # fmt: skip
"""Columns of `geometry`."""
MASKS = ("changed", "princ_overlap", "princ_lift", "low_overlap", "low_lift")
"""Columns of `masks`."""


def geometry(table: Frame) -> TextTable:
    """Geometry at the end of training: median over weights, quartiles or interval over seeds."""
    left_out = ("nss_low", "nss_high") if shift_is_known(table) else ("nss",)
    return _by_group(table, "Geometry", [name for name in GEOMETRY if name not in left_out])


def masks(table: Frame) -> TextTable:
    """Where changed entries lie: overlaps with the masks of W, and over chance."""
    return _by_group(table, "Changed entries", MASKS)


def _by_group(table: Frame, title: str, quantities: Sequence[str]) -> TextTable:
    names = [name for name in quantities if len(of_weights(table, name))]
    parts = {name: of_end(table, name) for name in names}
    everything = pd.concat(parts.values())
    groups = _groups(table, everything)
    counts = [part["run"].nunique() for *_, part in groups]
    seeds = min(counts) > 1
    rows = []
    for (label, method, setting, _), count in zip(groups, counts, strict=True):
        cells = (summary(parts[q][parts[q]["label"] == label], seeds=seeds) for q in names)
        rows.append((method, setting, str(count), *cells))
    over = "95 % t interval over seeds" if seeds else "quartiles over weights"
    says = f"Median over a run's weights, mean over seeds; brackets: {over}."
    head = ("method", "setting", "seeds", *names)
    columns = "Columns: quantities of orthora measure."
    return TextTable(title, head, tuple(rows), (says, end_note(everything), columns))


def summary(rows: Frame, *, seeds: bool) -> str:
    """Median over weights, mean over runs, with quartiles over weights or t interval over seeds."""
    values = rows["value"].dropna()
    medians = rows.dropna(subset="value").groupby("run")["value"].median().to_numpy()
    if not len(medians):
        return "–"
    low, high = (
        t_interval(medians) if seeds and len(medians) > 1 else np.quantile(values, [0.25, 0.75])
    )
    return with_interval(float(medians.mean()), float(low), float(high))
