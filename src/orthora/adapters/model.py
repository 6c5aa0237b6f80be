"""PEFT models that save an anchored adapter as what it is in plain PEFT: a LoRA of rank 2r.

``s (B A - B0 A0) = s [B - B0, B0] [A; A - A0]``, with alpha = 2 r s so that the scale stays s, is
the same function; DoRA's lengths, of the same weight, stay as they are. Of the ways to write it
this one does not cancel: it stays right when another engine rounds the factors to bfloat16, where
``[B, -B0] [A; A0]`` would lose a small update whole. A checkpoint also holds A, B, A0 and B0 bit
for bit, in a file of its own that PEFT does not read.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from orthora.adapters.layers import AnchoredLinear, weight

_A, _B = ".lora_A.weight", ".lora_B.weight"
_M = ".lora_magnitude_vector"
STATE_NAME = "orthora_state.safetensors"
_ANCHOR_A, _ANCHOR_B = ".anchor_A.weight", ".anchor_B.weight"


class _Anchored(PeftModel):
    """Saving and loading of anchored adapters, shared by the two model classes."""

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write each adapter as a plain LoRA of rank 2r that any PEFT loads on the untouched base.

        Raises:
            ValueError: for ``safe_serialization=False``, a conversion path (what is written is
                converted already), or an unknown adapter name.
        """
        if path_initial_model_for_weight_conversion is not None:
            raise ValueError("anchored adapters are saved as plain LoRA; no conversion is needed")
        if not safe_serialization:
            raise ValueError("anchored adapters are saved as safetensors only")
        for name in selected_adapters or list(self.peft_config):
            if name not in self.peft_config:
                raise ValueError(f"no adapter {name!r}; there are {list(self.peft_config)}")
            tensors = plain_tensors(self, name, kwargs.get("state_dict"))
            if not is_main_process:
                continue
            folder = Path(save_directory) / ("" if name == "default" else name)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            state = _own_tensors(self, name, kwargs.get("state_dict"))
            save_file(state, folder / STATE_NAME, metadata={"format": "pt"})
            plain_config(self, name).save_pretrained(str(folder))

    def load_adapter(
        self, model_id: str | Path, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a new adapter as PEFT does, or put a saved one back into an anchored adapter.

        Bit for bit from a checkpoint; from an export, to float32 rounding.

        Raises:
            ValueError: if the file does not hold rank-2r factors of this model's modules.
        """
        if adapter_name not in self.peft_config:
            return super().load_adapter(str(model_id), adapter_name, *args, **kwargs)
        saved = cast(LoraConfig, LoraConfig.from_pretrained(str(model_id)))
        expected = plain_config(self, adapter_name)
        if (saved.r, saved.lora_alpha) != (expected.r, expected.lora_alpha):
            raise ValueError(
                f"the saved adapter has r {saved.r} and alpha {saved.lora_alpha}, and this one "
                f"would be saved with r {expected.r} and alpha {expected.lora_alpha}; use the rank "
                "and alpha of the run that wrote it"
            )
        exact = Path(model_id) / STATE_NAME
        if exact.is_file():
            restore(self, adapter_name, load_file(exact))
        else:
            plain = load_peft_weights(str(model_id), device="cpu")
            restore(self, adapter_name, _split(plain, saved.r // 2))
        return None


class AnchoredModel(_Anchored):
    """``PeftModel`` with anchored adapters."""


class AnchoredCausalLM(_Anchored, PeftModelForCausalLM):
    """``PeftModelForCausalLM`` with anchored adapters."""


def plain_tensors(
    model: PeftModel, adapter: str = "default", state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The adapter in PEFT's file layout: rank 2r where the layer is anchored, else rank r.

    Args:
        model: a model from `orthora.adapt`.
        adapter: adapter name.
        state_dict: gathered full state, where a sharding engine hands one over.

    Returns:
        ``<module>.lora_A.weight`` (2r, n) and ``<module>.lora_B.weight`` (m, 2r) per module; with
        DoRA ``<module>.lora_magnitude_vector`` (m,) as well.
    """
    own = _own_tensors(model, adapter, state_dict)
    if not has_anchor(model, adapter):
        return own
    tensors = {key: value for key, value in own.items() if key.endswith(_M)}
    for path in sorted({key.rsplit(".lora_", 1)[0] for key in own if key.endswith(_A)}):
        A, B = own[path + _A], own[path + _B]
        A0 = own.get(path + _ANCHOR_A, torch.zeros_like(A))
        B0 = own.get(path + _ANCHOR_B, torch.zeros_like(B))
        tensors[path + _A] = torch.cat([A, A - A0], dim=0)
        tensors[path + _B] = torch.cat([B - B0, B0], dim=1)
    return tensors


def factor_tensors(model: PeftModel, adapter: str = "default") -> dict[str, Tensor]:
    """A (r, n) and B (m, r) as they are, in PEFT's file layout, without anchors."""
    own = _own_tensors(model, adapter, None)
    return {key: value for key, value in own.items() if ".anchor_" not in key}


def _own_tensors(
    model: PeftModel, adapter: str, state_dict: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Factors and anchors of one adapter as they are, float32 on the CPU."""
    own = get_peft_model_state_dict(
        model,
        state_dict=dict(state_dict) if state_dict is not None else dict(model.state_dict()),
        adapter_name=adapter,
        save_embedding_layers=False,
    )
    tensors = cast(dict[str, Tensor], own)
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def _split(plain: Mapping[str, Tensor], r: int) -> dict[str, Tensor]:
    """Factors and anchors from the rank-2r form, to rounding of the differences."""
    tensors: dict[str, Tensor] = {}
    for key, value in plain.items():
        if key.endswith(_A):
            tensors[key] = value[:r]
            tensors[key.replace(_A, _ANCHOR_A)] = value[:r] - value[r:]
        elif key.endswith(_M):
            tensors[key] = value
        else:
            tensors[key] = value[:, :r] + value[:, r:]
            tensors[key.replace(_B, _ANCHOR_B)] = value[:, r:]
    return tensors


def has_anchor(model: PeftModel, adapter: str = "default") -> bool:
    """Whether any layer of this adapter is anchored, so that its plain form has rank 2r."""
    return any(
        isinstance(module, AnchoredLinear) and adapter in module.lora_A
        for module in model.modules()
    )


def plain_config(model: PeftModel, adapter: str = "default") -> LoraConfig:
    """The configuration that goes with `plain_tensors`: twice the rank at the same scale."""
    config = copy.deepcopy(cast(LoraConfig, model.peft_config[adapter]))
    config._custom_modules = None
    config.inference_mode = True
    if has_anchor(model, adapter):
        alpha = 2 * config.r * scale_of(config) if config.use_rslora else 2 * config.lora_alpha
        config.r, config.lora_alpha, config.use_rslora = 2 * config.r, cast(int, alpha), False
    return config


def scale_of(config: LoraConfig) -> float:
    """The scale s of an adapter: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def magnitudes(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """DoRA's lengths m (m,) of one adapter as they are, by the name they have in files."""
    return {
        name + _M: weight(layer.lora_magnitude_vector, adapter).detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLinear) and adapter in layer.lora_magnitude_vector
    }


def restore(model: PeftModel, adapter: str, tensors: Mapping[str, Tensor]) -> None:
    """Write factors and anchors into an adapter; nothing is written before everything fits.

    Raises:
        ValueError: if a module is missing, unknown, or of another shape.
    """
    targets: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear | ParamWrapper) and adapter in layer.lora_A:
            targets[name + _A] = weight(layer.lora_A, adapter)
            targets[name + _B] = weight(layer.lora_B, adapter)
            if isinstance(layer, LoraLinear) and adapter in layer.lora_magnitude_vector:
                targets[name + _M] = weight(layer.lora_magnitude_vector, adapter)
        if isinstance(layer, AnchoredLinear) and adapter in layer.lora_A:
            targets[name + _ANCHOR_A] = weight(layer.anchor_A, adapter)
            targets[name + _ANCHOR_B] = weight(layer.anchor_B, adapter)
    odd = sorted(
        key
        for key in targets.keys() | tensors.keys()
        if key not in targets or key not in tensors or targets[key].shape != tensors[key].shape
    )
    if odd:
        raise ValueError(
            f"the saved adapter does not fit this model: {len(odd)} tensors are missing, unknown "
            f"or of another shape, e.g. {odd[0]!r}; use the base model, rank, target_modules and "
            "method of the run that wrote it"
        )
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(tensors[key])
