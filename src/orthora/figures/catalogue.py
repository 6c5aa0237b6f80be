"""Every figure and table by name: what it shows, what it needs, and the command that makes that."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from orthora.figures import geometry, maps, scores, tables, training
from orthora.figures.lines import (
    OF_UPDATE,
    of_base,
    of_course,
    of_end,
    of_training,
    of_weights,
    without_update,
)
from orthora.figures.panels import Drawing
from orthora.figures.source import Frame, order_of
from orthora.figures.tables import TextTable
from orthora.table import BASE, QUANTITIES

From = Literal["training", "scores", "weights", "base", "starts"]
Shown = Drawing | TextTable


@dataclass(frozen=True)
class Entry:
    """What orthora knows of a figure or table.

    Attributes:
        name: canonical name.
        draw: table in, figure or table of text out.
        source: where the numbers come from.
        needs: quantities without which nothing can be drawn; ``a|b`` is either.
        aliases: other names that mean the same.
        paper: figure or table of arXiv 2606.31813 that it corresponds to, where that is known.
        steps: measured steps that at least one run must have.
        varies: setting of which some method must have two values.
    """

    name: str
    draw: Callable[[Frame], Shown]
    source: From
    needs: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    paper: str = ""
    steps: int = 1
    varies: str = ""

    @property
    def kind(self) -> str:
        """``figure`` or ``table``."""
        return "table" if self.draw.__module__ == tables.__name__ else "figure"

    @property
    def shows(self) -> str:
        """One sentence."""
        return (self.draw.__doc__ or "").split("\n")[0]


def _entry(name: str, draw: Any, source: From, needs: str, paper: str = "", **more: Any) -> Entry:
    short = [part.strip().lower().replace("fig. ", "fig").replace("table ", "table")
             for part in paper.split(",") if part]  # fmt: skip
    return Entry(name, draw, source, tuple(needs.split()), tuple(short), paper, **more)


ENTRIES: tuple[Entry, ...] = (
    _entry("training", training.overview, "training",
           "|".join(quantity for quantity, *_ in training.OVERVIEW)),
    _entry("reward", training.reward, "training", "reward"),
    _entry("accuracy", training.accuracy, "training", "pass_rate"),
    _entry("kl", training.kl, "training", "kl_update_k3"),
    _entry("kl-base", training.kl_base, "training", "kl_base_k1"),
    _entry("grad-norm", training.grad_norm, "training", "grad_norm"),
    _entry("entropy", training.entropy, "training", "entropy"),
    _entry("length", training.length, "training", "length"),
    _entry("truncated", training.truncated, "training", "truncated"),
    _entry("clipped", training.clipped, "training", "clip_low clip_high"),
    _entry("lr", training.lr, "training", "lr"),
    _entry("distance", training.distance, "training", "delta_norm"),
    _entry("step-norm", training.step_norm, "training", "update_norm"),
    _entry("held-out", scores.held_out, "scores", "pass_at_1"),
    _entry("checkpoints", scores.checkpoints, "scores", "pass_at_1/*"),
    _entry("rate-sweep", scores.rate_sweep, "scores", "pass_at_1", varies="learning_rate"),
    _entry("rank-sweep", scores.rank_sweep, "scores", "pass_at_1", varies="rank"),
    _entry("energy-cumulative", geometry.energy_cumulative, "weights", "energy_cumulative",
           "Fig. 3"),
    _entry("energy", geometry.energy, "weights", "energy"),
    _entry("row-alignment", geometry.row_alignment, "weights",
           "row_alignment_top row_alignment_bottom", "Fig. 7"),
    _entry("row-space", geometry.row_space, "weights", "row_space_kept"),
    _entry("head-energy", geometry.head_energy, "weights", "head_energy tail_energy"),
    _entry("alignment", geometry.alignment, "weights", "alignment"),
    _entry("spectra", maps.spectra, "base", "sigma", "Fig. 9"),
    _entry("weight-ranks", maps.weight_ranks, "base", "weight_stable_rank"),
    _entry("angles", geometry.angles, "weights", "angle_left angle_right"),
    _entry("rotation", geometry.rotation, "weights", "projector_left projector_right"),
    _entry("spectral-shift", geometry.spectral_shift, "weights", "sigma_shift"),
    _entry("nss", geometry.nss, "weights", "nss|nss_low"),
    _entry("sparsity", geometry.sparsity, "weights", "changed"),
    _entry("mask-lift", geometry.mask_lift, "weights", "princ_lift low_lift"),
    _entry("subspace-similarity", geometry.subspace_similarity, "weights", "subspace_similarity",
           steps=2),
    _entry("drift-heatmap", maps.drift_heatmap, "weights", "update_relative"),
    _entry("update-norm", geometry.update_norm, "weights", "update_norm"),
    _entry("update-relative", geometry.update_relative, "weights", "update_relative"),
    _entry("update-spectra", geometry.update_spectra, "weights", "update_sigma"),
    _entry("update-ranks", geometry.ranks, "weights", "stable_rank effective_rank"),
    _entry("scores", tables.scores, "scores", "pass_at_1|pass_at_1/*", "Table 1, Table 6"),
    _entry("best-rates", tables.best_rates, "scores", "pass_at_1"),
    _entry("end-of-training", tables.training, "training", "reward"),
    _entry("first-update", tables.first_step, "training", "run_first_update_norm"),
    _entry("start-norms", tables.start_norms, "weights", "start_norm", "Table 4"),
    _entry("init-cost", tables.init_cost, "starts", "init_seconds", "Table 7"),
    _entry("geometry", tables.geometry, "weights", "|".join(tables.GEOMETRY)),
    _entry("masks", tables.masks, "weights", "|".join(tables.MASKS)),
)  # fmt: skip
"""All of them, figures first."""

_NAMES = {name: entry for entry in ENTRIES for name in (entry.name, *entry.aliases)}
_SETTINGS = {
    "kl_update_k3": "kl_update_share > 0", "kl_base_k1": "kl_base_share > 0",
    "delta_norm": "geometry = true, and a method whose update is a product of factors",
    "update_norm": "geometry = true, and a method whose update is a product of factors",
    "run_first_update_norm": "geometry = true, and a method whose update is a product of factors",
}  # fmt: skip


_START = "start_norm"
"""A quantity of the start, which runs have at no other step."""


def entry_of(name: str) -> Entry:
    """The figure or table of a name.

    Raises:
        ValueError: for a name that there is not, with the nearest one.
    """
    if name in _NAMES:
        return _NAMES[name]
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"unknown figure {name!r}.{hint} Names: {', '.join(e.name for e in ENTRIES)}; "
        "orthora figure list says what each shows"
    )


def draw(name: str, table: Frame, runs: str = "RUN...") -> Shown:
    """A figure or table by its name, or an alias such as ``fig3``.

    Args:
        name: see `ENTRIES`.
        table: as `orthora.figures.source.collect` gives it.
        runs: the runs as they stand on a command line, for the remedy of an error.

    Raises:
        ValueError: if there is no such figure, or rows are missing: which ones, and the command
            that makes them.
    """
    entry = entry_of(name)
    if why := missing(entry, table, runs):
        raise ValueError(why)
    return _said(entry, entry.draw(table), table)


def missing(entry: Entry, table: Frame, runs: str = "RUN...") -> str:
    """Which rows an entry lacks and the command that makes them, or nothing if it can be drawn.

    Args:
        entry: the figure or table.
        table: as for `draw`.
        runs: as for `draw`.
    """
    for need in entry.needs:
        if not any(len(_rows(table, entry, one)) for one in need.split("|")):
            return _missing(entry, need.split("|")[0], table, runs)
    if entry.varies and not scores.varies(table, entry.varies):
        return (
            f"{entry.kind} {entry.name!r} needs runs of one method with two values of "
            f"{entry.varies} or more, all of them scored; orthora train with another {entry.varies}"
        )
    if entry.steps > 1:
        rows = _rows(table, entry, entry.needs[0])
        if rows.groupby("run")["step"].nunique().max() < entry.steps:
            return (
                f"{entry.kind} {entry.name!r} needs {entry.needs[0]} at {entry.steps} steps or "
                "more, and every run was measured at one; train with save_every > 0 and "
                f"keep_checkpoints large enough, then: orthora measure {runs}"
            )
    return ""


def _rows(table: Frame, entry: Entry, quantity: str) -> Frame:
    """Rows of a quantity that an entry needs; ``name/*`` is any quantity that begins so."""
    if entry.source == "weights":
        if quantity == _START:
            return of_weights(table, quantity)
        series = bool(QUANTITIES[quantity].at) or entry.draw is maps.drift_heatmap
        return (of_end if series else of_course)(table, quantity)
    if entry.source == "base":
        return of_base(table, quantity)
    if quantity.endswith("*"):
        return table[table["quantity"].str.startswith(quantity[:-1])]
    return of_training(table, quantity)


def _missing(entry: Entry, quantity: str, table: Frame, runs: str) -> str:
    """What is missing, and the command that makes it."""
    known = QUANTITIES.get(quantity) if entry.source in ("weights", "base") else None
    what = f"{quantity} ({known.meaning})" if known else quantity
    start = f"{entry.kind} {entry.name!r} needs {what}, and no row of the runs has it"
    if entry.source == "base" and table.attrs.get("bases"):
        return (f"{entry.kind} {entry.name!r} shows one base model, and the runs have several; "
                "give the runs of one model at a time")  # fmt: skip
    if entry.source == "weights" and (why := _lack(table, quantity)):
        return f"{entry.kind} {entry.name!r} needs {what}; {why}"
    if entry.source in ("weights", "base"):
        return f"{start}; measure it: orthora measure {runs}"
    if entry.source == "starts":
        return f"{start}; give folders of: orthora init MODEL --out DIR --method METHOD"
    if quantity.endswith("*"):
        return f"{start}; make it: orthora eval --adapter RUN --checkpoints --out RUN/eval"
    if entry.source == "scores":
        return f"{start}; train with eval_problems > 0, or: orthora eval --adapter RUN --out DIR"
    return f"{start}; orthora train records it with {_SETTINGS.get(quantity, 'its defaults')}"


def _measured(table: Frame, quantity: str) -> Frame:
    """Rows of single weights, those that say nothing among them."""
    own = (table["quantity"] == quantity) & (table["module"] != "") & (table["run"] != BASE)
    return table[own]


def _lack(table: Frame, quantity: str) -> str:
    """Why a quantity of weights that were measured can't be shown; empty if they were not."""
    still = {*_measured(table, "update_norm")["label"].unique()} == {
        *(zero := without_update(table))
    }
    if zero and still and quantity in OF_UPDATE:
        return "the update is zero in every run that was measured, so there is none"
    if len(_measured(table, quantity)):
        return "the runs have it at earlier steps than their last one alone"
    return ""


def _left_out(entry: Entry, table: Frame, without: Sequence[str]) -> list[str]:
    """Sentences on labels that have no rows to show."""
    needs = {one for need in entry.needs for one in need.split("|")}
    weights = entry.source == "weights"
    zero = without_update(table) if weights and needs != {_START} else []
    known = {label for q in needs if weights for label in _measured(table, q)["label"].unique()} - {
        *zero
    }
    rest = [label for label in without if label not in zero]
    early = [label for label in rest if label in known]
    none = [label for label in rest if label not in known]
    parts = (("The update is zero", zero), ("Measured at earlier steps alone", early),
             ("No rows of", none))  # fmt: skip
    return [f"{says}: {', '.join(labels)}." for says, labels in parts if labels]


def _said(entry: Entry, shown: Shown, table: Frame) -> Shown:
    """The figure, with the runs that have no rows named, and the setting that all share."""
    notes = list(shown.caption)
    if isinstance(shown, Drawing):
        notes += shown.not_drawn()
    if entry.source not in ("base", "starts"):
        has = {
            label
            for need in entry.needs
            for one in need.split("|")
            for label in _rows(table, entry, one)["label"].unique()
        }
        trained = ~table["quantity"].str.startswith("init_")
        groups = order_of(table[trained])
        without = [label for label, *_ in groups if label not in has]
        notes += _left_out(entry, table, without)
        settings = {setting for _, _, setting in groups}
        if isinstance(shown, Drawing) and len(settings) == 1 and "" not in settings:
            notes.append(f"All runs: {settings.pop()}.")
    return replace(shown, caption=tuple(dict.fromkeys(note for note in notes if note)))


def rows_of_catalogue() -> list[tuple[str, str, str, str]]:
    """Name, what it shows, what it is drawn from, and the paper's figure, of every entry."""
    words = {
        "training": "orthora train",
        "scores": "orthora train, orthora eval",
        "weights": "orthora measure",
        "base": "orthora measure",
        "starts": "orthora init",
    }
    return [(e.name, e.shows, words[e.source], e.paper) for e in ENTRIES]


def catalogue_markdown() -> str:
    """The catalogue as a Markdown table, for the documentation."""
    lines = ["| name | shows | from | arXiv 2606.31813 |", "|---|---|---|---|"]
    lines += [f"| `{a}` | {b} | `{c}` | {d} |" for a, b, c, d in rows_of_catalogue()]
    return "\n".join(lines)
