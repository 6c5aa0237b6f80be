"""How a claim is judged that adaptive-kl, or a matched rate, needs no sweep."""

from collections.abc import Sequence

import numpy as np

from orthora.runs import rate_text
from orthora.study.arms import fixed_partner
from orthora.study.compare import Comparisons
from orthora.study.estimates import estimate
from orthora.study.judges import Judged
from orthora.study.spec import ClaimConfig
from orthora.study.wording import difference_text, estimate_text


def no_sweep(claim: ClaimConfig, found: Comparisons) -> Judged:
    """What finds a rate, without a choice, is within the margin of the swept best, or above."""
    partners = {label: fixed_partner(label, found.arms) for label in claim.methods}
    pairs = [(label, partner) for label, partner in partners.items() if partner]
    margin = found.results.spec.margin
    family = found.family(pairs, "tuned")
    numbers = [difference_text(one, "tuned", found) for one in family]
    numbers += [*_together(pairs, found), *_against_shared(claim.methods, found)]
    if len(family) == len(claim.methods) and all(one.judged.above(-margin) for one in family):
        return "holds", numbers
    if any(one.judged_jointly.below(-margin) for one in family):
        return "does not hold", numbers
    return "cannot be told here", numbers


def _together(pairs: Sequence[tuple[str, str]], found: Comparisons) -> list[str]:
    """All such runs together against the swept best of each method, by seed; the lowest run."""
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
    all_less = estimate_text(estimate(means))
    return [f"Mean over methods, less each one's swept best: {all_less}.{lowest}"]


def _against_shared(names: Sequence[str], found: Comparisons) -> list[str]:
    """All such runs together against every fixed rate that all methods share, by seed."""
    partners = [label for name in names if (label := fixed_partner(name, found.arms))]
    if len(partners) != len(names):
        return []
    mine = [found.tuned[name].scores for name in names]
    best, parts = found.best_shared_rate(partners), []
    for rate in found.rates:
        theirs = [found.at(label, rate) for label in partners]
        seeds = sorted(set.intersection(*({*one} for one in (*mine, *theirs))))
        means = [
            float(sum(one[seed] for one in mine) - sum(one[seed] for one in theirs)) / len(names)
            for seed in seeds
        ]
        if means:
            picked = " (the best by selection)" if rate == best else ""
            parts.append(f"{rate_text(rate)}{picked}: {estimate_text(estimate(means))}")
    return [f"Mean over methods, less a fixed rate that all share: {'; '.join(parts)}."] * bool(
        parts
    )
