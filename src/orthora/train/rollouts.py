"""What a rollout is made of: prompts in an endless order, answered responses, groups."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from orthora.train.losses import advantages
from orthora.types import Problem

_LEVEL = 1e-9  # rewards nearer to their mean than this differ by rounding


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

    def teaches(self, *, mask_truncated: bool) -> bool:
        """Whether it has a signal, and a token in the loss with an advantage other than 0.

        The length penalty may level scores that differ, and with ``mask_truncated`` the answers
        that were cut are not in the loss.
        """
        mean = sum(answer.reward for answer in self.answers) / len(self.answers)
        return self.has_signal and any(
            abs(answer.reward - mean) > _LEVEL and (answer.ended or not mask_truncated)
            for answer in self.answers
        )


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

    @cached_property
    def fingerprint(self) -> str:
        """Of problems, answers or tests, prompts and order; a run goes on with these alone."""
        digest = hashlib.sha256()
        for problem, prompt in zip(self.problems, self.prompts, strict=True):
            digest.update(repr((problem.id, problem.answer, list(prompt))).encode())
            if problem.tests:
                digest.update(repr((problem.tests, problem.setup)).encode())
        return digest.hexdigest()

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
        group: number of its group in the rollout; rows of a group have one prompt.
        prompt: token ids.
        ids: (t,) of the response.
        old: (t,) log-probabilities of the ratio's base.
        sampled: (t,) log-probabilities that the sampling engine gave, where ``old`` is not these.
        reference: (t,) log-probabilities under the base model; None where they are not needed.
        advantage: of the response.
        counts: False if its tokens are left out of the loss.
        fresh: drawn by the policy that is now updated; groups kept from before are not.
    """

    group: int
    prompt: tuple[int, ...]
    ids: Tensor
    old: Tensor | None
    sampled: Tensor | None
    reference: Tensor | None
    advantage: float
    counts: bool
    fresh: bool = True

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.ids)

    @property
    def tokens(self) -> int:
        """Response tokens in the loss."""
        return len(self.ids) if self.counts else 0


def rows_of(
    groups: Sequence[Group], scale: Any, *, mask_truncated: bool, stale: int = 0
) -> list[Row]:
    """The groups' responses with their advantages, group by group.

    Args:
        groups: of one size.
        scale: of `orthora.train.losses.advantages`.
        mask_truncated: leave responses that were cut out of the loss; their rewards still count in
            the group's mean.
        stale: how many groups, the first ones, an earlier policy drew.
    """
    rewards = torch.tensor([[a.reward for a in g.answers] for g in groups], dtype=torch.float64)
    values = advantages(rewards, scale).tolist()
    return [
        Row(
            group=number,
            prompt=group.prompt,
            ids=answer.ids,
            old=answer.logps if len(answer.logps) else None,
            sampled=None,
            reference=None,
            advantage=value,
            counts=answer.ended or not mask_truncated,
            fresh=number >= stale,
        )
        for number, (group, line) in enumerate(zip(groups, values, strict=True))
        for answer, value in zip(group.answers, line, strict=True)
    ]
