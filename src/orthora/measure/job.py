"""What is to be measured, and how each weight's rows are made."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from orthora import __version__
from orthora.adapters import starts
from orthora.adapters.saved import Layouts, Rows, Saved, open_adapter, open_exact, open_model
from orthora.adapters.sources import Source
from orthora.checkpoint import Checkpoint
from orthora.linalg.updates import LowRank
from orthora.measure.subjects import Moment, Subject
from orthora.measure.weights import Options, State, values_of
from orthora.methods import compose
from orthora.table import BASE, Row, frame
from orthora.trained import TENSORS


class Job:
    """The measurement of some subjects on one base.

    Attributes:
        sources: the weights to measure, by name, in the base's order.
        notes: what of the adapters is not measured, a line each.
    """

    def __init__(
        self, checkpoint: Checkpoint, subjects: Sequence[Subject], options: Options
    ) -> None:
        """Open everything, headers only where that will do.

        Raises:
            ValueError: if something is damaged or does not fit the base.
        """
        self._checkpoint, self.options = checkpoint, options
        self.subjects = list(subjects)
        layouts = Layouts(checkpoint)
        self._saved: dict[tuple[str, int], Saved] = {}
        self._start: dict[str, Saved] = {}
        for subject in subjects:
            for index, moment in enumerate(subject.moments):
                if moment.kind != "start":
                    self._saved[subject.name, index] = _open(subject, moment, layouts)
            if subject.config is not None and subject.config.start:
                given = Path(subject.config.start)
                self._start[subject.name] = open_adapter(given, layouts)
        found: dict[str, Source] = {}
        for saved in self._saved.values():
            found |= saved.sources
        if not found:  # runs stopped at step 0
            found = layouts.linear()
        order = list(dict.fromkeys([*layouts.linear(), *found]))
        self.sources = {name: found[name] for name in order if name in found}
        self.notes = list(dict.fromkeys(n for saved in self._saved.values() for n in saved.notes))

    def largest(self) -> int:
        """Bytes of the largest weight in float32."""
        return max(4 * math.prod(source.slot.shape) for source in self.sources.values())

    def plan(self) -> dict[str, Any]:
        """All that decides the result."""
        return {
            "orthora": __version__,
            "torch": torch.__version__,
            "base": str(self._checkpoint.folder),
            "checkpoint": self._checkpoint.fingerprint(),
            "modified": self._checkpoint.modified(),
            "options": asdict(self.options),
            "subjects": {s.name: _digest(s) for s in self.subjects},
        }

    def weight(self, name: str) -> Tensor:
        """The base's weight (m, n) in float32."""
        return self.sources[name].read(self._checkpoint).float()

    def rows(self, W: Tensor, name: str) -> pd.DataFrame:
        """All rows of one weight.

        Raises:
            ValueError: naming the weight, if it or an update of it is not finite.
        """
        try:
            return frame(self._rows(W, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _rows(self, W: Tensor, name: str) -> Iterator[Row]:
        layer, module = place_of(name)
        held = {s.name: [i for i in range(len(s.moments)) if self._holds(s, i, name)]
                for s in self.subjects}  # fmt: skip
        known = {s.name: s for s in self.subjects if held[s.name]}
        runs = {
            run: [partial(self._state, subject, index, name, W) for index in held[run]]
            for run, subject in known.items()
        }
        for run, at, (quantity, place, value) in values_of(W, runs, self.options):
            if run:
                subject = known[run]
                whose = run, subject.method, subject.moments[held[run][at]].step
            else:
                whose = BASE, BASE, 0
            yield Row(*whose, layer, module, quantity, place, value)

    def _holds(self, subject: Subject, index: int, name: str) -> bool:
        """Whether a moment knows the weight; the start knows what any later one does."""
        saved = self._saved.get((subject.name, index))
        if saved is not None:
            return name in saved.sources
        later = [s for (run, _), s in self._saved.items() if run == subject.name]
        return not later or any(name in s.sources for s in later)

    def _state(self, subject: Subject, index: int, name: str, W: Tensor) -> State:
        saved = self._saved.get((subject.name, index))
        if saved is None:
            m, n = W.shape
            nothing = LowRank(torch.zeros(m, 1), torch.zeros(1, n))
            return State(nothing, self._beginning(subject, name, W))
        rows = saved.rows(name)
        if rows is not None and rows.A0 is None:
            start = self._beginning(subject, name, W)
            rows = rows if start is None else Rows(rows.A, start.A0, start.B0)
        return State(saved.update(name, W), rows)

    def _beginning(self, subject: Subject, name: str, W: Tensor) -> Rows | None:
        """The factors that a run started with; None where there are none or nobody knows."""
        config = subject.config
        if config is None or not compose(config.method).has_factors:
            return None
        if subject.name in self._start:
            given = self._start[subject.name].rows(name)
            if given is None:
                return None
            zero = torch.zeros(W.shape[0], len(given.A))
            return Rows(given.A, given.A, zero if given.B0 is None else given.B0)
        method = compose(config.method)
        rank = min(config.rank, *W.shape)
        how = starts.How(method.init.name, method.scale(config.rank, config.alpha), config.seed)
        A, B = starts.compute(W, name, rank, how).factors
        return Rows(A, A, B)


def _open(subject: Subject, moment: Moment, layouts: Layouts) -> Saved:
    if moment.kind == "adapter":
        return open_adapter(moment.folder, layouts, subject.method or None)
    if moment.kind == "exact":
        return open_exact(moment.folder, moment.folder / TENSORS, layouts)
    return open_model(moment.folder, layouts)


def _digest(subject: Subject) -> str:
    """Of all that decides a subject's numbers: its files, its moments and its settings."""
    folders = [moment.folder for moment in subject.moments if moment.kind != "start"]
    config = subject.config
    if config is not None and config.start:
        folders.append(Path(config.start))
    files = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix in (".safetensors", ".json")
    ]
    moments = [(moment.step, moment.kind) for moment in subject.moments]
    settings = None if config is None else config.model_dump(mode="json")
    text = json.dumps([subject.method, moments, settings, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def place_of(name: str) -> tuple[int, str]:
    """Layer and module of a weight: ``model.layers.3.mlp.up_proj`` is (3, ``mlp.up_proj``)."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return int(part), ".".join(parts[i + 1 :])
    return -1, name
