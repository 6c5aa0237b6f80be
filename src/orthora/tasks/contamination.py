"""Which problems of an evaluation set a training set holds, word for word or nearly so.

Three rules, from strong to weak. *Exact*: the same letters and digits. *Words*: of the evaluation
problem's different 10-grams of words, at least half stand in one training problem. *Opening*: the
same first 80 letters and digits. Template twins (other numbers in the same sentences) count, so
every match says whether the golds agree too. A translated or reworded problem is not found.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from orthora.tasks.statements import gold_key, key_of, statement, words_of
from orthora.types import Problem

Kind = Literal["exact", "words", "opening", "none"]
"""How a problem was found again."""

_KINDS: tuple[Kind, ...] = ("none", "opening", "words", "exact")  # from weak to strong
_Gram = tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """The training problem that comes closest to one evaluation problem.

    Attributes:
        problem: id of the evaluation problem.
        kind: the strongest rule that holds.
        share: of the evaluation problem's word n-grams that the training problem has; 0 where it
            is too short to have any.
        train: id of the training problem; None if none shares an n-gram.
        same_gold: whether the golds agree, numbers as numbers; None without a training problem.
    """

    problem: str
    kind: Kind
    share: float
    train: str | None
    same_gold: bool | None


@dataclass(frozen=True)
class Contamination:
    """What `find_contamination` found.

    Attributes:
        matches: one for each evaluation problem, in order.
        training: number of training problems.
    """

    matches: tuple[Match, ...]
    training: int

    def count(self, *kinds: Kind) -> int:
        """How many evaluation problems were found by rules.

        Args:
            kinds: the strongest rule, any of these.

        Returns:
            Their number.
        """
        return sum(match.kind in kinds for match in self.matches)

    @property
    def found(self) -> tuple[Match, ...]:
        """The matches by any rule."""
        return tuple(match for match in self.matches if match.kind != "none")


class _Score(NamedTuple):
    """What makes one match better than another, in this order."""

    level: int
    share: float
    same_gold: bool


@dataclass
class _Index:
    """Evaluation problems by key, by opening and by n-gram."""

    keys: dict[str, list[int]] = field(default_factory=dict)
    openings: dict[str, list[int]] = field(default_factory=dict)
    grams: dict[_Gram, list[int]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)


def find_contamination(
    evaluation: Sequence[Problem],
    training: Sequence[Problem],
    *,
    n: int = 10,
    threshold: float = 0.5,
    opening: int = 80,
) -> Contamination:
    """Look for the problems of an evaluation set in a training set.

    Takes a few seconds for 5,000 problems in 18,000: every text is read once, against an index of
    the evaluation set's n-grams.

    Args:
        evaluation: problems, best loaded with the template ``"{prompt}"``: prompts other than
            DAPO's are compared as if they were part of the problem.
        training: problems, likewise.
        n: words in an n-gram.
        threshold: share of n-grams from which on a match counts, above 0 and at most 1.
        opening: letters and digits of an opening.

    Returns:
        For each evaluation problem its strongest match: by rule, then by share of n-grams, then one
        with the same gold, then the first.

    Raises:
        ValueError: if either set is empty, or a setting is out of range.
    """
    for name, problems in (("evaluation", evaluation), ("training", training)):
        if not problems:
            raise ValueError(f"the {name} set holds no problems; give at least one")
    if n < 1 or opening < 1 or not 0 < threshold <= 1:
        raise ValueError(
            f"n is {n}, opening {opening}, threshold {threshold}; n and opening start at 1, and "
            "threshold lies above 0 and at most at 1"
        )
    index = _indexed(evaluation, n, opening)
    golds = [gold_key(problem) for problem in evaluation]
    best: dict[int, tuple[_Score, str]] = {}
    for problem in training:
        gold: str | None = None
        for place, level, share in _hits(index, statement(problem), n, threshold, opening):
            gold = gold_key(problem) if gold is None else gold
            score = _Score(level, share, gold == golds[place])
            if place not in best or score > best[place][0]:
                best[place] = score, problem.id
    matches = [_match(problem, best.get(place)) for place, problem in enumerate(evaluation)]
    return Contamination(tuple(matches), len(training))


def _indexed(problems: Sequence[Problem], n: int, opening: int) -> _Index:
    """The index of an evaluation set."""
    index = _Index()
    for place, problem in enumerate(problems):
        text = statement(problem)
        words = words_of(text)
        key = key_of(text, words)
        index.keys.setdefault(key, []).append(place)
        index.openings.setdefault(key[:opening], []).append(place)
        grams = _grams(words, n)
        for gram in grams:
            index.grams.setdefault(gram, []).append(place)
        index.sizes.append(len(grams))
    return index


def _hits(
    index: _Index, text: str, n: int, threshold: float, opening: int
) -> list[tuple[int, int, float]]:
    """Place, level (of `_KINDS`) and share of each evaluation problem that a text touches."""
    words = words_of(text)
    key = key_of(text, words)
    shared: Counter[int] = Counter()
    for gram in _grams(words, n):
        shared.update(index.grams.get(gram, ()))
    exact = set(index.keys.get(key, ()))
    opened = set(index.openings.get(key[:opening], ()))
    hits = []
    for place in exact | opened | shared.keys():
        share = shared[place] / index.sizes[place] if index.sizes[place] else 0.0
        near = 2 if share >= threshold else int(place in opened)
        hits.append((place, 3 if place in exact else near, share))
    return hits


def _grams(words: list[str], n: int) -> set[_Gram]:
    """The different n-grams of words."""
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _match(problem: Problem, best: tuple[_Score, str] | None) -> Match:
    """The strongest match of an evaluation problem, if there is any."""
    if best is None:
        return Match(problem.id, "none", 0.0, None, None)
    score, train = best
    return Match(problem.id, _KINDS[score.level], score.share, train, score.same_gold)
