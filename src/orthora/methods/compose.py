"""Compositions of an initialisation, structures and an optimizer: ``rlmo+rslora+lora-plus``.

The parts stand in any order, each axis has a default (``lora``, plain B A, AdamW), and a pair that
has no meaning is refused with the reason.
"""

import difflib
import math
from dataclasses import dataclass

from orthora.methods import registry
from orthora.methods.registry import Method
from orthora.methods.structural import OPTIMIZERS, STRUCTURES, Export, OptimizerRecord, Structure

DEFAULT_START = "lora"
PLAIN = "lora"


@dataclass(frozen=True)
class Composition:
    """What a method's name means.

    Attributes:
        init: where A and B start; ``lora`` where nothing else is said.
        structures: modifiers first, at most one that is none.
        optimizer: None is AdamW.
    """

    init: Method
    structures: tuple[Structure, ...]
    optimizer: OptimizerRecord | None

    @property
    def name(self) -> str:
        """The canonical name: initialisation, structures, optimizer; defaults are left out."""
        parts = [structure.name for structure in self.structures]
        parts += [self.optimizer.name] if self.optimizer else []
        started = self.init.name != DEFAULT_START or not parts
        return "+".join([self.init.name, *parts] if started else parts)

    @property
    def start(self) -> str:
        """The part that decides A0 and B0: the initialisation, and rsLoRA, which sets the scale."""
        return self.init.name + ("+rslora" if self.has("rslora") else "")

    def scale(self, rank: int, alpha: float | int) -> float:
        """S of ``W + s B A``: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return alpha / (math.sqrt(rank) if self.has("rslora") else rank)

    @property
    def structure(self) -> str:
        """The structure that is no modifier; ``"lora"`` is plain B A."""
        main = [structure.name for structure in self.structures if not structure.modifier]
        return main[0] if main else PLAIN

    @property
    def moves_by_product(self) -> bool:
        """Whether a weight's whole change is ``s (B A - B0 A0)``, whose norm is cheap to read."""
        return self.structure == PLAIN

    def has(self, structure: str) -> bool:
        """Whether it includes the structure of this name."""
        return any(one.name == structure for one in self.structures)

    @property
    def has_factors(self) -> bool:
        """Whether A and B are trained from the start that ``init`` gives."""
        return not any(structure.unstarted for structure in self.structures)

    @property
    def export(self) -> Export:
        """How the trained model leaves orthora."""
        merged = any(structure.export == "merged" for structure in self.structures)
        return "merged" if merged else "peft"

    @property
    def overrides(self) -> str:
        """Which of the run's settings it does not take; empty if it takes all."""
        return "; ".join(one.overrides for one in self.structures if one.overrides)


def compose(name: str) -> Composition:
    """The composition that ``name`` stands for.

    Args:
        name: parts joined by ``+``, in any order; case and underscores don't matter. A trailing
            ``+`` of ``lora+`` belongs to that name.

    Raises:
        ValueError: an unknown part, two of one kind, or a pair without a meaning, with the reason.
    """
    init: Method | None = None
    structures: list[Structure] = []
    optimizer: OptimizerRecord | None = None
    for part in _parts(name):
        record = _find(part)
        if isinstance(record, Method):
            if init is not None:
                raise ValueError(
                    f"{name!r} names two initialisations, {init.name} and {record.name}; A and B "
                    "have one start, choose one"
                )
            init = record
        elif isinstance(record, Structure):
            structures.append(record)
        else:
            if optimizer is not None:
                raise ValueError(
                    f"{name!r} names two optimizers, {optimizer.name} and {record.name}; choose one"
                )
            optimizer = record
    structures.sort(key=lambda one: (not one.modifier, one.name))
    found = Composition(init or registry.get(DEFAULT_START), tuple(structures), optimizer)
    _check_structures(name, found.structures)
    _check_start(name, init, found.structures)
    _check_optimizer(name, found)
    return found


def names(kind: str | None = None) -> list[str]:
    """Canonical names of all methods, sorted: initialisations, structures and optimizers.

    Args:
        kind: only ``"initialisation"``, ``"structure"`` or ``"optimizer"``.

    Raises:
        ValueError: an unknown kind.
    """
    by_kind: dict[str, list[str]] = {
        "initialisation": registry.names(),
        "structure": list(STRUCTURES),
        "optimizer": list(OPTIMIZERS),
    }
    if kind is None:
        return sorted(name for group in by_kind.values() for name in group)
    if kind not in by_kind:
        raise ValueError(f"unknown kind {kind!r}; choose {', '.join(by_kind)}")
    return sorted(by_kind[kind])


