"""Verdicts on many responses, by the verifier that each problem needs."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from orthora.rewards.asserts import parse_tests
from orthora.rewards.code import CodeJob, code_verdict
from orthora.rewards.launch import SandboxError
from orthora.rewards.maths import math_verdict
from orthora.types import Problem, Verdict

ATTEMPTS = 3
"""Times that a sandbox is tried before a program goes without a score."""


def verdicts_of(
    responses: Sequence[str],
    problems: Sequence[Problem],
    *,
    rule: str | Sequence[str] = "robust",
    timeout: float = 5.0,
    told: Callable[[], None] = lambda: None,
) -> list[Verdict | None]:
    """Judge each response to its problem: programs in sandboxes, some at once; answers by a rule.

    Args:
        responses: decoded texts.
        problems: the problem that each one answers; those with tests are programming problems.
        rule: of `orthora.math_verdict`, for the others; one for all, or one for each response.
        timeout: seconds for a program and its tests.
        told: called once for each verdict, for a progress bar.

    Returns:
        Verdicts, in order; None where the sandbox failed `ATTEMPTS` times, which says nothing about
        the program and must not count as wrong.

    Raises:
        ValueError: an unknown rule, or tests of a form that the judge does not know.
        SandboxError: if no program at all could be run, as where the host has no sandbox.
    """
    rules = [rule] * len(responses) if isinstance(rule, str) else rule
    found: list[Verdict | None] = [None] * len(responses)
    programs = [i for i, problem in enumerate(problems) if problem.tests]
    failures: list[SandboxError] = []

    def judge(index: int) -> None:
        problem = problems[index]
        job = CodeJob(responses[index], problem.tests, problem.setup)
        try:
            found[index] = _patiently(job, timeout)
        except SandboxError as error:
            failures.append(error)
        told()

    with ThreadPoolExecutor(_workers(), "sandbox") as pool:
        try:
            list(pool.map(judge, programs))
        finally:
            pool.shutdown(cancel_futures=True)
    ran = any(v is not None and v.reason != "no program" for v in map(found.__getitem__, programs))
    if failures and not ran:
        raise failures[0]
    for index, (response, problem) in enumerate(zip(responses, problems, strict=True)):
        if not problem.tests:
            found[index] = math_verdict(response, problem.answer, rule=rules[index])
            told()
    return found


def check_programs(problems: Sequence[Problem]) -> None:
    """See that programs can be judged, where some are to be.

    Args:
        problems: all that a verifier is to judge; those without tests are passed over.

    Raises:
        ValueError: tests of a form that the judge does not know; or no sandbox, with what to
            install.
    """
    programs = [problem for problem in problems if problem.tests]
    for problem in programs:
        try:
            parse_tests(problem.tests)
        except ValueError as error:
            raise ValueError(f"problem {problem.id!r}: {error}; leave it out") from error
    if not programs:
        return
    try:
        verdict = code_verdict("def f():\n    return 1", ["assert f() == 1"], timeout=60.0)
    except SandboxError as error:
        words = " ".join(str(error).split())
        raise ValueError(f"programs can't be judged here: {words}") from error
    if not verdict.correct:
        raise ValueError(
            f"programs can't be judged here: a correct one is called {verdict.reason!r}; see that "
            "the machine has memory and processes left"
        )


def _workers() -> int:
    """Programs at once: one per core, shared among the processes that torchrun started here."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _patiently(job: CodeJob, timeout: float) -> Verdict:
    """One program's verdict, trying the sandbox again where it fails."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return code_verdict(job.program, job.tests, setup=job.setup, timeout=timeout)
        except SandboxError:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("the loop returns or raises")
