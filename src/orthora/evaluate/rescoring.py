"""Verdicts and scores from the samples of a folder, without a model."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from orthora.config import EvalConfig, build
from orthora.evaluate.contamination import contamination_of
from orthora.evaluate.folder import (
    SampleFile,
    stored_config,
    stored_problems,
    stored_scores,
    write_scores,
)
from orthora.evaluate.result import EvalResult, result_of
from orthora.evaluate.scoring import grouped, rules_for, scored
from orthora.stats import bootstrap_interval
from orthora.types import Problem


def rescore(
    out: str | Path, *, rule: str | None = None, timeout: float | None = None
) -> EvalResult:
    """Verify the samples of an evaluation folder again, without a model, and write the scores.

    Args:
        out: folder of a complete evaluation.
        rule: the answer rule that counts from now on; None is the rule of the config.
        timeout: seconds for each program; None as in the config.

    Returns:
        The new scores.

    Raises:
        ValueError: if samples are missing or damaged, or the rule is unknown.
    """
    out = Path(out)
    config = stored_config(out)
    changes = {"reward_rule": rule, "code_timeout": timeout}
    changes = {key: value for key, value in changes.items() if value is not None}
    config = build(EvalConfig, config.model_dump() | changes)
    problems = stored_problems(out)
    samples = SampleFile(out, problems, config.samples_of())
    contamination = None
    try:
        contamination = stored_scores(out).get("contamination")
    except ValueError:  # never scored yet
        try:
            contamination = contamination_of(config)
        except ValueError as error:  # samples may be scored far from the data
            contamination = {"training": str(config.trained_on), "error": str(error)}
    return score_folder(out, config, problems, samples, contamination)


def score_folder(
    out: Path,
    config: EvalConfig,
    problems: Sequence[Problem],
    samples: SampleFile,
    contamination: dict[str, Any] | None,
) -> EvalResult:
    """Verify the samples of a folder, and write verdicts and scores.

    Args:
        out: the folder.
        config: complete.
        problems: in order.
        samples: all of them.
        contamination: what was found of it; scores with and without those problems are added.

    Raises:
        ValueError: if samples are missing.
        SandboxError: for programs, where they can't be run here.
    """
    samples.check_complete()
    rules = rules_for(config.reward_rule, problems)
    with bar("verifying", len(samples.drawn) * len(rules)) as advance:
        judged = scored(
            samples.drawn, problems, config.reward_rule, timeout=config.code_timeout, told=advance
        )
    groups = grouped(samples.drawn, judged, len(problems))
    result = result_of(
        [[one for _, one in group] for group in groups],
        config.samples_of(),
        votes=rules != ("tests",),
    )
    shares = {
        problem.id: [one.outcome == "correct" for _, one in group if one.verdict is not None]
        for problem, group in zip(problems, groups, strict=True)
    }
    result = replace(result, contamination=_split(contamination, shares))
    write_scores(out, config, problems, groups, result)
    return result


def _split(
    contamination: dict[str, Any] | None, correct: dict[str, list[bool]]
) -> dict[str, Any] | None:
    """Add pass@1 of the problems that were found in the training data, and of the others."""
    if not contamination or not contamination.get("problems"):
        return contamination
    found = {row["id"] for row in contamination["problems"]}
    scores: dict[str, Any] = {}
    for name, wanted in (("seen", True), ("unseen", False)):
        means = [sum(c) / len(c) for i, c in correct.items() if (i in found) == wanted]
        if means:
            mean, interval = sum(means) / len(means), bootstrap_interval(means)
            scores[name] = {"problems": len(means), "pass_at_1": mean, "interval": interval}
    return contamination | scores


@contextmanager
def bar(
    what: str, total: int, done: int = 0, *, shown: bool = True
) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, on a terminal.

    Args:
        what: its label.
        total: steps.
        done: of them, before.
        shown: False for none.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda: progress.advance(task)
