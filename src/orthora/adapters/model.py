"""PEFT models that save an anchored adapter as what it is in plain PEFT: a LoRA of rank 2r.

``s (B A - B0 A0) = s [B, -B0] [A; A0]``, and alpha / r = 2 alpha / 2 r, so the plain form is exact:
no factor is rescaled or rounded, and it can be split again when a checkpoint is resumed. There is
therefore one format, and no file that plain PEFT would load as another function.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor

from orthora.adapters.layers import AnchoredLinear, weight

_A, _B = ".lora_A.weight", ".lora_B.weight"
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
            plain_config(self, name).save_pretrained(str(folder))

    def load_adapter(
        self, model_id: str | Path, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a new adapter as PEFT does, or put a saved rank-2r form back into an anchored one.

        Raises:
            ValueError: if the file does not hold rank-2r factors of this model's modules.
        """
        if adapter_name not in self.peft_config:
            return super().load_adapter(str(model_id), adapter_name, *args, **kwargs)
        restore(self, adapter_name, load_peft_weights(str(model_id), device="cpu"))
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
        ``<module>.lora_A.weight`` (2r, n) and ``<module>.lora_B.weight`` (m, 2r) per module.
    """
    state = dict(state_dict) if state_dict is not None else dict(model.state_dict())
    own = cast(
        dict[str, Tensor],
        get_peft_model_state_dict(model, state_dict=state, adapter_name=adapter),
    )
    tensors: dict[str, Tensor] = {}
    for key, value in own.items():
        if key.endswith((_ANCHOR_A, _ANCHOR_B)):
            continue
        if key.endswith(_A) and (anchor := own.get(key.replace(_A, _ANCHOR_A))) is not None:
            value = torch.cat([value, anchor.to(value)], dim=0)
        elif key.endswith(_B) and (anchor := own.get(key.replace(_B, _ANCHOR_B))) is not None:
            value = torch.cat([value, -anchor.to(value)], dim=1)
        tensors[key] = value.detach().cpu().contiguous().clone()
    return tensors


def plain_config(model: PeftModel, adapter: str = "default") -> LoraConfig:
    """The configuration that goes with `plain_tensors`: r and alpha doubled where anchored."""
    config = copy.deepcopy(cast(LoraConfig, model.peft_config[adapter]))
    config._custom_modules = None
    config.inference_mode = True
    if any(isinstance(module, AnchoredLinear) for module in model.modules()):
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    return config


def restore(model: PeftModel, adapter: str, tensors: Mapping[str, Tensor]) -> None:
    """Split rank-2r factors into (A, A0), (B, B0) and write them into the adapter, bit for bit.

    Raises:
        ValueError: if a module is missing, unknown, or of another shape.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, AnchoredLinear)}
    expected = {name + suffix for name in layers for suffix in (_A, _B)}
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))
        raise ValueError(
            f"the saved adapter does not fit this model: {len(odd)} keys differ, e.g. {odd[0]!r}; "
            "use the same base model, target_modules and method as the run that wrote it"
        )
    for name, layer in layers.items():
        A, B = tensors[name + _A], tensors[name + _B]
        r = layer.r[adapter]
        if A.shape != (2 * r, layer.in_features) or B.shape != (layer.out_features, 2 * r):
            raise ValueError(
                f"{name}: saved factors {tuple(A.shape)}, {tuple(B.shape)} are not the rank "
                f"{2 * r} form of this rank {r} adapter; use the rank of the run that wrote it"
            )
        with torch.no_grad():
            weight(layer.lora_A, adapter).copy_(A[:r])
            weight(layer.anchor_A, adapter).copy_(A[r:])
            weight(layer.lora_B, adapter).copy_(B[:, :r])
            weight(layer.anchor_B, adapter).copy_(-B[:, r:])
