"""Rewards for programs: a response's program is run on a problem's tests, in a sandbox.

The judge stays outside the sandbox and holds the tests. The program's process is told only what to
call; it answers with plain values, and the judge compares. So objects that equal everything,
forged success tokens, early exits and changed builtins gain nothing: at worst a value is wrong.
"""

import ast
import math
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orthora.rewards.asserts import Check, parse_tests, unpack
from orthora.rewards.launch import SandboxError
from orthora.rewards.sandbox import Limits, Sandbox, Stopped
from orthora.types import Verdict

__all__ = ["CodeJob", "Limits", "SandboxError", "code_verdict", "code_verdicts", "extract_program"]

_FENCE = re.compile(r"^[ \t]*```+[ \t]*([\w+-]*)[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_SPECIAL = {
    "MemoryError": "memory",
    "UnsupportedValue": "unsupported value",
    "AnswerTooLarge": "answer too large",
}


@dataclass(frozen=True)
class CodeJob:
    """One response and the tests it is held to.

    Attributes:
        program: a program, or a response that holds one.
        tests: asserts, as MBPP has them.
        setup: code that runs after the program and before the tests, among its names.
        entry: the name of the function under test; None takes it from the tests.
    """

    program: str
    tests: Sequence[str]
    setup: str = ""
    entry: str | None = None


def code_verdict(
    program: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    timeout: float = 5.0,
    entry: str | None = None,
    limits: Limits | None = None,
) -> Verdict:
    """Run a program's tests in a sandbox.

    Args:
        program: a program, or a response that holds one: see `extract_program`.
        tests: asserts on calls of the program's functions; see `parse_tests` for the forms.
        setup: code of the data set that runs after the program, among its names. The program can
            see it, so it must not hold expected values.
        timeout: seconds for the program and all its tests together; the sandbox's start is apart.
        entry: the name of the function under test; None takes it from the tests.
        limits: memory and the like; None for `Limits`' defaults.

    Returns:
        Whether all tests passed, the program, and why: "passed", "failed test 2" (counted from 1),
        "error: NameError", "timeout", "memory", "exited", "no program", "unsupported value" (an
        answer that is no plain value), "answer too large", "forged answer" (more than was asked).

    Raises:
        ValueError: if a test has a form that the judge does not know, or timeout is not above 0.
        SandboxError: if the sandbox cannot be had; this says nothing about the program.
    """
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout is {timeout}; give seconds above 0")
    checks = parse_tests(tests, entry)
    source = extract_program(program)
    if source is None:
        return Verdict(False, None, "no program")
    with Sandbox.start(limits or Limits(), math.ceil(timeout) + 1) as sandbox:
        reason = _reason(sandbox, source, setup, checks, time.monotonic() + timeout)
    return Verdict(reason == "passed", source, reason)


def code_verdicts(
    jobs: Sequence[CodeJob],
    *,
    timeout: float = 5.0,
    limits: Limits | None = None,
    workers: int | None = None,
) -> list[Verdict]:
    """Judge many programs, some at once.

    Args:
        jobs: the programs and their tests.
        timeout: seconds for each program, as in `code_verdict`.
        limits: of each program.
        workers: programs at once; None for one per core that this process may use.

    Returns:
        One verdict for each job, in order.

    Raises:
        ValueError: as `code_verdict`, for any job, before any program runs; or if workers < 1.
        SandboxError: if a sandbox cannot be had; programs not yet started are dropped.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}; give at least 1")
    for job in jobs:
        parse_tests(job.tests, job.entry)

    def judge(job: CodeJob) -> Verdict:
        return code_verdict(
            job.program,
            job.tests,
            setup=job.setup,
            timeout=timeout,
            entry=job.entry,
            limits=limits,
        )

    pool = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
    try:
        return list(pool.map(judge, jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def extract_program(response: str) -> str | None:
    """The program in a response.

    Args:
        response: of a model, or a plain program.

    Returns:
        The whole text if it is Python that defines something; else, after any reasoning between
        think tags, the last block fenced as Python, or the last fenced block of any kind, or the
        text that is left if it is such Python. None where there is nothing, or the reasoning does
        not end.
    """
    if _defines(response):
        return response
    answer = re.split(r"</think>", response, flags=re.IGNORECASE)[-1]
    if re.search(r"<think>", answer, re.IGNORECASE):
        return None
    blocks = _FENCE.findall(answer.replace("\r\n", "\n"))
    python = [text for language, text in blocks if language.lower() in _PYTHON]
    for found in (python, [text for _, text in blocks]):
        if found:
            return found[-1] if found[-1].strip() else None
    return answer if _defines(answer) else None


def _defines(text: str) -> bool:
    """Whether the text is Python that binds a name at its top level."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _DEFINITIONS) for node in body)


def _reason(
    sandbox: Sandbox, program: str, setup: str, checks: Sequence[Check], deadline: float
) -> str:
    """Load the program, put all questions, and say how it went."""
    try:
        for source in (program, setup):
            tag, text = sandbox.ask("exec", source, deadline)
            if tag != "v":
                return _error(text)
        for number, check in enumerate(checks, 1):
            answers = []
            for call in check.calls:
                tag, text = sandbox.ask("eval", call, deadline)
                if tag != "v":
                    return _error(text)
                answers.append(unpack(text))
            if not check.holds(answers):
                return f"failed test {number}"
        sandbox.ask("eval", "None", deadline)  # shows that nothing was said after the last answer
    except Stopped as stop:
        return str(stop)
    except ValueError:
        return "forged answer"
    return "passed"


def _error(name: str) -> str:
    """A reason for the name of an exception, which the program may have chosen."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    return f"error: {name}" if name.isidentifier() and len(name) <= 60 else "error"
