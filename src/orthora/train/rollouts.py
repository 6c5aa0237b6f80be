"""What a rollout is made of: prompts in an endless order, answered responses, groups."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orthora.train.losses import advantages
from orthora.types import Problem


@dataclass(frozen=True, eq=False)
class Answer:
    """One response with its verdict.

    Attributes:
        ids: (t,) token ids, the end token included.
        logps: (t,) log-probabilities under the sampling policy; empty where the engine gave none.
        ended: False if it was cut at the limit.
        score: of the verifier or the user's reward, before length shaping.
        passed: whether it counts as correct.
        penalty: the length penalty, at most 0.
    """

    ids: Tensor
    logps: Tensor
    ended: bool
    score: float
    passed: bool
    penalty: float

    @property
    def reward(self) -> float:
        """What the advantage is made of."""
        return self.score + self.penalty


@dataclass(frozen=True, eq=False)
class Group:
    """The G responses to one prompt.

    Attributes:
        key: number of the draw, from 0; counts every prompt ever drawn in the run.
        problem: id of the problem.
        prompt: token ids.
        answers: G of them.
    """

    key: int
    problem: str
    prompt: tuple[int, ...]
    answers: tuple[Answer, ...]

    @property
    def has_signal(self) -> bool:
        """Whether its scores differ: DAPO's dynamic sampling keeps these groups alone.

        The length penalty does not count: it would keep groups whose answers are all wrong.
        """
        return len({answer.score for answer in self.answers}) > 1


@dataclass
class Stream:
    """The training problems in an endless order: one permutation per epoch, fixed by the seed.

    Attributes:
        problems: what to draw.
        prompts: token ids of each.
        seed: of the permutations.
        drawn: prompts drawn so far; all that a checkpoint needs.
    """

    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    seed: int
    drawn: int = 0
    _orders: dict[int, list[int]] = field(default_factory=dict)

    def take(self, count: int) -> list[tuple[int, Problem, tuple[int, ...]]]:
        """The next ``count`` prompts: number of the draw, problem, token ids."""
        taken = []
        for key in range(self.drawn, self.drawn + count):
            epoch, place = divmod(key, len(self.problems))
            index = self._order(epoch)[place]
            taken.append((key, self.problems[index], tuple(self.prompts[index])))
        self.drawn += count
        return taken

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
            self._orders.clear()
            self._orders[epoch] = torch.randperm(len(self.problems), generator=generator).tolist()
        return self._orders[epoch]


@dataclass(eq=False)
class Row:
    """One response as the update sees it.

    Attributes:
        prompt: token ids.
        ids: (t,) of the response.
        old: (t,) log-probabilities of the ratio's base.
        sampled: (t,) log-probabilities that the sampling engine gave, where ``old`` is not these.
        reference: (t,) log-probabilities under the base model; None where they are not needed.
        advantage: of the response.
        counts: False if its tokens are left out of the loss.
    """

    prompt: tuple[int, ...]
    ids: Tensor
    old: Tensor | None
    sampled: Tensor | None
    reference: Tensor | None
    advantage: float
    counts: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.ids)

    @property
    def tokens(self) -> int:
        """Response tokens in the loss."""
        return len(self.ids) if self.counts else 0


def rows_of(groups: Sequence[Group], scale: Any, *, mask_truncated: bool) -> list[Row]:
    """The groups' responses with their advantages, group by group.

    Args:
        groups: of one size.
        scale: of `orthora.train.losses.advantages`.
        mask_truncated: leave responses that were cut out of the loss; their rewards still count in
            the group's mean.
    """
    rewards = torch.tensor([[a.reward for a in g.answers] for g in groups], dtype=torch.float64)
    values = advantages(rewards, scale).tolist()
    return [
        Row(
            prompt=group.prompt,
            ids=answer.ids,
            old=answer.logps if len(answer.logps) else None,
            sampled=None,
            reference=None,
            advantage=value,
            counts=answer.ended or not mask_truncated,
        )
        for group, line in zip(groups, values, strict=True)
        for answer, value in zip(group.answers, line, strict=True)
    ]


@dataclass(frozen=True)
class Batch:
    """Rows as padded tensors; prompt, response and padding stand in this order.

    Right padding keeps every token at its position, for absolute position embeddings too. T is the
    longest row minus one: entry t belongs to token t + 1.

    Attributes:
        ids: (B, T + 1) token ids.
        attention: (B, T + 1), 1 on tokens.
        labels: (B, T + 1), the token id on response tokens, -100 elsewhere.
        mask: (B, T), 1 on response tokens that count in the loss.
        old: (B, T) log-probabilities of the ratio's base; None without.
        sampled: (B, T) log-probabilities of the sampling engine; None without.
        reference: (B, T) log-probabilities of the base; None without.
        advantage: (B,).
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor
    mask: Tensor
    old: Tensor | None
    sampled: Tensor | None
    reference: Tensor | None
    advantage: Tensor

    def weight(self, cap: float) -> Tensor | None:
        """Truncated importance weights (B, T) of trainer over sampler; None where they are one.

        Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training").
        A token that the sampler could not score (NaN) has weight 1.
        """
        if self.sampled is None or self.old is None or not cap:
            return None
        return (self.old - self.sampled).nan_to_num(0.0).exp().clamp(max=cap)


def collate(rows: Sequence[Row], pad: int, device: torch.device | str = "cpu") -> Batch:
    """Pad rows to the longest of them.

    Args:
        rows: at least one.
        pad: token id of padding.
        device: where the tensors go.
    """
    width = max(row.length for row in rows)
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width - 1)
    values = {
        name: torch.zeros(len(rows), width - 1)
        for name in ("old", "sampled", "reference")
        if all(getattr(row, name) is not None for row in rows)
    }
    for i, row in enumerate(rows):
        start, end = len(row.prompt), row.length
        ids[i, :start] = torch.tensor(row.prompt)
        ids[i, start:end] = row.ids
        attention[i, :end] = 1
        labels[i, start:end] = ids[i, start:end]
        mask[i, start - 1 : end - 1] = float(row.counts)
        for name, target in values.items():
            target[i, start - 1 : end - 1] = getattr(row, name)
    return Batch(
        ids=ids.to(device),
        attention=attention.to(device),
        labels=labels.to(device),
        mask=mask.to(device),
        **{
            name: values[name].to(device) if name in values else None
            for name in ("old", "sampled", "reference")
        },
        advantage=torch.tensor([row.advantage for row in rows], dtype=torch.float32).to(device),
    )


def deal(lengths: Sequence[int], size: int, rank: int, micro_batch: int) -> list[list[int]]:
    """One process's micro-batches of a mini-batch: like lengths together, the same number for all.

    Rows are sorted by length and dealt in turn, so that processes carry about the same load.

    Args:
        lengths: of the mini-batch's rows.
        size: number of processes.
        rank: of this one.
        micro_batch: rows of a micro-batch, at most.

    Returns:
        Row indices of each micro-batch; the last may be empty where rows don't go round.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    mine = order[rank::size]
    most = -(-len(lengths) // size)
    count = max(1, -(-most // micro_batch))
    step = max(1, -(-most // count))
    return [mine[i * step : (i + 1) * step] for i in range(count)]
