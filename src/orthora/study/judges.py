"""How claims of each kind are judged.

A claim that several comparisons must all bear out holds if each does at 95 % of its own: the chance
that all of them do by luck is smaller still (intersection-union). That *any* of several speaks
against it is judged by their joint intervals, as there are more chances for luck.

An arm whose best rate is an end of those tried may have a better one beyond it: its tuned score is
only known from below. Differences of tuned scores are judged by intervals that are open on that
side, so that nothing is held against such an arm that its grid may be to blame for.

Source: Berger 1982, Technometrics 24, 295-300, for the intersection-union test.
"""

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np

from orthora.runs import join_names, rate_text
from orthora.study.compare import Comparisons
from orthora.study.estimates import FEWEST, LEVEL, Estimate, estimate
from orthora.study.paired import Paired, View
from orthora.study.spec import ClaimConfig
from orthora.study.wording import difference_text, edge_text, estimate_text, own_rate, view_text

Ruling = Literal[
    "holds", "holds at a shared lr only", "does not hold", "cannot be told here"
]  # fmt: skip
Judged = tuple[Ruling, list[str]]


def _pairs(claim: ClaimConfig, found: Comparisons) -> list[tuple[str, str]]:
    """The arms that a claim compares: with those it names, or each with its reference."""
    if claim.than:
        return [(a, b) for a in claim.methods for b in claim.than]
    pairs = [(name, found.reference_of(name)) for name in claim.methods]
    return [(name, than) for name, than in pairs if than]


def _directed(sign: int) -> Callable[[ClaimConfig, Comparisons], Judged]:
    """Every method is better (1) or worse (-1) than what it is compared with."""

    def judge(claim: ClaimConfig, found: Comparisons) -> Judged:
        pairs = _pairs(claim, found)
        tuned, shared = (found.family(pairs, view) for view in ("tuned", "shared"))
        numbers = [difference_text(one, "tuned", found) for one in tuned]
        numbers += [difference_text(one, "shared", found) for one in shared]
        margin = found.results.spec.margin
        if tuned and all(one.judged.sign == sign for one in tuned):
            return "holds", numbers
        if shared and all(one.judged.sign == sign for one in shared):
            return "holds at a shared lr only", numbers
        if any(_against(one, sign, margin) for one in tuned):
            return "does not hold", numbers
        return "cannot be told here", numbers

    return judge


def _against(one: Paired, sign: int, margin: float) -> bool:
    """Whether a comparison speaks against a difference with a sign: it has the other, or none."""
    if one.judged.sign == sign:
        return False
    return one.judged_jointly.sign == -sign or one.judged_jointly.within(margin)


