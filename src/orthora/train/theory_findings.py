"""What is stated, and what was found: a number, its bound, and whether it holds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

from orthora.train.theory_steps import ADAMW, DESCENT

Kind = Literal["theorem", "same argument", "leading order", "measured"]
"""``theorem``: the paper's; ``same argument``: ours, proved alike; ``leading order``: up to a share
that goes to 0 with the step; ``measured``: no theorem, the bound is only compared with."""


@dataclass(frozen=True)
class Statement:
    """One inequality.

    Attributes:
        name: short.
        number: what is measured.
        bound: what it is held against.
        lower: whether the bound is a lower one.
        slack: share by which the number may be on the wrong side, for rounding or higher orders.
    """

    name: str
    number: str
    bound: str
    lower: bool
    slack: float


STATEMENTS = {
    one.name: one
    for one in (
        Statement("A.1", "error of s G A' and s B' G as gradients, relative", "1e-4", False, 0.0),
        Statement("4.1", "|dW1| / |dW1| of the partner", "sigma_min / s", True, 1e-5),
        Statement("4.1 root", "the same ratio", "sqrt(sigma_min / s)", True, 0.0),
        Statement("5.2 factor", "|I - A0'A0|_2", "1 (r < n)", True, 1e-6),
        Statement("5.2 scaled", "the same of the whole step, with s and B0", "1", True, 1e-6),
        Statement("5.2 gap", "|W_T - W_T of full| / T", "eta L (5.2 scaled)", False, 0.02),
        Statement("5.3", "|dW1|, B0 = 0", "s^2 eta |G| |A0|_2^2", False, 1e-5),
        Statement("5.3 sign", "|dW1|, B0 = 0", "eta s sqrt(m r) |A0|_2", False, 1e-5),
        Statement("Zhu step", "|dW1| of all layers", "sqrt(2 K / mu)", False, 0.05),
        Statement("Zhu layer", "|dW1| of one layer, alone", "sqrt(2 K / mu)", False, 0.05),
    )
}
"""All of them, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One statement about one layer.

    Attributes:
        statement: its name.
        kind: what claim is behind the bound.
        method: name.
        optimizer: whose step it is about; empty where it is about none.
        layer: name of the adapted weight; ``all`` for the step of all of them.
        number: measured.
        bound: on it; None where there is nothing to compare it with.
        detail: other figures, by name.
    """

    statement: str
    kind: Kind
    method: str
    optimizer: str
    layer: str
    number: float
    bound: float | None
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """``number / bound``; 1 where both are 0."""
        if self.bound is None:
            return None
        if self.bound == 0.0:
            return math.inf if self.number else 1.0
        return self.number / self.bound

    @property
    def holds(self) -> bool | None:
        """Whether the number is on its side of the bound, within the slack."""
        if self.bound is None:
            return None
        one = STATEMENTS[self.statement]
        if one.lower:
            return self.number >= self.bound * (1 - one.slack)
        return self.number <= self.bound * (1 + one.slack)


@dataclass(frozen=True)
class Line:
    """A statement about a method, over its layers.

    Attributes:
        statement: its name.
        kind: as in `Finding`.
        method: name.
        optimizer: as in `Finding`.
        layers: that were checked; 1 for the step of all layers.
        number: median over the layers.
        worst_margin: the ``number / bound`` nearest to, or furthest over, the bound.
        share: of the layers where it holds.
    """

    statement: str
    kind: Kind
    method: str
    optimizer: str
    layers: int
    number: float
    worst_margin: float | None
    share: float | None


def lines(found: Sequence[Finding]) -> list[Line]:
    """One line per statement, method and optimizer, statement by statement."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in found:
        groups.setdefault((one.statement, one.method, one.optimizer), []).append(one)
    order = list(STATEMENTS)
    made = [_line(group) for group in groups.values()]
    return sorted(made, key=lambda line: order.index(line.statement))  # stable in the methods


def _line(group: Sequence[Finding]) -> Line:
    first = group[0]
    margins = [one.margin for one in group if one.margin is not None]
    held = [one.holds for one in group if one.holds is not None]
    worst = min if STATEMENTS[first.statement].lower else max
    return Line(
        statement=first.statement,
        kind=first.kind,
        method=first.method,
        optimizer=first.optimizer,
        layers=len(group),
        number=statistics.median(one.number for one in group),
        worst_margin=worst(margins) if margins else None,
        share=sum(held) / len(held) if held else None,
    )


def as_json(found: Sequence[Finding]) -> dict[str, Any]:
    """Statements, the table's lines, and every layer's finding, as plain values."""
    return {
        "statements": [asdict(one) for one in STATEMENTS.values()],
        "lines": [asdict(line) for line in lines(found)],
        "layers": [asdict(one) | {"margin": one.margin, "holds": one.holds} for one in found],
    }


_MARKS: dict[Kind, str] = {
    "theorem": "",
    "same argument": "*",
    "leading order": "~",
    "measured": "?",
}


def table(found: Sequence[Finding], title: str) -> Table:
    """For the terminal: per statement and method, both optimizers beside each other.

    Args:
        found: of `orthora.train.theory.theory`.
        title: what the numbers are of.
    """
    shown = Table(
        title=title, title_justify="left", caption=_legend(), caption_justify="left", padding=0
    )
    for head in ("", "method"):
        shown.add_column(head)
    for optimizer in (DESCENT.split()[1], ADAMW):
        for head in (optimizer, "/ bound", "holds"):
            shown.add_column(head, justify="right")
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines(found):
        rows.setdefault((line.statement, line.method), {})[line.optimizer] = line
    last = ""
    for (statement, method), by in rows.items():
        if last and statement != last:
            shown.add_section()
        last = statement
        cells = [*_cells(by.get(DESCENT, by.get(""))), *_cells(by.get(ADAMW))]
        shown.add_row(statement, method, *cells)
    return shown


def _cells(line: Line | None) -> tuple[str, str, str]:
    if line is None:
        return "", "", ""
    margin = "" if line.worst_margin is None else f"{line.worst_margin:.3g}"
    held = "" if line.share is None else f"{round(line.share * line.layers)}/{line.layers}"
    return f"{line.number:.3g}", margin, held + _MARKS[line.kind]


def _legend() -> str:
    """What the short names mean."""
    rows = [
        f"{one.name}: {one.number} {'>=' if one.lower else '<='} {one.bound}"
        for one in STATEMENTS.values()
    ]
    how = (
        f"{DESCENT} beside {ADAMW}: median of the layers, the worst ratio to the bound, in how "
        "many layers it holds; * not in the paper, by its argument; ~ to leading order; ? measured"
    )
    return "\n".join([*rows, how])
