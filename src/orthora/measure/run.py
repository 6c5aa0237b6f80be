"""``orthora.measure``: base weights are read once for all runs, adapters and checkpoints."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orthora import models, pool
from orthora.adapters import starts
from orthora.bar import Progress, Teller
from orthora.checkpoint import Checkpoint, open_checkpoint
from orthora.measure.job import Job
from orthora.measure.parts import Parts
from orthora.measure.subjects import Subject, find, home
from orthora.measure.weights import Options
from orthora.table import NAME, check_ending, write_table

_SPACE = 11  # bytes per byte of the largest float32 weight: the benchmark's peak less the imports'


@dataclass(frozen=True)
class Measured:
    """What `measure` made.

    Attributes:
        out: the table.
        subjects: names of the runs and adapters in it.
        weights: how many were measured.
        resumed: how many of them an earlier process had done.
        notes: what was left out, a line each.
    """

    out: Path
    subjects: tuple[str, ...]
    weights: int
    resumed: int
    notes: tuple[str, ...]


def measure(
    paths: Sequence[str | Path],
    *,
    model: str | None = None,
    out: str | Path | None = None,
    options: Options | None = None,
    last: bool = False,
    any_base: bool = False,
    workers: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Measured:
    """Measure what training did to every weight, at every checkpoint, from files alone.

    The base's weights are read and decomposed one by one; in memory are about one weight per
    worker, and the adapters of structures that have no factors. An interrupted measurement goes on
    when it is called again.

    Args:
        paths: run folders or folders of runs, PEFT adapters, fully fine-tuned models; checkpoints.
        model: the base: folder, hub name or ``tiny``; None takes what the runs or adapters say.
        out: ``.parquet`` or ``.csv``; None writes ``geometry.parquet`` into the one run, or into
            the folder that holds them all.
        options: what to look at.
        last: measure the last moment of each alone.
        any_base: accept a base of another name than a run or adapter records.
        workers: weights side by side, one thread each; by default one per core, as far as memory
            goes.
        report: called in this thread after every weight.

    Returns:
        Where the table is, and what is in it; see `orthora.table`.

    Raises:
        ValueError: in one line: nothing to measure, an adapter that does not fit the base, NaN in a
            checkpoint, ``out`` in use.
    """
    options = options or Options()
    _check(options)
    notes: list[str] = []
    subjects = find(paths, last=last, told=notes.append)
    target = Path(out) if out is not None else _place(subjects)
    check_ending(target)
    if target.exists():
        raise ValueError(f"{target} exists; remove it to measure again, or choose another out")
    checkpoint = open_checkpoint(_base(subjects, model, any_base))
    _check_prints(subjects, checkpoint)
    job = Job(checkpoint, subjects, options)
    resumed = _carry_out(job, target, workers, report)
    names = tuple(subject.name for subject in subjects)
    return Measured(target, names, len(job.sources), resumed, (*notes, *job.notes))


def _carry_out(
    job: Job, target: Path, workers: int | None, report: Callable[[Progress], None] | None
) -> int:
    """Measure what is left, and write the table; how many weights an earlier process had done."""
    with Parts(target, job.plan()) as parts:
        left = [name for name in job.sources if name not in parts.done]
        resumed = len(job.sources) - len(left)
        work = {name: starts.cost(source.slot.shape) for name, source in job.sources.items()}
        tell = Teller(report, work, left)
        workers = workers or pool.default_workers(_SPACE * job.largest())
        order = sorted(left, key=work.__getitem__, reverse=True)
        done = pool.compute_all(order, job.weight, job.rows, workers=workers)
        with closing(done):
            for name, rows in done:
                parts.finish(name, rows)
                tell(name)
        write_table(target, parts.frames(list(job.sources)), job.plan())
        parts.complete()
    return resumed


def _check(options: Options) -> None:
    if options.head < 1:
        raise ValueError(f"head must be at least 1, got {options.head}")
    if not 0 < options.mask_share < 1:
        raise ValueError(f"mask_share must lie between 0 and 1, got {options.mask_share}")


def _place(subjects: Sequence[Subject]) -> Path:
    """Where the table goes by default.

    Raises:
        ValueError: if the subjects have no folder in common but the root.
    """
    homes = [home(subject) for subject in subjects]
    if len(homes) == 1:
        return homes[0] / NAME
    common = Path(os.path.commonpath([folder.parent for folder in homes]))
    if common == common.parent:
        raise ValueError(f"{homes[0]} and {homes[-1]} have no folder in common; give --out")
    return common / NAME


def _base(subjects: Sequence[Subject], model: str | None, any_base: bool) -> str:
    """The base model that all subjects have.

    Raises:
        ValueError: if they name different ones, or none.
    """
    named = {s.base: s for s in reversed(subjects) if s.base}
    base = model or next(iter({s.base: 0 for s in subjects if s.base}), None)
    if base is None:
        raise ValueError(f"{subjects[0].folder} does not say its base model; give --model")
    for name, subject in named.items():
        if not any_base and models.short_name(name) != models.short_name(base):
            raise ValueError(
                f"{subject.folder} was trained on {name!r}, and the model is {base!r}; measure "
                "runs of one base at a time, or give --any-base if it is the same by another name"
            )
    return base


def _check_prints(subjects: Sequence[Subject], checkpoint: Checkpoint) -> None:
    """The base's files are those that the runs began with, as far as their headers tell."""
    print_ = checkpoint.fingerprint()
    for subject in subjects:
        if subject.fingerprint not in (None, print_):
            raise ValueError(
                f"{subject.folder} was trained on other files than those of {checkpoint.folder}: "
                "names, sizes, headers or config.json differ; give the base it was trained on"
            )
