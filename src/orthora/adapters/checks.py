"""What `adapt` checks before it touches a model, and after."""

import math
import re
from collections.abc import Collection
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orthora.adapters.slots import Slot, is_linear

BY_PARTS = (
    "reaches fused experts by the names of their parts; pass a list of names with 'experts' in it, "
    "or leave them out"
)


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
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(
                f"target_modules={targets!r} is no regular expression: {error}"
            ) from error


def refuse_unfit(model: PreTrainedModel) -> None:
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


def check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Every name of a list names a module, or a fused parameter."""
    fused = fused_experts(model)
    if not isinstance(targets, str):
        known = [name for name, _ in model.named_modules()] + fused
        for target in targets:
            if not any(name == target or name.endswith("." + target) for name in known):
                hint = f"; its experts are fused in {fused[0]!r} and the like" if fused else ""
                raise ValueError(
                    f"target_modules names {target!r}, which matches no module{hint}; the linear "
                    f"modules are {linear_names(model)}"
                )


def check_layers(
    model: PeftModel, slots: list[Slot], targets: str | list[str], *, experts: bool, offer: bool
) -> None:
    """Only linear layers, and ``experts`` if asked for, were matched; each can hold its rank.

    Args:
        model: wrapped.
        slots: of the model.
        targets: as asked for, for messages.
        experts: whether fused experts were asked for.
        offer: whether the caller has the option ``unfit``.
    """
    if not experts and any(slot.expert is not None for slot in slots):
        raise ValueError(f"target_modules={targets!r} {BY_PARTS}")
    held = {id(slot.layer) for slot in slots}
    for name, layer in adapted_layers(model).items():
        if id(layer) not in held:
            raise ValueError(
                f"{name!r} is a {type(layer.get_base_layer()).__name__}; orthora starts adapters "
                "on linear layers only, take it out of target_modules"
            )
    small = [slot for slot in slots if slot.rank > min(slot.shape)]
    if small:
        names = list(dict.fromkeys(slot.key.removesuffix(".weight") for slot in small))
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        other = ", or unfit='lower' or 'skip' for these modules alone" if offer else ""
        raise ValueError(
            f"rank {small[0].rank} does not fit {len(names)} modules ({shown}), e.g. "
            f"{small[0].name!r} of shape {small[0].shape}; use a rank of at most "
            f"{min(min(slot.shape) for slot in small)}{other}"
        )


def check_complete(
    peft_model: PeftModel,
    model: PreTrainedModel,
    targets: str | list[str],
    excluded: Collection[str],
) -> None:
    """No linear module that was asked for is left out, but those excluded on purpose.

    PEFT reads the names of an MLP's projections as the fused experts of the same model, and then
    passes by the dense layers that bear them.

    Raises:
        ValueError: naming a module that would have been skipped without a word.
    """
    inside = {id(sub) for m in adapted_layers(peft_model).values() for sub in m.modules()}
    left = [
        name
        for name, module in model.named_modules()
        if is_linear(module)
        and id(module) not in inside
        and asked_for(model, name, targets)
        and name not in excluded
    ]
    if left:
        raise ValueError(
            f"PEFT skipped {len(left)} linear modules that target_modules={targets!r} asks for, "
            f"e.g. {left[0]!r}; name others, e.g. ['q_proj', 'k_proj', 'v_proj', 'o_proj']"
        )


def asked_for(model: PreTrainedModel, name: str, targets: str | list[str]) -> bool:
    """Whether the targets mean this module, as PEFT reads them."""
    if targets == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return model.get_submodule(name) is not head
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets)


def verify(model: PeftModel, layers: dict[str, Any], trained: str) -> None:
    """Each layer equals its base layer on a random input, and only the stated parameters train.

    Args:
        model: fresh from `adapt`.
        layers: its adapted layers, by name.
        trained: pattern of the names of the parameters that train.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, layer in layers.items():
            if isinstance(layer, ParamWrapper):  # its function needs the routing; B = 0 is enough
                difference = float(cast(nn.Linear, layer.lora_B["default"]).weight.abs().max())
                _check_same(name, difference)
                continue
            base = layer.get_base_layer()
            weight = cast(Tensor, base.weight)
            n = weight.shape[0] if weight.ndim == 1 else weight_of(layer).shape[1]
            x = torch.randn(2, n, generator=generator).to(weight.device, weight.dtype)
            difference = float((layer(x) - base(x)).abs().max())
            _check_same(name, difference)
    stray = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad != (re.search(trained, name) is not None)
    ]
    if stray:
        raise ValueError(f"{stray[0]!r} has the wrong requires_grad; please report this")


def _check_same(name: str, difference: float) -> None:
    if difference != 0.0:
        raise ValueError(
            f"{name}: the adapter changes the function by {difference:.3g} at the start; "
            "this is a bug of orthora or an unsupported layer, please report it"
        )


def fused_experts(model: nn.Module) -> list[str]:
    """Names of the parameters (E, m, n) that hold the weights of all experts of a layer."""
    return [name for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name]


def linear_names(model: nn.Module) -> str:
    """Last parts of the names of the linear modules, for messages."""
    names = {name.split(".")[-1] for name, module in model.named_modules() if is_linear(module)}
    return ", ".join(sorted(names))


def rounded_experts(dtype: object) -> str:
    """A warning: PEFT adds expert updates to the base weight in its dtype."""
    return (
        f"PEFT adds the updates of fused experts to the base weight in {dtype} at every forward "
        "pass, where small ones are rounded off; load the base in float32, or leave the experts out"
    )
