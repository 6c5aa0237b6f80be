"""Verdicts: what a study's numbers say of each of its claims, and of nothing more."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orthora.runs import join_names, rate_text
from orthora.study.compare import LEVEL, Comparisons, Estimate, Paired, View, estimate
from orthora.study.spec import ClaimConfig

Ruling = Literal[
    "holds", "holds at a shared lr only", "does not hold", "cannot be told here"
]  # fmt: skip

_FEWEST = 3
"""Seeds without which nothing is said of how many runs collapse."""


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

    A difference is *clear* if the joint interval of the claim's own comparisons excludes 0: the
    claim is one family. An unfinished study can't tell.
    """
    return [_judge(claim, found) for claim in found.results.spec.claims]


def _judge(claim: ClaimConfig, found: Comparisons) -> Verdict:
    missing = [
        record.cell.name
        for record in found.results.records
        if record.state != "finished" and not record.by_training
        and record.arm.label in {*claim.methods, *_others(claim, found)}
    ]  # fmt: skip
    if missing:
        text = f"{len(missing)} cells are missing or failed, e.g. {missing[0]}."
        return Verdict(claim, "cannot be told here", (text,))
    ruling, numbers = _JUDGES[claim.kind](claim, found)
    return Verdict(claim, ruling, tuple(numbers))


def _others(claim: ClaimConfig, found: Comparisons) -> list[str]:
    """What the claim's methods are compared with."""
    if claim.than:
        return claim.than
    references = [found.reference_of(name) for name in claim.methods]
    return list(dict.fromkeys(name for name in references if name))


def _pairs(claim: ClaimConfig, found: Comparisons) -> list[tuple[str, str]]:
    if claim.than:
        return [(a, b) for a in claim.methods for b in claim.than]
    pairs = [(name, found.reference_of(name)) for name in claim.methods]
    return [(name, than) for name, than in pairs if than]


Judged = tuple[Ruling, list[str]]


def _directed(sign: int) -> Callable[[ClaimConfig, Comparisons], Judged]:
    """Every method is better (1) or worse (-1) than what it is compared with."""

    def judge(claim: ClaimConfig, found: Comparisons) -> Judged:
        pairs = _pairs(claim, found)
        tuned, shared = (found.family(pairs, view) for view in ("tuned", "shared"))
        numbers = [_sentence(one, "tuned", found) for one in tuned]
        numbers += [_sentence(one, "shared", found) for one in shared]
        margin = found.results.spec.margin
        if all(one.sign == sign for one in tuned):
            return "holds", numbers
        if all(one.sign == sign for one in shared):
            return "holds at a shared lr only", numbers
        if any(one.sign == -sign or one.within(margin) for one in tuned):
            return "does not hold", numbers
        return "cannot be told here", numbers

    return judge


