"""What an evaluation says, and how it follows from verdicts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orthora.rewards.spelling import key_of, rational, tidy, unwrapped
from orthora.stats import bootstrap_interval, pass_at_k
from orthora.types import Verdict
from orthora.voting import majority_at_k

Interval = tuple[float, float]

OUTCOMES = ("correct", "wrong", "no_answer", "truncated", "timeout", "unscored")
"""What becomes of a sample; exactly one holds. ``timeout``: verifier or program ran out of time.
``truncated``: cut at the limit, and not correct. ``no_answer``: ended by itself, and no answer or
program was found. ``unscored``: the sandbox failed, which says nothing about the sample."""

_TIMEOUTS = ("timeout", "symbolic timeout")


@dataclass(frozen=True)
class EvalResult:
    """Scores of one model on one set of problems.

    Attributes:
        pass_at_1: mean over problems of the share of correct samples (mean@n).
        interval: 95 % bootstrap interval of it, problems resampled.
        pass_at_k: unbiased pass@k for every k up to the samples, by k.
        problems: number of problems.
        samples: samples per problem.
        truncated: share of responses cut at the token limit, correct or not.
        no_answer: share of responses in which the verifier found no answer, cut or not.
        mean_length: response tokens.
        pass_at_k_interval: 95 % intervals, for k = 1, 2, 4, ... and the samples.
        majority_at_k: chance that the most frequent answer of k samples is correct (maj@k), for the
            same k; empty for programs.
        outcomes: share of the samples by `OUTCOMES`; they add up to 1.
        by_rule: pass@1 by answer rule, the one that counts first.
        disagreement: share of samples on which the two rules differ; None with one rule.
        unscored: samples without a score; pass@1 is over the others, pass@k for the k that every
            problem has scored samples for.
        contamination: what of the problems stands in the training data; None where that was not
            looked at. See `orthora.evaluate.contamination.contamination_of`.
    """

    pass_at_1: float
    interval: Interval
    pass_at_k: dict[str, float]
    problems: int
    samples: int
    truncated: float
    no_answer: float
    mean_length: float
    pass_at_k_interval: dict[str, Interval] = field(default_factory=dict)
    majority_at_k: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, float] = field(default_factory=dict)
    by_rule: dict[str, float] = field(default_factory=dict)
    disagreement: float | None = None
    unscored: int = 0
    contamination: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scored:
    """One sample with what the verifiers say of it.

    Attributes:
        tokens: length of the response.
        ended: False if it was cut at the limit.
        verdicts: by rule, the one that counts first; None where there is no score.
    """

    tokens: int
    ended: bool
    verdicts: dict[str, Verdict | None]

    @property
    def verdict(self) -> Verdict | None:
        """What counts."""
        return next(iter(self.verdicts.values()))

    @property
    def outcome(self) -> str:
        """Of `OUTCOMES`."""
        verdict = self.verdict
        if verdict is None:
            return "unscored"
        if verdict.correct:
            return "correct"
        if verdict.reason in _TIMEOUTS:
            return "timeout"
        if not self.ended:
            return "truncated"
        return "no_answer" if verdict.answer is None else "wrong"


def result_of(
    problems: Sequence[Sequence[Scored]],
    samples: int,
    *,
    votes: bool = True,
) -> EvalResult:
    """Sum up.

    Args:
        problems: the scored samples of each.
        samples: that every problem must have.
        votes: whether answers can be counted (maj@k); not so with programs.

    Raises:
        ValueError: if there are no problems, a problem has another number of samples, or a problem
            has no sample with a score.
    """
    if not problems:
        raise ValueError("no problems to score; check the data file")
    for index, group in enumerate(problems):
        if len(group) != samples:
            raise ValueError(
                f"problem {index} has {len(group)} of {samples} samples; go on with the evaluation "
                "before scoring it"
            )
    flat = [one for group in problems for one in group]
    counts = [_count(group) for group in problems]
    least = min(n for n, _ in counts)
    if least == 0:
        raise ValueError(
            "the sandbox failed on all samples of a problem, which says nothing about them; score "
            "again with: orthora rescore"
        )
    at = {k: [pass_at_k(n, c, k) for n, c in counts] for k in range(1, least + 1)}
    few = shown_ks(least)
    outcomes = [one.outcome for one in flat]
    return EvalResult(
        pass_at_1=_mean(at[1]),
        interval=bootstrap_interval(at[1]),
        pass_at_k={str(k): _mean(values) for k, values in at.items()},
        problems=len(problems),
        samples=samples,
        truncated=_mean(not one.ended for one in flat),
        no_answer=_mean(one.verdict is not None and one.verdict.answer is None for one in flat),
        mean_length=_mean(one.tokens for one in flat),
        pass_at_k_interval={str(k): bootstrap_interval(at[k]) for k in few},
        majority_at_k=_majorities(problems, few) if votes else {},
        outcomes={name: outcomes.count(name) / len(flat) for name in OUTCOMES},
        by_rule=_by_rule(problems),
        disagreement=_disagreement(flat),
        unscored=outcomes.count("unscored"),
    )


def shown_ks(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _count(group: Iterable[Scored]) -> tuple[int, int]:
    """Samples with a score, and correct ones."""
    verdicts = [one.verdict for one in group if one.verdict is not None]
    return len(verdicts), sum(verdict.correct for verdict in verdicts)


def _majorities(problems: Sequence[Sequence[Scored]], ks: Sequence[int]) -> dict[str, float]:
    """maj@k over the samples with a score."""
    found = {}
    for k in ks:
        shares = []
        for group in problems:
            verdicts = [one.verdict for one in group if one.verdict is not None]
            answers = [vote_of(verdict.answer) for verdict in verdicts]
            shares.append(majority_at_k(answers, [verdict.correct for verdict in verdicts], k))
        found[str(k)] = _mean(shares)
    return found


def vote_of(answer: str | None) -> str | None:
    """An answer as a vote: numbers by value, other texts in one spelling; None abstains."""
    if answer is None:
        return None
    value = rational(unwrapped(tidy(answer)))
    return key_of(tidy(answer)) if value is None else str(value)


def _by_rule(problems: Sequence[Sequence[Scored]]) -> dict[str, float]:
    """pass@1 under each rule, over the samples that it has a score for."""
    found = {}
    for rule in problems[0][0].verdicts:
        shares = []
        for group in problems:
            verdicts = [v for one in group if (v := one.verdicts[rule]) is not None]
            shares.append(_mean(verdict.correct for verdict in verdicts))
        found[rule] = _mean(shares)
    return found


def _disagreement(flat: Sequence[Scored]) -> float | None:
    """Share of samples on which two rules differ."""
    pairs = [list(one.verdicts.values()) for one in flat if len(one.verdicts) == 2]
    if not pairs:
        return None
    return _mean(a is not None and b is not None and a.correct != b.correct for a, b in pairs)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
