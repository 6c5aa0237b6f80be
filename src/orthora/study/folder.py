"""A study's folder: whose it is, who works in it, and the state of its cells."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orthora.checkpoint import json_object
from orthora.store import locked, new_folder, write_json
from orthora.study.job import Ending, Job, ending_of, evaluation_folder, other_settings
from orthora.study.plan import Cell
from orthora.study.spec import StudySpec, evaluation_of

_OWNER = "study.json"
_ENDINGS = (".json", ".jsonl", ".parquet", ".csv", ".py")


def check_owner(spec: StudySpec) -> None:
    """The folder is this study's, or nobody's yet.

    Raises:
        ValueError: if it is another study's, or holds something else.
    """
    folder = spec.folder
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; choose another out in the study")
    if not (folder / _OWNER).is_file():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty and no study's folder; choose another out in the study"
            )
        return
    name = json_object(folder / _OWNER).get("name")
    if name != spec.name:
        raise ValueError(
            f"{folder} is the folder of study {name!r}, not of {spec.name!r}; choose another out "
            "in the study"
        )


@contextlib.contextmanager
def opened(spec: StudySpec) -> Iterator[Path]:
    """The folder, made if need be, with nobody else at work in it.

    Raises:
        ValueError: as `check_owner`; if another process runs the study.
    """
    check_owner(spec)
    folder = spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    handle = locked(folder)
    try:
        if not (folder / _OWNER).is_file():
            write_json(folder / _OWNER, {"name": spec.name})
        yield folder
    finally:
        if handle is not None:
            os.close(handle)


def evaluations_of(spec: StudySpec) -> dict[str, dict[str, Any]]:
    """Name -> settings of all evaluations, as JSON, without those that are defaults."""
    found = {}
    for name in spec.evaluations:
        settings = evaluation_of(spec, name).model_dump(mode="json", exclude_defaults=True)
        found[name] = {key: value for key, value in settings.items() if key != "model"}
    return found


@dataclass
class Work:
    """A cell, or a base model, and what there is of it.

    Attributes:
        job: for a worker.
        cell: None of a base model.
        ending: None where it has not ended.
        complete: nothing is left to do, but to try a failure again.
    """

    job: Job
    cell: Cell | None
    ending: Ending | None
    complete: bool


def works(spec: StudySpec, cells: Sequence[Cell]) -> list[Work]:
    """All cells with their state; base models that are evaluated come first.

    Raises:
        ValueError: if an ending can't be read.
    """
    evaluations = evaluations_of(spec)
    found = []
    for model in dict.fromkeys(cell.settings["model"] for cell in cells):
        found.append(_work(spec, base_name(model), None, model, evaluations, None))
    for cell in cells:
        config = cell.settings | {"out": str(spec.folder / "runs" / cell.name)}
        found.append(_work(spec, cell.name, config, cell.settings["model"], evaluations, cell))
    return found


def base_name(model: str) -> str:
    """Of the folder with a base model's evaluations."""
    return f"base-{Path(model).name}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _work(
    spec: StudySpec,
    name: str,
    config: dict[str, Any] | None,
    model: str,
    evaluations: dict[str, dict[str, Any]],
    cell: Cell | None,
) -> Work:
    job = Job(
        name,
        str(spec.folder),
        config,
        model,
        evaluations,
        spec.keep_checkpoints,
        {},
        spec.stalled_after,
    )
    ending = _as_asked(job, ending_of(job.cell))
    return Work(job, cell, ending, _complete(job, ending))


def _as_asked(job: Job, ending: Ending | None) -> Ending | None:
    """An ending without the failure of an evaluation that is asked for no more, or is there."""
    if ending is None or not ending.evaluating or not _scored(job):
        return ending
    if ending.by_training:
        return replace(ending, evaluating=False)
    return replace(ending, state="finished", reason=None, evaluating=False)


