"""The tables of a study."""

import math
from collections import Counter
from collections.abc import Sequence

from orthora.figures.tables import TextTable
from orthora.runs import rate_text
from orthora.study.claims import Verdict
from orthora.study.compare import Comparisons
from orthora.study.estimates import Estimate, estimate
from orthora.study.matched import SHARES, Movement, at_equal, at_equal_steps, spreads
from orthora.study.paired import Paired, Tuned
from orthora.study.results import Results
from orthora.study.view import duration

_DASH = "–"
_FOUND = {"adaptive-kl": "follows the KL", "match": "matched"}
_INTERVALS = "Brackets: 95 % t interval over seeds."


def of_estimate(one: Estimate, sign: str = "") -> str:
    """A mean with its interval."""
    if not one.seeds:
        return _DASH
    bounds = f" [{one.low:{sign}.3f}, {one.high:{sign}.3f}]" if one.known else ""
    return f"{one.mean:{sign}.3f}{bounds}"


def claims(found: Sequence[Verdict]) -> TextTable:
    """A verdict per claim."""
    rows = [(one.claim.says, one.ruling, one.claim.source or _DASH) for one in found]
    says = (
        "A claim holds if each of its comparisons bears it out at 95 %; that one of them speaks "
        "against it is judged by their joint intervals. The numbers stand below the table."
    )
    return TextTable("Claims", ("claim", "verdict", "made in"), tuple(rows), (says,))


def best_rates(found: Comparisons) -> TextTable:
    """Every arm at its own best learning rate."""
    family = {one.arm: one for one in found.against_reference("tuned") if one.alone.seeds}
    rows = []
    for label, tuned in _sorted(found):
        picks = ", ".join(f"{rate_text(r)} ({n})" for r, n in sorted(tuned.picks.items()))
        best = rate_text(tuned.rate) if math.isfinite(tuned.rate) else _DASH
        best += f" ({edge} tried)" if (edge := found.at_the_edge(label)) else ""
        kl = [one.numbers["kl_base"] for one in tuned.records.values()]
        known = [value for value in kl if value is not None]
        cells = (
            *(
                (_FOUND[finds], _DASH)
                if (finds := found.arms[label].finds)
                else (best, picks or _DASH)
            ),
            of_estimate(estimate([*tuned.scores.values()])),
            *_difference(family.get(label)),
            f"{math.fsum(known) / len(known):.3g}" if known else _DASH,
        )
        rows.append((label, *cells))
    head = ("arm", "best rate", "picked for (seeds)", "pass@1", "less its reference",
            "with the pick", "joint", "p", "Holm", "KL to base")  # fmt: skip
    say = (
        f"Best rate: by {found.results.selected!r}, all seeds together. For each seed's score the "
        f"other seeds pick the rate; the score is {found.results.reported!r}.",
        _INTERVALS, _correction([*family.values()], found),
    )  # fmt: skip
    return TextTable("At their own best rates", head, tuple(rows), say)


def _difference(one: Paired | None) -> tuple[str, str, str, str, str]:
    if one is None or not one.plain.seeds:
        return _DASH, _DASH, _DASH, _DASH, _DASH
    alone, joint = (
        of_estimate(interval, "+").partition(" ")[2] or _DASH
        for interval in (one.alone, one.jointly)
    )
    p, corrected = (f"{p:.3g}" if math.isfinite(p) else _DASH for p in (one.p, one.p_holm))
    return of_estimate(one.plain, "+"), alone, joint, p, corrected


def _correction(family: Sequence[Paired], found: Comparisons) -> str:
    seeds = max((len(tuned.scores) for tuned in found.tuned.values()), default=0)
    least = f"With {seeds} seeds its p can't be below {2.0 ** (1 - seeds):.3g}." if seeds else ""
    tests = sum(math.isfinite(one.p) for one in family)
    none = "; an arm that was not tried at its reference's rates has none" * (tests < len(family))
    return (
        "With the pick: an interval that allows for the pick of the rates; joint: the same, for "
        f"all {len(family)} comparisons together. p: exchange of the arms within seeds, picks "
        f"allowed for, two-sided{none}; Holm: corrected for {tests}. {least}"
    ).rstrip()


