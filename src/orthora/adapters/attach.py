"""``orthora.adapt``: put low-rank adapters on a transformers model, started by any method.

The base weights are read, never written. What was built is checked before it is handed back: every
matched module carries the method's factors, each layer computes exactly its base layer's function,
and nothing else trains.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.progress import track
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orthora.adapters.checks import (
    adapted_layers,
    check_arguments,
    check_complete,
    check_layers,
    linear_names,
    refuse_unfit,
    verify,
    weight_of,
)
from orthora.adapters.layers import AnchoredConv1D, AnchoredLinear, set_start
from orthora.adapters.model import AnchoredCausalLM, AnchoredModel
from orthora.methods import Method, registry

ADAPTER = "default"
_SLOW_ELEMENTS = 50_000_000  # above this many weights the start takes seconds: show progress


@dataclass(frozen=True)
class AdapterRecord:
    """How an adapter was started; `adapt` leaves it on the model as ``model.orthora``.

    Attributes:
        method: canonical name.
        rank: r.
        alpha: the scale is alpha / rank.
        target_modules: as it was asked for.
        seed: of the random methods.
        modules: names of the adapted modules, in model order.
    """

    method: str
    rank: int
    alpha: float
    target_modules: str | tuple[str, ...]
    seed: int
    modules: tuple[str, ...]


def adapt(
    model: PreTrainedModel,
    method: str = "rlpo",
    *,
    rank: int = 16,
    alpha: float = 32,
    target_modules: str | list[str] = "all-linear",
    seed: int = 0,
    dropout: float = 0.0,
) -> PeftModel:
    """Wrap ``model`` with adapters of ``method`` that leave its function unchanged.

    Anchored methods (PiSSA, MiLoRA, OLoRA, GeoRA) compute ``W x + s (B A - B0 A0) x`` with A0, B0
    frozen, instead of subtracting from W. So the start is exact in every dtype, and
    ``disable_adapter()`` is the pretrained model for every method. ``save_pretrained`` on the
    result writes plain PEFT LoRA (rank 2r for anchored methods). A fused projection (Phi's
    ``qkv_proj``) is one matrix and gets one adapter. Factors are float32 over any base dtype.

    Args:
        model: a transformers model with loaded weights.
        method: a name or alias of `orthora.methods()`.
        rank: r, at most the smaller side of every adapted matrix.
        alpha: the scale is ``alpha / rank``.
        target_modules: as PEFT's: ``"all-linear"``, names, or a regular expression.
        seed: of the random methods; each module draws from (seed, its name), so that the order of
            modules does not matter.
        dropout: probability on the adapters' input.

    Returns:
        A ``PeftModel`` whose only trainable parameters are ``lora_A`` and ``lora_B``.

    Raises:
        ValueError: unknown method; a target that matches nothing; a rank that does not fit, or NaN
            or Inf, naming the module; quantised or meta weights, fused MoE experts, embeddings, or
            a model that already carries adapters. The model is then left as it was.
    """
    record = registry.get(method)
    if isinstance(target_modules, str) and target_modules.isidentifier():
        target_modules = [target_modules]  # a bare name matches nothing as a whole-name pattern
    check_arguments(rank, alpha, target_modules, dropout)
    refuse_unfit(model, target_modules)
    trained_before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        peft_model = _wrap(model, record, rank, alpha, target_modules, dropout)
        layers = adapted_layers(peft_model)
        check_layers(layers, rank)
        if target_modules == "all-linear":
            check_complete(peft_model, model)
        _start(layers, record.name, rank, alpha / rank, seed)
        verify(peft_model, layers)
    except BaseException:
        _unwrap(model, trained_before)
        raise
    targets = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    how = AdapterRecord(record.name, rank, alpha, targets, seed, tuple(layers))
    peft_model.__dict__["orthora"] = how  # past nn.Module, which holds tensors and modules
    return peft_model


def _unwrap(model: PreTrainedModel, trained: dict[str, bool]) -> None:
    """Undo an injection, whole or half done: the base's own modules and flags again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.__dict__.pop("peft_config", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])


def _wrap(
    model: PreTrainedModel,
    record: Method,
    rank: int,
    alpha: float,
    targets: str | list[str],
    dropout: float,
) -> PeftModel:
    """Inject PEFT's layers, or their anchored subclasses, in place."""
    causal = hasattr(model, "prepare_inputs_for_generation")
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=targets,
        lora_dropout=dropout,
        init_lora_weights=True,
        task_type="CAUSAL_LM" if causal else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        if not record.anchored:
            return cast(PeftModel, get_peft_model(model, config, adapter_name=ADAPTER))
        config.base_model_name_or_path = getattr(model, "name_or_path", None)
        config._register_custom_module({nn.Linear: AnchoredLinear, Conv1D: AnchoredConv1D})
        return (AnchoredCausalLM if causal else AnchoredModel)(model, config, adapter_name=ADAPTER)
    except ValueError as error:
        regex = " (a string is a regular expression of the whole name; pass names as a list)"
        hint = regex if isinstance(targets, str) and targets != "all-linear" else ""
        raise ValueError(
            f"target_modules={targets!r} does not fit this model{hint}: {error} Its linear modules "
            f"are {linear_names(model)}"
        ) from error


def _start(layers: dict[str, Any], method: str, rank: int, scale: float, seed: int) -> None:
    """Compute and write the starting factors, module by module."""
    for name, layer in _progress(layers, f"starting {method} adapters"):
        try:
            factors = registry.initialize(
                weight_of(layer), method, rank, scale=scale, seed=module_seed(seed, name)
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        set_start(layer, ADAPTER, *factors)


def module_seed(seed: int, name: str) -> int:
    """A seed that depends on the run's seed and the module's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little")


def _progress(layers: dict[str, Any], title: str) -> Iterator[tuple[str, LoraLinear]]:
    """Iterate with a bar on stderr when it will take more than a moment."""
    size = sum(weight_of(layer).numel() for layer in layers.values())
    quiet = size < _SLOW_ELEMENTS or not sys.stderr.isatty()
    yield from track(list(layers.items()), title, console=Console(stderr=True), disable=quiet)
