"""Rollouts with DAPO's dynamic sampling: draw prompts until enough groups carry a signal."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orthora.failures import NoSignal
from orthora.sampling import Response
from orthora.train.rewards import Judge, Judged, overlong_penalty
from orthora.train.rollouts import Answer, Group, Stream
from orthora.train.world import World
from orthora.types import Problem

Generate = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[list[Response]]]
"""(prompts, keys of their responses) -> responses of each prompt."""

Prompt = tuple[int, Problem, tuple[int, ...]]


@dataclass(frozen=True)
class Rules:
    """What a rollout must hold.

    Attributes:
        prompts: groups per rollout.
        group_size: responses per prompt, G.
        dynamic: keep only groups that teach, and draw more prompts for the others.
        mask_truncated: responses that were cut are not in the loss.
        draws: times that prompts are drawn for one rollout, at most.
        least: groups without which there is no rollout: one per mini-batch.
        keep_surplus: hand groups beyond ``prompts`` to the next rollout, instead of dropping them.
        multiple: prompts are drawn in multiples of this.
        limit: longest response.
        buffer: tokens before the limit over which the length penalty grows.
        penalty: at the limit.
        patience: rollouts without any signal in a row that are borne; 0 bears them all.
    """

    prompts: int
    group_size: int
    dynamic: bool
    mask_truncated: bool
    draws: int
    least: int
    keep_surplus: bool
    multiple: int
    limit: int
    buffer: int
    penalty: float
    patience: int


@dataclass
class Rollout:
    """The groups to train on, and all that were drawn for them.

    Attributes:
        groups: to train on, at most ``Rules.prompts``.
        drawn: every group drawn, those included (but for groups left over from before).
        stale: how many of ``groups``, the first ones, were left over from before.
        draws: times that prompts were drawn.
        seconds: wall time of generation and of judging.
    """

    groups: list[Group]
    drawn: list[Group]
    stale: int
    draws: int
    seconds: dict[str, float]


@dataclass
class Collector:
    """Draws, generates, judges and filters.

    Attributes:
        stream: of prompts; its position, ``surplus`` and ``idle`` are the collector's whole state.
        generate: engine.
        decode: token ids -> text.
        judge: responses and their problems -> verdicts.
        rules: what a rollout must hold.
        world: the processes among which the prompts are shared out.
        surplus: groups with a signal left over from the last rollout.
        idle: rollouts since the last one with a signal.
        told: that a rollout was not full.
    """

    stream: Stream
    generate: Generate
    decode: Callable[[list[int]], str]
    judge: Judge
    rules: Rules
    world: World
    surplus: list[Group] = field(default_factory=list)
    idle: int = 0
    told: bool = False

    def collect(self) -> Rollout:
        """The next rollout, the same on every process.

        Raises:
            NoSignal: if too few groups with a signal were found, or none for too long. The state is
                then what it was: a run that is resumed there ends in the same way.
        """
        before = self.state()
        try:
            return self._collect()
        except NoSignal:
            self.load(before)
            raise

    def _collect(self) -> Rollout:
        rules = self.rules
        kept, self.surplus = self.surplus, []
        stale = len(kept)
        drawn: list[Group] = []
        seconds = {"generate": 0.0, "reward": 0.0}
        draws = 0
        while len(kept) < rules.prompts and draws < (rules.draws if rules.dynamic else 1):
            groups = self._draw(self._wanted(len(kept), drawn), seconds)
            drawn += groups
            draws += 1
            kept += [g for g in groups if self._teaches(g) or not rules.dynamic]
        if len(kept) < rules.least:
            raise NoSignal(
                f"{len(kept)} of {len(drawn)} groups have answers that are neither all right nor "
                f"all wrong, after {draws} draws, and an update needs {rules.least}; use problems "
                "nearer to the model's level, a larger group_size, or more max_draws"
            )
        groups, over = kept[: rules.prompts], kept[rules.prompts :]
        self.surplus = over if rules.keep_surplus else []
        self._check_idle(groups)
        if len(groups) < rules.prompts and not self.told:
            self.told = True
            warnings.warn(
                f"{len(groups)} of {rules.prompts} groups have a signal after {draws} draws of "
                f"{len(drawn)} prompts (max_draws); training goes on with these. Said once; see "
                "groups_trained in the metrics",
                stacklevel=2,
            )
        return Rollout(groups, drawn, min(stale, len(groups)), draws, seconds)

    def _teaches(self, group: Group) -> bool:
        return group.teaches(mask_truncated=self.rules.mask_truncated)

    def _check_idle(self, groups: Sequence[Group]) -> None:
        """Count rollouts in which nothing is learnt, and stop at ``patience``."""
        self.idle = 0 if any(map(self._teaches, groups)) else self.idle + 1
        if self.rules.patience and self.idle >= self.rules.patience:
            answers = [answer for group in groups for answer in group.answers]
            rate = sum(answer.passed for answer in answers) / len(answers)
            raise NoSignal(
                f"for {self.idle} steps all answers of every group were right, or all wrong (pass "
                f"rate {rate:.2f}), so there is nothing to learn from; use problems nearer to the "
                "model's level, a larger group_size, or dynamic_sampling (patience = 0 goes on)"
            )

    def _wanted(self, kept: int, drawn: list[Group]) -> int:
        """Prompts to draw next: what is missing, over the share that was kept so far."""
        wanted = self.rules.prompts - kept
        if drawn:
            share = (sum(map(self._teaches, drawn)) + 1) / (len(drawn) + 2)
            wanted = min(self.rules.prompts, math.ceil(wanted / share))
        return math.ceil(wanted / self.rules.multiple) * self.rules.multiple

    def _draw(self, count: int, seconds: dict[str, float]) -> list[Group]:
        """Draw prompts and answer them, each process its share; all groups, in draw order."""
        prompts = self.stream.take(count)
        mine = prompts[self.world.rank :: self.world.size]
        with self.world.together():
            groups = self._answer(mine, seconds)
        parts = self.world.gather(groups)
        return sorted((g for part in parts for g in part), key=lambda group: group.key)

    def _answer(self, prompts: Sequence[Prompt], seconds: dict[str, float]) -> list[Group]:
        G = self.rules.group_size
        started = time.perf_counter()
        keys = [[key * G + i for i in range(G)] for key, _, _ in prompts]
        responses = self.generate([ids for _, _, ids in prompts], keys) if prompts else []
        seconds["generate"] += time.perf_counter() - started
        started = time.perf_counter()
        texts = [self.decode(r.ids.tolist()) for answers in responses for r in answers]
        of = [p for (_, p, _), made in zip(prompts, responses, strict=True) for _ in made]
        verdicts = iter(self.judge(texts, of))
        groups = [
            Group(key, problem.id, ids, tuple(self._scored(r, next(verdicts)) for r in answers))
            for (key, problem, ids), answers in zip(prompts, responses, strict=True)
        ]
        seconds["reward"] += time.perf_counter() - started
        return groups

    def _scored(self, response: Response, verdict: Judged) -> Answer:
        """One response with score and length penalty."""
        rules = self.rules
        length = len(response.ids)
        penalty = overlong_penalty(length, rules.limit, rules.buffer, rules.penalty)
        return Answer(
            ids=response.ids,
            logps=response.logps,
            ended=response.ended,
            score=verdict.score,
            passed=verdict.passed,
            penalty=penalty,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"drawn": self.stream.drawn, "surplus": [*self.surplus], "idle": self.idle}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.stream.drawn, self.surplus = state["drawn"], state["surplus"]
        self.idle = state["idle"]


def rollout_metrics(rollout: Rollout) -> dict[str, float | None]:
    """What was drawn and what was kept, apart.

    Rates, lengths and truncation are of everything drawn, so that they describe the policy and not
    the filter; ``reward`` and ``reward_std`` are of the groups trained on, length penalty included.
    """
    drawn = [a for group in rollout.drawn for a in group.answers]
    trained = [a for group in rollout.groups for a in group.answers]
    if not drawn:  # filled by what was left over
        drawn = trained
    rewards = [a.reward for a in trained]
    mean = sum(rewards) / len(rewards)
    spread = sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards) - 1)
    groups = rollout.drawn or rollout.groups
    lengths = [len(a.ids) for a in drawn]
    return {
        "reward": mean,
        "reward_std": math.sqrt(spread),
        "pass_rate": sum(a.passed for a in drawn) / len(drawn),
        "pass_rate_trained": sum(a.passed for a in trained) / len(trained),
        "penalty": sum(a.penalty for a in drawn) / len(drawn),
        "groups_without_signal": sum(not g.has_signal for g in groups) / len(groups),
        "groups_drawn": len(rollout.drawn),
        "groups_kept": sum(g.has_signal for g in rollout.drawn),
        "groups_trained": len(rollout.groups),
        "groups_stale": rollout.stale,
        "draws": rollout.draws,
        "length": sum(lengths) / len(lengths),
        "length_max": max(lengths),
        "truncated": sum(not a.ended for a in drawn) / len(drawn),
    }