def _collapses(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Most runs end below half of the base model's score, where the reference's do not."""
    numbers, own, shared, none = [], [], [], []
    for name in claim.methods:
        records = found.tuned[name].records.values()
        fates = [fate for one in records if (fate := found.collapsed(one)) is not None]
        alone = [rate for rate in sorted(found.cells[name]) if _falls_alone(found, name, rate)]
        anywhere, runs = found.collapse_counts(name)
        most = len(fates) >= FEWEST and 2 * sum(fates) > len(fates)
        own.append(most and not found.at_the_edge(name))
        shared.append(bool(alone))
        none.append(len(fates) >= FEWEST and not sum(fates) and not anywhere)
        at = join_names(map(rate_text, alone)) if alone else "no rate"
        numbers.append(
            f"{name}: {sum(fates)} of {len(fates)} runs collapsed {own_rate(name, found)}, "
            f"{anywhere} of {runs} over all rates; most did where most of "
            f"{found.reference_of(name) or 'no reference'}'s did not at {at}."
            f"{edge_text(name, found)}"
        )
    family = found.family(_pairs(claim, found), "shared")
    numbers += [difference_text(one, "shared", found) for one in family]
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
    if than is None or found.unswept(name, than) or rate not in found.cells[than]:
        return False
    (a, n), (b, m) = (found.collapse_counts(label, [rate]) for label in (name, than))
    return min(n, m) >= FEWEST and 2 * a > n and 2 * b < m


def _order(claim: ClaimConfig, found: Comparisons) -> Judged:
    """The first is better than the last, and none is worse than the one after it by the margin."""
    first, *names, last = claim.methods
    ends = first, last
    beside = [pair for pair in itertools.pairwise(claim.methods) if pair != ends]
    kl = [(name, last) for name in (first, *names)] if claim.lower_kl else []
    margin = found.results.spec.margin
    rulings, numbers = [], []
    for view in ("tuned", "shared"):
        better, *near = family = found.family([ends, *beside], view)
        numbers += [difference_text(one, view, found) for one in family]
        lower = [_kl_difference(a, b, view, found, len(kl)) for a, b in kl]
        numbers += [text for _, _, text in lower]
        held = better.judged.sign > 0 and all(one.judged.above(-margin) for one in near)
        held &= all(one.sign < 0 for one, _, _ in lower)
        broken = _against(better, 1, margin)
        broken |= any(one.judged_jointly.below(-margin) for one in near)
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
    where = view_text(view, arm, found)
    if not seeds:
        nothing = estimate([])
        return nothing, nothing, f"KL to the base of {arm} and {than}, {where}: not measured."
    values = [one[seed] - other[seed] for seed in seeds]
    less, joint = estimate(values), estimate(values, 1 - (1 - LEVEL) / max(1, count))
    means = " and ".join(f"{np.mean([side[seed] for seed in seeds]):.3g}" for side in (one, other))
    text = (
        f"KL to the base in nats per token, {arm} and {than}, {where}: {means}; difference "
        f"{estimate_text(less)}."
    )
    edge = view == "tuned" and any(map(found.at_the_edge, (arm, than)))
    return less.opened(edge, edge), joint.opened(edge, edge), text


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
    numbers = [difference_text(one, "sweep", found) for one in family]
    fewer = []
    for arm, than in pairs:
        rates = [rate for rate in found.cells[arm] if rate in found.cells[than]]
        (a, n), (b, m) = (found.collapse_counts(label, rates) for label in (arm, than))
        fewer.append(min(n, m) > 0 and a * m <= b * n)
        numbers.append(
            f"Collapsed over the {len(rates)} rates that both have: {arm} {a} of {n}, {than} {b} "
            f"of {m}."
        )
    if all(one.judged.sign > 0 for one in family) and all(fewer):
        return "holds", numbers
    margin = found.results.spec.margin
    if any(_against(one, 1, margin) for one in family):
        return "does not hold", numbers
    return "cannot be told here", numbers


def _equal(claim: ClaimConfig, found: Comparisons) -> Judged:
    """Tuned, no two of the methods differ by more than the margin; at a shared rate some do."""
    names = claim.methods
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    margin = found.results.spec.margin
    tuned = found.family(pairs, "tuned")
    shared = found.family(pairs, "shared")
    worst = max(tuned, key=lambda one: abs(one.alone.mean))
    apart = [one for one in tuned if one.judged_jointly.beyond(margin)]
    some = [one for one in shared if one.judged_jointly.sign]
    within = [one for one in tuned if one.judged.within(margin)]
    spread = [float(np.mean([*map(float, found.tuned[n].scores.values())])) for n in names]
    numbers = [
        f"Tuned, the {len(names)} methods lie between {min(spread):.3f} and {max(spread):.3f}. Of "
        f"{len(pairs)} pairs {len(within)} are within {margin:g} by intervals of their own, and "
        f"{sum(bool(one.judged.sign) for one in tuned)} differ; by joint ones "
        f"{sum(bool(one.judged_jointly.sign) for one in tuned)} differ, and {len(apart)} by more "
        f"than {margin:g}.",
        "The largest difference: " + difference_text(worst, "tuned", found),
        f"All at the reference's best rate, of {len(shared)} pairs "
        f"{sum(bool(one.judged.sign) for one in shared)} differ by intervals of their own, and "
        f"{len(some)} by joint ones.",
    ]
    if apart:
        return "does not hold", numbers
    if len(within) == len(pairs) and some:
        return "holds", numbers
    if len(within) == len(pairs) and all(one.judged_jointly.within(margin) for one in shared):
        return "does not hold", numbers  # tuning is not what makes them equal
    return "cannot be told here", numbers


JUDGES: dict[str, Callable[[ClaimConfig, Comparisons], Judged]] = {
    "better": _directed(1),
    "worse": _directed(-1),
    "collapses": _collapses,
    "order": _order,
    "stabler": _stabler,
    "equal": _equal,
}
"""By kind, all but ``no-sweep``, which has a module of its own."""
