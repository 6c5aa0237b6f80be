"""What of an evaluation set stands in the data that the model was trained on."""

from pathlib import Path
from typing import Any

from orthora.config import EvalConfig
from orthora.evaluate.problems import eval_problems
from orthora.tasks import find_contamination, load_problems, load_task
from orthora.tasks.registry import task
from orthora.trained import config_of
from orthora.types import Problem

_RULES = ("exact", "words", "opening")


def run_of(adapter: str | None) -> Path | None:
    """The run folder that is ``adapter``, or that it lies in (``adapter/``, a checkpoint)."""
    if adapter is None:
        return None
    here = Path(adapter)
    for folder in (here, *list(here.parents)[:2]):
        if (folder / "config.toml").is_file() and (folder / "metrics.jsonl").is_file():
            return folder
    return None


def contamination_of(config: EvalConfig) -> dict[str, Any] | None:
    """Look for the problems in the training data.

    Args:
        config: says what was trained on, or names a run that does.

    Returns:
        None if nothing says what was trained on. Else ``training`` (task and data), and either
        ``error`` (the run's data can't be read here) or ``training_problems``, ``found`` (number by
        rule) and ``problems`` (those found: id, rule, training problem, whether the golds agree).

    Raises:
        ValueError: if training data that the config names can't be read.
    """
    known = _training_set(config)
    if known is None:
        return None
    name, data, split, columns = known
    report: dict[str, Any] = {"training": f"{name} {data}" if data else name}
    if name == "arithmetic" and not (config.task == name and config.data_split == "train"):
        # a hash of the problem decides its split
        none: dict[str, Any] = {"problems": []}
        return report | {"training_problems": None, "found": dict.fromkeys(_RULES, 0)} | none
    try:
        training = _training_problems(name, data, split, columns)
    except ValueError as error:
        if config.trained_on:
            raise
        return report | {"error": str(error)}
    found = find_contamination(eval_problems(config, bare=True), training)
    return report | {
        "training_problems": len(training),
        "found": {rule: found.count(rule) for rule in _RULES},
        "problems": [
            {"id": m.problem, "rule": m.kind, "training": m.train, "same_gold": m.same_gold}
            for m in found.found
        ],
    }


def _training_set(config: EvalConfig) -> tuple[str, str | None, str, dict[str, str]] | None:
    """Task or "file", data, split and columns: as the config says, else as the run says."""
    if config.trained_on:
        if not _is_path(config.trained_on):
            splits = task(config.trained_on).splits
            split = "train" if "train" in splits else splits[0]
            return task(config.trained_on).name, config.trained_on_data, split, {}
        if config.trained_on_data:
            raise ValueError(
                f"trained_on {config.trained_on!r} is a file already; leave trained_on_data out"
            )
        columns = {"prompt_column": config.prompt_column, "answer_column": config.answer_column}
        return "file", config.trained_on, "train", columns
    run = run_of(config.adapter)
    if run is None:
        return None
    trained = config_of(run)
    columns = {"prompt_column": trained.prompt_column, "answer_column": trained.answer_column}
    return trained.task, trained.data, trained.data_split, columns


def _is_path(name: str) -> bool:
    """Whether it is no task's name: a file, or a hub data set."""
    return Path(name).exists() or bool(Path(name).suffix) or "/" in name


def _training_problems(
    name: str, data: str | None, split: str, columns: dict[str, str]
) -> list[Problem]:
    """The training problems, without prompts around them."""
    if name == "file":
        assert data is not None, "task file has data"
        return load_problems(data, split=split, **columns)
    if name == "arithmetic":
        return load_task(name, split="train", count=4096)
    return load_task(name, data, split, template="{prompt}")
