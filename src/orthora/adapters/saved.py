"""Adapters, checkpoints and whole models on the disk, read one weight's update at a time.

Plain LoRA is read as its factors. What has none (DoRA, AdaLoRA, VeRA, MiSS, (IA)^3) is merged by
PEFT, in float64, into the one weight that is asked for; a whole model is subtracted from its base.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from orthora.adapters.export import RECORD_NAME
from orthora.adapters.fold import merged
from orthora.adapters.intact import check_adapter
from orthora.adapters.model import STATE_NAME
from orthora.adapters.slots import ADAPTER, Slot, slots_of
from orthora.adapters.sources import Origins, Source, meta_model
from orthora.adapters.wrap import wrap
from orthora.checkpoint import Checkpoint, open_checkpoint, open_tensors
from orthora.linalg.updates import Dense, LowRank, Update
from orthora.methods import compose

_WEIGHTS = "adapter_model.safetensors"


class Rows(NamedTuple):
    """The factors of one weight, as they trained.

    Attributes:
        A: (r, n) down-projection.
        A0: (r, n) where it started, if the folder says; None otherwise.
        B0: (m, r) the same of B.
    """

    A: Tensor
    A0: Tensor | None = None
    B0: Tensor | None = None


class Saved(ABC):
    """Updates of a base model's weights, from a folder.

    Attributes:
        folder: for messages.
        sources: the weights that it updates, by name, and where the base has them.
    """

    folder: Path
    sources: dict[str, Source]

    @abstractmethod
    def update(self, name: str, W: Tensor) -> Update:
        """The update of one weight.

        Args:
            name: in ``sources``.
            W: (m, n) the base's weight.

        Raises:
            ValueError: if it can't be read, or holds NaN or Inf, naming the tensor.
        """

    def rows(self, name: str) -> Rows | None:
        """The factors of one weight; None where the structure has none."""
        return None

    def finite(self, value: Tensor, name: str) -> Tensor:
        """A tensor that holds no NaN or Inf.

        Raises:
            ValueError: if it does.
        """
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{self.folder}: {name} holds NaN or Inf; the run diverged, measure an earlier step"
            )
        return value


class Layouts:
    """The base model's adapted forms, without weights; equal configs share one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Of one base.

        Args:
            checkpoint: of the base.
        """
        self.checkpoint = checkpoint
        self._known: dict[str, dict[str, Source]] = {}

    def of(self, folder: Path, config: PeftConfig) -> dict[str, Source]:
        """Slots of a plain LoRA and their sources, by the name of the weight.

        Raises:
            ValueError: if the base has no such modules.
        """
        key = json.dumps(config.to_dict(), sort_keys=True, default=_text)
        if key not in self._known:
            base = meta_model(self.checkpoint)
            origins = Origins(base, self.checkpoint)
            with _fitting(folder), torch.device("meta"):
                model = get_peft_model(base, config, low_cpu_mem_usage=True)
            self._known[key] = {s.name: origins.source(s) for s in slots_of(model)}
        return self._known[key]

    def linear(self) -> dict[str, Source]:
        """All linear weights of the layers and their sources, by name."""
        if "" not in self._known:
            base = meta_model(self.checkpoint)
            origins = Origins(base, self.checkpoint)
            settings: dict[str, Any] = {"rank": 1, "alpha": 1.0, "targets": "all-linear"}
            _, slots = wrap(base, compose("lora"), dropout=0.0, unfit="skip", **settings)
            self._known[""] = {s.name: origins.source(s) for s in slots}
        return self._known[""]


def open_adapter(folder: Path, layouts: Layouts, method: str | None = None) -> Saved:
    """A PEFT adapter.

    Args:
        folder: with ``adapter_config.json``.
        layouts: of the base.
        method: that trained it, where known; None takes what ``orthora.json`` says.

    Raises:
        ValueError: in one line, if it is damaged, does not fit the base, or has no matrices.
    """
    check_adapter(folder)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    if isinstance(config, LoraConfig) and type(config) is LoraConfig and not config.use_dora:
        return _Factored(folder, layouts, config, method or _recorded(folder))
    if config.is_prompt_learning or config.peft_type == "LN_TUNING":
        raise ValueError(
            f"{folder}: {config.peft_type} changes no weight matrix, so there is no geometry to "
            "measure; leave it out"
        )
    return _Merged(folder, layouts)


def open_model(folder: Path, layouts: Layouts) -> Saved:
    """A whole model, fully fine-tuned from the base.

    Raises:
        ValueError: if it can't be read, or is of another architecture or shape.
    """
    other = open_checkpoint(str(folder))
    theirs = Layouts(other).linear()
    sources = layouts.linear()
    _check_names(folder, set(theirs), set(sources))
    return _Whole(folder, sources, {name: (source, other) for name, source in theirs.items()})


def open_exact(folder: Path, file: Path, layouts: Layouts) -> Saved:
    """The weights that a run trained in place, in one of its checkpoints.

    Args:
        folder: of the checkpoint.
        file: with the tensors ``model/<parameter>``.
        layouts: of the base.

    Raises:
        ValueError: if it can't be read, or does not fit the base.
    """
    tensors = open_tensors(file)
    sources = {
        name: source
        for name, source in layouts.linear().items()
        if f"model/{source.slot.key}" in tensors.tensors
    }
    if not sources:
        raise ValueError(f"{file} holds no weight of this base's linear layers")
    pairs = {
        name: (Source(source.slot, (f"model/{source.slot.key}",), source.slot.expert), tensors)
        for name, source in sources.items()
    }
    return _Whole(folder, sources, pairs)


class _Factored(Saved):
    """Plain LoRA, or the plain form of rank 2r of an anchored one."""

    def __init__(
        self, folder: Path, layouts: Layouts, config: PeftConfig, method: str | None
    ) -> None:
        self.folder = folder
        self.sources = layouts.of(folder, config)
        self._tensors = _open_weights(folder)
        exact = folder / STATE_NAME
        self._exact = open_tensors(exact) if exact.is_file() else None
        anchored = method is not None and compose(method).init.anchored
        self._anchored = anchored or self._exact is not None
        self._check()

    def _check(self) -> None:
        """Every factor has its place in the base, and the other way round."""
        found = {key for key in self._tensors.tensors if ".lora_" in key}
        needed = {}
        for source in self.sources.values():
            slot = source.slot
            (m, n), rank = slot.shape, slot.rank * slot.experts
            needed[f"{slot.path}.lora_A.weight"] = (rank, n)
            needed[f"{slot.path}.lora_B.weight"] = (m, rank)
        _check_names(self.folder, found, set(needed))
        for key, shape in needed.items():
            if self._tensors.tensors[key].shape != shape:
                raise ValueError(
                    f"{self.folder} does not fit the base: {key} has shape "
                    f"{self._tensors.tensors[key].shape}, and the base needs {shape}; give the "
                    "base it was trained on"
                )
        for key in needed:  # before hours of work
            self.finite(self._tensors.read(key), key)

    def _factor(self, tensors: Checkpoint, slot: Slot, name: str) -> Tensor:
        """One factor of a weight, of an expert's if it is one."""
        key = f"{slot.path}.{name}.weight"
        value = tensors.read(key).float()
        if slot.expert is not None:
            r = value.shape[0 if name.endswith("A") else 1] // slot.experts
            rows = slice(slot.expert * r, (slot.expert + 1) * r)
            value = value[rows] if name.endswith("A") else value[:, slot.expert :: slot.experts]
        return value

    def update(self, name: str, W: Tensor) -> Update:
        slot = self.sources[name].slot
        scale = float(slot.layer.scaling[ADAPTER])
        A = self._factor(self._tensors, slot, "lora_A")
        return LowRank(scale * self._factor(self._tensors, slot, "lora_B"), A)

    def rows(self, name: str) -> Rows:
        slot = self.sources[name].slot
        if self._exact is not None:
            parts = ("lora_A", "anchor_A", "anchor_B")
            return Rows(*(self._factor(self._exact, slot, part) for part in parts))
        A = self._factor(self._tensors, slot, "lora_A")
        if not self._anchored:
            return Rows(A)
        r = len(A) // 2  # [B - B0, B0] [A; A - A0]
        return Rows(A[:r], A[:r] - A[r:], self._factor(self._tensors, slot, "lora_B")[:, r:])


