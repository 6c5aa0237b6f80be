"""How a rollout becomes optimizer updates: mini-batches, and each process's micro-batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orthora.train.batches import deal
from orthora.train.losses import Objective, normaliser
from orthora.train.rollouts import Row

_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill the unit interval evenly


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
        groups: numbers of the rollout's groups, on all processes, that the policy itself drew.
        shape: how updates were cut.
    """

    passes: list[tuple[list[Row], float]]
    mini_batches: list[list[list[Row]]]
    shared: bool
    groups: tuple[int, ...]
    shape: Shape

    @property
    def once(self) -> list[list[Row]]:
        """All micro-batches of one epoch."""
        return [micro for part in self.mini_batches for micro in part]

    @property
    def rows(self) -> list[Row]:
        """This process's rows, each once, in the order of `once`."""
        return flat(self.once)

    def sample(self, share: float, step: int) -> list[list[Row]]:
        """This process's micro-batches of a share of the groups: of every fourth, for a quarter.

        A systematic sample: all mini-batches are in it alike. Where it begins moves from step to
        step, so that no place is left out for good.

        Args:
            share: of the groups, in [0, 1]; above 0 it is at least one.
            step: number of the training step.
        """
        if share >= 1:
            return self.once
        if not share:
            return []
        count = max(1, round(share * len(self.groups)))
        chosen = {self.groups[i] for i in spread(len(self.groups), count, step)}
        if self.shape.even:
            return [[row for row in micro if row.group in chosen] for micro in self.once]
        rows = [row for row in self.rows if row.group in chosen]
        dealt = deal(rows, 1, 0, self.shape.micro_batch, together=self.shared) if rows else []
        return [[rows[i] for i in micro] for micro in dealt]


def spread(total: int, count: int, step: int) -> list[int]:
    """``count`` of ``range(total)`` at equal distances, from a place that moves with the step."""
    begin = step * _GOLDEN % 1.0
    return sorted({int((i + begin) * total / count) for i in range(min(count, total))})


def flat(micro_batches: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of micro-batches, in order."""
    return [row for micro in micro_batches for row in micro]


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
    drawn = tuple(dict.fromkeys(row.group for row in rows if row.fresh))
    return Plan(passes * shape.epochs, mini_batches, shared, drawn, shape)


def passes_per_update(mini_batch_prompts: int, group_size: int, micro_batch: int, size: int) -> int:
    """Micro-batches that each process goes through in one full update, in whichever layout."""
    rows = math.ceil(mini_batch_prompts * group_size / size)
    parts = math.ceil(group_size / micro_batch)  # of a group
    units = math.ceil(mini_batch_prompts * parts / size)
    units_per_pass = max(1, micro_batch // math.ceil(group_size / parts))
    return max(math.ceil(rows / micro_batch), math.ceil(units / units_per_pass))
