"""Reward functions in TRL's calling convention."""

import importlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from orthora.rewards import math_verdict

OwnReward = Callable[[str, str], float]
"""A user's reward: (response, gold answer) -> score."""


def verdict_reward(rule: str) -> Callable[..., list[float]]:
    """+1 for a correct final answer, -1 for any other, and the pass rate as a metric."""

    def correctness(
        completions: list[Any], answer: list[str], log_metric: Any = None, **_: Any
    ) -> list[float]:
        verdicts = [
            math_verdict(_text(completion), gold, rule=rule)
            for completion, gold in zip(completions, answer, strict=True)
        ]
        if log_metric:
            log_metric("pass_rate", sum(v.correct for v in verdicts) / len(verdicts))
        return [1.0 if verdict.correct else -1.0 for verdict in verdicts]

    return correctness


def own_reward(function: OwnReward) -> Callable[..., list[float]]:
    """A user's function with its scores checked; positive scores count as passes."""

    def reward(
        completions: list[Any], answer: list[str], log_metric: Any = None, **_: Any
    ) -> list[float]:
        scores = []
        for completion, gold in zip(completions, answer, strict=True):
            value = function(_text(completion), gold)
            if not isinstance(value, int | float):
                raise ValueError(
                    f"the reward returned {value!r} for the response {_text(completion)[:80]!r}; "
                    "return a number for every response"
                )
            score = float(value)
            if not math.isfinite(score):
                raise ValueError(
                    f"the reward returned {score} for the response {_text(completion)[:80]!r}; "
                    "return a finite number for every response"
                )
            scores.append(score)
        if log_metric:
            log_metric("pass_rate", sum(score > 0 for score in scores) / len(scores))
        return scores

    return reward


def overlong_penalty(limit: int, buffer: int, factor: float) -> Callable[..., list[float]]:
    """Soft overlong penalty (DAPO, arXiv 2503.14476, eq. 13): 0 to -factor over the buffer.

    Args:
        limit: longest response, L, in tokens.
        buffer: B; the penalty is 0 up to L - B and grows linearly to ``-factor`` at L.
        factor: penalty at the limit.
    """

    def overlong(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [
            min(-(len(ids) - (limit - buffer)) / buffer * factor, 0.0) for ids in completion_ids
        ]

    return overlong


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


def _text(completion: Any) -> str:
    """The response text of a plain or conversational completion."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)
