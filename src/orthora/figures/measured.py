"""Tables of `orthora measure`: those that lie beside runs, and further ones."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthora.figures.folders import Source, absolute, unique_names
from orthora.table import BASE, NAME, read_table


class Measured:
    """Geometry of some runs.

    Attributes:
        parts: rows of the runs, under their names, and of the base model.
    """

    def __init__(self, sources: Sequence[Source]):
        self.parts: list[Any] = []
        self._sources = {one.name: one for one in sources}
        self._taken: dict[Path, set[str]] = {}
        self._tables: dict[Path, Any] = {}
        self._known: set[str] = set()
        self._with_base: set[Path] = set()
        common = _common([one.folder for one in sources])
        counts = Counter(absolute(one.folder).name for one in sources)
        for source in sources:
            self._add(source, common, counts[absolute(source.folder).name] == 1)

    def _add(self, source: Source, common: Sequence[Path], alone: bool) -> None:
        """Rows of a run out of the nearest table that has any; base rows out of all of them."""
        given, real = absolute(source.folder), source.folder.resolve()
        near = (given, real, given.parent, real.parent)
        for place in dict.fromkeys((*near, *common)):
            path = place / NAME
            if not path.is_file():
                continue
            table = self._read(path)
            plain = alone or place in near
            run = _name_in(table, (given, real), plain)
            if run is None:
                continue
            if source.name not in self._known:
                self._take(source, path, run)
            self._add_base(path)

    def _read(self, path: Path) -> Any:
        key = path.resolve()
        if key not in self._tables:
            self._tables[key] = read_table(path)
        return self._tables[key]

    def _add_base(self, path: Path) -> None:
        if path.resolve() not in self._with_base:
            self._with_base.add(path.resolve())
            table = self._read(path)
            self.parts.append(table[table["run"] == BASE])

    def _take(self, source: Source, path: Path, run: str) -> None:
        """Rows of a run under the name that it has here.

        Raises:
            ValueError: if the table's method is not that of the run.
        """
        table = self._read(path)
        own = table[table["run"] == run]
        others = {*own["method"].unique()} - {"", source.view.method}
        if others:
            raise ValueError(
                f"{path} has {run!r} with method {min(others)!r}, but {source.folder} is a run of "
                f"{source.view.method!r}: the table is of another run of that name; measure "
                f"again: orthora measure {source.folder}"
            )
        self.parts.append(own.assign(run=source.name, method=source.view.method))
        self._taken.setdefault(path.resolve(), set()).add(run)
        self._known.add(source.name)

    def add_tables(self, paths: Sequence[Path]) -> None:
        """All rows of further tables; runs of one name in several get that of the table's folder.

        Rows of a run that was measured nowhere else count as its own.

        Raises:
            ValueError: as `orthora.table.read_table`; or if such a run has another method.
        """
        files = {path.resolve(): absolute(path) for path in reversed(paths)}
        left = {
            file: {*self._read(path)["run"].unique()} - {BASE} - self._taken.get(file, set())
            for file, path in reversed(files.items())
        }
        counts = Counter(name for names in left.values() for name in names)
        prefixes = _prefixes([files[file] for file in left])
        used = {*self._sources, *counts}
        for (file, names), prefix in zip(left.items(), prefixes, strict=True):
            table = self._read(files[file])
            for run in sorted(names):
                clash = counts[run] > 1 or run in self._known
                if run in self._sources and not clash:
                    self._take(self._sources[run], files[file], run)
                    continue
                name = _free(f"{prefix}/{run}", used) if clash else run
                used.add(name)
                self.parts.append(table[table["run"] == run].assign(run=name))
            self._add_base(files[file])


def _prefixes(files: Sequence[Path]) -> list[str]:
    """A name for each table: that of its folder, or its own where two lie in one folder."""
    folders = [file.parent for file in files]
    return unique_names(folders if len({*folders}) == len(folders) else files)


def _free(name: str, used: set[str]) -> str:
    while name in used:
        name += " (table)"
    return name


def _common(folders: Sequence[Path]) -> list[Path]:
    """The folders that all runs lie in, as given and with links followed."""
    found = []
    for paths in ([absolute(f) for f in folders], [f.resolve() for f in folders]):
        if len({path.parent for path in paths}) > 1:
            found.append(Path(os.path.commonpath([path.parent for path in paths])))
    return found


def _name_in(table: Any, folders: Sequence[Path], plain: bool) -> str | None:
    """Name of a run in a table: that of its folder, with the parent's first where it must be."""
    names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    names += [folder.name for folder in folders] if plain else []
    known = {*table["run"].unique()} - {BASE}
    return next((name for name in names if name in known), None)
