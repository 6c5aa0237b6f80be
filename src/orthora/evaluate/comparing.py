"""Two evaluations of the same problems, compared problem by problem."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from orthora.evaluate.folder import stored_problems, stored_scores, stored_verdicts
from orthora.stats import bootstrap_interval, sign_flip_p

_PROTOCOL = (
    "samples", "seed", "reward_rule", "code_timeout", "temperature", "top_p", "top_k",
    "max_response_tokens", "plain_prompts", "engine", "dtype",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """How much better one evaluation is than another on the same problems.

    Attributes:
        difference: pass@1 of the first less that of the second.
        interval: 95 % bootstrap interval of it, problems resampled with both their results.
        p_value: of the exact two-sided sign-flip test: were the two alike, each problem's
            difference would be as likely with either sign. With one sample each it is McNemar's
            exact test. None where the two have not the same number of scored samples of every
            problem: differences are then not symmetric, and the test rejects too often.
        first: pass@1 of the first.
        second: pass@1 of the second.
        better: problems on which the first has the larger share of correct samples.
        worse: the smaller.
        problems: compared.
        differing: settings of the protocol that are not the same, with both values: the difference
            is theirs as well.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float | None
    first: float
    second: float
    better: int
    worse: int
    problems: int
    differing: dict[str, tuple[object, object]]


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two evaluations, such as of two adapters, or of an adapter and its base.

    The problems are the unit: interval and test say whether the difference would hold on other
    problems like these. Neither says anything of other training seeds.

    Args:
        first: evaluation folder.
        second: another, of the same problems.

    Returns:
        Difference, interval and exact test.

    Raises:
        ValueError: if one of them has no scores, or they are not of the same problems.
    """
    one, other = Path(first), Path(second)
    settings = [stored_scores(out)["config"] for out in (one, other)]
    golds = [
        {p.id: (p.answer, p.tests, p.prompt) for p in stored_problems(out)} for out in (one, other)
    ]
    if golds[0] != golds[1]:
        only = sum(golds[0].get(key) != golds[1].get(key) for key in golds[0] | golds[1])
        raise ValueError(
            f"{one} and {other} are not of the same problems ({only} differ); evaluate both on the "
            "same task, data, prompt and number of problems"
        )
    verdicts = [stored_verdicts(out) for out in (one, other)]
    shares = [_shares(out, found) for out, found in zip((one, other), verdicts, strict=True)]
    counts = [{name: _scored(c) for name, c in found.items()} for found in verdicts]
    for out, found in zip((one, other), counts, strict=True):
        if found.keys() != golds[0].keys():
            raise ValueError(f"{out} has no verdicts on some problems; write them: orthora rescore")
    differences = [shares[0][name] - shares[1][name] for name in golds[0]]
    return Comparison(
        difference=float(sum(differences) / len(differences)),
        interval=bootstrap_interval(map(float, differences)),
        p_value=sign_flip_p(differences) if counts[0] == counts[1] else None,
        first=float(sum(shares[0].values()) / len(differences)),
        second=float(sum(shares[1].values()) / len(differences)),
        better=sum(d > 0 for d in differences),
        worse=sum(d < 0 for d in differences),
        problems=len(differences),
        differing={
            key: (settings[0].get(key), settings[1].get(key))
            for key in _PROTOCOL
            if settings[0].get(key) != settings[1].get(key)
        },
    )


def _scored(correct: Sequence[bool | None]) -> int:
    """Samples with a score."""
    return sum(one is not None for one in correct)


def _shares(out: Path, verdicts: dict[str, list[bool | None]]) -> dict[str, Fraction]:
    """Share of correct samples by problem, of those with a score."""
    found = {}
    for name, correct in verdicts.items():
        scored: Sequence[bool] = [one for one in correct if one is not None]
        if not scored:
            raise ValueError(
                f"{out}: problem {name!r} has no sample with a score (the sandbox failed); score "
                "again with: orthora rescore"
            )
        found[name] = Fraction(sum(scored), len(scored))
    return found
