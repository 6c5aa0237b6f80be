"""Verdicts: what a study's numbers say of each of its claims, and of nothing more.

A claim that several comparisons must all bear out holds if each does at 95 % of its own: the chance
that all of them do by luck is smaller still (intersection-union). That *any* of several speaks
against it is judged by their joint intervals, as there are more chances for luck.

Source: Berger 1982, Technometrics 24, 295-300, for the intersection-union test.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orthora.runs import join_names, rate_text
from orthora.study.arms import fixed_partner
from orthora.study.compare import Comparisons, Paired, View
from orthora.study.estimates import FEWEST, LEVEL, Estimate, estimate
from orthora.study.spec import ClaimConfig

Ruling = Literal[
    "holds", "holds at a shared lr only", "does not hold", "cannot be told here"
]  # fmt: skip


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
    references = {found.reference_of(name) for name in names}
    partners = {fixed_partner(name, found.arms) for name in claim.methods}
    adaptive = claim.kind == "no-sweep"
    return names | {name for name in references | (partners if adaptive else set()) if name}


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
        if tuned and all(one.alone.sign == sign for one in tuned):
            return "holds", numbers
        if shared and all(one.alone.sign == sign for one in shared):
            return "holds at a shared lr only", numbers
        if any(one.jointly.sign == -sign or one.jointly.within(margin) for one in tuned):
            return "does not hold", numbers
        return "cannot be told here", numbers

    return judge


def _collapses(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Most runs end below half of the base model's score, where the reference's do not."""
    numbers, own, shared, none = [], [], [], []
    for name in claim.methods:
        records = found.tuned[name].records.values()
        fates = [fate for one in records if (fate := found.collapsed(one)) is not None]
        alone = [rate for rate in sorted(found.cells[name]) if _falls_alone(found, name, rate)]
        anywhere, runs = found.collapse_counts(name)
        own.append(len(fates) >= FEWEST and 2 * sum(fates) > len(fates))
        shared.append(bool(alone))
        none.append(len(fates) >= FEWEST and not sum(fates) and not anywhere)
        at = join_names(map(rate_text, alone)) if alone else "no rate"
        numbers.append(
            f"{name}: {sum(fates)} of {len(fates)} runs collapsed at its own best rate "
            f"({rate_text(found.tuned[name].rate)}), {anywhere} of {runs} over all rates; most did "
            f"where most of {found.reference_of(name) or 'no reference'}'s did not at {at}."
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


def _falls_alone(found: Comparisons, name: str, rate: float) -> bool:
    """Whether most runs of a method collapse at a rate at which most of its reference's do not."""
    than = found.reference_of(name)
    if than is None or rate not in found.cells[than]:
        return False
    (a, n), (b, m) = (found.collapse_counts(label, [rate]) for label in (name, than))
    return min(n, m) >= FEWEST and 2 * a > n and 2 * b < m


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
        lower = [_kl_difference(a, b, view, found, len(kl)) for a, b in kl]
        numbers += [text for _, _, text in lower]
        held = family[0].alone.sign > 0 and all(one.alone.sign >= 0 for one in family)
        broken = any(one.jointly.sign < 0 for one in family)
        broken |= family[0].jointly.within(found.results.spec.margin)
        held &= all(one.sign < 0 for one, _, _ in lower)
        broken |= any(joint.sign > 0 for _, joint, _ in lower)
        rulings.append(1 if held else -1 if broken else 0)
    if rulings[0] > 0:
        return "holds", numbers
    if rulings[1] > 0:
        return "holds at a shared lr only", numbers
    return ("does not hold" if rulings[0] < 0 else "cannot be told here"), numbers


def _kl_difference(
    arm: str, than: str, view: View, found: Comparisons, count: int
) -> tuple[Estimate, Estimate, str]:
    """KL to the base of two arms over the seeds that both have: alone, jointly, in words."""
    one, other = (_kl(label, arm, view, found) for label in (arm, than))
    seeds = sorted({*one} & {*other})
    where = _where(view, arm, found)
    if not seeds:
        nothing = estimate([])
        return nothing, nothing, f"KL to the base of {arm} and {than}, {where}: not measured."
    values = [one[seed] - other[seed] for seed in seeds]
    less, joint = estimate(values), estimate(values, 1 - (1 - LEVEL) / max(1, count))
    means = " and ".join(f"{np.mean([side[seed] for seed in seeds]):.3g}" for side in (one, other))
    return (
        less,
        joint,
        (
            f"KL to the base in nats per token, {arm} and {than}, {where}: {means}; difference "
            f"{_text(less)}."
        ),
    )


def _kl(label: str, arm: str, view: View, found: Comparisons) -> dict[int, float]:
    records = (
        found.tuned[label].records
        if view == "tuned"
        else found.shared(label, found.reference_of(arm) or arm)
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
        rates = [rate for rate in found.cells[arm] if rate in found.cells[than]]
        (a, n), (b, m) = (found.collapse_counts(label, rates) for label in (arm, than))
        fewer.append(min(n, m) > 0 and a * m <= b * n)
        numbers.append(
            f"Collapsed over the {len(rates)} rates that both have: {arm} {a} of {n}, {than} {b} "
            f"of {m}."
        )
    if all(one.alone.sign > 0 for one in family) and all(fewer):
        return "holds", numbers
    margin = found.results.spec.margin
    if any(one.jointly.sign < 0 or one.jointly.within(margin) for one in family):
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
    apart = [one for one in tuned if one.jointly.beyond(margin)]
    some = [one for one in shared if one.jointly.sign]
    within = [one for one in tuned if one.alone.within(margin)]
    spread = [float(np.mean([*map(float, found.tuned[n].scores.values())])) for n in names]
    numbers = [
        f"Tuned, the {len(names)} methods lie between {min(spread):.3f} and {max(spread):.3f}; "
        f"{len(within)} of {len(pairs)} pairs are shown to be within {margin:g}, "
        f"{len(apart)} to be farther apart.",
        "The largest difference: " + _sentence(worst, "tuned", found),
        f"At the reference's rate, of {len(shared)} others, "
        f"{_named([one.arm for one in shared if one.alone.sign])} differ from it by intervals of "
        f"their own, {_named([one.arm for one in some])} by joint ones.",
    ]
    if apart:
        return "does not hold", numbers
    if len(within) == len(pairs):
        return ("holds" if some else "does not hold"), numbers
    return "cannot be told here", numbers


def _named(arms: Sequence[str]) -> str:
    """How many, and which."""
    return f"{len(arms)} ({join_names(arms)})" if arms else "none"


def _no_sweep(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Adaptive-kl, without a choice, is within the margin of the swept best, or above."""
    partners = {label: fixed_partner(label, found.arms) for label in claim.methods}
    pairs = [(label, partner) for label, partner in partners.items() if partner]
    margin = found.results.spec.margin
    family = found.family(pairs, "tuned")
    numbers = [_sentence(one, "tuned", found) for one in family]
    numbers += [*_together(pairs, found), *_against_shared(claim.methods, found)]
    if len(family) == len(claim.methods) and all(one.alone.above(-margin) for one in family):
        return "holds", numbers
    if any(one.jointly.below(-margin) for one in family):
        return "does not hold", numbers
    return "cannot be told here", numbers


def _together(pairs: Sequence[tuple[str, str]], found: Comparisons) -> list[str]:
    """All adaptive runs together against the swept best of each method, by seed; the lowest run."""
    table = [tuple(map(found.tuned.get, pair)) for pair in pairs]
    sides = [(one.scores, other.scores) for one, other in table if one and other]
    seeds = sorted(set.intersection(*({*one} & {*other} for one, other in sides))) if sides else []
    if not seeds:
        return []
    means = [float(sum(a[s] - b[s] for a, b in sides)) / len(sides) for s in seeds]
    shares = [
        float(min(a.values())) / float(np.mean([*map(float, b.values())]))
        for a, b in sides
        if any(b.values())
    ]
    lowest = f" The lowest run has {min(shares):.2f} of its method's swept best." if shares else ""
    return [f"Mean over methods, less each one's swept best: {_text(estimate(means))}.{lowest}"]


def _against_shared(names: Sequence[str], found: Comparisons) -> list[str]:
    """All adaptive runs together against every fixed rate that all methods share, by seed."""
    partners = [label for name in names if (label := fixed_partner(name, found.arms))]
    if len(partners) != len(names):
        return []
    mine = [found.tuned[name].scores for name in names]
    best, parts = found.best_shared_rate(), []
    for rate in found.rates:
        theirs = [found.at(label, rate) for label in partners]
        seeds = sorted(set.intersection(*({*one} for one in (*mine, *theirs))))
        means = [
            float(sum(one[seed] for one in mine) - sum(one[seed] for one in theirs)) / len(names)
            for seed in seeds
        ]
        if means:
            picked = " (the best by selection)" if rate == best else ""
            parts.append(f"{rate_text(rate)}{picked}: {_text(estimate(means))}")
    return [f"Mean over methods, less a fixed rate that all share: {'; '.join(parts)}."] * bool(
        parts
    )


_VIEWS = {
    "tuned": "each at its own best rate",
    "shared": "at the reference's best rate, {rate}",
    "sweep": "mean over all rates",
}


def _where(view: View, arm: str, found: Comparisons) -> str:
    """What a view compares."""
    rate = found.shared_rate(arm)
    return _VIEWS[view].format(rate=rate_text(rate) if math.isfinite(rate) else "not known")


def _sentence(one: Paired, view: View, found: Comparisons) -> str:
    """A difference in words."""
    where = _where(view, one.arm, found)
    if not one.alone.seeds:
        return f"{one.arm} less {one.than}, {where}: no seed has both."
    joint = ""
    if one.jointly.known:
        joint = f"; jointly {one.jointly.low:+.3f} to {one.jointly.high:+.3f}"
    test = f"; p {one.p:.3g}, with Holm {one.p_holm:.3g}" if math.isfinite(one.p) else ""
    edges = [
        f" The best rate of {label} is the {edge} that was tried: another may be better."
        for label in (one.arm, one.than)
        if view == "tuned" and (edge := found.at_the_edge(label))
    ]
    return f"{one.arm} less {one.than}, {where}: {_text(one.alone)}{joint}{test}.{''.join(edges)}"


def _text(one: Estimate) -> str:
    bounds = f" ({one.low:+.4g} to {one.high:+.4g})" if one.known else ""
    return f"{one.mean:+.4g}{bounds}, {one.seeds} seeds"


_JUDGES: dict[str, Callable[[ClaimConfig, Comparisons], Judged]] = {
    "better": _directed(1),
    "worse": _directed(-1),
    "collapses": _collapses,
    "order": _order,
    "stabler": _stabler,
    "equal": _equal,
    "no-sweep": _no_sweep,
}
