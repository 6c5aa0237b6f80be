"""A study as its file says it: a base, a grid, what is measured, and what is claimed."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from orthora.config import EvalConfig, Strict, build, read_toml
from orthora.methods import compose

Names = Annotated[list[str], Field(min_length=1)]
Kind = Literal["collapses", "worse", "better", "order", "stabler", "equal", "no-sweep"]
_FIXED = ("model", "adapter", "out", "any_base", "checkpoints")
"""Of an evaluation: what the study itself says."""


class ClaimConfig(Strict):
    """A sentence about methods, which the report judges by the study's numbers."""

    says: str = Field(min_length=1)
    """The claim, in words."""
    kind: Kind
    """``worse``, ``better``: every one of ``methods`` against ``than``. ``order``: the first of
    ``methods`` is above the last, and each at least as good as the next. ``collapses``: most runs
    end below half the base. ``stabler``: each of ``methods`` against its partner in ``than``, over
    the whole sweep. ``equal``: ``methods`` at their own best rates. ``no-sweep``: adaptive-kl,
    or one matched rate, against the swept best of the same method."""
    methods: Names
    """Arms of the study: a method, or ``method, setting`` as its tables have them."""
    than: list[str] = Field(default_factory=list)
    """What they are compared with; left out, the study's reference."""
    lower_kl: bool = False
    """The claim adds that ``methods`` stay nearer to the base model (KL) than the last of them."""
    source: str = ""
    """Where the claim was made."""


class StudySpec(Strict):
    """Runs that differ in what the grid says, and in nothing else.

    Every table of ``grid`` is a product: its lists are axes, anything else is one value (a value
    that is itself a list stands in a list). The grid is the union of its tables.
    """

    command: ClassVar[str] = "orthora study run"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the study; its folder knows it by this."""
    about: str = ""
    """What it asks, in a sentence or two."""
    base: str
    """Preset, or TOML file of ``orthora train`` beside the study's file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of all runs, on top of ``base``."""
    grid: list[dict[str, Any]] = Field(min_length=1)
    """Axes: method, learning_rate, seed, rank, schedule, or any other setting of a run."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Cells to leave out: those that have all of a table's settings; ``reason`` says why."""
    differences: list[str] = Field(default_factory=list)
    """Settings in which methods may differ, beside the method itself."""
    evaluations: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> settings of ``orthora eval`` (``preset`` names one to begin with), done with every
    run's adapter and with the base model."""
    select: str | list[str] | None = None
    """Evaluation, or several whose mean counts, by which learning rates are picked; left out, the
    one that is reported, which flatters the best."""
    report: str | list[str] | None = None
    """Evaluation, or several whose mean counts, that is reported; left out, the first one."""
    reference: str = "lora"
    """Method that the others are compared with."""
    margin: float = Field(0.02, gt=0, lt=1)
    """Difference of pass@1 below which two methods count as equal."""
    claims: list[ClaimConfig] = Field(default_factory=list)
    """What to judge."""
    out: str | None = Field(None, min_length=1)
    """Folder; left out, ``runs/NAME``."""
    reuse: list[str] = Field(default_factory=list)
    """Folders of other studies: a cell that has ended there is copied, and not run again."""
    cpus: int = Field(1, ge=1, le=4096)
    """Cores that a run needs: its ``threads`` should be as many."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that a run needs: a whole number, or below 1 where runs share one."""
    retries: int = Field(3, ge=0)
    """Times that a run goes on from its checkpoint after its process or node was lost."""
    stalled_after: float | None = Field(None, gt=0)
    """Minutes in which a run must write something: a step, samples of an evaluation, a checkpoint.
    One that does not is ended and counts as lost. Left out, a run may take its time."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished runs, for ``orthora measure``."""
    parameters: float | None = Field(None, gt=0)
    """Of the model, for the plan's estimate of costs; left out, counted where the model is at
    hand."""
    flops_per_second: float | None = Field(None, gt=0)
    """That a cell's device really delivers, for the same; left out, no time is estimated before a
    run has finished."""

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus {gpus:g} is no whole number and not below 1")
        return gpus

    @field_validator("evaluations")
    @classmethod
    def _plain_names(cls, table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in table:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(
                    f"evaluation {name!r} is no plain name: letters, digits, '.', '-', '_'"
                )
        return table

    @field_validator("reference")
    @classmethod
    def _canonical(cls, name: str) -> str:
        return compose(name).name

    @property
    def folder(self) -> Path:
        """Where everything is kept."""
        return Path(self.out or f"runs/{self.name}")

    def reported(self) -> tuple[str, ...]:
        """The evaluations whose mean is reported."""
        return _listed(self.report) or tuple(self.evaluations)[:1]

    def selected(self) -> tuple[str, ...]:
        """The evaluations by whose mean rates are picked."""
        return _listed(self.select) or self.reported()


def _listed(names: str | list[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def load_study(file: str | Path) -> StudySpec:
    """Read a study's file.

    Args:
        file: TOML.

    Raises:
        ValueError: naming what is wrong, with the nearest known key.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(
            f"no study file {str(file)!r}; give a TOML file, such as those in studies/"
        )
    table = read_toml(path)
    claims = table.get("claims", [])
    if isinstance(claims, list):
        table["claims"] = [
            _nested(ClaimConfig, claim, f"claim {place}") for place, claim in enumerate(claims, 1)
        ]
    if not table.get("evaluations") and table.keys() <= StudySpec.model_fields.keys():
        raise ValueError("a study needs an evaluation of its runs, such as [evaluations.test]")
    spec = build(StudySpec, table)
    _check_named(spec)
    for name in spec.evaluations:
        evaluation_of(spec, name)
    beside = path.parent / spec.base
    return spec.model_copy(update={"base": str(beside)}) if beside.is_file() else spec


def _nested(kind: type[Strict], table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}, not a table with says, kind, methods")
    try:
        return build(kind, table)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_named(spec: StudySpec) -> None:
    """Evaluations that are named are there."""
    for key in ("select", "report"):
        names = _listed(getattr(spec, key))
        if getattr(spec, key) == [] or len({*names}) < len(names):
            raise ValueError(f"{key} {list(names)} must name evaluations, each once")
        for name in names:
            if name in spec.evaluations:
                continue
            near = difflib.get_close_matches(name, spec.evaluations, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(spec.evaluations) or "there are none"
            raise ValueError(f"{key} {name!r} is none of the evaluations ({known}).{hint}")


def evaluation_of(spec: StudySpec, name: str) -> EvalConfig:
    """An evaluation of the base model; the runner puts a run's adapter in.

    Raises:
        ValueError: naming the evaluation and what is wrong with it.
    """
    own = dict(spec.evaluations[name])
    preset = own.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise ValueError(f"evaluation {name!r}: preset {preset!r} is no name")
    try:
        table = (read_toml(preset) if preset else {}) | own
        for key in _FIXED:
            if key in table:
                raise ValueError(f"{key} is set by the study; leave it out")
        return build(EvalConfig, {"model": "tiny"} | table)
    except ValueError as error:
        raise ValueError(f"evaluation {name!r}: {error}") from error