def _scored(job: Job) -> bool:
    """Whether all evaluations are there."""
    return all(
        (evaluation_folder(job.run, name, settings) / "scores.json").is_file()
        for name, settings in job.evaluations.items()
    )


def _complete(job: Job, ending: Ending | None) -> bool:
    """Whether an ended cell has all its evaluations: one may have come since."""
    if ending is None:
        return False
    failed = ending.state == "failed" and (ending.evaluating or not ending.by_training)
    return failed or ending.scored_step is None or _scored(job)


def sources(spec: StudySpec) -> list[Path]:
    """Folders to reuse that are there.

    Raises:
        ValueError: if one is no study's.
    """
    found = [Path(name).expanduser() for name in spec.reuse]
    for place in found:
        if place.exists() and not (place / _OWNER).is_file():
            raise ValueError(f"reuse {str(place)!r} is no study's folder; take it out")
    return [place for place in found if place.exists()]


def reusable(spec: StudySpec, found: Sequence[Work]) -> list[tuple[Path, Work, Ending]]:
    """Cells that have ended in other studies' folders and not in this one, and how.

    A folder that is not there yet gives none.

    Raises:
        ValueError: if such a folder is no study's.
    """
    taken: dict[str, tuple[Path, Work, Ending]] = {}
    for place in sources(spec):
        for work in found:
            if work.cell is None or work.ending or work.job.name in taken:
                continue
            there = ending_of(place / "cells" / work.job.name)
            if there is not None and (there.scored_step is not None or there.by_training):
                taken[work.job.name] = place, work, there
    return list(taken.values())


def reuse(spec: StudySpec, found: Sequence[Work]) -> list[Work]:
    """Copy what is `reusable`; the cells that were copied.

    Raises:
        ValueError: if a folder to reuse is no study's, or a run there is not what it should be.
    """
    for name in spec.reuse:
        if not Path(name).expanduser().exists():
            print(f"nothing to reuse: {name} does not exist", flush=True)
    taken = []
    for place, work, there in reusable(spec, found):
        _copy(place, work)
        work.ending = _as_asked(work.job, there)
        work.complete = _complete(work.job, work.ending)
        taken.append(work)
    return taken


def _copy(place: Path, work: Work) -> None:
    """A run and its cell, the latter last, as it says that the former is there."""
    assert work.job.config is not None, "a cell"
    name = work.job.name
    source = place / "runs" / name
    if changed := other_settings(source, work.job.config):
        raise ValueError(
            f"{source} was made with settings that the study does not give, as a default has "
            f"changed: {changed}. Take {str(place)!r} out of reuse, or that run away from there"
        )
    for there, target in ((source, work.job.run),
                           (place / "cells" / name, work.job.cell)):  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)  # of a run that was cut short
        with new_folder(target) as temporary:
            shutil.copytree(there, temporary, dirs_exist_ok=True)


def check_needs(spec: StudySpec, cells: Sequence[Cell]) -> None:
    """Models and data are at hand, before anything is begun.

    Raises:
        ValueError: naming a cell and what it lacks.
    """
    from orthora import models

    seen: set[str] = set()
    for cell in cells:
        model = cell.settings["model"]
        if model not in seen:
            seen.add(model)
            try:
                models.load_config(model)
            except ValueError as error:
                raise ValueError(f"cell {cell.name}: {error}") from error
        for key in ("data", "eval_data", "start", "reward"):
            path = cell.settings.get(key)
            if path and path not in seen:
                seen.add(path)
                _check_path(f"cell {cell.name}: {key}", path)
    for name, settings in evaluations_of(spec).items():
        if path := settings.get("data"):
            _check_path(f"evaluation {name!r}: data", path)


def _check_path(what: str, path: str) -> None:
    """What is plainly a path is there; anything else may be on the hub, or a module."""
    file = path.rpartition(":")[0] or path if ".py" in path else path
    plain = file.startswith((".", "/", "~")) or Path(file).suffix in _ENDINGS
    if plain and not Path(file).exists():
        raise ValueError(f"{what} {path!r} does not exist")
