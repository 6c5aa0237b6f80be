"""Figures by layer and module type: spectra of W, heat maps of drift, ranks of W."""

import math
from typing import Any

from orthora.figures.lines import end_note, of_base, of_end
from orthora.figures.panels import Drawing, Heat, Panel, Series
from orthora.figures.source import Frame, order_of
from orthora.figures.style import DOUBLE, INK, SINGLE, Style, layer_colour

_POINTS = 48
"""Singular values drawn of a spectrum; the table has them all."""


def module_types(table: Frame) -> dict[str, str]:
    """Short names of module paths: the last part, with as many before it as tell types apart.

    Args:
        table: rows with a module.
    """
    paths = sorted(set(table["module"]))
    types = {path: ".".join(p for p in path.split(".") if not p.isdigit()) for path in paths}
    short: dict[str, str] = {}
    for whole in sorted(set(types.values())):
        parts, name = whole.split("."), whole
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            others = [t for t in set(types.values()) if t != whole and t.endswith(f".{name}")]
            if not others and name not in set(types.values()) - {whole}:
                break
        short[whole] = name
    return {path: short[whole] for path, whole in types.items()}


def spectra(table: Frame) -> Drawing:
    """Singular values of the base weights, a panel per module type and a line per layer."""
    rows = of_base(table, "sigma")
    kinds = module_types(rows)
    rows = rows.assign(kind=rows["module"].map(kinds))
    layers = sorted(set(rows["layer"]))
    inside = [layer for layer in layers if layer >= 0]
    listed = {inside[0], inside[len(inside) // 2], inside[-1]} if inside else set()
    panels = []
    for kind in sorted(set(rows["kind"])):
        part = rows[rows["kind"] == kind].groupby(["layer", "at"])["value"].median()
        series = []
        for layer in sorted(set(part.index.get_level_values("layer"))):
            line = thinned(part.loc[layer].sort_index())
            place = inside.index(layer) / max(1, len(inside) - 1) if layer >= 0 else 0.0
            style = Style(layer_colour(place) if layer >= 0 else INK, "-", "")
            label = f"layer {layer}" if layer >= 0 else "outside the layers"
            series.append(Series(label, style, tuple(map(float, line.index)), tuple(line),
                                 listed=layer in listed or layer < 0))  # fmt: skip
        panels.append(Panel(kind, "index", "singular value", tuple(series), log=True, whole=True))
    says = (
        f"Spectra of the base weights W, {len(layers)} layers from blue (first) to orange (last)."
    )
    thin = "" if rows.groupby(["layer", "module"]).size().max() <= _POINTS else (
        f"Of each, {_POINTS} singular values are drawn."
    )  # fmt: skip
    columns = min(4, len(panels))
    return Drawing("Spectra of W", tuple(panels), tuple(filter(None, (says, thin))), columns,
                   DOUBLE if columns > 1 else SINGLE)  # fmt: skip


def thinned(values: Any, most: int = _POINTS) -> Any:
    """At most ``most`` values, dense at both ends, the first and the last among them."""
    count = len(values)
    if count <= most:
        return values
    waves = [(1 - math.cos(math.pi * i / (most - 1))) / 2 for i in range(most)]
    return values.iloc[sorted({round(wave * (count - 1)) for wave in waves})]


def drift_heatmap(table: Frame) -> Drawing:
    """Relative norm of the update by layer and module type, a map per method and setting."""
    rows = of_end(table, "update_relative")
    rows = rows.assign(kind=rows["module"].map(module_types(rows)))
    cells = rows.groupby(["label", "kind", "layer"])["value"].median()
    layers, kinds = sorted(set(rows["layer"])), sorted(set(rows["kind"]))
    known = cells[cells.map(math.isfinite)]
    bounds = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    names = tuple(str(layer) if layer >= 0 else "out" for layer in layers)
    labels = [label for label, *_ in order_of(table) if (rows["label"] == label).any()]
    maps = tuple(
        Heat(label, "|dW| / |W|", names, tuple(kinds), tuple(
            tuple(float(cells.get((label, kind, layer), math.nan)) for layer in layers)
            for kind in kinds
        ), bounds)
        for label in labels
    )  # fmt: skip
    out = ("Column out: weights outside the layers.",) if -1 in layers else ()
    seeds = rows.groupby("label")["run"].nunique().max() > 1
    of = ("Of several seeds, the median.",) if seeds else ("One seed.",)
    says = "|dW|_F / |W|_F; one scale for all maps, grey where nothing was measured."
    columns = 1 if len(maps) == 1 else 2
    return Drawing("Drift by layer", maps, (says, end_note(rows), *of, *out), columns,
                   DOUBLE if columns > 1 else SINGLE)  # fmt: skip


def weight_ranks(table: Frame) -> Drawing:
    """Stable rank of the base weights by layer, a line per module type."""
    rows = of_base(table, "weight_stable_rank")
    rows = rows[rows["layer"] >= 0]
    rows = rows.assign(kind=rows["module"].map(module_types(rows)))
    kinds = sorted(set(rows["kind"]))
    markers = "osv^DPXphd<>"
    series = []
    for place, kind in enumerate(kinds):
        line = rows[rows["kind"] == kind].groupby("layer")["value"].median()
        style = Style(layer_colour(place / max(1, len(kinds) - 1)), "-", markers[place % 12])
        series.append(Series(kind, style, tuple(map(float, line.index)), tuple(line)))
    panel = Panel("Stable rank of W", "layer", "|W|_F^2 / |W|_2^2", tuple(series), whole=True)
    return Drawing("Stable rank of W", (panel,), ("Of the base weights.",))
