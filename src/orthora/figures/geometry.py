"""Figures of geometry: where the update of the weights lies, and what it did to their spectra."""

from dataclasses import replace

import pandas as pd

from orthora.figures.lines import (
    end_note,
    lines,
    of_course,
    of_end,
    of_weights,
    root_of_squares,
    shift_is_known,
)
from orthora.figures.panels import Drawing, Panel
from orthora.figures.source import Frame
from orthora.figures.style import DOUBLE, SINGLE

_STEP = "training step"


def _drawing(
    title: str, panels: list[tuple[Panel, tuple[str, ...]]], *says: str, columns: int = 2
) -> Drawing:
    notes = dict.fromkeys((*says, *(note for _, several in panels for note in several)))
    columns = min(columns, len(panels))
    width = DOUBLE if columns > 1 else SINGLE
    return Drawing(title, tuple(panel for panel, _ in panels), tuple(notes), columns, width)


def _by_step(
    table: Frame, quantity: str, title: str, ylabel: str, *, log: bool = False,
    levels: tuple[tuple[float, str], ...] = (), total: bool = False, sign: float = 1.0,
) -> tuple[Panel, tuple[str, ...]]:  # fmt: skip
    """A quantity of weights over the steps that were measured; ``sign`` -1 draws 1 - value."""
    rows = of_course(table, quantity)
    if sign < 0:
        rows = rows.assign(value=1 - rows["value"])
    drawn = lines(table, rows, whole=root_of_squares if total else None)
    panel = Panel(title, _STEP, ylabel, drawn.series, log=log, whole=True, levels=levels)
    if not drawn.series or any(sum(y > 0 or not log for y in s.y) > 1 for s in drawn.series):
        return panel, drawn.notes
    note = "One step has a value: for a course, train with save_every > 0 and measure again."
    return as_dots(panel), (end_note(rows), *drawn.notes, note)


def as_dots(panel: Panel) -> Panel:
    """The last points of some lines below each other, where there is no course to draw."""
    series = tuple(
        replace(one, x=(float(place),), y=one.y[-1:], low=one.low[-1:], high=one.high[-1:])
        for place, one in enumerate(panel.series)
    )
    names = tuple(one.label for one in panel.series)
    return replace(panel, series=series, categories=names, xlabel="", whole=False)


def _by_place(
    table: Frame, quantity: str, title: str, xlabel: str, ylabel: str, **style: object
) -> tuple[Panel, tuple[str, ...]]:
    """A series of weights at the end of training, over its places."""
    rows = of_end(table, quantity)
    drawn = lines(table, rows, "at")
    panel = Panel(title, xlabel, ylabel, drawn.series, **style)  # pyright: ignore[reportArgumentType]
    return panel, (end_note(rows), *drawn.notes)


def energy_cumulative(table: Frame) -> Drawing:
    """Cumulative energy of the update along W's spectrum, from its top."""
    rows = on_one_grid(of_end(table, "energy_cumulative"))
    drawn = lines(table, rows, "at")
    panel = Panel(
        "Energy along W's spectrum", "share of W's singular pairs, from the top",
        "share of energy", drawn.series, diagonal="spread evenly",
    )  # fmt: skip
    says = "Running sum of c_i^2 / sum c_j^2, c_i = |u_i' dW v_i|."
    return _drawing("Cumulative energy", [(panel, (end_note(rows), *drawn.notes))], says)


def on_one_grid(rows: Frame, places: int = 65) -> Frame:
    """Cumulative shares at the same places for all weights: their own, or interpolated."""
    keys = ["run", "label", "step", "layer", "module"]
    groups = rows.groupby(keys, sort=False)
    common = rows.groupby("at").size()
    if (common == groups.ngroups).all():
        return rows
    grid = [i / (places - 1) for i in range(places)]
    parts = []
    for values, part in groups:
        part = part.sort_values("at")
        y = _interpolated(grid, [0.0, *part["at"]], [0.0, *part["value"]])
        parts.append(pd.DataFrame(dict(zip(keys, values, strict=True)) | {"at": grid, "value": y}))
    return pd.concat(parts, ignore_index=True)


