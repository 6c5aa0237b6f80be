"""What is measured: the moments of runs, adapters, and fully fine-tuned models."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orthora.checkpoint import json_object
from orthora.config import TrainConfig
from orthora.methods import compose
from orthora.table import BASE
from orthora.trained import MARKER, check_finished, checkpoints_of, config_of, damage, step_of

Kind = Literal["start", "adapter", "exact", "model"]
_STEP = re.compile(r"(?:checkpoint|global_step|step)[-_]?(\d+)")


@dataclass(frozen=True)
class Moment:
    """One state of the weights.

    Attributes:
        step: training steps done; -1 where the folder does not say.
        kind: ``"start"`` of a run, a PEFT ``"adapter"``, ``"exact"`` weights of a run's checkpoint,
            or a whole ``"model"``.
        folder: where it lies.
    """

    step: int
    kind: Kind
    folder: Path


@dataclass(frozen=True)
class Subject:
    """One run or adapter, and its moments by step.

    Attributes:
        name: in the table.
        folder: where it lies.
        method: that trained it, empty where unknown.
        moments: in order.
        config: of a run; None for adapters and models from elsewhere.
        base: name of the model that it was trained on, where it says.
        fingerprint: of that model's files, where it says.
    """

    name: str
    folder: Path
    method: str
    moments: tuple[Moment, ...]
    config: TrainConfig | None
    base: str | None
    fingerprint: str | None


class NothingYet(ValueError):
    """A run that has nothing to measure."""


def find(
    paths: Sequence[str | Path],
    *,
    last: bool = False,
    told: Callable[[str], None] = lambda note: None,
) -> list[Subject]:
    """The subjects behind the paths: runs, folders of runs, adapters, whole models.

    Checkpoints of one run (``.../global_step_50``), one by one or as their folder, become one
    subject; what is given twice is taken once, and a run's own parts with the run.

    Args:
        paths: of folders.
        last: leave out all moments but each subject's last.
        told: called with a line for each run in a folder of runs that has nothing to measure.

    Returns:
        In the order given, each with a name of its own.

    Raises:
        ValueError: naming a path that is none of these, or a run without anything to measure.
    """
    if not paths:
        raise ValueError("nothing to measure; give run folders, adapters or models")
    found: list[Subject] = []
    for path in dict.fromkeys(map(Path, paths)):
        runs = _runs(path)
        found += _whole_runs(path, runs, told) if runs else []
        found += [] if runs else [_folder(folder) for folder in _steps_in(path) or [path]]
    joined = _joined(_once(found))
    if last:
        joined = [replace(subject, moments=subject.moments[-1:]) for subject in joined]
    return _named(joined)


def _whole_runs(path: Path, runs: list[Path], told: Callable[[str], None]) -> list[Subject]:
    """The runs of a path; those of a folder of runs that have nothing are left out aloud.

    Raises:
        ValueError: if there is nothing to measure in any of them.
    """
    found, empty = [], []
    for run in runs:
        try:
            found.append(_run(run))
        except NothingYet as error:
            empty.append(error)
    if not found or (empty and runs == [path]):
        raise empty[0]
    for error in empty:
        told(f"left out: {error}")
    return found


def _once(found: Sequence[Subject]) -> list[Subject]:
    """Each folder once, and none that lies inside a run that is there itself."""
    runs = {s.folder.resolve() for s in found if _is_run(s)}
    kept: dict[Path, Subject] = {}
    for subject in found:
        here = subject.folder.resolve()
        if not runs & set(here.parents):
            kept.setdefault(here, subject)
    return list(kept.values())


def _is_run(subject: Subject) -> bool:
    return (subject.folder / "config.toml").is_file()


def _runs(path: Path) -> list[Path]:
    """The run folders that a path means: itself, or its direct subfolders."""
    if (path / "config.toml").is_file():
        return [path]
    return sorted(config.parent for config in path.glob("*/config.toml"))


def _steps_in(path: Path) -> list[Path]:
    """The checkpoints that a folder of checkpoints holds."""
    if (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return []
    return [p for p in sorted(path.glob("*")) if p.is_dir() and _STEP.fullmatch(p.name)]


def _run(folder: Path) -> Subject:
    config = config_of(folder)
    dense = compose(config.method).export == "merged"
    moments = [Moment(0, "start", folder)]
    for step, checkpoint in checkpoints_of(folder):
        moments.append(Moment(step, "exact" if dense else "adapter", checkpoint))
    end = folder / ("model" if dense else "adapter")
    steps = _steps(folder)
    if (end / ("config.json" if dense else "adapter_config.json")).is_file():
        if not dense:
            check_finished(folder)
        if moments[-1].step < steps or len(moments) == 1:
            moments.append(Moment(steps, "model" if dense else "adapter", end))
    if len(moments) == 1 and steps != 0:
        raise NothingYet(
            f"{folder} has no checkpoint and no {end.name}, so there is nothing to measure; let "
            "the run go on (orthora train --resume), with save_every above 0"
        )
    return _of_run(folder, folder, tuple(moments))


def _of_run(run: Path, folder: Path, moments: tuple[Moment, ...]) -> Subject:
    """Moments of a run, with what the run says of itself."""
    config, path = config_of(run), run / "environment.json"
    known = json_object(path).get("base_fingerprint") if path.is_file() else None
    name = run.resolve().name
    return Subject(name, folder, config.method, moments, config, config.model, known)


def _steps(run: Path) -> int:
    """Steps that a run has done; those of its config where it does not say."""
    path = run / "result.json"
    known = json_object(path).get("steps") if path.is_file() else None
    return known if isinstance(known, int) else config_of(run).steps


def _folder(path: Path) -> Subject:
    """An adapter, a run's checkpoint, or a whole model."""
    if not path.is_dir():
        raise ValueError(f"no folder {path}; give runs, adapters or models")
    own = _of_own_run(path)
    if own is not None:
        return own
    here = path.resolve()
    match = _STEP.fullmatch(here.name)
    step = int(match[1]) if match else -1
    name = here.parent.name if match else here.name
    if (path / "adapter_config.json").is_file():
        base = json_object(path / "adapter_config.json").get("base_model_name_or_path")
        record = path / "orthora.json"
        story = json_object(record) if record.is_file() else {}
        method, known = str(story.get("method", "")), story.get("checkpoint")
        return Subject(name, path, method, (Moment(step, "adapter", path),), None, base, known)
    if (path / "config.json").is_file():
        return Subject(name, path, "full", (Moment(step, "model", path),), None, None, None)
    raise ValueError(
        f"{path} is no run (config.toml), no adapter (adapter_config.json), no model "
        "(config.json), and holds no runs and no checkpoints; check the path"
    )


