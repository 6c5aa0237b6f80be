"""Rows of the named tasks, from the hub, from a folder or from a file."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orthora.tasks.files import file_rows

Row = dict[str, Any]

MBPP_SPLITS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"""Task ids of MBPP's splits, in the full and in the sanitized data."""

_EXAM = re.compile(r"(20[0-9]{2})_AIME_(I{1,2})_Problems/Problem_([0-9]{1,2})")
_AIME_YEAR = re.compile(r"AIME\D{0,3}(20[0-9]{2})")
_MARKS = ("url", "year", "data_source")


def read_rows(data: str, config: str | None, split: str) -> Any:
    """Read the rows of a data set.

    Args:
        data: a ``.jsonl``, ``.json`` or ``.parquet`` file; a folder that holds a data set; or a
            hub data set's name.
        config: of a hub data set, or of a folder with its card.
        split: likewise; a file is read whole.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        ValueError: if it can't be read.
    """
    path = Path(data)
    if not path.is_dir() and (path.suffix in (".jsonl", ".json", ".parquet") or path.exists()):
        return file_rows(data, split)
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if path.is_dir() and not (path / "README.md").is_file():
        config = None  # configs are declared in the card
    try:
        return load_dataset(data, config, split=split)
    except (DatasetGenerationError, OSError, ValueError, ConnectionError) as error:
        line = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"can't read {data!r} (split {split!r}): {line}; give a local file as data"
        ) from error


def one_block(rows: Any) -> Any:
    """Undo the repetition of a data set that is one block of rows stored again and again.

    Args:
        rows: a ``datasets.Dataset`` with columns ``prompt`` and ``reward_model``. The hub's
            DAPO-Math-17k holds 17,917 rows 100 times over.

    Returns:
        The shortest block whose repetition is the whole, which is the whole where none is.
    """
    columns = {"prompt", "reward_model"} & set(rows.column_names)
    table = rows.select_columns(sorted(columns)).with_format("arrow")[:]
    total = table.num_rows
    for length in range(1, total // 2 + 1):
        if total % length or not table.slice(length, 1).equals(table.slice(0, 1)):
            continue
        if table.slice(length).equals(table.slice(0, total - length)):
            return rows.select(range(length))
    return rows


def aime_rows(rows: Iterable[Row], year: int) -> list[Row]:
    """Keep the problems of one year's AIME.

    Args:
        rows: with a ``url``, ``year`` or ``data_source`` that names the exam, as in AI-MO's and in
            SvS's files; without any of them, all rows are taken for the exam.
        year: of the exam.

    Returns:
        The rows, each with an ``exam_id`` such as ``"2024-II-7"``.

    Raises:
        ValueError: if there is none, or more than the 30 of an exam.
    """
    kept = [row | {"exam_id": _exam_id(row, year)} for row in rows if _is_of(row, year)]
    if not kept:
        raise ValueError(f"there is no problem of AIME {year} in it; give a file that holds them")
    if len(kept) > 30:
        raise ValueError(
            f"it holds {len(kept)} problems, and AIME {year} has 30; give each once, or name the "
            "exam in a column 'year'"
        )
    return kept


def mbpp_rows(rows: Iterable[Row], split: str) -> list[Row]:
    """Keep the problems of one split of MBPP.

    Args:
        rows: with a ``task_id``.
        split: of `MBPP_SPLITS`.

    Returns:
        The rows, in order.

    Raises:
        ValueError: if there is none, or a row has no task id.
    """
    ids = MBPP_SPLITS[split]
    kept = []
    for number, row in enumerate(rows):
        if not isinstance(row.get("task_id"), int):
            raise ValueError(
                f"row {number} has no whole number in column 'task_id', which decides its split; "
                "give MBPP's own file"
            )
        if row["task_id"] in ids:
            kept.append(row)
    if not kept:
        raise ValueError(
            f"there is no problem of MBPP's {split} split in it (ids {ids[0]} to {ids[-1]}); give "
            "a file that holds them, or choose another split"
        )
    return kept


def _is_of(row: Row, year: int) -> bool:
    """Whether a row is of the exam, as far as it says."""
    marks = [str(row[mark]) for mark in _MARKS if row.get(mark) is not None]
    named = [year_of for mark in marks if (year_of := _year(mark))]
    return str(year) in named if marks else True


def _year(mark: str) -> str | None:
    """The year of an AIME that a text names."""
    found = _EXAM.search(mark) or _AIME_YEAR.search(mark) or re.fullmatch("(20[0-9]{2})", mark)
    return found[1] if found else None


def _exam_id(row: Row, year: int) -> str:
    """A problem's name: exam and number, or the year and the file's own index."""
    exam = _EXAM.search(str(row.get("url")))
    if exam:
        return "-".join(exam.groups())
    extra = row.get("extra_info")
    index = extra.get("index") if isinstance(extra, dict) else None
    index = row.get("id") if index is None else index
    return "" if index is None else f"{year}-{index}"