def shared_rates(found: Comparisons) -> TextTable:
    """Every arm at every rate."""
    rates = found.rates
    rows = []
    for label in (label for label, _ in _sorted(found) if label in found.fixed):
        cells = []
        for rate in rates:
            fallen, known = found.collapse_counts(label, [rate])
            text = of_estimate(estimate([*found.at(label, rate).values()]))
            cells.append(f"{text} ({fallen} of {known} collapsed)" if fallen else text)
        rows.append((label, *cells))
    best = found.best_shared_rate()
    say = [_INTERVALS, _collapsed_means(found.results)]
    if math.isfinite(best):
        say.append(f"The best shared rate, by {found.results.selected!r}: {rate_text(best)}.")
    return TextTable("At shared rates", ("arm", *map(rate_text, rates)), tuple(rows), tuple(say))


def _collapsed_means(results: Results) -> str:
    base = results.base.get(results.reported)
    if base is None:
        return "The base model was not scored, so it is not known which runs collapsed."
    return (
        f"Collapsed: below half of the base model's {base:.3f}; a run that training itself ended "
        "counts by its last checkpoint, or as 0."
    )


def shared_differences(found: Comparisons) -> TextTable:
    """Every arm against its reference, both at the reference's best rate."""
    rows = []
    family = [one for one in found.against_reference("shared") if one.alone.seeds]
    for one in family:
        rate = rate_text(found.shared_rate(one.arm))
        rows.append((one.arm, one.than, rate, *_difference(one)))
    head = ("arm", "reference", "rate", "difference", "with the pick", "joint", "p", "Holm")
    say = (_INTERVALS, _correction(family, found))
    return TextTable("At the reference's best rate", head, tuple(rows), say)


def sensitivity(found: Comparisons) -> TextTable:
    """How much depends on the learning rate."""
    margin, rows = found.results.spec.margin, []
    for label, tuned in _sorted(found):
        if label not in found.fixed:
            continue
        means = {
            rate: estimate([*found.at(label, rate).values()]).mean for rate in found.cells[label]
        }
        means = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
        base = {r.cell.name: found.results.base_of(r) for by in found.cells[label].values()
                for r in by.values()}  # fmt: skip
        best = means.get(tuned.rate, math.nan)
        near = [rate for rate, mean in sorted(means.items()) if mean >= best - margin]
        fallen, known = found.collapse_counts(label)
        pairs = [
            (float(s), b) for by_seed in found.cells[label].values() for r in by_seed.values()
            if (s := r.scores.get(found.results.reported)) is not None
            and (b := base[r.cell.name]) is not None
        ]  # fmt: skip
        below = sum(score < own for score, own in pairs)
        rows.append((
            label,
            of_estimate(estimate([*found.sweep(label).values()])),
            f"{min(means.values()):.3f}" if means else _DASH,
            ", ".join(map(rate_text, near)) or _DASH,
            f"{fallen} of {known}" if known else _DASH,
            f"{below} of {len(pairs)}" if pairs else _DASH,
        ))  # fmt: skip
    head = ("arm", "mean over rates", "worst rate", f"rates within {margin:g} of the best",
            "collapsed", "below the base model")  # fmt: skip
    return TextTable("Sensitivity to the learning rate", head, tuple(rows),
                     (_INTERVALS, _collapsed_means(found.results)))  # fmt: skip


_MOVED: dict[Movement, tuple[str, str]] = {
    "first_norm": ("At an equal first step", "|dW| of the first update"),
    "kl_update": ("At an equal KL per step", "KL per step, nats per token"),
}


def equal_movement(found: Comparisons, key: Movement) -> TextTable:
    """Arms beside the reference where it moves as far."""
    title, name = _MOVED[key]
    rows = [
        (one.arm, rate_text(one.rate), f"{one.moved:.3g}", of_estimate(one.own),
         of_estimate(one.difference, "+"), str(one.difference.seeds))
        for one in at_equal(found, key)
    ]  # fmt: skip
    head = ("arm", "rate", name, "pass@1", "less the reference's", "seeds")
    say = (
        "The reference's score is interpolated over the logarithm of its own, seed by seed; rates "
        "that lie outside of them are left out. Not corrected for their number.",
        _INTERVALS,
    )
    return TextTable(title, head, tuple(rows), say)


