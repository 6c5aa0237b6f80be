"""Put PEFT's layers, or their anchored subclasses, around the modules that were asked for."""

import math
import re
from typing import Literal, cast, get_args

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orthora.adapters.checks import (
    BY_PARTS,
    check_arguments,
    check_complete,
    check_layers,
    check_targets,
    fused_experts,
    linear_names,
)
from orthora.adapters.layers import AnchoredConv1D, AnchoredLinear
from orthora.adapters.model import AnchoredCausalLM, AnchoredModel, scale_of
from orthora.adapters.slots import ADAPTER, Slot, is_linear, slots_of
from orthora.methods import Composition

Unfit = Literal["refuse", "lower", "skip"]
"""What to do with modules whose smaller side is below the rank."""

Targets = str | list[str]


def wrap(
    model: PreTrainedModel,
    method: Composition,
    *,
    rank: int,
    alpha: float,
    targets: Targets,
    dropout: float,
    unfit: Unfit | None,
) -> tuple[PeftModel, list[Slot]]:
    """Inject adapter layers in place, on real or meta weights; the factors are not started yet.

    Args:
        model: the base.
        method: its initialisation decides whether layers are anchored, its structures the rest.
        rank: r.
        alpha: the scale is alpha / r, also where the rank is lowered.
        targets: ``"all-linear"`` (with fused experts), names, or a regular expression.
        dropout: on the adapters' input.
        unfit: whether modules too small for the rank are an error, get the largest rank that fits,
            or are left out; None is an error for a caller without this option.

    Returns:
        The PEFT model and its slots.

    Raises:
        ValueError: if the targets match nothing or something that can't be adapted.
    """
    if unfit is not None and unfit not in get_args(Unfit):
        raise ValueError(f"unfit must be one of {', '.join(get_args(Unfit))}, got {unfit!r}")
    targets = as_names(targets)
    check_arguments(rank, alpha, targets, dropout)
    check_targets(model, targets)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    config = _config(model, method, rank, alpha, targets, dropout)
    experts = bool(config.target_parameters)  # as asked; PEFT adds its own reading of names
    try:
        peft_model = _inject(model, method, config, targets)
        slots = slots_of(peft_model)
        small = {slot.key: min(slot.shape) for slot in slots if rank > min(slot.shape)}
        if small and unfit is not None and unfit != "refuse":
            unwrap(model, trained)
            config = _config(model, method, rank, alpha, targets, dropout)
            _make_fit(config, method, small, unfit, all_of_them=len(small) == len(slots))
            peft_model = _inject(model, method, config, targets)
            slots = slots_of(peft_model)
        check_layers(peft_model, slots, targets, experts=experts, offer=unfit is not None)
        check_complete(peft_model, model, targets, config.exclude_modules or ())
    except BaseException:
        unwrap(model, trained)
        raise
    return peft_model, slots


def as_names(targets: Targets) -> Targets:
    """A plain name as a list: a string would be a pattern of whole names, and match nothing."""
    if isinstance(targets, str) and targets != "all-linear":
        return [targets] if re.fullmatch(r"\w+(\.\w+)*", targets) else targets
    return targets


def unwrap(model: PreTrainedModel, trained: dict[str, bool]) -> None:
    """Undo an injection, whole or half done: the base's own modules and flags again.

    Args:
        model: the base.
        trained: requires_grad of its parameters, as they were.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer) and not name.endswith(".base_layer"):  # not nested
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.__dict__.pop("peft_config", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])


def _config(
    model: PreTrainedModel,
    method: Composition,
    rank: int,
    alpha: float,
    targets: Targets,
    dropout: float,
) -> LoraConfig:
    """PEFT's configuration, with fused experts as target parameters."""
    modules, parameters = _split_targets(model, targets)
    if parameters:
        _check_experts(model, method, parameters, dropout)
    return LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=modules,
        target_parameters=parameters or None,
        lora_dropout=dropout,
        use_rslora=method.has("rslora"),
        use_dora=method.has("dora"),
        init_lora_weights=True,
        task_type="CAUSAL_LM" if _is_causal(model) else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def _split_targets(model: PreTrainedModel, targets: Targets) -> tuple[Targets, list[str]]:
    """What PEFT finds among the modules, and the fused parameters within a layer."""
    fused = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in fused_experts(model)})
    if targets == "all-linear" and fused:  # PEFT's own reading adds the router and doubles ranks
        head = model.get_output_embeddings()
        linear = {n for n, module in model.named_modules() if is_linear(module) and module != head}
        return sorted({name.rpartition(".")[2] for name in linear}), fused
    if isinstance(targets, str) or not fused:
        return targets, []
    names = {"experts", *(name.rpartition(".")[2] for name in fused)}
    asked = [name for name in fused if {"experts", name.rpartition(".")[2]} & set(targets)]
    return [name for name in targets if name not in names], asked


