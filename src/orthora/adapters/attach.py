"""``orthora.adapt``: put low-rank adapters on a transformers model, started by any method.

The base weights are read, never written. What was built is checked before it is handed back: every
matched module carries the method's factors, each layer computes exactly its base layer's function,
and nothing else trains.
"""

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

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
    _check_arguments(rank, alpha, target_modules, dropout)
    _refuse_unfit(model, target_modules)
    trained_before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        peft_model = _wrap(model, record, rank, alpha, target_modules, dropout)
        layers = adapted_layers(peft_model)
        _check_layers(layers, rank)
        if target_modules == "all-linear":
            _check_complete(peft_model, model)
        _start(layers, record.name, rank, alpha / rank, seed)
        _verify(peft_model, layers)
    except BaseException:
        _unwrap(model, trained_before)
        raise
    targets = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    how = AdapterRecord(record.name, rank, alpha, targets, seed, tuple(layers))
    peft_model.__dict__["orthora"] = how  # past nn.Module, which holds tensors and modules
    return peft_model


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


def _check_arguments(rank: int, alpha: float, targets: str | list[str], dropout: float) -> None:
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


def _unwrap(model: PreTrainedModel, trained: dict[str, bool]) -> None:
    """Undo an injection, whole or half done: the base's own modules and flags again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.__dict__.pop("peft_config", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])


def _refuse_unfit(model: PreTrainedModel, targets: str | list[str]) -> None:
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
                    f"modules are {_linear_names(model)}"
                )


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
            f"are {_linear_names(model)}"
        ) from error


def _linear_names(model: nn.Module) -> str:
    """Last parts of the names of the linear modules, for messages."""
    names = {name.split(".")[-1] for name, module in model.named_modules() if _is_linear(module)}
    return ", ".join(sorted(names))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _check_layers(layers: dict[str, Any], rank: int) -> None:
    """Only linear layers were matched, and each can hold the rank."""
    odd = [name for name, layer in layers.items() if not _is_linear(layer.get_base_layer())]
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


def _check_complete(peft_model: PeftModel, model: PreTrainedModel) -> None:
    """'all-linear' left out no linear module but the output head.

    Raises:
        ValueError: naming a module that would have been skipped without a word.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = {id(sub) for m in adapted_layers(peft_model).values() for sub in m.modules()}
    left = [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and module is not head and id(module) not in inside
    ]
    if left:
        raise ValueError(
            f"'all-linear' skipped {len(left)} linear modules, e.g. {left[0]!r}; name the modules "
            "to adapt in target_modules"
        )


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


def _verify(model: PeftModel, layers: dict[str, Any]) -> None:
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
