"""The hidden folder in which a table grows, one file per weight, until it is written whole."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from orthora.store import locked, write_json
from orthora.table import read_table, write_table

_PLAN = "plan.json"


class Parts:
    """Finished weights of an unfinished table.

    Attributes:
        done: names of the finished weights.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any]) -> None:
        """Begin, or go on with what an earlier process left.

        Args:
            out: the table to be.
            plan: what decides its content; another plan's remains are removed.

        Raises:
            ValueError: if another process is at work on the same table.
        """
        self._folder = out.resolve().parent / f".{out.name}.unfinished"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self._folder)
        now = json.loads(json.dumps(dict(plan)))
        if self._plan() != now:
            for file in self._folder.iterdir():
                file.unlink()
            write_json(self._folder / _PLAN, now)
        self.done = {file.stem for file in self._folder.glob("*.parquet")}

    def _plan(self) -> Any:
        try:
            return json.loads((self._folder / _PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def finish(self, name: str, rows: pd.DataFrame) -> None:
        """Keep a weight's rows."""
        write_table(self._folder / f"{name}.parquet", [rows], {})
        self.done.add(name)

    def frames(self, names: Sequence[str]) -> Iterator[pd.DataFrame]:
        """The rows of finished weights, in the order given."""
        for name in names:
            yield read_table(self._folder / f"{name}.parquet")

    def complete(self) -> None:
        """Remove the folder: the table is written."""
        shutil.rmtree(self._folder)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self.done or isinstance(error, ValueError):  # once mended, this is another plan
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