def _collapses(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Most runs end below half of the base model's score."""
    numbers, own, shared, none = [], [], [], []
    for name in claim.methods:
        rate = found.shared_rate(name)
        records = found.tuned[name].records.values()
        fates = [fate for one in records if (fate := found.collapsed(one)) is not None]
        count, total = found.collapse_counts(name, rate)
        anywhere, all_runs = found.collapse_counts(name)
        own.append(len(fates) >= _FEWEST and 2 * sum(fates) > len(fates))
        shared.append(total >= _FEWEST and 2 * count > total)
        none.append(total >= _FEWEST and not sum(fates) and not count)
        numbers.append(
            f"{name}: {sum(fates)} of {len(fates)} runs collapsed at its own best rate "
            f"({rate_text(found.tuned[name].rate)}), {count} of {total} at the reference's "
            f"({rate_text(rate)}), {anywhere} of {all_runs} over all rates."
        )
    family = found.family(_pairs(claim, found), "shared")
    numbers += [_sentence(one, "shared", found) for one in family]
    if all(own):
        return "holds", numbers
    if all(shared):
        return "holds at a shared lr only", numbers
    if any(none):
        return "does not hold", numbers
    return "cannot be told here", numbers


def _order(claim: ClaimConfig, found: Comparisons) -> Judged:
    """The first is clearly better than the last, and none is clearly worse than the one after."""
    names = claim.methods
    pairs = [(names[0], names[-1]), *itertools.pairwise(names)]
    pairs = list(dict.fromkeys(pairs))
    kl = [(name, names[-1]) for name in names[:-1]] if claim.lower_kl else []
    rulings, numbers = [], []
    for view in ("tuned", "shared"):
        family = found.family(pairs, view)
        numbers += [_sentence(one, view, found) for one in family]
        lower = [_kl_difference(a, b, view, found) for a, b in kl]
        numbers += [text for _, text in lower]
        held = family[0].sign > 0 and all(one.sign >= 0 for one in family)
        broken = any(one.sign < 0 for one in family)
        broken |= family[0].within(found.results.spec.margin)
        for one, _ in lower:
            held &= one.known and one.high < 0
            broken |= one.known and one.low > 0
        rulings.append(1 if held else -1 if broken else 0)
    if rulings[0] > 0:
        return "holds", numbers
    if rulings[1] > 0:
        return "holds at a shared lr only", numbers
    return ("does not hold" if rulings[0] < 0 else "cannot be told here"), numbers


def _kl_difference(arm: str, than: str, view: View, found: Comparisons) -> tuple[Estimate, str]:
    """KL to the base of two arms, over the seeds that both have."""
    one, other = (_kl(label, than, view, found) for label in (arm, than))
    less = estimate([one[seed] - other[seed] for seed in sorted({*one} & {*other})], LEVEL)
    where = _VIEWS[view].format(rate=rate_text(found.tuned[than].rate))
    means = " and ".join(f"{np.mean([*values.values()]):.3g}" for values in (one, other) if values)
    return less, (
        f"KL to the base in nats per token, {arm} and {than}, {where}: {means or 'not known'}; "
        f"difference {_text(less)}."
    )


def _kl(label: str, than: str, view: View, found: Comparisons) -> dict[int, float]:
    records = (
        found.tuned[label].records
        if view == "tuned"
        else found.cells[label].get(found.tuned[than].rate, {})
    )
    values = {seed: record.numbers["kl_base"] for seed, record in records.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _stabler(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Each is better than its partner over the whole sweep, and collapses no more often."""
    pairs = list(zip(claim.methods, claim.than, strict=True))
    family = found.family(pairs, "sweep")
    numbers = [_sentence(one, "sweep", found) for one in family]
    fewer = []
    for arm, than in pairs:
        (a, n), (b, m) = found.collapse_counts(arm), found.collapse_counts(than)
        fewer.append(a * m <= b * n)
        numbers.append(f"Collapsed over all rates: {arm} {a} of {n}, {than} {b} of {m}.")
    if all(one.sign > 0 for one in family) and all(fewer):
        return "holds", numbers
    margin = found.results.spec.margin
    if any(one.sign < 0 or one.within(margin) for one in family):
        return "does not hold", numbers
    return "cannot be told here", numbers


def _equal(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Tuned, no two of the methods differ by more than the margin; at a shared rate some do."""
    names = claim.methods
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    margin = found.results.spec.margin
    tuned = found.family(pairs, "tuned")
    shared = found.family(_pairs(claim, found), "shared")
    worst = max(tuned, key=lambda one: abs(one.alone.mean))
    apart = [one for one in tuned if one.jointly.known
             and (one.jointly.low > margin or one.jointly.high < -margin)]  # fmt: skip
    some = [one for one in shared if one.sign]
    within = [one for one in tuned if one.within(margin)]
    spread = [float(np.mean([*map(float, found.tuned[n].scores.values())])) for n in names]
    numbers = [
        f"Tuned, the {len(names)} methods lie between {min(spread):.3f} and {max(spread):.3f}; "
        f"{len(within)} of {len(pairs)} pairs are shown to be within {margin:g}, "
        f"{len(apart)} to be farther apart.",
        "The largest difference: " + _sentence(worst, "tuned", found),
        f"At the reference's rate {len(some)} of {len(shared)} differ clearly from it"
        + (f": {join_names(one.arm for one in some)}." if some else "."),
    ]
    if apart:
        return "does not hold", numbers
    if len(within) == len(pairs):
        return ("holds" if some else "does not hold"), numbers
    return "cannot be told here", numbers


def _no_sweep(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Adaptive-kl, without a choice, is within the margin of the swept best, or above."""
    pairs = [
        (label, arm.label)
        for label in claim.methods
        for arm in found.arms.values()
        if arm.method == found.arms[label].method and not arm.rest
    ]
    margin = found.results.spec.margin
    family = found.family(pairs, "tuned")
    numbers = [_sentence(one, "tuned", found) for one in family]
    numbers += _against_shared(claim.methods, found)
    if family and all(one.jointly.known and one.jointly.low > -margin for one in family):
        return "holds", numbers
    if any(one.jointly.known and one.jointly.high < -margin for one in family):
        return "does not hold", numbers
    return "cannot be told here", numbers


def _against_shared(names: Sequence[str], found: Comparisons) -> list[str]:
    """All adaptive runs together against the best shared fixed rate, paired by seed."""
    rate = found.best_shared_rate()
    fixed = [
        arm.label
        for name in names
        for arm in found.arms.values()
        if arm.method == found.arms[name].method and not arm.rest
    ]
    if not math.isfinite(rate) or len(fixed) != len(names):
        return []
    mine = [found.tuned[name].scores for name in names]
    theirs = [found.at(label, rate) for label in fixed]
    seeds = sorted(set.intersection(*({*one} for one in (*mine, *theirs))))
    means = [
        float(sum(one[seed] for one in mine) - sum(one[seed] for one in theirs)) / len(names)
        for seed in seeds
    ]
    if not means:
        return []
    text = _text(estimate(means))
    return [f"Mean over methods, less the best shared fixed rate ({rate_text(rate)}): {text}."]


_VIEWS = {
    "tuned": "each at its own best rate",
    "shared": "at the latter's best rate, {rate}",
    "sweep": "mean over all rates",
}


def _sentence(one: Paired, view: View, found: Comparisons) -> str:
    """A difference in words."""
    where = _VIEWS[view].format(rate=rate_text(found.tuned[one.than].rate))
    if not one.alone.seeds:
        return f"{one.arm} less {one.than}, {where}: no seed has both."
    joint = ""
    if one.jointly.known:
        joint = f", jointly {one.jointly.low:+.3f} to {one.jointly.high:+.3f}"
    exact = f"exact p {one.p:.3g}, with Holm {one.p_holm:.3g}"
    return f"{one.arm} less {one.than}, {where}: {_text(one.alone)}{joint}; {exact}."


def _text(one: Estimate) -> str:
    bounds = f" ({one.low:+.3f} to {one.high:+.3f})" if one.known else ""
    return f"{one.mean:+.3f}{bounds}, {one.seeds} seeds"


_JUDGES: dict[str, Callable[[ClaimConfig, Comparisons], Judged]] = {
    "better": _directed(1),
    "worse": _directed(-1),
    "collapses": _collapses,
    "order": _order,
    "stabler": _stabler,
    "equal": _equal,
    "no-sweep": _no_sweep,
}
