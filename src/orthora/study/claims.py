"""Verdicts: what a study's numbers say of each of its claims, and of nothing more.

``judges.py`` has the rules.
"""

from collections.abc import Callable
from dataclasses import dataclass

from orthora.study.arms import fixed_partner
from orthora.study.compare import Comparisons
from orthora.study.judges import JUDGES, Judged, Ruling
from orthora.study.no_sweep import no_sweep
from orthora.study.spec import ClaimConfig


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of a claim.

    Attributes:
        claim: the claim.
        ruling: one of four.
        numbers: sentences with the numbers that it rests on.
    """

    claim: ClaimConfig
    ruling: Ruling
    numbers: tuple[str, ...]


def verdicts(found: Comparisons) -> list[Verdict]:
    """Judge every claim of the study.

    A claim's own comparisons are one family. An unfinished study can't tell.
    """
    return [_judge(claim, found) for claim in found.results.spec.claims]


def _judge(claim: ClaimConfig, found: Comparisons) -> Verdict:
    names = {found.results.reported, found.results.selected}
    missing = [
        record.cell.name
        for record in found.results.records
        if record.arm.label in _involved(claim, found) and not names <= record.scores.keys()
    ]
    if missing:
        text = f"{len(missing)} cells are missing, failed or not scored, e.g. {missing[0]}."
        return Verdict(claim, "cannot be told here", (text,))
    if found.results.reported not in found.results.base:
        return Verdict(claim, "cannot be told here", ("The base model is not scored.",))
    ruling, numbers = _JUDGES[claim.kind](claim, found)
    return Verdict(claim, ruling, tuple(numbers))


def _involved(claim: ClaimConfig, found: Comparisons) -> set[str]:
    """All arms that a claim is judged by."""
    names = {*claim.methods, *claim.than}
    if claim.kind == "no-sweep":
        beside = {fixed_partner(name, found.arms) for name in claim.methods}
    else:
        beside = {found.reference_of(name) for name in names}
    return names | {name for name in beside if name}


_JUDGES: dict[str, Callable[[ClaimConfig, Comparisons], Judged]] = {
    **JUDGES,
    "no-sweep": no_sweep,
}
