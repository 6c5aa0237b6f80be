"""Silence for programs; a library leaves other libraries' loggers alone."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parent)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Inside, a warning is one line; our own without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = _one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _one_line(message: Warning | str, category: Any, filename: str, *_: Any, **__: Any) -> str:
    place = "" if filename.startswith(_PACKAGE) else f"{filename}: {category.__name__}: "
    return f"{place}{message}\n"


def quiet_libraries(*, data: bool = True) -> None:
    """Keep other libraries' progress bars and notices out of our output; errors are raised.

    Args:
        data: whether data sets will be loaded; their library takes half a second to import.
    """
    import logging

    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if data:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error it raises too
    logging.getLogger("trl").setLevel(logging.ERROR)
