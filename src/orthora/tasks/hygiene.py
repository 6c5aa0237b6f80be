"""Problems that a data set holds twice, and those that it holds with different golds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from orthora.tasks.statements import gold_key, statement
from orthora.types import Problem

DROPS = ("duplicates", "contradictions")
"""What `cleaned` can drop."""

Group = tuple[str, ...]
"""Ids of problems that say the same, in order."""


@dataclass(frozen=True)
class Audit:
    """What a data set repeats. Problems are the same where only blanks differ.

    Attributes:
        rows: of the data set.
        unique: different problems.
        duplicates: groups of two or more rows with the same problem and the same gold.
        contradictions: groups of rows with the same problem and two golds or more.
    """

    rows: int
    unique: int
    duplicates: tuple[Group, ...]
    contradictions: tuple[Group, ...]

    @property
    def surplus(self) -> int:
        """Rows that dropping duplicates would take away."""
        return sum(len(group) - 1 for group in self.duplicates)


def audit(problems: Sequence[Problem]) -> Audit:
    """Look for repeated and for contradictory problems.

    Args:
        problems: of one data set.

    Returns:
        Counts, and the groups by id in the order of their first rows.
    """
    groups = _by_gold(problems)
    same = [ids for golds in groups.values() for ids in golds.values()]
    different = [golds for golds in groups.values() if len(golds) > 1]
    return Audit(
        rows=len(problems),
        unique=len(groups),
        duplicates=tuple(_ids(problems, rows) for rows in same if len(rows) > 1),
        contradictions=tuple(_ids(problems, chain(*golds.values())) for golds in different),
    )


def check_drop(drop: Iterable[str]) -> tuple[str, ...]:
    """Check what is to be dropped.

    Args:
        drop: names, or one name.

    Returns:
        The names.

    Raises:
        ValueError: if one is not of `DROPS`.
    """
    chosen = (drop,) if isinstance(drop, str) else tuple(drop)
    for name in chosen:
        if name not in DROPS:
            raise ValueError(f"can't drop {name!r}; choose of {', '.join(DROPS)}")
    return chosen


def cleaned(problems: Sequence[Problem], drop: Iterable[str]) -> list[Problem]:
    """Leave repeated or contradictory problems out.

    Args:
        problems: of one data set.
        drop: of `DROPS`. ``"duplicates"`` keeps the first row of each problem and gold;
            ``"contradictions"`` keeps no row of a problem that has two golds.

    Returns:
        The rest, in order.

    Raises:
        ValueError: for anything else in ``drop``, or if nothing is left.
    """
    chosen = check_drop(drop)
    if not chosen:
        return list(problems)
    kept: list[int] = []
    for golds in _by_gold(problems).values():
        if len(golds) > 1 and "contradictions" in chosen:
            continue
        for rows in golds.values():
            kept += rows[:1] if "duplicates" in chosen else rows
    if not kept:
        raise ValueError(f"dropping {' and '.join(chosen)} leaves no problem; drop less")
    return [problems[row] for row in sorted(kept)]


def _by_gold(problems: Sequence[Problem]) -> dict[str, dict[str, list[int]]]:
    """Rows by problem, and then by gold."""
    groups: dict[str, dict[str, list[int]]] = {}
    for row, problem in enumerate(problems):
        golds = groups.setdefault(" ".join(statement(problem).split()), {})
        golds.setdefault(gold_key(problem), []).append(row)
    return groups


def _ids(problems: Sequence[Problem], rows: Iterable[int]) -> Group:
    """Ids of rows, in order."""
    return tuple(problems[row].id for row in sorted(rows))
