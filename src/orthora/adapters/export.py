"""What leaves orthora: adapters and models in the ecosystem's own formats, whole or not at all."""

import copy
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from orthora.adapters.dense import dense_of
from orthora.adapters.fold import base_parameters, merged_parameters
from orthora.adapters.intact import check_adapter
from orthora.adapters.layers import weight
from orthora.adapters.model import STATE_NAME, factor_tensors, has_anchor, scale_of
from orthora.adapters.slots import ADAPTER, slots_of
from orthora.store import new_folder

RECORD_NAME = "orthora.json"
BASE, PART = "base", "adapter"


def export_plain(model_or_run: Any, out_dir: str | Path) -> Path:
    """Write the trained adapter as plain PEFT: LoRA of rank r, or 2r for anchored methods.

    ``PeftModel.from_pretrained(base, out_dir)`` on the untouched base is then the trained function.
    Structures of their own (AdaLoRA, VeRA, MiSS, (IA)^3, LN-tuning) are written in PEFT's form.

    Args:
        model_or_run: a model from `orthora.adapt`, or a run folder of `orthora.train`.
        out_dir: a folder that does not exist yet or is empty.

    Returns:
        ``out_dir``, holding ``adapter_config.json``, ``adapter_model.safetensors``, and
        ``orthora.json`` with how the adapter was started.

    Raises:
        ValueError: if ``out_dir`` holds files, the run has no finished adapter or a damaged one, or
            the method has no adapter (``full``, ``safe-mask``).
    """
    with new_folder(out_dir) as temporary:
        if isinstance(model_or_run, PeftModel):
            with _pruned_is_fine(model_or_run):
                model_or_run.save_pretrained(str(temporary), selected_adapters=[ADAPTER])
            (temporary / "README.md").unlink(missing_ok=True)  # PEFT's unfilled model card
            (temporary / STATE_NAME).unlink(missing_ok=True)  # for resuming, not for others
            _write_record(model_or_run, temporary)
        elif isinstance(model_or_run, str | Path):
            source = Path(model_or_run) / "adapter"
            if not (source / "adapter_config.json").is_file():
                merged = (Path(model_or_run) / "model" / "config.json").is_file()
                raise ValueError(
                    f"{model_or_run} trained the model's own weights and has no adapter; its model "
                    "is in the folder model, see export_merged"
                    if merged
                    else f"{model_or_run} has no finished adapter (no adapter/adapter_config.json);"
                    " let the run finish, or pass a model from orthora.adapt"
                )
            check_adapter(source)
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        elif dense_of(model_or_run) is not None:
            raise ValueError(
                f"{model_or_run.orthora.method} trains the model's own weights and has no adapter; "
                "use export_merged"
            )
        else:
            raise ValueError("export_plain() takes a model from orthora.adapt, or a run folder")
    return Path(out_dir)


@contextmanager
def _pruned_is_fine(model: PeftModel) -> Iterator[None]:
    """Without PEFT's warning of lost shards, where AdaLoRA has pruned a layer to rank 0."""
    with warnings.catch_warnings():
        if isinstance(model.peft_config[ADAPTER], AdaLoraConfig):
            warnings.filterwarnings("ignore", message=r"Adapter .* invalid shape")
        yield


