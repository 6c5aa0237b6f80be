"""What `adapt` checks before it touches a model, and after."""

import math
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def adapted_layers(model: PeftModel) -> dict[str, Any]:
    """The adapted layers by the name they have in the base model, in model order."""
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def weight_of(layer: LoraLinear) -> Tensor:
    """The frozen weight as a matrix (m, n) with y = W x, whatever the layer stores."""
    weight = cast(Tensor, layer.get_base_layer().weight).detach()
    return weight.mT if isinstance(layer.get_base_layer(), Conv1D) else weight


def check_arguments(rank: int, alpha: float, targets: str | list[str], dropout: float) -> None:
    """Numbers in range and targets of the right type."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a positive int, got {rank!r}")
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive number, got {alpha!r}")
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}")
    names = targets if isinstance(targets, list | tuple | set) else [targets]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"target_modules must be 'all-linear', a list of names or a regular expression, got "
            f"{targets!r}"
        )


def refuse_unfit(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Refuse models whose weights can't be read as matrices, naming what and the remedy."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"adapt() takes a loaded transformers model, got {type(model).__name__}")
    if isinstance(model, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise ValueError(
            "the model already carries adapters; merge_and_unload() them, or load the base again"
        )
    quantised = getattr(model, "quantization_method", None)
    if getattr(model, "is_quantized", False) or quantised:
        raise ValueError(
            f"the model is quantised ({quantised or 'unknown method'}): its weights have no exact "
            "singular vectors; load it in bfloat16 or float32"
        )
    meta = [name for name, p in model.named_parameters() if p.is_meta]
    if meta:
        raise ValueError(
            f"{len(meta)} parameters are on the meta device, e.g. {meta[0]!r}: load the checkpoint "
            "(no init_empty_weights, no disk offload) before adapt()"
        )
    fused = [name for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name]
    if fused and targets == "all-linear":
        raise ValueError(
            f"the model has {len(fused)} fused expert tensors, e.g. {fused[0]!r}, which LoRA "
            "layers can't wrap and 'all-linear' would silently skip; name the modules, e.g. "
            "target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj']"
        )
    if not isinstance(targets, str):
        modules = [name for name, _ in model.named_modules()]
        for target in targets:
            if not any(name == target or name.endswith("." + target) for name in modules):
                hint = f"; fused experts ({fused[0]!r}) can't be adapted" if fused else ""
                raise ValueError(
                    f"target_modules names {target!r}, which matches no module{hint}; the linear "
                    f"modules are {linear_names(model)}"
                )


def check_layers(layers: dict[str, Any], rank: int) -> None:
    """Only linear layers were matched, and each can hold the rank."""
    odd = [name for name, layer in layers.items() if not is_linear(layer.get_base_layer())]
    if odd:
        kind = type(layers[odd[0]].get_base_layer()).__name__
        raise ValueError(
            f"{odd[0]!r} is a {kind}; orthora starts adapters on linear layers only, take it out "
            "of target_modules"
        )
    shapes = {name: tuple(weight_of(m).shape) for name, m in layers.items()}
    small = [name for name, shape in shapes.items() if rank > min(shape)]
    if small:
        limit = min(min(shapes[name]) for name in small)
        raise ValueError(
            f"rank {rank} does not fit {len(small)} modules, e.g. {small[0]!r} of shape "
            f"{shapes[small[0]]}; use a rank of at most {limit}, or leave them out of "
            "target_modules"
        )


def check_complete(peft_model: PeftModel, model: PreTrainedModel) -> None:
    """'all-linear' left out no linear module but the output head.

    Raises:
        ValueError: naming a module that would have been skipped without a word.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = {id(sub) for m in adapted_layers(peft_model).values() for sub in m.modules()}
    left = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and id(module) not in inside
    ]
    if left:
        raise ValueError(
            f"'all-linear' skipped {len(left)} linear modules, e.g. {left[0]!r}; name the modules "
            "to adapt in target_modules"
        )


def verify(model: PeftModel, layers: dict[str, Any]) -> None:
    """Each layer equals its base layer on a random input, and only lora_A, lora_B train."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, layer in layers.items():
            base = layer.get_base_layer()
            weight = cast(Tensor, base.weight)
            n = weight_of(layer).shape[1]
            x = torch.randn(2, n, generator=generator).to(weight.device, weight.dtype)
            difference = float((layer(x) - base(x)).abs().max())
            if difference != 0.0:
                raise ValueError(
                    f"{name}: the adapter changes the function by {difference:.3g} at the start; "
                    "this is a bug of orthora or an unsupported layer, please report it"
                )
    stray = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad != (".lora_A." in name or ".lora_B." in name)
    ]
    if stray:
        raise ValueError(f"{stray[0]!r} has the wrong requires_grad; please report this")


def linear_names(model: nn.Module) -> str:
    """Last parts of the names of the linear modules, for messages."""
    names = {name.split(".")[-1] for name, module in model.named_modules() if is_linear(module)}
    return ", ".join(sorted(names))


def is_linear(module: nn.Module) -> bool:
    """A layer with a weight matrix: ``nn.Linear``, or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear | Conv1D)
