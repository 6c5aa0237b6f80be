"""Which rows go through a model together: in a micro-batch, in a sequence, on a process."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from orthora.train.rollouts import Row


def deal(
    rows: Sequence[Row], size: int, rank: int, micro_batch: int, *, together: bool
) -> list[list[int]]:
    """One process's micro-batches of a mini-batch: like lengths in one, the same number for all.

    Units (rows, or groups where they stay together) are sorted by length and dealt in turn, so that
    processes carry about the same load. A group larger than a micro-batch is cut.

    Args:
        rows: of the mini-batch, group by group.
        size: number of processes.
        rank: of this one.
        micro_batch: rows of a micro-batch, at most.
        together: keep groups together.

    Returns:
        Row indices of each micro-batch; the last may be empty where units don't go round.
    """
    units = _units(rows, micro_batch) if together else [[i] for i in range(len(rows))]
    load = [sum(rows[i].length for i in unit) for unit in units]
    order = sorted(range(len(units)), key=lambda u: (-load[u], u))
    mine = order[rank::size]
    most = math.ceil(len(units) / size)
    per_pass = max(1, micro_batch // max(map(len, units)))
    count = max(1, math.ceil(most / per_pass))
    step = max(1, math.ceil(most / count))
    return [[i for u in mine[k * step : (k + 1) * step] for i in units[u]] for k in range(count)]


def filled(rows: Sequence[Row], micro_batch: int, *, together: bool) -> list[list[int]]:
    """Micro-batches of a measurement, filled one after the other: like lengths in one.

    Args:
        rows: those of a group together.
        micro_batch: rows of a micro-batch, at most.
        together: keep groups together.

    Returns:
        Row indices of each micro-batch.
    """
    units = _units(rows, micro_batch) if together else [[i] for i in range(len(rows))]
    found: list[list[int]] = []
    for unit in sorted(units, key=lambda unit: (-sum(rows[i].length for i in unit), unit)):
        if not found or len(found[-1]) + len(unit) > micro_batch:
            found.append([])
        found[-1] += unit
    return found


def _units(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Groups by row index, cut into parts of at most ``most`` rows."""
    units = []
    for group in groups_of(rows):
        parts = math.ceil(len(group) / most)
        edges = [len(group) * k // parts for k in range(parts + 1)]
        units += [group[a:b] for a, b in pairwise(edges)]
    return units


def share_pays(
    shared: Sequence[Sequence[Row]],
    plain: Sequence[Sequence[Row]],
    width: int,
    parameters: float | int,
) -> bool:
    """Whether the shared layout costs less than nine tenths of the other, padding included.

    Multiplications of a layer: two per parameter and token, and four times the width per pair of
    tokens in attention, which neither layout skips where its mask says so.

    Args:
        shared: micro-batches of rows as they would be scored group by group.
        plain: the same rows as they would be scored one by one.
        width: of the model.
        parameters: of one layer.
    """
    costs = []
    for micros, together in ((shared, True), (plain, False)):
        laid = [_lengths(micro, together=together) for micro in micros if micro]
        padded = [(len(lengths), max(lengths)) for lengths in laid]
        costs.append(sum(n * L * (2 * parameters + 4 * width * L) for n, L in padded))
    return costs[0] < 0.9 * costs[1]


def _lengths(rows: Sequence[Row], *, together: bool) -> list[int]:
    """Tokens of each sequence of a micro-batch."""
    if not together:
        return [row.length for row in rows]
    tokens = [tokens_of(rows, group) for group in groups_of(rows)]
    return [sum(tokens[i] for i in one) for one in packed(tokens)]


def groups_of(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows that stand together and share their prompt."""
    found = groupby(range(len(rows)), key=lambda i: rows[i].group)
    return [list(members) for _, members in found]


def tokens_of(rows: Sequence[Row], group: Sequence[int]) -> int:
    """Of a group in the shared layout."""
    return len(rows[group[0]].prompt) - 1 + sum(len(rows[i].ids) + 1 for i in group)


def packed(lengths: Sequence[int]) -> list[list[int]]:
    """Which items stand in one sequence, none longer than the longest item: first fit, decreasing.

    Items keep their order, in a sequence and by the first one of each.

    Args:
        lengths: of the items.
    """
    found: list[list[int]] = []
    room: list[int] = []
    longest = max(lengths, default=0)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((k for k, left in enumerate(room) if left >= lengths[i]), len(found))
        if place == len(found):
            found.append([])
            room.append(longest)
        found[place].append(i)
        room[place] -= lengths[i]
    return sorted(sorted(one) for one in found)
