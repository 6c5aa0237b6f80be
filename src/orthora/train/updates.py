"""How a rollout becomes optimizer updates: mini-batches, and each process's micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orthora.train.losses import Objective, normaliser
from orthora.train.rollouts import Row, deal


@dataclass
class Plan:
    """One process's passes over a rollout, in order.

    Attributes:
        passes: micro-batches of rows with the divisor of their mini-batch's loss; those of all
            updates, of every epoch.
        rows: this process's rows, each once.
    """

    passes: list[tuple[list[Row], float]]
    rows: list[Row]


def plan_updates(
    rows: Sequence[Row],
    objective: Objective,
    *,
    group_size: int,
    updates: int,
    epochs: int,
    passes: int,
    micro_batch: int,
    rank: int,
    size: int,
) -> Plan:
    """Share rows out into updates, processes and passes.

    A mini-batch is of whole groups; a rollout that is not full has smaller ones, never fewer. The
    loss is a mean over the mini-batch, so that neither the number of processes nor the size of a
    micro-batch is in the gradient.

    Args:
        rows: of the rollout, group by group.
        objective: decides what a mini-batch's sum is divided by.
        group_size: G.
        updates: mini-batches.
        epochs: times that all of them are gone through.
        passes: micro-batches of every update on every process.
        micro_batch: rows of one, at most.
        rank: of this process.
        size: number of processes.
    """
    groups = len(rows) // group_size
    edges = [groups * i // updates * group_size for i in range(updates + 1)]
    once: list[tuple[list[Row], float]] = []
    for start, end in pairwise(edges):
        part = rows[start:end]
        divisor = normaliser(objective, sum(row.tokens for row in part), len(part))
        dealt = deal([row.length for row in part], size, rank, micro_batch)
        dealt += [[] for _ in range(passes - len(dealt))]
        once += [([part[i] for i in micro], divisor) for micro in dealt]
    return Plan(once * epochs, [row for micro, _ in once for row in micro])