def _check_experts(
    model: PreTrainedModel, method: Composition, parameters: list[str], dropout: float
) -> None:
    """Refuse what PEFT's wrapper of fused parameters can't do right."""
    instead = "name other modules, e.g. target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj']"
    if method.has("dora"):
        raise ValueError(f"fused experts ({parameters[0]!r}) don't support dora; {instead}")
    if method.init.anchored:
        raise ValueError(
            f"{method.init.name} is anchored, which fused experts ({parameters[0]!r}) don't "
            f"support; use a method with B = 0, or {instead}"
        )
    if dropout:
        raise ValueError(f"fused experts ({parameters[0]!r}) allow no dropout; set it to 0")
    for name in fused_experts(model):
        if getattr(model.get_submodule(name.rpartition(".")[0]), "is_transposed", False):
            raise ValueError(f"{name!r} stores its experts transposed, which is unsupported")


def _inject(
    model: PreTrainedModel, method: Composition, config: LoraConfig, targets: Targets
) -> PeftModel:
    """Let PEFT build the layers; on the meta device nothing is allocated."""
    meta = all(p.is_meta for p in model.parameters())
    try:
        if not method.init.anchored:
            return cast(
                PeftModel,
                get_peft_model(model, config, adapter_name=ADAPTER, low_cpu_mem_usage=meta),
            )
        config.base_model_name_or_path = getattr(model, "name_or_path", None)
        config._register_custom_module({nn.Linear: AnchoredLinear, Conv1D: AnchoredConv1D})
        kind = AnchoredCausalLM if _is_causal(model) else AnchoredModel
        return kind(model, config, adapter_name=ADAPTER, low_cpu_mem_usage=meta)
    except ValueError as error:
        if isinstance(targets, str) and targets != "all-linear" and config.target_parameters:
            raise ValueError(f"target_modules={targets!r} {BY_PARTS}") from error
        regex = " (a string is a regular expression of the whole name; pass names as a list)"
        hint = regex if isinstance(targets, str) and targets != "all-linear" else ""
        raise ValueError(
            f"target_modules={targets!r} does not fit this model{hint}: {error} Its linear modules "
            f"are {linear_names(model)}"
        ) from error


def _make_fit(
    config: LoraConfig,
    method: Composition,
    small: dict[str, int],
    unfit: Unfit,
    *,
    all_of_them: bool,
) -> None:
    """Lower the rank of the ``small`` modules to the side they have, or leave them out."""
    names = {key.removesuffix(".weight"): side for key, side in small.items()}
    if any(not key.endswith(".weight") for key in small):
        raise ValueError(f"fused experts have one rank; use one of at most {min(small.values())}")
    if unfit == "skip" and all_of_them:
        raise ValueError(
            f"rank {config.r} fits no module; use one of at most {max(small.values())}"
        )
    if unfit == "skip":
        config.exclude_modules = list(names)
    elif method.init.anchored:
        raise ValueError(
            f"{method.init.name} is anchored, and all its modules share one rank; skip the small "
            f"ones, or use a rank of at most {min(small.values())}"
        )
    else:
        scale = scale_of(config)
        divisor = math.sqrt if config.use_rslora else float
        config.rank_pattern = dict(names)
        config.alpha_pattern = {name: scale * divisor(side) for name, side in names.items()}


def _is_causal(model: PreTrainedModel) -> bool:
    return hasattr(model, "prepare_inputs_for_generation")
