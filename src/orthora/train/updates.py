"""How a rollout becomes optimizer updates: mini-batches, and each process's micro-batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orthora.train.batches import deal
from orthora.train.losses import Objective, normaliser
from orthora.train.rollouts import Row


@dataclass(frozen=True)
class Shape:
    """How updates are cut.

    Attributes:
        group_size: G.
        updates: mini-batches of a rollout.
        epochs: times that all of them are gone through.
        passes: micro-batches of every update on every process.
        micro_batch: rows of one, at most.
        rank: of this process.
        size: number of processes.
        even: every process goes through as many micro-batches as the others, empty ones included,
            without gradients, too; where weights are sharded each forward pass needs them all.
    """

    group_size: int
    updates: int
    epochs: int
    passes: int
    micro_batch: int
    rank: int = 0
    size: int = 1
    even: bool = False


@dataclass
class Plan:
    """One process's passes over a rollout, in order.

    Attributes:
        passes: micro-batches of rows with the divisor of their mini-batch's loss; those of all
            updates, of every epoch.
        mini_batches: their micro-batches, each row once; without empty ones, but for `Shape.even`.
        shared: a group's rows stand together in a micro-batch and share their prompt.
    """

    passes: list[tuple[list[Row], float]]
    mini_batches: list[list[list[Row]]]
    shared: bool

    @property
    def once(self) -> list[list[Row]]:
        """All micro-batches of one epoch."""
        return [micro for part in self.mini_batches for micro in part]

    @property
    def rows(self) -> list[Row]:
        """This process's rows, each once, in the order of `once`."""
        return [row for micro in self.once for row in micro]

    def first(self, share: float) -> list[list[Row]]:
        """Micro-batches of the first mini-batches: ``share`` of all of them, at least one.

        Whole mini-batches, which are drawn like the others: inside one, rows are sorted by length.
        """
        count = max(1, round(share * len(self.mini_batches))) if share else 0
        return [micro for part in self.mini_batches[:count] for micro in part]


def plan_updates(rows: Sequence[Row], objective: Objective, shape: Shape, *, shared: bool) -> Plan:
    """Share rows out into updates, processes and passes.

    A mini-batch is of whole groups; a rollout that is not full has smaller ones, never fewer. The
    loss is a mean over the mini-batch, so that neither the number of processes nor the size of a
    micro-batch is in the gradient.

    Args:
        rows: of the rollout, group by group.
        objective: decides what a mini-batch's sum is divided by.
        shape: how updates are cut.
        shared: let a group's rows share their prompt.
    """
    groups = len(rows) // shape.group_size
    edges = [groups * i // shape.updates * shape.group_size for i in range(shape.updates + 1)]
    passes: list[tuple[list[Row], float]] = []
    mini_batches = []
    for start, end in pairwise(edges):
        part = rows[start:end]
        divisor = normaliser(objective, sum(row.tokens for row in part), len(part))
        dealt = deal(part, shape.size, shape.rank, shape.micro_batch, together=shared)
        dealt += [[] for _ in range(shape.passes - len(dealt))]
        micros = [[part[i] for i in micro] for micro in dealt]
        passes += [(micro, divisor) for micro in micros]
        mini_batches.append([micro for micro in micros if micro or shape.even])
    return Plan(passes * shape.epochs, mini_batches, shared)


def passes_per_update(mini_batch_prompts: int, group_size: int, micro_batch: int, size: int) -> int:
    """Micro-batches that each process goes through in one full update, in whichever layout."""
    rows = math.ceil(mini_batch_prompts * group_size / size)
    parts = math.ceil(group_size / micro_batch)  # of a group
    units = math.ceil(mini_batch_prompts * parts / size)
    units_per_pass = max(1, micro_batch // math.ceil(group_size / parts))
    return max(math.ceil(rows / micro_batch), math.ceil(units / units_per_pass))
