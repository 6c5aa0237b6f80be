"""The hidden folder in which a started adapter grows, until it takes its name.

It holds the plan (what is being made, of what), the adapter's files at their final size, and a
journal with one line per finished weight. Whoever comes back with the same plan goes on. Only an
interruption or a failing disk leaves it; bad data does not.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from orthora.adapters.slotfile import SlotFile
from orthora.store import locked, write_atomic, write_json

_PLAN, _JOURNAL = "plan.json", "journal.jsonl"
_FLUSH_SECONDS = 2.0  # of work that a power cut may lose


class Unfinished:
    """An adapter folder in the making.

    Attributes:
        folder: the hidden folder.
        done: what the journal says of each finished weight.
    """

    def __init__(
        self, out: Path, plan: Mapping[str, Any], files: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> None:
        """Begin, or go on with what an earlier process left.

        Args:
            out: the folder to make.
            plan: what decides the result; another plan's remains are refused.
            files: the tensors of each safetensors file.

        Raises:
            ValueError: if ``out`` holds files, or the remains of another plan are in the way.
            OSError: if the disk is full; nothing is left then.
        """
        self.out = out.resolve()  # a folder can't take the place of a link to one
        self.folder = self.out.parent / f".{self.out.name}.unfinished"
        self.done: dict[str, dict[str, Any]] = {}
        self._waiting: list[str] = []
        self._flushed = time.monotonic()
        self._files: dict[str, SlotFile] = {}
        self._journal: TextIO | None = None
        self._check_out()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.folder)
        fresh = not (self.folder / _PLAN).is_file()
        try:
            self._check_out()  # again, now that nobody else can make it
            if fresh:
                self._tidy(())  # of what was killed before its plan stood
            else:
                self._check_plan(plan)
            for name, shapes in files.items():
                self._files[name] = SlotFile(self.folder / name, shapes)
            if fresh:
                write_json(self.folder / _PLAN, dict(plan))  # last: it says that files are whole
            self._read_journal()
            self._journal = (self.folder / _JOURNAL).open("a", encoding="utf-8")
        except BaseException:
            self._close(drop=fresh)
            raise

    def _check_out(self) -> None:
        """``out`` can still be made."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(
                f"{self.out} exists and is not empty; choose another folder, or remove it"
            )
        if self.out.is_mount():
            raise ValueError(f"{self.out} is a mount point; choose a folder inside it")

    def _tidy(self, keep: Collection[str]) -> None:
        """Remove all but ``keep`` from the folder."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        """Refuse to go on with what was begun otherwise."""
        before = json.loads((self.folder / _PLAN).read_text())
        now = json.loads(json.dumps(dict(plan)))
        odd = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if odd and set(odd) <= {"checkpoint", "modified"}:
            raise ValueError(
                f"{self.folder} holds a start that was begun before the checkpoint's files were "
                "written again; remove the folder to start anew"
            )
        if odd:
            pairs = [f"{key} {before.get(key)!r} then, {now.get(key)!r} now" for key in odd]
            shown = ", ".join(pairs)
            raise ValueError(
                f"{self.folder} holds an unfinished start that was begun otherwise ({shown}); "
                "repeat that command, or remove the folder"
            )

    def _read_journal(self) -> None:
        """Take over the finished weights; a last line cut short by a kill is dropped."""
        path = self.folder / _JOURNAL
        if not path.is_file():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            entry = json.loads(line)
            self.done[entry.pop("name")] = entry

    def write(self, file: str, tensor: str, value: Tensor, row: int = 0) -> None:
        """Write rows of one tensor; see `SlotFile.write`."""
        self._files[file].write(tensor, value, row)

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Note that all tensors of a weight are written."""
        self.done[name] = dict(entry)
        self._waiting.append(json.dumps({"name": name, **entry}) + "\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put the data on the disk, then the journal that vouches for it."""
        for file in self._files.values():
            file.flush()
        assert self._journal is not None, "flushed after the end"
        self._journal.writelines(self._waiting)
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._waiting.clear()
        self._flushed = time.monotonic()

    def complete(self, files: Mapping[str, str]) -> Path:
        """Add small text files, drop the scaffolding, and give the folder its name."""
        self.flush()
        for name, text in files.items():
            write_atomic(self.folder / name, text)
        if self.out.exists():
            self.out.rmdir()
        self._tidy({*self._files, *files})
        self.folder.replace(self.out)
        self._close()
        return self.out

    def _close(self, *, drop: bool = False) -> None:
        """Close everything; what is on the disk stays, unless it is to be dropped."""
        for file in self._files.values():
            file.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if drop:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:  # last: until then the folder is ours
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._journal is not None:
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                self.flush()
            # A ValueError is the checkpoint's: once that is mended, this is another plan's.
            self._close(drop=not self.done or isinstance(error, ValueError))
