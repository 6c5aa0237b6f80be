"""Rewards: what a verifier says of a response, and the number that training gets from it."""

from orthora.rewards.code import (
    CodeJob,
    Limits,
    SandboxError,
    code_verdict,
    code_verdicts,
    extract_program,
)
from orthora.rewards.dapo import dapo_score
from orthora.rewards.judging import check_programs, verdicts_of
from orthora.rewards.maths import gold_of, math_verdict
from orthora.rewards.pool import WorkersError

__all__ = [
    "CodeJob",
    "Limits",
    "SandboxError",
    "WorkersError",
    "check_programs",
    "code_verdict",
    "code_verdicts",
    "dapo_score",
    "extract_program",
    "gold_of",
    "math_verdict",
    "verdicts_of",
]
