"""Problems from JSONL and parquet files or hub data sets, by mapped columns."""

from pathlib import Path
from typing import Any

from orthora.rewards import gold_of
from orthora.types import Message, Problem

_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_problems(
    data: str,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    template: str = "{prompt}",
) -> list[Problem]:
    r"""Read a data set and map its columns.

    Args:
        data: a ``.jsonl``, ``.json`` or ``.parquet`` file, or a hub data set's name.
        split: of a hub data set.
        prompt_column: text, or a list of chat messages; dots reach into structs.
        answer_column: gold answer: a GSM8K solution (``#### 18``), a solution with a
            ``\boxed{}``, or the bare answer.
        template: wrapped around the text (of the last user message), at ``{prompt}``.

    Returns:
        One problem per row, in file order; the id is the row number.

    Raises:
        ValueError: a missing or unreadable file, no rows, a missing column, or an empty cell.
    """
    problems = []
    for number, row in enumerate(file_rows(data, split)):
        prompt = cell_of(row, prompt_column, data, number)
        answer = cell_of(row, answer_column, data, number)
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(
                f"{data}, row {number}: column {answer_column!r} holds a "
                f"{type(answer).__name__}, and an answer is text or a number"
            )
        gold = gold_of(str(answer))
        if not gold:
            raise ValueError(f"{data}, row {number}: column {answer_column!r} is empty")
        if not isinstance(prompt, str) and not is_chat(prompt):
            raise ValueError(
                f"{data}, row {number}: column {prompt_column!r} is neither text nor a list of "
                "messages with role and content"
            )
        problems.append(Problem(_wrap(prompt, template), gold, str(number)))
    if not problems:
        raise ValueError(f"{data} holds no rows")
    return problems


def file_rows(data: str, split: str) -> Any:
    """Read the rows of a local file or hub data set.

    Args:
        data: a ``.jsonl``, ``.json`` or ``.parquet`` file, or a hub data set's name.
        split: of a hub data set; a file is read whole.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        ValueError: if it can't be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(data)
    kind = _FORMATS.get(path.suffix)
    if kind is None and (path.exists() or path.suffix):
        raise ValueError(f"{data}: the format {path.suffix!r} is not read; use .jsonl or .parquet")
    if kind and not path.is_file():
        raise ValueError(f"no data file {data!r}; check the path")
    if kind and path.stat().st_size == 0:
        raise ValueError(f"{data} is empty")
    try:
        if kind:
            return load_dataset(kind, data_files=str(path), split="train")
        return load_dataset(data, split=split)
    except (DatasetGenerationError, OSError, ValueError, ConnectionError) as error:
        cause = error.__cause__ or error
        line = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ValueError(f"can't read {data!r} (split {split!r}): {line}") from error


def cell_of(row: dict[str, Any], column: str, data: str, number: int) -> Any:
    """The value at a dotted column path.

    Raises:
        ValueError: if it is not there, or empty.
    """
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(row)
            raise ValueError(f"{data}, row {number}: no column {column!r}; there are: {known}")
        value = value[part]
    if value is None or value == "" or value == []:
        raise ValueError(f"{data}, row {number}: column {column!r} is empty")
    return value


def is_chat(prompt: Any) -> bool:
    """A non-empty list of messages with role and content."""
    return isinstance(prompt, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt
    )


def _wrap(prompt: Any, template: str) -> str | list[Message]:
    """Put the template around a text, or around the last user message of a conversation."""
    if isinstance(prompt, str):
        return template.replace("{prompt}", prompt)
    messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in prompt]
    for message in reversed(messages):
        if message["role"] == "user":
            message["content"] = template.replace("{prompt}", message["content"])
            break
    return messages
