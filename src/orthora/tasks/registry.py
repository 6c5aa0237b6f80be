"""Loading of named tasks."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orthora.tasks import arithmetic
from orthora.tasks.files import cell_of, is_chat
from orthora.tasks.golds import asserts_of, unix
from orthora.tasks.hygiene import check_drop, cleaned
from orthora.tasks.named import TASKS, Task
from orthora.tasks.rows import Row, read_rows
from orthora.tasks.statements import last_user_text, unwrap
from orthora.types import Problem

_DRAWN = 256
"""Problems of ``arithmetic``, where no number is asked for."""


def names() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(TASKS)


def task(name: str) -> Task:
    """Look a task up.

    Args:
        name: case and underscores don't matter.

    Returns:
        Its record.

    Raises:
        ValueError: if there is none, with the nearest name and the whole list.
    """
    key = str(name).lower().replace("_", "-")
    if key in TASKS:
        return TASKS[key]
    near = difflib.get_close_matches(key, TASKS, n=1, cutoff=0.65)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown task {name!r}.{hint} Available: {', '.join(names())}")


def load_task(
    name: str,
    data: str | None = None,
    split: str | None = None,
    *,
    drop: Iterable[str] = (),
    template: str | None = None,
    count: int | None = None,
) -> list[Problem]:
    """Load a task's problems.

    Args:
        name: of `names`.
        data: a ``.jsonl``, ``.json`` or ``.parquet`` file, a folder with the data set, or another
            hub data set with the same columns; None is the task's own on the hub.
        split: None is the one for evaluation. A file holds one split and is taken as it is, but
            MBPP's, which holds all and is cut by task id.
        drop: of ``"duplicates"`` and ``"contradictions"``; see `orthora.tasks.hygiene.cleaned`.
        template: instead of the task's prompt; ``"{prompt}"`` leaves the problem alone.
        count: only the first so many; of ``arithmetic``, how many to draw.

    Returns:
        Problems, in the data's order.

    Raises:
        ValueError: an unknown task, split or thing to drop; data that can't be read; a missing
            column; a gold that can't be read. One line, with the remedy.
    """
    known = task(name)
    chosen = known.splits[0] if split is None else split
    if chosen not in known.splits:
        raise ValueError(
            f"task {known.name!r} has no split {chosen!r}; choose one of {', '.join(known.splits)}"
        )
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 problem, or None for all")
    if template is not None and "{prompt}" not in template:
        raise ValueError(f"template {template!r} has no {{prompt}}; write it where it belongs")
    unwanted = check_drop(drop)  # before the data is read
    if not known.hub:
        if data is not None:
            raise ValueError(f"task {known.name!r} is procedural; leave data {data!r} out")
        if template not in (None, known.template):
            raise ValueError(f"task {known.name!r} has a prompt of its own; leave template out")
        return arithmetic.problems(chosen, count or _DRAWN)
    source = known.hub if data is None else data
    problems = _read(known, source, chosen, template or known.template)
    return cleaned(problems, unwanted)[:count]


def _read(known: Task, data: str, split: str, template: str) -> list[Problem]:
    """The problems of a task that has data."""
    own = data == known.hub or Path(data).is_dir()
    rows = read_rows(data, known.config if own else None, split)
    missing = _missing(known, rows.column_names)
    if missing:
        raise ValueError(
            f"{data} has no column {missing}; there are: {', '.join(rows.column_names)}. Task "
            f"{known.name!r} reads the columns of {known.hub}: rename yours, or use task 'file'"
        )
    try:
        selected = known.select(rows, split)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error
    problems = [
        _problem(known, row, number, f"{data}, task {known.name!r}", template)
        for number, row in enumerate(selected)
    ]
    if not problems:
        raise ValueError(f"{data} holds no rows")
    _check_ids(problems, data)
    return problems


def _problem(known: Task, row: Row, number: int, where: str, template: str) -> Problem:
    """One row as a problem."""
    column = _first(known.prompts, row)
    prompt = cell_of(row, column, where, number)
    gold = cell_of(row, _first(known.golds, row), where, number)
    asserts = cell_of(row, "test_list", where, number) if known.verifier == "code" else ()
    try:
        text = unwrap(last_user_text(prompt)) if _is_text(prompt) else ""
        if not text:
            raise ValueError(f"column {column!r} holds no problem; correct the row or drop it")
        answer, tests = known.read(gold), asserts_of(asserts)
    except ValueError as error:
        raise ValueError(f"{where}, row {number}: {error}") from error
    filled = {"prompt": text, "tests": "\n".join(tests)}
    return Problem(
        prompt=re.sub(r"\{(prompt|tests)\}", lambda match: filled[match[1]], template),
        answer=answer,
        id=str(row.get(known.id) or number),
        tests=tests,
        setup=_setup(row) if tests else "",
    )


def _is_text(prompt: Any) -> bool:
    """Whether a cell is text or a conversation."""
    return isinstance(prompt, str) or is_chat(prompt)


def _setup(row: Row) -> str:
    """MBPP's code before the tests, which uses the candidate's classes, and so comes after it."""
    code = unix(row.get("test_setup_code") or "")
    return "\n".join([*(row.get("test_imports") or ()), *([code] if code else [])])


def _first(columns: Sequence[str], present: Iterable[str]) -> str:
    """The first of some columns that is there, or else the first."""
    there = set(present)
    return next((name for name in columns if name.split(".")[0] in there), columns[0])


def _missing(known: Task, present: Sequence[str]) -> str:
    """The columns that a task needs one of and data has not, or ""."""
    tests = [("test_list",)] if known.verifier == "code" else []
    for choices in (known.prompts, known.golds, *tests):
        if _first(choices, present).split(".")[0] not in present:
            return " or ".join(repr(name) for name in choices)
    return ""


def _check_ids(problems: Sequence[Problem], data: str) -> None:
    """Raise if two problems have the same id."""
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ValueError(f"{data} has two problems with the id {problem.id!r}; rename one")
        seen.add(problem.id)