def compositions() -> list[str]:
    """Canonical names of every legal composition, sorted."""
    structures = [(), *((one,) for one in STRUCTURES)]
    modifiers = [one.name for one in STRUCTURES.values() if one.modifier]
    structures += [(a, b) for a in modifiers for b in STRUCTURES if a != b]
    found = set()
    for init in registry.names():
        for structure in structures:
            for optimizer in ("", *OPTIMIZERS):
                name = "+".join(filter(None, (init, *structure, optimizer)))
                try:
                    found.add(compose(name).name)
                except ValueError:
                    continue
    return sorted(found)


def table(kind: str) -> list[tuple[str, ...]]:
    """The records of one kind as rows of text, the heading first."""
    rows: list[tuple[str, ...]]
    if kind == "initialisation":
        rows = [("name", "start", "anchored", "reference")]
        for name in registry.names():
            one = registry.get(name)
            anchored = "yes" if one.anchored else "no"
            rows.append((_named(name, one.aliases), one.claim, anchored, one.reference))
    elif kind == "structure":
        rows = [("name", "what it does", "what trains", "reference")]
        for name, record in sorted(STRUCTURES.items()):
            rows.append(
                (_named(name, record.aliases), record.claim, record.trains, record.reference)
            )
    else:
        rows = [("name", "what it does", "reference")]
        for name, optimizer in sorted(OPTIMIZERS.items()):
            rows.append((_named(name, optimizer.aliases), optimizer.claim, optimizer.reference))
    return rows


def markdown(kind: str) -> str:
    """`table` as README shows it."""
    head, *rows = (f"| {' | '.join(row)} |" for row in table(kind))
    return "\n".join([head, "| --- " * head.count(" | ") + "| --- |", *rows])


def _named(name: str, aliases: tuple[str, ...]) -> str:
    return f"`{name}`" + (f" ({', '.join(f'`{a}`' for a in aliases)})" if aliases else "")


def _parts(name: str) -> list[str]:
    """The parts of a name, normalised; ``lora+`` is one of them."""
    if not isinstance(name, str):
        raise ValueError(f"method must be a name such as 'rlpo+dora', got {name!r}")
    text = name.strip().lower().replace("_", "-")
    text = text.replace("lora++", "lora-plus+")
    text = text.removesuffix("lora+") + "lora-plus" if text.endswith("lora+") else text
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise ValueError(f"method {name!r} has an empty part; write e.g. 'rlpo+dora'")
    if len(set(parts)) < len(parts):
        twice = next(part for part in parts if parts.count(part) > 1)
        raise ValueError(f"method {name!r} names {twice!r} twice")
    return parts


def _find(part: str) -> Method | Structure | OptimizerRecord:
    """The record of one part, of whichever kind.

    Raises:
        ValueError: if there is none, with the nearest name and the whole list.
    """
    for record in STRUCTURES.values():
        if part in (record.name, *record.aliases):
            return record
    for optimizer in OPTIMIZERS.values():
        if part in (optimizer.name, *optimizer.aliases):
            return optimizer
    if part in registry.known():
        return registry.get(part)
    known = [*registry.known(), *STRUCTURES, *OPTIMIZERS]
    near = difflib.get_close_matches(part, known, n=1, cutoff=0.65)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"unknown method {part!r}.{hint} Available: {', '.join(names())}; joined by +, e.g. "
        "'rlpo+dora'"
    )


def _check_structures(name: str, structures: tuple[Structure, ...]) -> None:
    """At most one structure that is no modifier, and modifiers only of B A."""
    main = [one for one in structures if not one.modifier]
    if len(main) > 1:
        raise ValueError(
            f"{name!r} names two structures, {main[0].name} and {main[1].name}; a layer has one, "
            "choose one"
        )
    for modifier in structures:
        if modifier.modifier and main and main[0].unstarted:
            raise ValueError(
                f"{modifier.name} does not combine with {main[0].name}: it is the scale of a "
                f"trained B A, and {main[0].unstarted}; leave {modifier.name} out"
            )


def _check_start(name: str, init: Method | None, structures: tuple[Structure, ...]) -> None:
    """No initialisation where A and B do not start from one."""
    for structure in structures:
        if init is not None and init.name != DEFAULT_START and structure.unstarted:
            raise ValueError(
                f"{init.name} does not combine with {structure.name}: {structure.unstarted}; use "
                f"{structure.name!r} alone, or {init.name!r} with plain LoRA, rslora or dora"
            )


def _check_optimizer(name: str, found: Composition) -> None:
    """The optimizer is defined for the structure."""
    optimizer = found.optimizer
    if optimizer and found.structure not in optimizer.structures:
        raise ValueError(
            f"{optimizer.name} does not combine with {found.structure}: {optimizer.why}, and "
            f"{found.structure} is {STRUCTURES[found.structure].claim}; leave one of them out"
        )