def write_merged(model: Any, out_dir: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write the whole model with the adapter merged into its weights, as transformers does.

    Args:
        model: a model from `orthora.adapt`.
        out_dir: a folder that does not exist yet or is empty.
        dtype: of the written weights; the base's if None. In bfloat16 a small update is rounded
            off, mostly or wholly: of entries that it moves by less than 1/256 nothing is left.

    Raises:
        ValueError: if ``out_dir`` holds files, or an adapted weight is tied to another module.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    state = {}
    with _wider(base, dtype):
        for name, value in merged_parameters(model):
            state[name] = value.detach().to("cpu", dtype, copy=True)
    for name, value in base.state_dict().items():
        if name not in state and _is_buffer(base, name):
            state[name] = value.detach().cpu()
    return _write_model(model, base, state, out_dir, dtype)


def write_residual(model: Any, out_dir: str | Path) -> Path:
    """Write ``base/``, the weights W - s B0 A0, and ``adapter/``, a plain LoRA (A, B) of rank r.

    The form in which PiSSA and its kin are published, for engines that take rank r alone. The
    residual is rounded to the base's dtype: in bfloat16 the function moves a little.

    Args:
        model: a model from `orthora.adapt` with an anchored method and plain LoRA layers.
        out_dir: a folder that does not exist yet or is empty.

    Raises:
        ValueError: if ``out_dir`` holds files, or the method has no anchor (export_plain is that
            form already) or more than A and B.
    """
    if not isinstance(model, PeftModel) or not has_anchor(model):
        raise ValueError(
            "a residual base belongs to an anchored method (B0 A0 is not zero); for this model "
            "export_plain writes rank r already"
        )
    config = cast(LoraConfig, model.peft_config[ADAPTER])
    if config.use_dora:
        raise ValueError("DoRA has no residual form; use export_plain or export_merged")
    with new_folder(out_dir) as temporary:
        base = model.get_base_model()
        state = {name: p.detach().cpu().clone() for name, p in base_parameters(model)}
        scale = scale_of(config)
        for slot in slots_of(model):
            A0, B0 = (
                weight(anchors, ADAPTER).double().cpu()
                for anchors in (slot.layer.anchor_A, slot.layer.anchor_B)
            )
            W = state[slot.key]
            delta = scale * (B0 @ A0)
            state[slot.key] = (W.double() - (delta.mT if slot.transposed else delta)).to(W.dtype)
        _write_model(model, base, state, temporary / BASE, None)
        _write_factors(model, temporary / PART, str(Path(out_dir) / BASE))
    return Path(out_dir)


def _write_factors(model: PeftModel, folder: Path, base: str) -> None:
    """A and B of rank r as a plain PEFT adapter on ``base``."""
    folder.mkdir()
    save_file(factor_tensors(model), folder / "adapter_model.safetensors", {"format": "pt"})
    config = copy.deepcopy(cast(LoraConfig, model.peft_config[ADAPTER]))
    config._custom_modules = None
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
    _write_record(model, folder)


def _write_model(
    model: Any, base: Any, state: dict[str, Tensor], out_dir: str | Path, dtype: torch.dtype | None
) -> Path:
    """Save a state dict as a transformers model, with orthora's record beside it."""
    with new_folder(out_dir) as temporary, _dtype_in_config(base, dtype):
        base.save_pretrained(str(temporary), state_dict=state)
        _write_record(model, temporary)
    return Path(out_dir)


def _write_record(model: Any, folder: Path) -> None:
    """How the adapter was started, where `adapt` left that on the model."""
    record = getattr(model, "orthora", None)
    if record is not None:
        (folder / RECORD_NAME).write_text(json.dumps(asdict(record), indent=2) + "\n")


def _is_buffer(base: torch.nn.Module, name: str) -> bool:
    """A buffer of the base's own modules, saved as it is."""
    return name in dict(base.named_buffers()) and ".vera_" not in name


@contextmanager
def _wider(base: torch.nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Merge in ``dtype`` where that is wider than the base's: its parameters, converted."""
    kept = {name: p.data for name, p in base.named_parameters()}
    try:
        for parameter in base.parameters():
            if dtype is not None and dtype.itemsize > parameter.element_size():
                parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for name, parameter in base.named_parameters():
            parameter.data = kept[name]


@contextmanager
def _dtype_in_config(base: Any, dtype: torch.dtype | None) -> Iterator[None]:
    before = base.config.dtype
    try:
        base.config.dtype = before if dtype is None else dtype
        yield
    finally:
        base.config.dtype = before
