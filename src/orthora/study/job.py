"""One cell, from nothing or from where it was: train, then evaluate. Runs in a process of its own.

A study's folder holds ``study.json`` (whose it is), ``runs/NAME`` (run folders, with the
evaluations inside), ``cells/NAME`` (``cell.json``, how it ended, and ``log.txt``, what it printed)
and, after a report, its tables and page.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from orthora.checkpoint import json_object
from orthora.config import EvalConfig, TrainConfig, build, read_toml
from orthora.signals import FOLLOW
from orthora.store import locked, write_atomic, write_json
from orthora.strict import differences, to_toml

ENDING = "cell.json"
LOG = "log.txt"
State = Literal["finished", "failed"]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_PATIENCE = 60.0
"""Seconds to wait for a process that is just losing a cell."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        name: of the cell.
        folder: of the study.
        config: settings of the run; None for a base model, which is evaluated alone.
        model: base model.
        evaluations: name -> settings.
        keep_checkpoints: after it has finished.
        environment: variables to set before anything else is imported.
        stalled_after: minutes without anything written after which it counts as lost; None never.
    """

    name: str
    folder: str
    config: dict[str, Any] | None
    model: str
    evaluations: dict[str, dict[str, Any]]
    keep_checkpoints: bool
    environment: dict[str, str]
    stalled_after: float | None = None

    @property
    def cell(self) -> Path:
        """Where its ending and log are kept."""
        return Path(self.folder) / "cells" / self.name

    @property
    def run(self) -> Path:
        """Where its run and evaluations are kept."""
        return Path(self.folder) / "runs" / self.name


@dataclass(frozen=True)
class Ending:
    """How a cell ended; the content of ``cell.json``.

    Attributes:
        state: ``finished`` or ``failed``.
        reason: why it failed, in a line, or None.
        by_training: training itself led to the failure, so that it would come again; such a cell is
            scored at its last checkpoint.
        scored_step: training step of what the evaluations score; None where there is nothing.
        evaluating: what failed was an evaluation, after training; others' scores stand.
        seconds: wall time of this attempt.
        cpu_seconds: of this attempt, its child processes included.
        host: where it ran last.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    state: State
    reason: str | None = None
    by_training: bool = False
    scored_step: int | None = None
    evaluating: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    host: str = ""


def ending_of(folder: Path) -> Ending | None:
    """How a cell ended; None where it has not.

    Args:
        folder: of the cell.

    Raises:
        ValueError: if the file can't be read.
    """
    file = folder / ENDING
    if not file.is_file():
        return None
    try:
        return _ENDING.validate_json(file.read_bytes(), strict=True)
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{file} is corrupt ({why}); delete it, and the cell goes on") from error


_ENDING = TypeAdapter(Ending)


