"""The sentences of verdicts: differences with their intervals, and what they compare."""

import math

from orthora.runs import rate_text
from orthora.study.compare import Comparisons
from orthora.study.estimates import Estimate
from orthora.study.paired import Paired, View

_VIEWS = {
    "tuned": "each at its own best rate",
    "shared": "at the reference's best rate, {rate}",
    "sweep": "mean over all rates",
}


def view_text(view: View, arm: str, found: Comparisons) -> str:
    """What a view compares."""
    rate = found.shared_rate(arm)
    return _VIEWS[view].format(rate=rate_text(rate) if math.isfinite(rate) else "not known")


def difference_text(one: Paired, view: View, found: Comparisons) -> str:
    """A difference in words."""
    where = view_text(view, one.arm, found)
    if not one.alone.seeds:
        return f"{one.arm} less {one.than}, {where}: no seed has both."
    joint = ""
    if one.jointly.known:
        joint = f"; jointly {one.jointly.low:+.3f} to {one.jointly.high:+.3f}"
    test = f"; p {one.p:.3g}, with Holm {one.p_holm:.3g}" if math.isfinite(one.p) else ""
    labels = (one.arm, one.than) if view == "tuned" else ()
    edges = [edge_text(label, found) for label in labels]
    less = f"{estimate_text(one.alone)}{joint}{test}"
    return f"{one.arm} less {one.than}, {where}: {less}.{''.join(edges)}"


def own_rate(label: str, found: Comparisons) -> str:
    """Where an arm's tuned score is from."""
    finds = found.arms[label].finds
    if finds:
        return {"adaptive-kl": "under adaptive-kl", "match": "at its matched rates"}[finds]
    return f"at its own best rate ({rate_text(found.tuned[label].rate)})"


def edge_text(label: str, found: Comparisons) -> str:
    """That an arm's best rate is an end of those tried, where it is."""
    edge = found.at_the_edge(label)
    best = f" The best rate of {label} is the {edge} one that was tried: another may be better."
    return best if edge else ""


def estimate_text(one: Estimate) -> str:
    """A mean with its interval, and how many seeds it is of."""
    bounds = f" ({one.low:+.4g} to {one.high:+.4g})" if one.known else ""
    return f"{one.mean:+.4g}{bounds}, {one.seeds} seeds"
