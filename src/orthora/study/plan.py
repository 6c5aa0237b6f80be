"""A study's cells: one run each, with a stable name and a hash of what it is."""

import difflib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthora.config import TrainConfig, build, read_toml
from orthora.config.match import parse_match
from orthora.config.starting import check_start
from orthora.methods import compose
from orthora.runs import rate_text
from orthora.study.spec import StudySpec

Settings = dict[str, Any]
_DEFAULTS: Settings = json.loads(
    json.dumps({k: one.default for k, one in TrainConfig.model_fields.items()
                if not one.is_required()})
)  # fmt: skip
_OWN = ("out",)
"""Settings of a run that its identity does not depend on."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study.

    Attributes:
        name: of its folder: method, learning rate, rank, seed, and the beginning of its hash. It
            does not depend on the rest of the grid.
        hash: of all its settings that are not defaults, without ``out``.
        settings: those, as JSON.
    """

    name: str
    hash: str
    settings: Settings

    def config(self, folder: Path) -> TrainConfig:
        """The run's config.

        Args:
            folder: of the study.
        """
        return TrainConfig(**self.settings, out=str(folder / "runs" / self.name))

    def get(self, key: str) -> Any:
        """A setting of the run, as JSON; where the grid is silent, its default."""
        return self.settings.get(key, _DEFAULTS.get(key))

    @property
    def method(self) -> str:
        """Canonical name."""
        return self.get("method")

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.get("seed")

    @property
    def rate(self) -> float:
        """Learning rate, or where adaptive-kl begins."""
        return self.get("learning_rate")


def plan(spec: StudySpec, *, starting: bool = False) -> list[Cell]:
    """All cells, seed by seed, so that a study that is cut short has whole seeds.

    Args:
        spec: the study.
        starting: its runs are to begin, and no mistake may be in them (`check_start`); what is
            only read may have been made when less was refused.

    Raises:
        ValueError: an unknown or impossible setting, an empty grid, the same cell twice, an
            exclusion of nothing, or methods that differ in what the study does not declare.
    """
    base = read_toml(spec.base) | spec.settings
    base.pop("out", None)
    base["threads"] = base.get("threads") or spec.cpus  # sums depend on it
    _check_keys(spec)
    cells: list[Cell] = []
    seen: dict[str, tuple[int, Cell]] = {}
    shared: dict[Any, Any] = {}
    for number, table in enumerate(spec.grid, 1):
        for point in _points(table, number):
            cell = _cell(base | point, f"grid {number}, {_words(point)}", shared, starting)
            if cell.hash in seen:
                before = seen[cell.hash][0]
                also = f"grid {before} and {number}" if before != number else f"grid {number}"
                raise ValueError(
                    f"two cells have one hash: {cell.name} comes twice ({also}); leave one out"
                )
            seen[cell.hash] = number, cell
            cells.append(cell)
    _check_fair(spec, cells)
    kept = _without_excluded(spec, cells)
    _check_seeds(kept)
    if not kept:
        raise ValueError("the grid is empty: everything is excluded")
    kept.sort(key=lambda cell: cell.seed)
    return kept


def _check_keys(spec: StudySpec) -> None:
    """Every key is a setting of a run."""
    tables = [("settings", spec.settings), *((f"grid {n}", t) for n, t in enumerate(spec.grid, 1))]
    tables += [(f"exclude {n}", t) for n, t in enumerate(spec.exclude, 1)]
    tables += [("differences", dict.fromkeys(spec.differences))]
    for where, table in tables:
        for key in table:
            if key == "reason" and where.startswith("exclude"):
                continue
            if key in _OWN:
                raise ValueError(f"{where}: {key} is set by the study; leave it out")
            if key not in TrainConfig.model_fields:
                near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1, cutoff=0.6)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{where}: {key!r} is no setting of a run.{hint}")


def _points(table: Mapping[str, Any], number: int) -> Iterator[Settings]:
    """The product of a table's axes."""
    axes = [value if isinstance(value, list) else [value] for value in table.values()]
    empty = [key for key, axis in zip(table, axes, strict=True) if not axis]
    if empty or not table:
        raise ValueError(
            f"grid {number} is empty: {f'axis {empty[0]!r} has no values' if empty else 'no axes'}"
        )
    for values in itertools.product(*axes):
        yield dict(zip(table, values, strict=True))


def _words(point: Settings) -> str:
    return ", ".join(f"{key} {value}" for key, value in point.items())


