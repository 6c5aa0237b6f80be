"""What a study compares: a method with all its settings but learning rate and seed.

A first rate of adaptive-kl is a setting: were it picked like a fixed rate, there would be a sweep.
So is the one reference of a matched rate; several are rates of one arm.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orthora.config import read_toml
from orthora.runs import rate_text
from orthora.study.plan import Cell
from orthora.study.spec import ClaimConfig, StudySpec

_APART = ("method", "seed", "learning_rate")


class Arm(NamedTuple):
    """A method as a study's tables have it.

    Attributes:
        label: the method, and in what its settings differ from the study's base and settings, where
            cells differ in it at all: ``lora, rank 1``.
        method: canonical name.
        rest: what the label says after the method.
        finds: how a run finds its learning rate where none is swept: ``adaptive-kl``, or ``match``,
            the probe's; "" where rates are swept.
        settings: all in which cells of the study differ, with their values.
    """

    label: str
    method: str
    rest: str
    finds: str
    settings: Mapping[str, Any]


def arms_of(spec: StudySpec, cells: Sequence[Cell]) -> dict[str, Arm]:
    """The arm of every cell, by the cell's name."""
    base = Cell("", "", read_toml(spec.base) | spec.settings)
    keys = sorted({key for cell in cells for key in cell.settings} - {*_APART})
    values = {key: [_value(cell, key) for cell in cells] for key in keys}
    keys = [key for key in keys if any(one != values[key][0] for one in values[key])]
    several = len({_first(cell) for cell in cells if _adaptive(cell)}) > 1
    found, references = {}, {}
    for place, cell in enumerate(cells):
        own = {key: values[key][place] for key in keys}
        words = [_words(key, value) for key, value in own.items() if value != _value(base, key)]
        if _adaptive(cell) and several:
            own[_FROM] = _first(cell)
            words.append(f"from {_first(cell)}")
        rest = ", ".join(words)
        label = ", ".join(filter(None, (cell.method, rest)))
        references.setdefault(label, set()).add(cell.get("learning_rate_match"))
        found[cell.name] = Arm(label, cell.method, rest, "adaptive-kl" * _adaptive(cell), own)
    for name, arm in found.items():
        of = references[arm.label]
        if not arm.finds and len(of) == 1 and None not in of:
            found[name] = arm._replace(finds="match")
    return found


def _adaptive(cell: Cell) -> bool:
    return cell.get("schedule") == "adaptive-kl"


_FROM = "first rate"


def reference_of(label: str, arms: Mapping[str, Arm], reference: str) -> str | None:
    """The arm that an arm is compared with: the reference in the same settings, or else plain.

    Args:
        label: of the arm.
        arms: all of them, by label.
        reference: the study's.
    """
    own = [one for one in arms.values() if one.method == reference and one.label != label]
    mine = arms[label]
    same = [one.label for one in own if one.settings == mine.settings]
    near = [one.label for one in own if _without(one, _FROM) == _without(mine, _FROM)]
    plain = [one.label for one in own if not one.rest]
    return next(iter((*same, *near, *plain)), None)


def fixed_partner(label: str, arms: Mapping[str, Arm]) -> str | None:
    """Of an arm that sweeps no rate, the same method at fixed ones, constant ones if there are."""
    own = arms[label]
    gone = (_FROM, "learning_rate_match")
    if own.finds == "adaptive-kl":
        gone += ("schedule", "kl_")
    same = [
        one
        for one in arms.values()
        if not one.finds
        and one.method == own.method
        and _without(one, *gone) == _without(own, *gone)
    ]
    same.sort(key=_plainness)
    return next((one.label for one in same), None)


def _plainness(arm: Arm) -> tuple[bool, bool]:
    """Rates as given come first, then a constant schedule."""
    other = arm.settings.get("schedule", "constant") != "constant"
    return arm.settings.get("learning_rate_match") is not None, other


def _without(arm: Arm, *gone: str) -> dict[str, Any]:
    """An arm's settings but for some."""
    return {key: value for key, value in arm.settings.items() if not key.startswith(gone)}


def _first(cell: Cell) -> str:
    """Where adaptive-kl begins."""
    return cell.get("learning_rate_match") or rate_text(cell.rate)


def _value(cell: Cell, key: str) -> Any:
    """A setting, but for its learning rate: ``kl:lora@1e-5`` and ``@1e-4`` are two rates."""
    value = cell.get(key)
    return value.partition("@")[0] if value and key == "learning_rate_match" else value


def _words(key: str, value: object) -> str:
    if key == "schedule":
        return str(value)
    if key == "learning_rate_match":
        return f"match-{value}"
    if isinstance(value, float):
        return f"{key} {rate_text(value) if 0 < value < 0.01 else f'{value:g}'}"
    return f"{key} {value}"


def check_claims(spec: StudySpec, cells: Sequence[Cell]) -> None:
    """Claims speak of arms that the study has, and of something to compare them with.

    Raises:
        ValueError: naming the claim, and the arms that there are.
    """
    arms = {arm.label: arm for arm in arms_of(spec, cells).values()}
    if spec.reference not in {arm.method for arm in arms.values()}:
        raise ValueError(
            f"the reference {spec.reference!r} is no method of the study; it has: {'; '.join(arms)}"
        )
    for number, claim in enumerate(spec.claims, 1):
        try:
            _check_claim(claim, arms, spec.reference)
        except ValueError as error:
            raise ValueError(f"claim {number} ({claim.kind}): {error}") from error


def _check_claim(claim: ClaimConfig, arms: Mapping[str, Arm], reference: str) -> None:
    """One claim.

    Raises:
        ValueError: saying what is wrong with it.
    """
    named = (*claim.methods, *claim.than)
    for name in named:
        if name not in arms:
            raise ValueError(f"{name!r} is no arm of the study; it has: {'; '.join(arms)}")
    for names in (claim.methods, () if claim.kind == "stabler" else claim.than):
        if len(set(names)) < len(names):
            raise ValueError("an arm is named twice; leave one out")
    if set(claim.methods) & set(claim.than):
        raise ValueError("an arm is compared with itself; leave it out")
    if claim.lower_kl and claim.kind != "order":
        raise ValueError("lower_kl is for 'order'; leave it out")
    if claim.than and claim.kind not in ("better", "worse", "stabler"):
        raise ValueError("than is for 'better', 'worse' and 'stabler'; leave it out")
    if claim.kind == "stabler" and any(arms[name].finds for name in named):
        word = next(arms[name].finds for name in named if arms[name].finds)
        raise ValueError(f"an arm under {word} has no sweep; compare it by 'better'")
    if claim.kind == "stabler" and len(claim.than) != len(claim.methods):
        raise ValueError("it needs a partner in than for every method")
    if claim.kind in ("order", "equal") and len(claim.methods) < 2:
        raise ValueError("it needs two methods or more")
    for name in claim.methods:
        if claim.kind == "no-sweep" and not arms[name].finds:
            raise ValueError(
                f"it is about arms under adaptive-kl, or with one matched rate; {name!r} is none"
            )
        if claim.kind == "no-sweep" and fixed_partner(name, arms) is None:
            raise ValueError(f"{name!r} has no partner at fixed rates")
        alone = claim.kind in ("better", "worse", "collapses") and not claim.than
        if alone and reference_of(name, arms, reference) is None:
            raise ValueError(f"{name!r} has no reference to be compared with")