class _Merged(Saved):
    """A structure whose update PEFT forms, one layer at a time.

    The base is built with weights that nobody reads, and which therefore take no memory.
    """

    def __init__(self, folder: Path, layouts: Layouts) -> None:
        self.folder = folder
        base = meta_model(layouts.checkpoint)
        origins = Origins(base, layouts.checkpoint)
        with _fitting(folder):
            model = PeftModel.from_pretrained(base.to_empty(device="cpu"), str(folder))
            found = model.load_adapter(str(folder), ADAPTER)
        _check_names(folder, set(found.unexpected_keys), set())
        for parameter, value in model.named_parameters():
            if f".{ADAPTER}" in parameter:
                self.finite(value, parameter)
        slots = slots_of(model)
        self._layers = {slot.name: slot.layer for slot in slots}
        self.sources = {slot.name: origins.source(slot) for slot in slots}

    def update(self, name: str, W: Tensor) -> Update:
        slot = self.sources[name].slot
        before = W.double()
        with _weight_in_place(slot, before), torch.no_grad(), merged(slot.layer):
            after = slot.weight()
            return Dense((after - before).float())


class _Whole(Saved):
    """Trained weights, less the base's."""

    def __init__(
        self, folder: Path, sources: dict[str, Source], pairs: dict[str, tuple[Source, Checkpoint]]
    ) -> None:
        self.folder, self.sources, self._pairs = folder, sources, pairs

    def update(self, name: str, W: Tensor) -> Update:
        source, tensors = self._pairs[name]
        after = self.finite(source.read(tensors), name)
        if after.shape != W.shape:
            raise ValueError(
                f"{self.folder} does not fit the base: {name} has shape {tuple(after.shape)}, and "
                f"the base {tuple(W.shape)}; give the base it was trained from"
            )
        return Dense(after.float() - W.float())


@contextmanager
def _weight_in_place(slot: Slot, W: Tensor) -> Iterator[None]:
    """Inside, the layer's base holds the weight."""
    base = slot.layer.get_base_layer()
    kept = base.weight
    try:
        base.weight = nn.Parameter(W.mT if slot.transposed else W, requires_grad=False)
        yield
    finally:
        base.weight = kept


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """PEFT's refusals of an adapter that does not fit the base, in one line."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder} does not fit the base: {line} (give the base it was trained on)"
        ) from error


def _check_names(folder: Path, found: set[str], needed: set[str]) -> None:
    odd = sorted(found ^ needed)
    if odd:
        what = "has no place in the base" if odd[0] in found else "is missing in the folder"
        raise ValueError(
            f"{folder} does not fit the base: {odd[0]} {what}, and {len(odd) - 1} more; give the "
            "base it was trained on"
        )


def _open_weights(folder: Path) -> Checkpoint:
    if not (folder / _WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {_WEIGHTS}; save the adapter as safetensors")
    return open_tensors(folder / _WEIGHTS)


def _recorded(folder: Path) -> str | None:
    """The method that ``orthora.json`` names."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("method")
    except ValueError:
        return None


def _text(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