def _cell(table: Settings, where: str, shared: dict[Any, Any], starting: bool) -> Cell:
    """The cell of some settings; ``shared`` keeps equal values once."""
    try:
        config = build(TrainConfig, table | {"out": "?"})
        if starting:
            check_start(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    settings = config.model_dump(mode="json", exclude_defaults=True)
    del settings["out"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    settings = {
        key: shared.setdefault((key, repr(value)), value) for key, value in settings.items()
    }
    return Cell(f"{_title(config)}-{digest[:8]}", digest, settings)


def _title(config: TrainConfig) -> str:
    """What a person looks for in a folder's name."""
    rate = rate_text(config.learning_rate)
    if config.learning_rate_match:
        rate = "match-" + config.learning_rate_match.replace(":", "-").replace("@", "-at-")
    if config.schedule == "adaptive-kl":
        rate = f"kl{rate_text(config.kl_target)}-from-{rate}"
    elif config.schedule != "constant":
        rate += f"-{config.schedule}"
    return f"{config.method}-{rate}-r{config.rank}-s{config.seed}"


def _check_fair(spec: StudySpec, cells: Sequence[Cell]) -> None:
    """Methods have the same settings, but for what is declared.

    Raises:
        ValueError: naming two methods and the setting in which they differ.
    """
    free = {"method", *spec.differences}
    by: dict[str, list[Settings]] = {}
    for cell in cells:
        rest = {key: value for key, value in cell.settings.items() if key not in free}
        by.setdefault(cell.method, []).append(rest)
    first = spec.reference if spec.reference in by else next(iter(by))
    mine = {_key(rest) for rest in by[first]}
    for method, others in by.items():
        theirs = {_key(rest) for rest in others}
        if mine != theirs:
            raise ValueError(_unfair(first, by[first], method, others))


def _check_seeds(cells: Sequence[Cell]) -> None:
    """All settings have the same seeds.

    Raises:
        ValueError: naming a setting whose seeds are others.
    """
    by: dict[str, set[int]] = {}
    names: dict[str, str] = {}
    for cell in cells:
        rest = _key({key: value for key, value in cell.settings.items() if key != "seed"})
        by.setdefault(rest, set()).add(cell.seed)
        names[rest] = cell.name
    whole = set().union(*by.values())
    for rest, seeds in by.items():
        if seeds != whole:
            lacks = ", ".join(map(str, sorted(whole - seeds)))
            raise ValueError(
                f"seeds are paired, and the setting of {names[rest]} lacks seeds {lacks}; give all "
                "settings the same seeds"
            )


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _unfair(one: str, mine: Sequence[Settings], other: str, theirs: Sequence[Settings]) -> str:
    """What two methods differ in, in a line."""
    for key in dict.fromkeys(key for settings in (*mine, *theirs) for key in settings):
        a, b = (_values(key, settings) for settings in (mine, theirs))
        if a != b:
            return (
                f"methods {one!r} and {other!r} differ in {key} ({', '.join(a)} against "
                f"{', '.join(b)}), which the study does not declare; make them equal, or add "
                f"{key!r} to differences"
            )
    own, lacks = {*map(_key, mine)}, {*map(_key, mine)} ^ {*map(_key, theirs)}
    first = json.loads(min(lacks))
    varied = {k: v for k, v in first.items() if len(_values(k, [*mine, *theirs])) > 1}
    return (
        f"method {other if min(lacks) in own else one!r} lacks a combination that the other has: "
        f"{_words(varied)}; add it to the grid, or give all methods the same"
    )


def _values(key: str, settings: Sequence[Settings]) -> list[str]:
    """All values of a setting, in words."""
    return sorted({str(one.get(key, _DEFAULTS.get(key))) for one in settings})


def _without_excluded(spec: StudySpec, cells: list[Cell]) -> list[Cell]:
    for number, table in enumerate(spec.exclude, 1):
        wanted = _canonical({key: value for key, value in table.items() if key != "reason"})
        if not table.get("reason") or not wanted:
            raise ValueError(f"exclude {number} needs settings and a reason")
        left = [cell for cell in cells if not _has(cell, wanted)]
        if len(left) == len(cells):
            raise ValueError(f"exclude {number} leaves nothing out: no cell has {_words(wanted)}")
        cells = left
    return cells


def _canonical(wanted: Settings) -> Settings:
    """Settings as a run's config has them, of those that people write otherwise."""
    if isinstance(wanted.get("method"), str):
        wanted = wanted | {"method": compose(wanted["method"]).name}
    rate = wanted.get("learning_rate")
    if isinstance(rate, str) and rate.startswith("match-"):
        match = parse_match(rate.removeprefix("match-"))
        wanted = wanted | {"learning_rate": match.rate, "learning_rate_match": str(match)}
    return wanted


def _has(cell: Cell, wanted: Settings) -> bool:
    return all(
        cell.get(key) == value and isinstance(value, bool) == isinstance(cell.get(key), bool)
        for key, value in wanted.items()
    )
