"""Verdicts on samples, by the rule that counts and by a second one beside it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from orthora.evaluate.result import Scored
from orthora.rewards import verdicts_of
from orthora.types import Problem, Verdict


class Drawn(NamedTuple):
    """One sampled response.

    Attributes:
        problem: its index.
        number: among the problem's samples.
        text: decoded, without special tokens.
        tokens: its length.
        ended: False if it was cut at the limit.
    """

    problem: int
    number: int
    text: str
    tokens: int
    ended: bool


def rules_for(rule: str, problems: Sequence[Problem]) -> tuple[str, ...]:
    """The rule that counts, and the one that it is compared with; programs have one."""
    if all(problem.tests for problem in problems):
        return ("tests",)
    return (rule, "robust" if rule == "dapo" else "dapo")


def scored(
    drawn: Sequence[Drawn],
    problems: Sequence[Problem],
    rule: str,
    *,
    timeout: float = 5.0,
    both: bool = True,
    told: Callable[[], None] = lambda: None,
) -> list[Scored]:
    """Judge samples. Rule ``robust`` takes a response that was cut at its marked answer only.

    Args:
        drawn: samples of any of the problems.
        problems: all.
        rule: of `orthora.math_verdict`, which counts; of no use to programs.
        timeout: seconds for each program.
        both: judge by the second rule of `rules_for` as well.
        told: called for each verdict.

    Returns:
        One for each sample, in order.

    Raises:
        ValueError: a rule, gold or test that can't be used.
        SandboxError: if no program can be run here.
    """
    rules = rules_for(rule, problems)[: 2 if both else 1]
    texts = [one.text for one in drawn]
    asked = [problems[one.problem] for one in drawn]
    columns: list[list[Verdict | None]] = []
    for name in rules:
        by = rule if name == "tests" else name
        cut = "robust-marked" if by == "robust" else by
        each = [by if one.ended else cut for one in drawn]
        columns.append(verdicts_of(texts, asked, rule=each, timeout=timeout, told=told))
    return [
        Scored(one.tokens, one.ended, dict(zip(rules, verdicts, strict=True)))
        for one, *verdicts in zip(drawn, *columns, strict=True)
    ]


def grouped(
    drawn: Sequence[Drawn], judged: Sequence[Scored], problems: int
) -> list[list[tuple[Drawn, Scored]]]:
    """Samples with their verdicts, problem by problem, in the order of their numbers."""
    groups: list[list[tuple[Drawn, Scored]]] = [[] for _ in range(problems)]
    for one, verdict in sorted(zip(drawn, judged, strict=True), key=lambda pair: pair[0][:2]):
        groups[one.problem].append((one, verdict))
    return groups