def spread(found: Comparisons) -> TextTable:
    """How far methods lie apart at equal rates, and where they move equally far."""
    rows = []
    names: dict[Movement, str] = {key: name for key, (_, name) in _MOVED.items()}
    names["kl_base"] = "KL to the base at the end, nats per token"
    for key, name in names.items():
        for one in spreads(found, key):
            sides = ((one.at_rate, one.typical_at_rate), (one.at_equal, one.typical_at_equal))
            apart = [f"{wide:.3f} ({typical:.3f})" for wide, typical in sides]
            rows.append((name, rate_text(one.rate), f"{one.moved:.3g}", str(one.arms), *apart))
    reference = found.results.spec.reference
    head = ("equal", f"{reference}'s rate", "which moves it by", "methods", "apart at this rate",
            "apart where all move so far")  # fmt: skip
    say = (
        "Apart: standard deviation over methods of pass@1, the mean over seeds; in parentheses "
        "their median deviation, scaled to be equal to it for a normal distribution: where it is "
        "much smaller, a few methods make the spread. Where they move equally far it is "
        "interpolated over the logarithm of how far; methods that never move so far are left out "
        "of both. The KL to the base is an outcome, as the score is: no setting holds it.",
    )
    return TextTable("What is left of the differences", head, tuple(rows), say)


def equal_steps(found: Comparisons) -> TextTable:
    """Training accuracy after equal numbers of steps."""
    table = at_equal_steps(found)
    rows = []
    for label, tuned in _sorted(found):
        runs = len(tuned.records)
        cells = [
            of_estimate(one) + (f" ({one.seeds} of {runs} runs)" if one.seeds < runs else "")
            for one in table[label]
        ]
        rows.append((label, *cells))
    head = ("arm", *(f"{share:.0%} of the steps" for share in SHARES))
    say = ("Share of right answers in training, mean over a tenth of the steps, every arm at its "
           "own best rate. Of runs that training ended before, no more is known: where there are "
           "such, the number of the others stands there, and the mean is theirs.",
           _INTERVALS)  # fmt: skip
    return TextTable("At equal steps", head, tuple(rows), say)


def costs(found: Comparisons) -> TextTable:
    """What the cells cost."""
    rows, whole = [], 0.0
    for label in found.arms:
        records = [r for by_seed in found.cells[label].values() for r in by_seed.values()]
        seconds = [one.seconds for one in records if one.seconds]
        sizes = [one.parameters for one in records if one.parameters]
        whole += math.fsum(seconds)
        rows.append((
            label,
            f"{max(sizes):,}" if sizes else _DASH,
            str(len(seconds)),
            f"{math.fsum(seconds) / len(seconds):.1f}" if seconds else _DASH,
            duration(math.fsum(seconds)) if seconds else _DASH,
        ))  # fmt: skip
    head = ("arm", "trained parameters", "runs", "seconds per run", "all runs")
    say = (f"Wall time of training, evaluations not counted; {duration(whole)} in all. It depends "
           "on what else the machine did.",)  # fmt: skip
    return TextTable("Cost", head, tuple(rows), say)


def failures(results: Results) -> TextTable | None:
    """Cells that did not finish, those that have not run arm by arm; None if all did."""
    rows = [
        (one.cell.name, one.state, one.reason or _DASH,
         _DASH if one.step is None else str(one.step))
        for one in results.records if one.state == "failed"
    ]  # fmt: skip
    missing = Counter(one.arm.label for one in results.records if one.state == "missing")
    rows += [(label, f"{count} missing", "not run yet", _DASH) for label, count in missing.items()]
    if not rows:
        return None
    say = ("A run that training itself ended is scored at its last checkpoint, or as 0 if it has "
           "none; other failures are not scored.",)  # fmt: skip
    head = ("cell, or arm", "state", "why", "scored at step")
    return TextTable("Cells that did not finish", head, tuple(rows), say)


def _sorted(found: Comparisons) -> list[tuple[str, Tuned]]:
    """Arms by tuned score, the best first."""

    def score(label: str) -> float:
        mean = estimate([*found.tuned[label].scores.values()]).mean
        return mean if math.isfinite(mean) else -math.inf

    return [(label, found.tuned[label]) for label in sorted(found.arms, key=score, reverse=True)]


def all_tables(found: Comparisons) -> dict[str, TextTable]:
    """All of them, by the name of their file."""
    tables = {
        "best-rates": best_rates(found),
        "shared-rates": shared_rates(found),
        "shared-differences": shared_differences(found),
        "sensitivity": sensitivity(found),
        "spread": spread(found),
        "equal-kl": equal_movement(found, "kl_update"),
        "equal-norm": equal_movement(found, "first_norm"),
    }
    records = found.results.records
    if any(one.pass_rates for one in records):  # not out of a table of results
        tables["equal-steps"] = equal_steps(found)
    if any(one.seconds for one in records):
        tables["costs"] = costs(found)
    if left := failures(found.results):
        tables["failures"] = left
    return {name: table for name, table in tables.items() if table.rows}
