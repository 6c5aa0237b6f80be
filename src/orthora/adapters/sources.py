"""Which tensors of a checkpoint make up each slot of a model, from names alone.

The model is built on the meta device and adapted there, exactly as `orthora.adapt` would adapt the
loaded one; its parameters are matched with the names in the files by transformers' own rules for
loading (renamings, prefixes, fusing of experts). No weight is read.
"""

import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from orthora.adapters.slots import Slot
from orthora.checkpoint import Checkpoint

_STACKED = [["MergeModulelist"], ["MergeModulelist", "Concatenate"]]  # experts, and gate over up


@dataclass(frozen=True)
class Source:
    """Where the weight of one slot is stored.

    Attributes:
        slot: which.
        tensors: names in the files; several are stacked by rows.
        index: into the first dimension, where the file holds a fused stack.
    """

    slot: Slot
    tensors: tuple[str, ...]
    index: int | None = None

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """The weight (m, n) of the slot.

        Raises:
            ValueError: if a file can't be read.
        """
        parts = [checkpoint.read(name, self.index) for name in self.tensors]
        W = parts[0] if len(parts) == 1 else torch.cat(parts)
        return W.mT if self.slot.transposed else W


def meta_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The causal language model that the checkpoint's config describes, without weights.

    Raises:
        ValueError: if transformers knows no such model.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # model code raises anything on a config that it did not expect
        line = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(
            f"transformers can't build a causal language model from "
            f"{checkpoint.folder / 'config.json'}: {line}"
        ) from error


@dataclass
class _Origin:
    """The tensors behind one parameter, by the pattern of the converter that joins them."""

    converter: WeightConverter | None
    tensors: dict[str | None, list[str]] = field(default_factory=dict)


class Origins:
    """The parameters of a base, and the tensors that transformers would load into each."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        """Match the names.

        Args:
            model: the base on the meta device, not adapted yet.
            checkpoint: whose names are matched.
        """
        self.checkpoint = checkpoint
        self.tied: dict[str, str] = dict(model.all_tied_weights_keys)
        self.origins: dict[str, _Origin] = {}
        state: dict[str, Any] = model.state_dict()
        entries = get_model_conversion_mapping(model)
        renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
        by_pattern = {p: entry for entry in converters for p in entry.source_patterns}
        prefix = model.base_model_prefix
        for name in sorted(checkpoint.tensors, key=dot_natural_key):  # experts in their order
            key, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if key not in state and name in state:  # saved in the model's own layout
                key, pattern = name, None
            if key in state:
                converter = by_pattern.get(pattern) if pattern is not None else None
                origin = self.origins.setdefault(key, _Origin(converter))
                origin.tensors.setdefault(pattern, []).append(name)

    def source(self, slot: Slot) -> Source:
        """The source of one slot.

        Raises:
            ValueError: if its weight has no tensor, or one of another shape, naming both.
        """
        source = self._source(slot)
        _check_shape(source, self.checkpoint)
        return source

    def _source(self, slot: Slot) -> Source:
        folder = self.checkpoint.folder
        origin = self.origins.get(slot.key) or self.origins.get(self.tied.get(slot.key, ""))
        if origin is None:
            raise ValueError(
                f"{folder} holds no tensor for {slot.name!r}; the checkpoint is incomplete, "
                "or of another architecture than its config.json says"
            )
        if origin.converter is None:
            names = [name for group in origin.tensors.values() for name in group]
            if len(names) > 1:
                raise ValueError(
                    f"{folder} holds {names[0]!r} and {names[1]!r}, both for {slot.key!r}; save "
                    "the model again"
                )
            return Source(slot, (names[0],), slot.expert)
        steps = [type(operation).__name__ for operation in origin.converter.operations]
        patterns = origin.converter.source_patterns
        counts = {p: len(names) for p, names in origin.tensors.items()}
        if slot.expert is None or steps not in _STACKED:
            raise ValueError(f"{slot.name!r} is converted by {', '.join(steps)}: unsupported")
        if counts != dict.fromkeys(patterns, slot.experts):
            least = min(counts.get(p, 0) for p in patterns)
            raise ValueError(
                f"{folder} holds {least} of the {slot.experts} experts of {slot.key!r} that "
                "config.json describes; fetch the checkpoint again"
            )
        return Source(slot, tuple(origin.tensors[p][slot.expert] for p in patterns))


def _check_shape(source: Source, checkpoint: Checkpoint) -> None:
    """The stored tensors are what the model needs."""
    slot = source.slot
    shapes = [checkpoint.tensors[name].shape for name in source.tensors]
    if source.index is not None:
        stacks = {shape[0] for shape in shapes if shape}
        if stacks != {slot.experts}:
            raise ValueError(
                f"{source.tensors[0]!r} stacks {max(stacks, default=0)} experts, and {slot.key!r} "
                f"needs {slot.experts}; config.json and the weights belong to different models"
            )
        shapes = [shape[1:] for shape in shapes]
    fits = all(len(shape) == 2 for shape in shapes) and len({s[1] for s in shapes}) == 1
    stored = (sum(shape[0] for shape in shapes), shapes[0][1]) if fits else shapes[0]
    needed = slot.shape[::-1] if slot.transposed else slot.shape
    if stored != needed:
        raise ValueError(
            f"{source.tensors[0]!r} has shape {shapes[0]}, and {slot.name!r} needs {needed}; "
            "config.json and the weights belong to different models"
        )
