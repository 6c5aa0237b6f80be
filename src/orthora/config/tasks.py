"""What the settings of a run say of its problems: names of tasks, and what goes with each."""

from typing import TYPE_CHECKING

from orthora.tasks.named import Task
from orthora.tasks.registry import task

if TYPE_CHECKING:
    from orthora.config.run import TrainConfig

FILE = "file"
"""Task of a user's own columns."""


def training_task(name: str) -> str:
    """Check what is to be trained on.

    Args:
        name: ``"file"`` or a named task, in any case.

    Returns:
        The name as the registry has it.

    Raises:
        ValueError: if there is none, with the nearest name.
    """
    if name == FILE:
        return name
    try:
        return task(name).name
    except ValueError as error:
        raise ValueError(f"{error}; or 'file', which reads data") from error


def held_out_task(name: str) -> str:
    """Check what is to be scored.

    Args:
        name: a named task, in any case.

    Returns:
        The name as the registry has it.

    Raises:
        ValueError: if there is none, with the nearest name.
    """
    if name == FILE:
        raise ValueError("eval_task 'file' is no named task; leave it out, and give eval_data")
    return task(name).name


def check_tasks(config: "TrainConfig") -> None:
    """Refuse settings that a run's tasks have no use for, and held-out problems that are not.

    Raises:
        ValueError: one line with the remedy.
    """
    if config.task == FILE:
        _check_file(config)
    else:
        _check_named(config, task(config.task))
    if config.eval_problems and (config.eval_task or config.task != FILE):
        _check_held_out(config, task(config.eval_task or config.task))


def _check_file(config: "TrainConfig") -> None:
    """A file of one's own is there, and so are its held-out rows or none."""
    if config.data is None:
        raise ValueError("task 'file' needs data, a JSONL or parquet file or a hub data set")
    if config.eval_task is None and bool(config.eval_data) != bool(config.eval_problems):
        raise ValueError(
            "eval_data and eval_problems (how many of its rows) go together; or name an eval_task"
        )


def _check_named(config: "TrainConfig", known: Task) -> None:
    """A named task knows its columns and its verifier; a procedural one has no data."""
    useless = ["prompt_column", "answer_column"]
    if not known.hub:
        useless += ["prompt_template", "data_split", "drop"]
    if known.verifier == "code" and not _scores_answers(config):
        useless.append("reward_rule")
    for key in useless:
        value = getattr(config, key)
        if value != type(config).model_fields[key].default:
            raise ValueError(
                f"{key} {value!r} has no effect on task {known.name!r}, which {_own(known, key)}; "
                f"leave {key} out"
            )
    if config.data_split not in known.splits:
        raise ValueError(
            f"task {known.name!r} has no split {config.data_split!r}; choose data_split of: "
            f"{', '.join(known.splits)}"
        )
    if config.eval_data and not config.eval_problems and known.hub:
        raise ValueError("eval_data needs eval_problems; set that, or leave eval_data out")


def _scores_answers(config: "TrainConfig") -> bool:
    """Whether the held-out problems are judged by a rule."""
    return config.eval_task is not None and task(config.eval_task).verifier == "math"


def _own(known: Task, key: str) -> str:
    """What a task has in place of a setting."""
    if key == "reward_rule":
        return "judges programs by their tests"
    return "has its own columns" if known.hub else "draws its problems itself"


def _check_held_out(config: "TrainConfig", known: Task) -> None:
    """What is scored at the end is not what is trained on."""
    if config.eval_data and not known.hub:
        raise ValueError(f"task {known.name!r} is procedural; leave eval_data out")
    if (
        known.hub
        and known.name == config.task
        and known.splits[0] == config.data_split
        and config.eval_data in (None, config.data)
    ):
        raise ValueError(
            f"the {config.data_split} split of task {known.name!r} would be trained on and scored; "
            "name another eval_task, give its held-out file as eval_data, or set eval_problems = 0"
        )
