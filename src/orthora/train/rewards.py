"""Rewards: verifiers and users' functions behind one form, and length shaping."""

import importlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from orthora.rewards import SandboxError, verdicts_of
from orthora.types import Problem, Verdict

OwnReward = Callable[[str, str], float]
"""A user's reward: (response, gold answer) -> score."""


@dataclass(frozen=True)
class Judged:
    """What a reward says of one response.

    Attributes:
        score: +1 or -1 of a verifier, or the user's number.
        passed: whether the response counts as correct.
    """

    score: float
    passed: bool


Judge = Callable[[Sequence[str], Sequence[Problem]], list[Judged]]
"""(responses, the problem of each) -> verdicts, in order."""


def verdict_judge(rule: str) -> Judge:
    """+1 for a correct final answer or a program that passes its tests, -1 for any other.

    Args:
        rule: of `orthora.math_verdict`, for answers.

    Returns:
        A judge; it raises ValueError where a sandbox fails, which says nothing about the program.
    """

    def judge(responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        try:
            verdicts = verdicts_of(responses, problems, rule=rule)
        except SandboxError as error:
            raise unjudged(f": {_line(error)}") from error
        return [_judged(*pair) for pair in zip(verdicts, problems, strict=True)]

    return judge


def _judged(verdict: Verdict | None, problem: Problem) -> Judged:
    """The score of a verdict.

    Raises:
        ValueError: if there is none.
    """
    if verdict is None:
        raise unjudged(f" on a program for problem {problem.id!r}")
    return Judged(1.0 if verdict.correct else -1.0, verdict.correct)


def unjudged(where: str) -> ValueError:
    """What to raise where a program has no score.

    Args:
        where: or why, to follow "the sandbox failed".

    Returns:
        The error, with the remedy.
    """
    return ValueError(
        f"the sandbox failed{where}; that says nothing about the program, so it is not counted as "
        "wrong: see that the machine has memory and processes left, and go on with --resume"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def own_judge(function: OwnReward) -> Judge:
    """A user's function with its scores checked; positive scores count as passes.

    Args:
        function: is called with each response and its problem's gold answer, in order.

    Returns:
        A judge; it raises ValueError for what is no score.

    Raises:
        ValueError: if it can't be called with a response and an answer.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if not callable(function):
        raise ValueError(f"the reward is a {name}, not a function of (response, answer)")
    try:
        inspect.signature(function).bind("", "")
    except TypeError as error:
        raise ValueError(f"the reward {name} must take (response, answer): {error}") from error
    except ValueError:  # built-ins have no signature
        pass

    def judged(response: str, answer: str) -> Judged:
        try:
            value = function(response, answer)
        except (Exception, SystemExit) as error:  # the function is the user's: it may do anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"the reward {name} raised {type(error).__name__}: {error} "
                f"({Path(place.filename).name}, line {place.lineno}) for the response "
                f"{response[:80]!r}; return a number for every response"
            ) from error
        try:
            score = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score) and not isinstance(value, float):
            raise ValueError(
                f"the reward returned {value!r} for the response {response[:80]!r}; return a "
                "number for every response"
            )
        if not math.isfinite(score):
            raise ValueError(
                f"the reward returned {score} for the response {response[:80]!r}; return a finite "
                "number for every response"
            )
        return Judged(score, score > 0)

    def judge(responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        return [judged(r, p.answer) for r, p in zip(responses, problems, strict=True)]

    return judge


def overlong_penalty(length: int, limit: int, buffer: int, factor: float) -> float:
    """Soft overlong penalty (DAPO, arXiv 2503.14476, eq. 13): 0 to -factor over the buffer.

    Args:
        length: of the response, in tokens.
        limit: longest response, L.
        buffer: B; the penalty is 0 up to L - B and grows linearly to ``-factor`` at L. 0 is off.
        factor: penalty at the limit.
    """
    if not buffer:
        return 0.0
    return min(-(length - (limit - buffer)) / buffer * factor, 0.0)


def import_reward(path: str) -> OwnReward:
    """The function at ``file.py:name`` or ``module:name``.

    Raises:
        ValueError: if it can't be found.
    """
    place, _, name = path.rpartition(":")
    if not place:
        raise ValueError(f"reward {path!r} must be file.py:function or module:function")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None, "a .py suffix always has a loader"
            assert spec.loader is not None, "a .py suffix always has a loader"
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function: Any = getattr(module, name)
    except Exception as error:  # the file is the user's: anything can happen on import
        raise ValueError(
            f"can't import the reward {path!r}: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"the reward {path!r} is a {type(function).__name__}, not a function")
    return cast(OwnReward, function)
