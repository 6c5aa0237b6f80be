"""Synthetic studies: cells with the scores that a test says, compared by the real code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthora.config import read_toml
from orthora.study.arms import arms_of
from orthora.study.compare import Comparisons
from orthora.study.plan import Cell
from orthora.study.results import Record, Results
from orthora.study.spec import ClaimConfig, StudySpec

TEST: dict[str, Any] = {"task": "arithmetic", "problems": 256, "samples": 4}
NUMBERS = ("kl_update", "kl_base", "first_norm", "peak_grad", "end_pass_rate")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Of most synthetic studies."""
ADAPTIVE = {"schedule": "adaptive-kl"}
BASE = {key: value for key, value in read_toml("tiny").items() if key != "out"}
"""What all synthetic cells have in common."""


@dataclass(frozen=True)
class Entry:
    """One cell of a synthetic study, and what it gave.

    Attributes:
        method: canonical name.
        rate: learning rate.
        seed: of the run.
        score: reported; None where there is none.
        select: that rates are picked by; left out, the reported one.
        state: finished, failed or missing.
        by_training: training ended it.
        numbers: of the record.
        passes: pass rate of every training step.
        seconds: of training.
        parameters: trained.
        settings: others of the run.
    """

    method: str
    rate: float
    seed: int
    score: Fraction | int | None
    select: Fraction | int | None = None
    state: str = "finished"
    by_training: bool = False
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    passes: Sequence[float] = ()
    seconds: float | None = None
    parameters: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        """As a plan would have it."""
        own = {"method": self.method, "learning_rate": self.rate, "seed": self.seed}
        extra = "".join(f"-{value}" for value in self.settings.values())
        name = f"{self.method}-{self.rate:g}-s{self.seed}{extra}"
        return Cell(name, name, BASE | own | self.settings)


def spec(**changes: Any) -> StudySpec:
    """A study with a validation and a test set; its grid is not looked at."""
    evaluations = {"validation": TEST | {"data_split": "validation"}, "test": TEST}
    table = {
        "name": "synthetic",
        "base": "tiny",
        "grid": [{"seed": 0}],
        "evaluations": evaluations,
        "select": "validation",
        "report": "test",
    }
    return StudySpec(**(table | changes))


def compared(entries: Iterable[Entry], *, base: float | None = 0.5, **changes: Any) -> Comparisons:
    """Comparisons of a synthetic study.

    Args:
        entries: its cells.
        base: score of the base model; None if it was not scored.
        changes: to the study's settings.
    """
    entries = list(entries)
    study = spec(**changes)
    arms = arms_of(study, [one.cell for one in entries])
    records = []
    for one in entries:
        scores = {}
        if one.score is not None:
            scores = {"validation": one.score if one.select is None else one.select}
            scores["test"] = one.score
        records.append(
            Record(
                one.cell,
                arms[one.cell.name],
                one.state,
                None if one.state == "finished" else "for some reason",
                one.by_training,
                60 if one.score is not None else None,
                {name: Fraction(score) for name, score in scores.items()},
                dict.fromkeys(NUMBERS) | dict(one.numbers),
                one.passes,
                one.seconds,
                one.parameters,
            )
        )
    return Comparisons(Results(study, records, known_bases(base)))


def known_bases(base: float | None) -> dict[str, dict[str, float]]:
    """Scores of the base model, if there are any."""
    return {"tiny": {} if base is None else {"validation": base, "test": base}}


def claim(kind: str, methods: Sequence[str], *than: str, **more: Any) -> ClaimConfig:
    """A claim of some kind."""
    return ClaimConfig(
        says=f"{kind} {', '.join(methods)}", kind=kind, methods=list(methods), than=[*than], **more
    )


METHODS = ("lora", "rlpo", "rlmo", "pissa", "milora", "olora")
_FRACTIONS = [Fraction(count, 1024) for count in range(1025)]


class Simulated:
    """Studies with given scores, one after another, without building what they have in common."""

    def __init__(
        self,
        methods: Sequence[str] = METHODS,
        rates: Sequence[float] = RATES,
        seeds: int = 8,
        **changes: Any,
    ) -> None:
        cells = [
            Entry(method, rate, seed, None).cell
            for method in methods
            for rate in rates
            for seed in range(seeds)
        ]
        self.spec = spec(**changes)
        arms = arms_of(self.spec, cells)
        self.cells = [(cell, arms[cell.name]) for cell in cells]

    def __call__(self, counts: NDArray[np.int64], base: float = 0.5) -> Comparisons:
        """A study.

        Args:
            counts: right answers of 1024, by method, rate and seed.
            base: score of the base model.
        """
        none = dict.fromkeys(NUMBERS)
        records = []
        for (cell, arm), count in zip(self.cells, counts.ravel().tolist(), strict=True):
            score = _FRACTIONS[count]
            scores = {"validation": score, "test": score}
            records.append(
                Record(cell, arm, "finished", None, False, 60, scores, none, (), None, None)
            )
        return Comparisons(Results(self.spec, records, known_bases(base)))
