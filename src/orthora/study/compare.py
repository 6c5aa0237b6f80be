"""Fair comparisons of a study's arms: paired by seed, with intervals and exact tests.

Three views. *Tuned*: every arm at the learning rate that the selection score picks; for each seed
it is picked on the other seeds, so that luck of a seed is not counted twice. *Shared*: both arms at
the rate that the reference picks so. *Sweep*: the mean over all rates that both arms have.

Seeds agree in what they pick, so that the spread over seeds does not show how uncertain the pick
is. The interval of a tuned difference is therefore taken over all rates that the *other* arm might
have been given, and the test picks anew for every exchange of the arms' cells. A shared rate is
the reference's alone: the level is divided by the number of rates that it was picked from, so that
it holds for whichever it is.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from orthora.stats import holm
from orthora.study.arms import Arm, reference_of
from orthora.study.estimates import LEVEL, Array, Estimate, estimate, exchange_p, retuned
from orthora.study.paired import BySeed, Paired, Tuned, View, floats, less, pick
from orthora.study.results import Record, Results

COLLAPSED = 0.5
"""Share of the base model's score below which a run has collapsed."""


class Comparisons:
    """Everything that tables and verdicts need, of one study's results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.cells: dict[str, dict[float, dict[int, Record]]] = {}
        self.arms: dict[str, Arm] = {}
        for record in results.records:
            self.arms[record.arm.label] = record.arm
            by_rate = self.cells.setdefault(record.arm.label, {})
            by_rate.setdefault(record.cell.rate, {})[record.cell.seed] = record
        self.tuned = {label: self._tune(label) for label in self.arms}

    def at_the_edge(self, label: str) -> str:
        """Which end of the rates tried an arm's best one is; "" where it is none.

        ``highest``, ``lowest``, or ``only``: its best rate, or the one that most of its seeds were
        scored at. A rate without scores was not tried. Where none is swept there is no end.
        """
        rates, tuned = sorted(self._selection(label)), self.tuned[label]
        if self.arms[label].finds or not rates:
            return ""
        most = {rate for rate, n in tuned.picks.items() if 2 * n > tuned.picks.total()}
        ends = {rates[0], rates[-1]} & {tuned.rate, *most}
        if not ends:
            return ""
        return "only" if len(rates) == 1 else "highest" if rates[-1] in ends else "lowest"

    def unswept(self, *labels: str) -> bool:
        """Whether an arm finds its rate, by adaptive-kl or a match, and has none to share."""
        return any(self.arms[label].finds for label in labels)

    @property
    def rates(self) -> list[float]:
        """All fixed learning rates, rising."""
        return sorted({rate for label in self.fixed for rate in self.cells[label]})

    @property
    def fixed(self) -> list[str]:
        """Labels of the arms with fixed learning rates."""
        return [arm.label for arm in self.arms.values() if not arm.finds]

    def at(self, label: str, rate: float, name: str | None = None) -> dict[int, Fraction]:
        """Scores of an arm at a rate, by seed.

        Args:
            label: of the arm.
            rate: learning rate.
            name: of the score; the reported one if left out.
        """
        by_seed = self.cells.get(label, {}).get(rate, {})
        name = name or self.results.reported
        return {
            seed: record.scores[name]
            for seed, record in sorted(by_seed.items())
            if name in record.scores
        }

    def _selection(self, label: str) -> dict[float, BySeed]:
        """Selection scores of an arm's rates, of those that have most seeds."""
        select = self.results.selected
        table = {rate: self.at(label, rate, select) for rate in sorted(self.cells[label])}
        most = max(map(len, table.values()), default=0)
        return {rate: scores for rate, scores in table.items() if scores and len(scores) == most}

    def _tune(self, label: str) -> Tuned:
        """Pick a rate for each seed by the others' selection scores."""
        table = self._selection(label)
        scores: dict[int, Fraction] = {}
        records: dict[int, Record] = {}
        picks: Counter[float] = Counter()
        for seed in sorted({seed for by_seed in table.values() for seed in by_seed}):
            rate = pick(table, without=seed)
            record = self.cells[label][rate].get(seed)
            if record is not None and self.results.reported in record.scores:
                scores[seed], records[seed] = record.scores[self.results.reported], record
                picks[rate] += 1
        return Tuned(scores, records, pick(table) if table else math.nan, picks)

    def reference_of(self, label: str) -> str | None:
        """The arm that an arm is compared with: the reference in the same settings, or plain."""
        return reference_of(label, self.arms, self.results.spec.reference)

    def shared_rate(self, label: str) -> float:
        """The best rate of an arm's reference, at which papers compare."""
        return self.tuned[self.reference_of(label) or label].rate

    def best_shared_rate(self, labels: Sequence[str] | None = None) -> float:
        """The fixed rate with the best mean selection score.

        Args:
            labels: of arms that all have it; those with fixed rates if left out.
        """
        means = {}
        for rate in self.rates:
            scores = [self.at(label, rate, self.results.selected) for label in labels or self.fixed]
            if scores and all(scores):
                values = [float(np.mean([*map(float, one.values())])) for one in scores]
                means[rate] = float(np.mean(values))
        return max(means, key=lambda rate: means[rate]) if means else math.nan

    def shared(self, label: str, reference: str) -> dict[int, Record]:
        """An arm's cells at the rates that the reference picks, for each seed by the others.

        None of an arm that finds its rate, or against such a reference.
        """
        if self.unswept(label, reference):
            return {}
        rates = {s: one.cell.rate for s, one in self.tuned[reference].records.items()}
        own = self.cells[label]
        return {
            seed: own[rate][seed]
            for seed, rate in rates.items()
            if seed in own.get(rate, {}) and self.results.reported in own[rate][seed].scores
        }

    def sweep(self, label: str, than: str | None = None) -> dict[int, Fraction]:
        """Mean score by seed over all rates, or those that another arm has as well.

        None of an arm that finds its rate, or beside one.
        """
        if self.unswept(*filter(None, (label, than))):
            return {}
        rates = [rate for rate in self.cells[label] if than is None or rate in self.cells[than]]
        table = [self.at(label, rate) for rate in rates]
        whole = set.intersection(*map(set, table)) if table else set()
        return {
            seed: sum((one[seed] for one in table), Fraction(0)) / len(table)
            for seed in sorted(whole)
        }

    def pair(self, arm: str, than: str, view: View) -> tuple[BySeed, BySeed]:
        """Scores by seed of two arms, in a view."""
        if view == "tuned":
            return self.tuned[arm].scores, self.tuned[than].scores
        if view == "sweep":
            return self.sweep(arm, than), self.sweep(than, arm)
        reference = self.reference_of(arm) or arm
        name = self.results.reported
        one, other = (
            {seed: record.scores[name] for seed, record in self.shared(label, reference).items()}
            for label in (arm, than)
        )
        return one, other

    def family(self, pairs: Sequence[tuple[str, str]], view: View) -> list[Paired]:
        """Paired differences of a family of comparisons, corrected for how many there are.

        Those without a seed in common are in it, with nothing known, and do not count.
        """
        differences = [less(*self.pair(arm, than, view)) for arm, than in pairs]
        count = max(1, sum(map(bool, differences)))
        joint = 1 - (1 - LEVEL) / count
        ps = [
            self._p(arm, than, view, values) if values else 1.0
            for (arm, than), values in zip(pairs, differences, strict=True)
        ]
        known = iter(holm([p for p, values in zip(ps, differences, strict=True)
                           if values and math.isfinite(p)]))  # fmt: skip
        found = []
        for (arm, than), values, p in zip(pairs, differences, ps, strict=True):
            levels = [self._interval(arm, than, view, values, level) for level in (LEVEL, joint)]
            corrected = next(known) if values and math.isfinite(p) else p
            alone, jointly = levels
            edges = [view == "tuned" and bool(self.at_the_edge(one)) for one in (than, arm)]
            found.append(Paired(arm, than, estimate(values), alone, jointly, p, corrected, *edges))
        return found

    def _interval(
        self, arm: str, than: str, view: View, values: Sequence[Fraction], level: float
    ) -> Estimate:
        """The difference, with an interval that allows for the pick of the rates."""
        if view == "shared":
            level = 1 - (1 - level) / self._shared_picks(arm)
        plain = estimate(values, level)
        if view != "tuned" or not plain.known:
            return plain
        own, other = self.tuned[arm].scores, self.tuned[than].scores
        lows = [estimate(less(own, self.at(than, r)), level).low for r in self._selection(than)]
        highs = [estimate(less(self.at(arm, r), other), level).high for r in self._selection(arm)]
        return plain._replace(low=min(plain.low, *lows), high=max(plain.high, *highs))

    def _p(self, arm: str, than: str, view: View, values: Sequence[Fraction]) -> float:
        """Test by exchange of two arms within seeds."""
        if view != "tuned":
            p = exchange_p(lambda flips: (1 - 2 * flips) @ floats(values), len(values))
            return min(1.0, p * (self._shared_picks(arm) if view == "shared" else 1))
        if [*self._selection(arm)] != [*self._selection(than)]:
            return math.nan
        seeds = sorted({*self.tuned[arm].scores} & {*self.tuned[than].scores})
        tables = [self._tables(label, seeds) for label in (arm, than)]
        return exchange_p(lambda flips: retuned(flips, *tables), len(seeds))

    def _shared_picks(self, arm: str) -> int:
        """Number of rates that the shared one was picked from."""
        return max(1, len(self._selection(self.reference_of(arm) or arm)))

    def _tables(self, label: str, seeds: Sequence[int]) -> tuple[Array, Array]:
        """Selection and reported scores of an arm, rates by seeds; NaN where there is none."""
        rates = list(self._selection(label))
        select, report = (
            np.array([[float(self.at(label, r, name).get(s, math.nan)) for s in seeds]
                      for r in rates])
            for name in (self.results.selected, self.results.reported)
        )  # fmt: skip
        return select, report

    def against_reference(self, view: View) -> list[Paired]:
        """Every arm against its reference."""
        pairs = [(label, than) for label in self.arms if (than := self.reference_of(label))]
        return self.family(pairs, view)

    def collapsed(self, record: Record) -> bool | None:
        """Whether a run ended below half of its base model's score; None where that is unknown.

        A run that training ended counts by its last checkpoint, or as 0.
        """
        base = self.results.base_of(record)
        score = record.scores.get(self.results.reported)
        return None if base is None or score is None else float(score) < COLLAPSED * base

    def collapse_counts(self, label: str, rates: Sequence[float] | None = None) -> tuple[int, int]:
        """Runs of an arm that collapsed, and runs of which that is known, at some rates or all."""
        records = [
            record
            for at, by_seed in self.cells[label].items()
            if rates is None or at in rates
            for record in by_seed.values()
        ]
        known = [fate for record in records if (fate := self.collapsed(record)) is not None]
        return sum(known), len(known)
