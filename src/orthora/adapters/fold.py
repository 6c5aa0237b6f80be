"""Adapters folded into the weights for a while, and taken out again without a trace.

A folded model computes the same function with fewer products: what rollouts need. PEFT's own merge
and unmerge leave rounding in the base; here the base's storage is kept aside and put back.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

_PARTS = ("weight", "bias")
_PREFIX = "base_model.model."


def folds_exactly(model: nn.Module) -> bool:
    """Whether folding changes the function by no more than float32 rounding.

    True for float32 bases. In lower precision a folded update is rounded to the base's dtype, and
    at the learning rates of RLVR most of it is lost.
    """
    layers = _layers(model)
    return bool(layers) and all(
        part.dtype == torch.float32 for layer in layers for part in _parts(layer).values()
    )


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside, the active adapters are part of the base weights; outside, bit for bit not.

    Takes one copy of the adapted weights. Layers that share their weight with another module (a
    tied head) stay as they are, which is right, and slower. For a model that is no ``PeftModel``
    nothing happens. Inside, don't disable adapters.

    Args:
        model: a model from `orthora.adapt`; use it without gradients.
    """
    shared = _shared(model)
    with ExitStack() as stack:
        for layer in _layers(model):
            if isinstance(layer, LNTuningLayer) or not _held(layer) & shared:
                stack.enter_context(merged(layer))
        yield


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the base model, by its name there, with the adapters merged into it.

    One layer at a time: in its turn a tensor is the merged one, afterwards the base's again, bit
    for bit. So copy what you keep. Sums are formed in the wider of the dtypes and rounded once, to
    the base's.

    Args:
        model: a model from `orthora.adapt`, PEFT or trained in place.

    Raises:
        ValueError: if an adapted weight is shared with another module, which would change as well.
    """
    held: dict[int, Any] = {}
    shared = _shared(model)
    for layer in _layers(model):
        if not isinstance(layer, LNTuningLayer) and _held(layer) & shared:
            raise ValueError(
                "an adapted weight is shared with another module (a tied head), which merging "
                "would change as well; export the adapter as it is, or untie the model before "
                "training"
            )
        held.update(dict.fromkeys(_held(layer), layer))
    for name, parameter in model.named_parameters():
        layer = held.get(id(parameter))
        if layer is not None:
            with torch.no_grad(), merged(layer):
                part = name.rpartition(".")[2]
                yield base_name(name), getattr(layer.get_base_layer(), part).data
        elif not _of_adapter(model, name):
            yield base_name(name), parameter.data


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of the base model as it is, by its name there."""
    for name, parameter in model.named_parameters():
        if not _of_adapter(model, name):
            yield base_name(name), parameter


def base_name(name: str) -> str:
    """A parameter's name in the base model."""
    return re.sub(r"(\.base_layer)+\.", ".", name.removeprefix(_PREFIX))


def _of_adapter(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to an adapted layer, but not to its base."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if isinstance(module, BaseTunerLayer):
            return not name.startswith(f"{path}.base_layer.")
    return False


@contextmanager
def merged(layer: Any) -> Iterator[None]:
    """One layer with its adapter merged; its base's storage comes back after."""
    swaps = isinstance(layer, LNTuningLayer)  # its merge exchanges two modules
    parts = {} if swaps else _parts(layer)
    kept = {name: part.data for name, part in parts.items()}
    try:
        with torch.no_grad():
            for part in parts.values():
                part.data = part.data.clone()
            layer.merge()
        yield
    finally:
        for name, part in parts.items():
            part.data = kept[name]
        if not swaps:
            layer.merged_adapters.clear()
        elif layer.merged:
            layer.unmerge()


def _layers(model: nn.Module) -> list[Any]:
    """Adapted layers, outermost first."""
    if not isinstance(model, PeftModel):
        return []
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _held(layer: Any) -> set[int]:
    return {id(part) for part in _parts(layer).values()}


def _shared(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds."""
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    return {key for key, count in owners.items() if count > 1}


def _parts(layer: Any) -> dict[str, nn.Parameter]:
    """What merging changes in the base layer: weight and bias, or one fused parameter."""
    base = layer.get_base_layer()
    names = (layer.parameter_name,) if isinstance(layer, ParamWrapper) else _PARTS
    return {name: getattr(base, name) for name in names if getattr(base, name, None) is not None}
