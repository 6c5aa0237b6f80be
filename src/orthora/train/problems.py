"""The problems of a run: those to train on, and those to score at the end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthora.config import TrainConfig
from orthora.config.tasks import FILE
from orthora.tasks import arithmetic, load_problems
from orthora.tasks.hygiene import cleaned
from orthora.tasks.named import Task
from orthora.tasks.registry import load_task, task
from orthora.tasks.rows import mbpp_rows
from orthora.types import Problem

_BARE = "{prompt}"


@dataclass(frozen=True)
class Source:
    """Where problems come from.

    Attributes:
        task: its name, or ``"file"``.
        data: hub data set, file or folder; None where the task is procedural.
        split: of it; None where a file is read whole.
        template: text around each problem.
        read: problems that it gave.
        dropped: of these, left out by ``drop``.
    """

    task: str
    data: str | None
    split: str | None
    template: str
    read: int
    dropped: int = 0


def training_problems(config: TrainConfig) -> tuple[list[Problem], Source]:
    """What a run trains on.

    Args:
        config: of the run.

    Returns:
        The problems in the data's order, and where they come from.

    Raises:
        ValueError: data that can't be read, or of which ``drop`` leaves nothing.
    """
    split = config.data_split
    if config.task == "arithmetic":
        drawn = arithmetic.problems("train", config.train_problems, seed=config.seed)
        return drawn, Source(config.task, None, "train", _BARE, len(drawn))
    if config.task == FILE:
        assert config.data is not None, "validated"
        data, template, whole = config.data, config.prompt_template, _is_file(config.data)
        drawn = load_problems(data, split=split, **_columns(config))
    else:
        known = task(config.task)
        data = known.hub if config.data is None else config.data
        template, whole = _template(config, known), _is_whole(data, known)
        drawn = load_task(known.name, data, split, template=template)
    kept = cleaned(drawn, config.drop)
    read = Source(
        config.task, data, None if whole else split, template, len(drawn), len(drawn) - len(kept)
    )
    return kept, read


def held_out_problems(config: TrainConfig) -> tuple[list[Problem], Source | None]:
    """What is scored at the end: the first ``eval_problems`` of an evaluation split.

    Args:
        config: of the run.

    Returns:
        The problems, and where they come from; [] and None where nothing is scored.

    Raises:
        ValueError: data that can't be read or that is trained on, or a named task with fewer
            problems.
    """
    name, count = config.eval_task or config.task, config.eval_problems
    if not count:
        return [], None
    if name == "arithmetic":
        drawn = arithmetic.problems("test", count)
        return drawn, Source(name, None, "test", _BARE, len(drawn))
    if name == FILE:
        assert config.eval_data is not None, "validated"
        data, split, template = config.eval_data, "test", config.prompt_template
        drawn = load_problems(data, split=split, **_columns(config))[:count]
        whole = _is_file(data)
    else:
        known = task(name)
        data, split, template = _held_out_data(config, known), known.splits[0], known.template
        if name == config.task:
            template = _template(config, known)
        try:
            drawn = load_task(name, data, split, template=template, count=count)
        except ValueError as error:
            raise ValueError(f"held-out problems (eval_task, eval_data): {error}") from error
        if len(drawn) < count:
            raise ValueError(f"eval_problems is {count}, and {data} has {len(drawn)}; lower it")
        whole = _is_whole(data, known)
    return drawn, Source(name, data, None if whole else split, template, len(drawn))


def as_record(source: Source) -> dict[str, Any]:
    """A source for a run folder.

    Args:
        source: of problems.

    Returns:
        Task, data (a local path from the root), split and template.
    """
    data = source.data
    if data is not None and Path(data).exists():
        data = str(Path(data).resolve())
    return {
        "task": source.task,
        "data": data,
        "split": source.split,
        "prompt_template": source.template,
    }


def _columns(config: TrainConfig) -> dict[str, str]:
    """How task ``file`` reads a row."""
    return {
        "prompt_column": config.prompt_column,
        "answer_column": config.answer_column,
        "template": config.prompt_template,
    }


def _template(config: TrainConfig, known: Task) -> str:
    """The prompt of a named task: its own, unless the config has another."""
    return known.template if config.prompt_template == _BARE else config.prompt_template


def _held_out_data(config: TrainConfig, known: Task) -> str:
    """Where the evaluation split is: as given, beside the training split, or on the hub."""
    trained = config.data if known.name == config.task else None
    if trained is None or not _is_whole(trained, known):
        return config.eval_data or trained or known.hub
    if config.eval_data == trained:
        raise ValueError(
            f"{trained} would be trained on and scored; give a held-out file as eval_data, or "
            "leave it out for the hub's"
        )
    return config.eval_data or known.hub


def _is_file(data: str) -> bool:
    """Whether data is a file, which has no splits."""
    return Path(data).is_file()


def _is_whole(data: str, known: Task) -> bool:
    """Whether a task takes data as it is, all of it: a file, but MBPP's, which holds all splits."""
    return _is_file(data) and known.select is not mbpp_rows
