"""Kinds of folders that hold updates of a base's weights, read one weight at a time.

Plain LoRA is read as its factors. What has none (DoRA, AdaLoRA, VeRA, MiSS, (IA)^3) is merged by
PEFT, in float64, into the one weight that is asked for; a whole model is subtracted from its base.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from orthora.adapters.fold import merged
from orthora.adapters.layouts import Layouts, fitting
from orthora.adapters.model import STATE_NAME
from orthora.adapters.slots import ADAPTER, Slot, slots_of
from orthora.adapters.sources import Origins, Source, meta_model
from orthora.checkpoint import Checkpoint, open_tensors
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
        notes: what else the folder changes, which is not an update of these.
    """

    folder: Path
    sources: dict[str, Source]
    notes: tuple[str, ...] = ()

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


class Factored(Saved):
    """Plain LoRA, or the plain form of rank 2r of an anchored one."""

    def __init__(
        self, folder: Path, layouts: Layouts, config: PeftConfig, method: str | None
    ) -> None:
        self.folder, self._config = folder, config
        self.sources = layouts.of(folder, config)
        self._tensors = _open_weights(folder)
        exact = folder / STATE_NAME
        self._exact = open_tensors(exact) if exact.is_file() else None
        anchored = method is not None and compose(method).init.anchored
        self._anchored = anchored or self._exact is not None
        self._check()

    def _check(self) -> None:
        """Every factor has its place in the base, and the other way round."""
        every = set(self._tensors.tensors)
        found = {key for key in every if key.endswith((".lora_A.weight", ".lora_B.weight"))}
        self.notes = _others(self.folder, every - found, self._config)
        needed = {}
        for source in self.sources.values():
            slot = source.slot
            (m, n), rank = slot.shape, slot.rank * slot.experts
            needed[f"{slot.path}.lora_A.weight"] = (rank, n)
            needed[f"{slot.path}.lora_B.weight"] = (m, rank)
        check_names(self.folder, found, set(needed))
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
        """``s B A``, not formed."""
        slot = self.sources[name].slot
        scale = float(slot.layer.scaling[ADAPTER])
        A = self._factor(self._tensors, slot, "lora_A")
        return LowRank(scale * self._factor(self._tensors, slot, "lora_B"), A)

    def rows(self, name: str) -> Rows:
        """A, and A0 and B0 where the folder holds an anchor, or the method has one."""
        slot = self.sources[name].slot
        if self._exact is not None:
            parts = ("lora_A", "anchor_A", "anchor_B")
            return Rows(*(self._factor(self._exact, slot, part) for part in parts))
        A = self._factor(self._tensors, slot, "lora_A")
        if not self._anchored:
            return Rows(A)
        r = len(A) // 2  # [B - B0, B0] [A; A - A0]
        return Rows(A[:r], A[:r] - A[r:], self._factor(self._tensors, slot, "lora_B")[:, r:])


class Merged(Saved):
    """A structure whose update PEFT forms, one layer at a time.

    The base is built with weights that nobody reads, and which therefore take no memory.
    """

    def __init__(self, folder: Path, layouts: Layouts, config: PeftConfig) -> None:
        self.folder = folder
        base = meta_model(layouts.checkpoint)
        origins = Origins(base, layouts.checkpoint)
        with fitting(folder):
            model = PeftModel.from_pretrained(base.to_empty(device="cpu"), str(folder))
            found = model.load_adapter(str(folder), ADAPTER)
        check_names(folder, set(found.unexpected_keys), set())
        for parameter, value in model.named_parameters():
            if f".{ADAPTER}" in parameter:
                self.finite(value, parameter)
        self.sources = {slot.name: origins.source(slot) for slot in slots_of(model)}
        if not self.sources:
            raise ValueError(
                f"{folder}: {config.peft_type} changes no weight of a linear layer, so there is no "
                "geometry to measure; leave it out"
            )
        self.notes = _others(folder, set(), config)

    def update(self, name: str, W: Tensor) -> Update:
        """What PEFT's merge adds, in float64, rounded to float32."""
        slot = self.sources[name].slot
        before = W.double()
        with _weight_in_place(slot, before), torch.no_grad(), merged(slot.layer):
            after = slot.weight()
            return Dense((after - before).float())


class Difference(Saved):
    """Trained weights, less the base's."""

    def __init__(
        self, folder: Path, sources: dict[str, Source], pairs: dict[str, tuple[Source, Checkpoint]]
    ) -> None:
        self.folder, self.sources, self._pairs = folder, sources, pairs

    def update(self, name: str, W: Tensor) -> Update:
        """The difference, in float32."""
        source, tensors = self._pairs[name]
        after = self.finite(source.read(tensors), name)
        if after.shape != W.shape:
            raise ValueError(
                f"{self.folder} does not fit the base: {name} has shape {tuple(after.shape)}, and "
                f"the base {tuple(W.shape)}; give the base it was trained from"
            )
        return Dense(after.float() - W.float())


def _others(folder: Path, keys: set[str], config: PeftConfig) -> tuple[str, ...]:
    """What of an adapter is no update of a linear weight."""
    notes = []
    whole = getattr(config, "modules_to_save", None) or []
    for kind, present in (
        (f"trained copies of {', '.join(whole)}", bool(whole)),
        ("trained tokens", bool(getattr(config, "trainable_token_indices", None))),
        ("updates of embeddings", any(".lora_embedding_" in key for key in keys)),
        ("trained biases", any(key.endswith(".bias") for key in keys)),
    ):
        if present:
            notes.append(f"{folder}: {kind} are not measured")
    if getattr(config, "alora_invocation_tokens", None):
        notes.append(f"{folder}: active from its invocation tokens on; measured as if always")
    return tuple(notes)


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


def check_names(folder: Path, found: set[str], needed: set[str]) -> None:
    """Refuse names that are here and not there.

    Raises:
        ValueError: naming the first, and how many more.
    """
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
