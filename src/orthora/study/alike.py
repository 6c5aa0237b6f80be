"""Whether runs that are compared were made alike, beyond what their settings say.

A data file may change under its name, a model be replaced, a library be updated between two calls
of ``orthora study run``: no setting tells. What every run and evaluation wrote down does.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orthora.checkpoint import json_object
from orthora.config import read_toml
from orthora.study.folder import Work
from orthora.study.job import evaluation_folder, other_settings

_OF_PROBLEMS = (
    "model", "task", "data", "data_split", "drop", "prompt_column", "answer_column",
    "prompt_template", "plain_prompts", "train_problems", "max_prompt_tokens", "seed",
)  # fmt: skip
"""Settings on which a run's problems, and the tokens of their prompts, depend."""

_VERSIONS = ("python", "orthora", "torch", "transformers", "peft", "trl")
_OWN = ("model", "adapter", "out", "engine")
"""Of an evaluation: not the same for all cells."""


class _Fact(NamedTuple):
    """Something that must be the same wherever ``what`` and ``where`` are."""

    what: str
    where: str
    value: str
    cell: str


def unlike(found: Sequence[Work]) -> list[str]:
    """What is not the same in cells that have ended, though their settings say so.

    Args:
        found: the cells of a study.

    Returns:
        A line for each: what differs, and which cells are not like most.
    """
    groups: dict[tuple[str, str], list[_Fact]] = {}
    for work in found:
        if work.ending is not None:
            for fact in _facts(work):
                groups.setdefault((fact.what, fact.where), []).append(fact)
    others: dict[str, list[str]] = {}
    for (what, _), facts in groups.items():
        usual = Counter(fact.value for fact in facts).most_common(1)[0][0]
        if odd := [fact.cell for fact in facts if fact.value != usual]:
            others.setdefault(what, []).extend(odd)
    return _changed(found) + [
        f"not alike: {_count(cells)} {'differs' if len(cells) == 1 else 'differ'} from most in "
        f"{what} ({_some(cells)})"
        for what, cells in others.items()
    ]


def _changed(found: Sequence[Work]) -> list[str]:
    """Runs that were made with settings that the study does not give: a default has changed."""
    cells: dict[str, list[str]] = {}
    for work in found:
        run, config = work.job.run, work.job.config
        if work.ending is None or config is None or not (run / "config.toml").is_file():
            continue
        try:
            text = other_settings(run, config)
        except ValueError as error:  # of a version that had other settings
            text = str(error)
        if text:
            cells.setdefault(text, []).append(work.job.name)
    return [
        f"not alike: {_count(names)} {'was' if len(names) == 1 else 'were'} made with settings "
        f"that the study does not give: {text} ({_some(names)})"
        for text, names in cells.items()
    ]


def _count(cells: Sequence[str]) -> str:
    return f"{len(cells)} cell{'s' * (len(cells) > 1)}"


def _some(cells: Sequence[str]) -> str:
    return f"{', '.join(cells[:3])}{', ...' * (len(cells) > 3)}"


def _facts(work: Work) -> Iterator[_Fact]:
    """Of one cell, as far as it wrote them down."""
    run, name = work.job.run, work.job.name
    if work.cell is not None:
        problems = _read(run / "problems.json").get("fingerprint")
        same = json.dumps([work.cell.get(key) for key in _OF_PROBLEMS])
        if problems is not None:
            yield _Fact("the training problems", same, problems, name)
        made = _read(run / "environment.json")
        if (print_ := made.get("base_fingerprint")) is not None:
            yield _Fact("the base model's files", work.job.model, print_, name)
        for package in _VERSIONS:
            if package in made:
                yield _Fact(f"the version of {package}", "", made[package], name)
    from orthora.evaluate.folder import CONFIG, problems_digest  # brings torch; a plan needs none

    for evaluation, settings in work.job.evaluations.items():
        folder = evaluation_folder(run, evaluation, settings)
        if (folder / CONFIG).is_file():
            of = f"evaluation {evaluation!r}"
            where = work.job.model
            yield _Fact(f"the problems of {of}", where, problems_digest(folder), name)
            table = {k: v for k, v in read_toml(folder / CONFIG).items() if k not in _OWN}
            yield _Fact(f"the settings of {of}", where, json.dumps(table, sort_keys=True), name)


def _read(file: Path) -> dict[str, Any]:
    return json_object(file) if file.is_file() else {}
