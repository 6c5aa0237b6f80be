"""Adapters, checkpoints and whole models on the disk, opened on the base that they update."""

import json
from pathlib import Path

from peft import LoraConfig, PeftConfig

from orthora.adapters.export import RECORD_NAME
from orthora.adapters.intact import check_adapter
from orthora.adapters.layouts import Layouts as Layouts
from orthora.adapters.sources import Source
from orthora.adapters.stored import Difference, Factored, Merged, check_names
from orthora.adapters.stored import Rows as Rows
from orthora.adapters.stored import Saved as Saved
from orthora.checkpoint import open_checkpoint, open_tensors

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


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
    _check_start(folder, config)
    if isinstance(config, LoraConfig) and type(config) is LoraConfig and not config.use_dora:
        return Factored(folder, layouts, config, method or _recorded(folder))
    if config.is_prompt_learning or config.peft_type == "LN_TUNING":
        raise ValueError(
            f"{folder}: {config.peft_type} changes no weight matrix, so there is no geometry to "
            "measure; leave it out"
        )
    return Merged(folder, layouts, config)


def open_model(folder: Path, layouts: Layouts) -> Saved:
    """A whole model, fully fine-tuned from the base.

    Raises:
        ValueError: if it can't be read, or is of another architecture or shape.
    """
    other = open_checkpoint(str(folder))
    theirs = Layouts(other).linear()
    sources = layouts.linear()
    check_names(folder, set(theirs), set(sources))
    return Difference(folder, sources, {name: (source, other) for name, source in theirs.items()})


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
    return Difference(folder, sources, pairs)


def _check_start(folder: Path, config: PeftConfig) -> None:
    """Refuse adapters whose start PEFT took out of the base, so that B A is not the update.

    Raises:
        ValueError: naming the start.
    """
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise ValueError(
            f"{folder} was started by PEFT's {start!r}, which takes B0 A0 out of the base: s B A "
            "is not its update, and the files don't hold B0 A0; save it with PEFT's "
            "path_initial_model_for_weight_conversion, and measure that"
        )


def _recorded(folder: Path) -> str | None:
    """The method that ``orthora.json`` names."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("method")
    except ValueError:
        return None
