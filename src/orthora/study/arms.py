"""What a study compares: a method with all its settings but learning rate and seed."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from orthora.config import TrainConfig
from orthora.runs import rate_text
from orthora.study.plan import Cell
from orthora.study.spec import StudySpec

_APART = ("method", "seed", "learning_rate")


class Arm(NamedTuple):
    """A method as a study's tables have it.

    Attributes:
        label: the method, and in what its settings differ from most cells': ``lora, rank 1``.
        method: canonical name.
        rest: what the label says after the method.
    """

    label: str
    method: str
    rest: str

    @property
    def adaptive(self) -> bool:
        """Whether its learning rate follows the measured KL; it then has a first rate alone."""
        return "adaptive-kl" in self.rest


def arms_of(cells: Sequence[Cell]) -> dict[str, Arm]:
    """The arm of every cell, by the cell's name."""
    fields = TrainConfig.model_fields
    keys = sorted({key for cell in cells for key in cell.settings} - {*_APART})
    usual = {}
    for key in keys:
        values = Counter(repr(cell.settings.get(key, fields[key].default)) for cell in cells)
        usual[key] = values.most_common(1)[0][0]
    found = {}
    for cell in cells:
        values = {key: cell.settings.get(key, fields[key].default) for key in keys}
        words = [_words(key, value) for key, value in values.items() if repr(value) != usual[key]]
        rest = ", ".join(words)
        found[cell.name] = Arm(", ".join(filter(None, (cell.method, rest))), cell.method, rest)
    return found


def _words(key: str, value: object) -> str:
    if key == "schedule":
        return str(value)
    if isinstance(value, float):
        return f"{key} {rate_text(value) if 0 < value < 0.01 else f'{value:g}'}"
    return f"{key} {value}"


def check_claims(spec: StudySpec, cells: Sequence[Cell]) -> None:
    """Claims speak of arms that the study has.

    Raises:
        ValueError: naming the claim and the arms that there are.
    """
    labels = {arm.label for arm in arms_of(cells).values()}
    for number, claim in enumerate(spec.claims, 1):
        for name in (*claim.methods, *claim.than):
            if name not in labels:
                raise ValueError(
                    f"claim {number} names {name!r}, which the study does not have; it has: "
                    f"{'; '.join(sorted(labels))}"
                )
        if claim.kind == "stabler" and len(claim.than) != len(claim.methods):
            raise ValueError(f"claim {number}: 'stabler' needs a partner in than for every method")
        if claim.kind == "order" and len(claim.methods) < 2:
            raise ValueError(f"claim {number}: 'order' needs two methods or more")
        if claim.kind == "no-sweep":
            _check_adaptive(number, claim.methods)


def _check_adaptive(number: int, names: Sequence[str]) -> None:
    wrong = [name for name in names if "adaptive-kl" not in name]
    if wrong:
        raise ValueError(
            f"claim {number}: 'no-sweep' is about arms under adaptive-kl, and {wrong[0]!r} is not"
        )