def _of_own_run(path: Path) -> Subject | None:
    """A checkpoint, the adapter or the model inside a run of orthora; None for anything else."""
    here = path.resolve()
    dense = {"adapter": False, "model": True}.get(here.name)
    if dense is not None and (here.parent / "config.toml").is_file():
        kind: Kind = "model" if dense else "adapter"
        return _of_run(here.parent, path, (Moment(_steps(here.parent), kind, path),))
    run = here.parent.parent
    if not (path / MARKER).is_file() or not (run / "config.toml").is_file():
        return None
    if reason := damage(path):
        raise ValueError(f"{path} is no sound checkpoint of orthora train ({reason})")
    kind = "exact" if compose(config_of(run).method).export == "merged" else "adapter"
    return _of_run(run, path, (Moment(step_of(path), kind, path),))


def _joined(found: Sequence[Subject]) -> list[Subject]:
    """Checkpoints of one run, given one by one, as one subject; all else as it is."""
    groups: dict[Path, list[Subject]] = {}
    for subject in found:
        groups.setdefault(home(subject), []).append(subject)
    joined = []
    for group in groups.values():
        moments = sorted((m for s in group for m in s.moments), key=lambda moment: moment.step)
        joined.append(replace(group[-1], moments=tuple(moments)))
    return joined


def home(subject: Subject) -> Path:
    """The folder of a run, an adapter or a model; of checkpoints, the one that holds them."""
    here = subject.folder.resolve()
    is_step = _STEP.fullmatch(here.name) is not None and not _is_run(subject)
    return here.parent if is_step else here


def _named(subjects: Sequence[Subject]) -> list[Subject]:
    """Names of their own: with the parent folder's where two are equal, then with a number.

    The base's name is taken.
    """
    counts = Counter([subject.name for subject in subjects] + [BASE])
    longer = [
        replace(s, name=f"{home(s).parent.name}/{s.name}") if counts[s.name] > 1 else s
        for s in subjects
    ]
    seen: Counter[str] = Counter()
    named = []
    for subject in longer:
        seen[subject.name] += 1
        again = seen[subject.name]
        named.append(replace(subject, name=f"{subject.name}#{again}") if again > 1 else subject)
    return named
