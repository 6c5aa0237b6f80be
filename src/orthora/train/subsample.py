"""Which responses to measure on, when all are too many: those that tell most, with their weights.

A sum over all items is estimated from some of them by weighting each with one over its chance of
being in the sample (Horvitz and Thompson 1952), which is unbiased whatever the chances; it is
precise where the chances are proportional to the items. Systematic sampling (Madow 1949) takes a
fixed number of them, spread evenly over the list.
"""

import math
from collections.abc import Sequence

SPREAD = 0.2
"""Part of the chances that is spread evenly for the KL of an update, which goes with the sizes."""
SPREAD_TO_BASE = 0.6
"""The same for the KL to the base: its k1 has noise of either sign from every response."""
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill the unit interval evenly


def chances(sizes: Sequence[float], count: int, spread: float = SPREAD) -> list[float]:
    """Chances of inclusion that add up to ``count``, proportional to sizes as far as 1 allows.

    A part of every size is the mean's: what seems small is not left out, and not blown up by its
    weight where it was not.

    Args:
        sizes: guesses at the items' size, at least 0.
        count: of the sample, at most the number of items.
        spread: part of the sizes that is spread evenly, in (0, 1].
    """
    mean = sum(sizes) / max(1, len(sizes)) or 1.0
    weights = [(1 - spread) * size + spread * mean for size in sizes]
    found, free = [1.0] * len(sizes), list(range(len(sizes)))
    while free:
        scale = (count - (len(sizes) - len(free))) / sum(weights[i] for i in free)
        within = [i for i in free if scale * weights[i] < 1]
        if len(within) == len(free):
            for i in free:
                found[i] = scale * weights[i]
            break
        free = within
    return found


def systematic(chances: Sequence[float], start: float) -> list[int]:
    """The items at which the running sum of chances passes ``start``, ``start + 1``, and so on.

    Args:
        chances: of inclusion.
        start: in [0, 1); with a random one every item is taken with its chance.
    """
    taken, total = [], 1.0 - start
    for i, chance in enumerate(chances):
        before, total = total, total + chance
        if math.floor(total + 1e-9) > math.floor(before + 1e-9):
            taken.append(i)
    return taken


def start_of(step: int) -> float:
    """Where a step's sample starts: a place that moves evenly through the unit interval."""
    return step * _GOLDEN % 1.0