def _interpolated(grid: list[float], x: list[float], y: list[float]) -> list[float]:
    import numpy as np

    return list(map(float, np.interp(grid, x, y)))


def energy(table: Frame) -> Drawing:
    """Energy of the update in W's leading and last singular pairs, one by one."""
    rows = of_end(table, "energy")
    first, last = _ends(rows)
    panels = []
    for part, title, xlabel in (
        (first, "Leading pairs", "pair of W, from the first"),
        (last, "Last pairs", "pair of W, from the last"),
    ):
        drawn = lines(table, part, "at")
        panel = Panel(title, xlabel, "share of energy", drawn.series, log=True, whole=True)
        panels.append((panel, (end_note(rows), *drawn.notes)))
    return _drawing("Energy by singular pair", panels, "c_i^2 / sum c_j^2, c_i = |u_i' dW v_i|.")


def _ends(rows: Frame) -> tuple[Frame, Frame]:
    """The leading places, and the last ones counted from the last, of every weight."""
    first, last = [], []
    for _, part in rows.groupby(["run", "layer", "module"], sort=False):
        part = part.sort_values("at")
        count = len(part)
        head = int((part["at"].to_numpy() == range(1, count + 1)).sum())
        cut = head if head < count else max(1, count // 2)
        first.append(part.iloc[:cut])
        last.append(part.iloc[cut:].assign(at=part["at"].max() - part["at"].iloc[cut:] + 1))
    return pd.concat(first), pd.concat(last)


def alignment(table: Frame) -> Drawing:
    """How much of the update falls on each leading right singular vector of W."""
    panel = _by_place(table, "alignment", "Alignment", "right singular vector of W",
                      "|dW v_j| / |dW|", log=True, whole=True)  # fmt: skip
    return _drawing("Alignment with W's leading directions", [panel])


def row_alignment(table: Frame) -> Drawing:
    """Share of A's rows in W's top and bottom right singular subspaces, over training."""
    panels = [
        _by_step(table, f"row_alignment_{end}", f"{end.capitalize()} r directions", "|A V| / |A|")
        for end in ("top", "bottom")
    ]
    return _drawing("Rows of A against W's directions", panels,
                    "|A V|_F / |A|_F, V W's r first or last right singular vectors.")  # fmt: skip


def row_space(table: Frame) -> Drawing:
    """How much of A's row space at the start is left, over training."""
    panel = _by_step(table, "row_space_kept", "Row space of A", "share kept")
    return _drawing("Row space of A", [panel], "Mean squared cosine to the row space of A0.")


def head_energy(table: Frame) -> Drawing:
    """Share of the update in W's leading and last input directions, over training, with chance."""
    chance = of_weights(table, "chance_energy")["value"]
    levels = ((float(chance.median()), "chance"),) if len(chance) else ()
    panels = [
        _by_step(table, f"{end}_energy", title, "share of |dW|^2", levels=levels)
        for end, title in (("head", "Leading directions"), ("tail", "Last directions"))
    ]
    return _drawing("Energy in W's first and last directions", panels,
                    "Share of |dW|_F^2; chance: of a random direction.")  # fmt: skip


def angles(table: Frame) -> Drawing:
    """Principal angles between the leading subspaces before and after training."""
    panels = [
        _by_place(table, f"angle_{side}", f"{side.capitalize()} subspaces", "principal angle",
                  "degrees", whole=True)
        for side in ("left", "right")
    ]  # fmt: skip
    return _drawing("Principal angles", panels,
                    "Angles between the leading subspaces of W and W + dW, ascending.")  # fmt: skip


def rotation(table: Frame) -> Drawing:
    """Distance of the leading subspaces from those of W, over training."""
    panels = [
        _by_step(table, f"projector_{side}", f"{side.capitalize()} subspaces", "distance")
        for side in ("left", "right")
    ]
    return _drawing("Distance of leading subspaces", panels,
                    "Root mean square sine of the principal angles.")  # fmt: skip


def spectral_shift(table: Frame) -> Drawing:
    """Relative change of W's leading singular values, one by one, at the end of training."""
    panel = _by_place(table, "sigma_shift", "Shift of singular values", "singular value of W",
                      "relative change", whole=True)  # fmt: skip
    says = "(sigma_i(W + dW) - sigma_i(W)) / sigma_i(W)."
    return _drawing("Shift of singular values", [panel], says)


def nss(table: Frame) -> Drawing:
    """Normalised spectral shift over training; where only bounds are known, the band they leave."""
    says = "|sigma(W + dW) - sigma(W)|_2 / |sigma(W)|_2."
    title = "Normalised spectral shift"
    if shift_is_known(table):
        return _drawing(title, [_by_step(table, "nss", title, "NSS", log=True)], says)
    panel, _ = _by_step(table, "nss_low", title, "NSS", log=True)
    tops = {one.label: one for one in _by_step(table, "nss_high", title, "NSS")[0].series}
    series = tuple(
        replace(one, low=one.y, high=tops[one.label].y)
        for one in panel.series
        if one.label in tops and tops[one.label].x == one.x
    )
    note = "Only bounds are known: lines are the lower one, bands reach to the upper one; medians."
    return _drawing(title, [(replace(panel, series=series), (note,))], says)


def sparsity(table: Frame) -> Drawing:
    """Share of W's entries that training leaves unchanged in bfloat16."""
    panel = _by_step(table, "changed", "Unchanged entries", "share", sign=-1.0)
    return _drawing("Unchanged entries", [panel], "Entries that are equal in bfloat16.")


def mask_lift(table: Frame) -> Drawing:
    """How often changed entries lie in W's principal and smallest entries, against chance."""
    panels = [
        _by_step(table, f"{name}_lift", title, "overlap / chance", levels=((1.0, "chance"),))
        for name, title in (("princ", "Principal entries"), ("low", "Smallest entries"))
    ]
    return _drawing("Where changed entries lie", panels,
                    "Share of changed entries inside a mask over the mask's share.")  # fmt: skip


def subspace_similarity(table: Frame) -> Drawing:
    """How near the update's leading directions are to those at the end, over training."""
    panel = _by_step(table, "subspace_similarity", "Subspace similarity", "to the end")
    says = "Mean squared cosine between dW's leading right vectors now and at the end."
    return _drawing("Subspace similarity", [panel], says)


def update_norm(table: Frame) -> Drawing:
    """Frobenius norm of the update over all weights, over training."""
    panel = _by_step(table, "update_norm", "Norm of the update", "|dW|", total=True)
    return _drawing("Norm of the update", [panel], "|dW|_F over all measured weights.")


def update_relative(table: Frame) -> Drawing:
    """Relative norm of the update, over training."""
    panel = _by_step(table, "update_relative", "Relative update", "|dW| / |W|", log=True)
    return _drawing("Relative update", [panel], "|dW|_F / |W|_F.")


def update_spectra(table: Frame) -> Drawing:
    """Singular values of the update at the end of training."""
    panel = _by_place(table, "update_sigma", "Spectrum of the update", "index",
                      "singular value of dW", log=True, whole=True)  # fmt: skip
    return _drawing("Spectrum of the update", [panel])


def ranks(table: Frame) -> Drawing:
    """Stable and effective rank of the update, over training."""
    panels = [
        _by_step(table, f"{kind}_rank", f"{kind.capitalize()} rank", "of dW")
        for kind in ("stable", "effective")
    ]
    return _drawing("Rank of the update", panels)