def evaluation_folder(run: Path, name: str, settings: dict[str, Any]) -> Path:
    """Where an evaluation of a run is kept; other settings are another folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return run / f"eval-{name}-{digest}"


def run_job(job: Job) -> Ending:
    """Do what is missing of a cell, and write how it ended.

    A run that training itself ended is scored at its last checkpoint. What another kind of error
    ends, is kept with its reason, and is not scored. An evaluation that fails takes nothing from
    what training and other evaluations gave.

    Raises:
        ValueError: if another process keeps the cell for longer than a minute.
    """
    job.cell.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with _kept(job.cell):
        try:
            failure, adapter, step = _trained(job)
            ending = Ending("failed" if failure else "finished", failure, bool(failure), step)
            if adapter or not job.config:
                ending = _evaluated(job, adapter, ending)
        except Exception as error:  # whatever it is: it must not stop the other cells
            ending = Ending("failed", _reason(error))
        if ending.state == "finished" and not job.keep_checkpoints:
            shutil.rmtree(job.run / "checkpoints", ignore_errors=True)
        seconds = round(time.perf_counter() - started, 3)
        cpu = round(sum(os.times()[:4]), 3)
        ending = replace(ending, seconds=seconds, cpu_seconds=cpu, host=socket.gethostname())
        write_json(job.cell / ENDING, asdict(ending))
    return ending


def _reason(error: Exception) -> str:
    """An error in a line, its traceback in the log.

    Raises:
        OSError: the error itself, if nothing can be written down: the cell may go on later.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        raise error
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextlib.contextmanager
def _kept(cell: Path) -> Iterator[None]:
    """The cell is this process's alone; one that is just being killed is waited for."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            handle = locked(cell)
            break
        except ValueError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _trained(job: Job) -> tuple[str | None, Path | None, int | None]:
    """Train to the end, if need be: what ended it early, what is to be scored, and its step."""
    if job.config is None:
        return None, None, 0
    config = build(TrainConfig, job.config)
    result = _result(job.run)
    if result is None or not _over(result):
        _train(job, config)
        result = _result(job.run)
        assert result is not None, "training leaves a result"
    if result["status"] == "finished":
        return None, job.run, result["steps"]
    from orthora.train.checkpoints import latest, step_of

    checkpoint = latest(job.run / "checkpoints")
    return result["reason"], checkpoint, step_of(checkpoint) if checkpoint else None


def _result(run: Path) -> dict[str, Any] | None:
    """How the run ended, or None."""
    file = run / "result.json"
    return json_object(file) if file.is_file() else None


def _over(result: dict[str, Any]) -> bool:
    """Whether training again would change nothing."""
    return result["status"] == "finished" or bool(result.get("ended_by_training"))


def other_settings(run: Path, config: dict[str, Any]) -> str:
    """In what a run's settings are not those that it should have, ``out`` left out; "" if in none.

    Raises:
        ValueError: if the run's settings can't be read.
    """
    wanted = build(TrainConfig, config)
    before = build(TrainConfig, read_toml(run / "config.toml")).model_dump(mode="json")
    if wanted.learning_rate_match:  # the run has found its rate
        before["learning_rate"] = wanted.learning_rate
    return differences(before, wanted)


def _train(job: Job, config: TrainConfig) -> None:
    """Train, from the last checkpoint if there is one; ends that training led to are let pass."""
    if config.processes > 1:
        _launch(job, config)
        return
    from orthora.failures import TrainingFailed
    from orthora.train import train

    with contextlib.suppress(TrainingFailed):
        train(config, resume=True, progress=False)


def _launch(job: Job, config: TrainConfig) -> None:
    """Train in as many processes as the config says.

    Raises:
        RuntimeError: if they fail otherwise than by training itself.
    """
    file = write_atomic(job.cell / "config.toml", to_toml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(config.processes), "-m", "orthora", "train", "--config", str(file), "--resume"]
    follow = os.environ | {FOLLOW: str(os.getpid())}
    code = subprocess.run(command, check=False, env=follow).returncode
    result = _result(job.run)
    if code and not (result and _over(result)):
        why = result["reason"] if result else f"see {job.cell / LOG}"
        raise RuntimeError(f"{config.processes} processes ended with exit code {code}: {why}")


def _evaluated(job: Job, adapter: Path | None, ending: Ending) -> Ending:
    """All evaluations that are not there, whether or not one fails; how the cell ended so."""
    failures = []
    for name, settings in job.evaluations.items():
        try:
            _evaluate(job, name, settings, adapter)
        except Exception as error:
            failures.append(f"evaluation {name!r}: {_reason(error)}")
    if not failures:
        return ending
    reason = "; ".join(filter(None, (ending.reason, *failures)))
    return replace(ending, state="failed", reason=reason, evaluating=True)


def _evaluate(job: Job, name: str, settings: dict[str, Any], adapter: Path | None) -> None:
    """One evaluation, if it is not there."""
    out = evaluation_folder(job.run, name, settings)
    if (out / "scores.json").is_file():
        return
    from orthora.evaluate import evaluate

    subject: dict[str, Any] = {"adapter": str(adapter)} if adapter else {}
    if adapter is not None and adapter != job.run:
        subject["engine"] = "transformers"  # vLLM serves no checkpoint of a run
    evaluate(build(EvalConfig, {"model": job.model} | settings | subject | {"out": str(out)}))
