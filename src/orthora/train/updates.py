"""How a rollout becomes optimizer updates: mini-batches, and each process's micro-batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orthora.train.dealing import deal, filled, groups_of
from orthora.train.losses import Objective, normaliser
from orthora.train.rollouts import Row
from orthora.train.subsample import SPREAD, chances, start_of, systematic

MicroBatches = Sequence[Sequence[Row]]


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
        surprise: the rows of all processes, group by group, with ``sum (1 - p)^2`` of their tokens.
        shape: how updates were cut.
    """

    passes: list[tuple[list[Row], float]]
    mini_batches: list[list[list[Row]]]
    shared: bool
    surprise: list[tuple[Row, float]]
    shape: Shape

    @property
    def once(self) -> list[list[Row]]:
        """All micro-batches of one epoch."""
        return [micro for part in self.mini_batches for micro in part]

    @property
    def rows(self) -> list[Row]:
        """This process's rows, each once, in the order of `once`."""
        return flat(self.once)

    def sample(
        self,
        share: float,
        step: int,
        shares: Callable[[MicroBatches, MicroBatches], bool] | None = None,
        spread: float = SPREAD,
    ) -> "Sample":
        """A share of the responses that the policy itself drew, to measure on.

        Drawn by how surprising their tokens are, ``sum (1 - p)^2``: what an update does to a
        response goes with it. The same ones whatever the number of processes, each on the process
        that trains on it.

        Args:
            share: of the responses, in [0, 1]; above 0 it is at least one.
            step: number of the training step.
            shares: whether rows are scored group by group, asked with the micro-batches that they
                would have then and else; left out, they are as in training.
            spread: part of the chances that is spread evenly; see `chances`.
        """
        tokens = sum(len(row.ids) for row in self.rows if row.fresh)
        if share >= 1:
            return Sample(self.once, [1.0] * len(self.rows), tokens, self.shared)
        drawn = [(row, size) for row, size in self.surprise if row.fresh]
        if not share or not drawn:
            return Sample([], [], 0)
        count = max(1, round(share * len(drawn)))
        likely = chances([size for _, size in drawn], count, spread)
        weights = {id(drawn[i][0]): 1 / likely[i] for i in systematic(likely, start_of(step))}
        shared = self.shared
        if self.shape.even:
            micros = [[row for row in micro if id(row) in weights] for micro in self.once]
        else:
            rows = [row for row in self.rows if id(row) in weights]
            rows.sort(key=lambda row: row.group)
            most = self.shape.micro_batch
            laid = {
                together: [
                    [rows[i] for i in micro] for micro in filled(rows, most, together=together)
                ]
                for together in (True, False)
            }
            if rows and shares:
                shared = shares(laid[True], laid[False])
            micros = laid[shared]
        return Sample(micros, [weights[id(row)] for row in flat(micros)], tokens, shared)


@dataclass
class Sample:
    """One process's part of a sample of a rollout's responses.

    Attributes:
        micro_batches: of rows.
        weights: of the rows; with them, sums over the sample estimate sums over all rows.
        tokens: of all of this process's rows that the policy drew.
        shared: they are scored group by group.
    """

    micro_batches: list[list[Row]]
    weights: list[float]
    tokens: int
    shared: bool = False

    @property
    def rows(self) -> list[Row]:
        """In the order of the micro-batches."""
        return flat(self.micro_batches)


def _surprise(row: Row) -> float:
    """``sum (1 - p)^2`` over the tokens, as the engine scored them; 1 where it did not."""
    if row.old is None:
        return 1.0
    return float((1 - row.old.double().nan_to_num(0.0).exp()).square().sum())


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
        micros = [[part[i] for i in micro] for micro in dealt]
        micros += [[] for _ in range(shape.passes - len(micros))]
        passes += [(micro, divisor) for micro in micros]
        mini_batches.append([micro for micro in micros if micro or shape.even])
    surprise = [(row, _surprise(row)) for row in rows]
    return Plan(passes * shape.epochs, mini_batches, shared, surprise, shape)


def apart(rows: Sequence[Row]) -> tuple[list[list[Row]], list[list[Row]]]:
    """A rollout group by group, and in one piece: what its layouts are weighed with.

    However rows are dealt to updates and processes, all come to the same choice, and a run comes to
    the same numbers.
    """
    return [[rows[i] for i in group] for group in groups_of(rows)], [list(rows)]


def passes_per_update(mini_batch_prompts: int, group_size: int, micro_batch: int, size: int) -> int:
    """Micro-batches that each process goes through in one full update, in whichever layout."""
    rows = math.ceil(mini_batch_prompts * group_size / size)
    parts = math.ceil(group_size / micro_batch)  # of a group
    units = math.ceil(mini_batch_prompts * parts / size)
    units_per_pass = max(1, micro_batch // math.ceil(group_size / parts))
    return max(math.ceil(rows / micro_batch), math.ceil(units / units_per_pass))
