"""How the named tasks' golds are read: each a function of the cell that raises ValueError."""

import ast
import re
from collections.abc import Iterable
from typing import Any

from orthora.rewards import gold_of
from orthora.rewards.spelling import tidy

_INTEGER = re.compile(r"[+-]?[0-9]+")


def integer_gold(cell: Any) -> str:
    """Read an integer of any size, as in AIME and DAPO.

    Args:
        cell: text or a number.

    Returns:
        Its digits, without leading zeros or a degree sign: ``"025"`` is ``"25"``.

    Raises:
        ValueError: if it is not an integer.
    """
    text = tidy(str(cell))  # AIME 2025 has a gold in degrees
    if isinstance(cell, bool) or not _INTEGER.fullmatch(text):
        raise ValueError(f"the gold {cell!r} is not an integer; correct the row or drop it")
    return str(int(text))


def gsm8k_gold(cell: Any) -> str:
    """Read what follows ``####`` in a GSM8K solution.

    Args:
        cell: the solution.

    Returns:
        The integer, without commas.

    Raises:
        ValueError: if there is no such mark, or no integer behind it.
    """
    text = str(cell)
    if "#### " not in text:
        raise ValueError(
            f"the gold {text[-40:]!r} has no '#### ' before the answer; correct the row or drop it"
        )
    return integer_gold(gold_of(text))


def text_gold(cell: Any) -> str:
    r"""Read an answer in LaTeX, as in MATH.

    Args:
        cell: the answer, or a solution with a ``\boxed{}``.

    Returns:
        The answer.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ValueError(f"the gold {cell!r} is neither text nor a number; correct the row")
    gold = gold_of(str(cell))
    if not tidy(gold):
        raise ValueError(f"the gold {gold!r} says nothing; correct the row or drop it")
    return gold


def program_gold(cell: Any) -> str:
    """Read a reference program, as in MBPP.

    Args:
        cell: Python source.

    Returns:
        The source with Unix line ends.

    Raises:
        ValueError: if it is not Python.
    """
    return _python(cell, "reference program")


def asserts_of(cell: Any) -> tuple[str, ...]:
    """Read a programming problem's tests.

    Args:
        cell: a list of statements.

    Returns:
        The statements.

    Raises:
        ValueError: if there is none, or one is not Python.
    """
    if isinstance(cell, str) or not isinstance(cell, Iterable):
        raise ValueError(f"the tests are a {type(cell).__name__}, not a list; correct the row")
    return tuple(_python(test, "test") for test in cell)


def unix(source: Any) -> str:
    """Source code with Unix line ends.

    Args:
        source: text; MBPP's has three kinds of line ends, and some at its end.

    Returns:
        The text, stripped at its end.
    """
    return str(source).replace("\r\n", "\n").replace("\r", "\n").rstrip()


def _python(source: Any, what: str) -> str:
    """Python source with Unix line ends."""
    text = unix(source)
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"the {what} {text[:40]!r} is not Python ({error}); correct the row or drop it"
        ) from error
    return text
