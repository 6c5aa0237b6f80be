"""The structures that PEFT builds itself: AdaLoRA, VeRA, MiSS, (IA)^3 and LN-tuning.

What PEFT leaves to its users is done here: targets as published, a start that depends on the seed
and the module's name alone, AdaLoRA's schedule, and a refusal where a layer would be passed by.
"""

import math
import warnings
from typing import Any, cast

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    MissConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.adalora import AdaLoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orthora.adapters.checks import (
    check_arguments,
    check_complete,
    check_targets,
    fused_experts,
    linear_names,
)
from orthora.adapters.slots import ADAPTER
from orthora.adapters.starts import module_seed
from orthora.adapters.wrap import Targets, as_names, unwrap
from orthora.methods import Composition

TRAINED = {
    "lora": r"\.lora_[AB]\.",
    "dora": r"\.lora_([AB]|magnitude_vector)\.",
    "adalora": r"\.lora_[ABE]\.",
    "vera": r"\.vera_lambda_[bd]\.",
    "miss": r"\.miss_block\.",
    "ia3": r"\.ia3_l\.",
    "ln": r"\.ln_tuning_layers\.",
}
"""What trains, as a pattern of parameter names, by structure; `dense` structures are not here."""

_INITIAL_RANKS = 1.5  # AdaLoRA's b(0) over b(T), section 4.1 of its paper
_WARM_UP, _FINAL = 0.1, 0.3  # of the updates: no pruning yet, and no pruning any more
_ALLOCATIONS = 100  # at most, between the two
_STD = 0.02  # of AdaLoRA's A and B, as PEFT draws them
_FEED_FORWARD = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj")
_KEYS_VALUES = (("k_proj", "v_proj"), ("attn.c_attn",))  # the second: GPT-2's fused q, k, v


def trained(method: Composition) -> str:
    """The pattern of the names of all parameters that the method trains in a PEFT model."""
    if method.optimizer and method.optimizer.name == "lora-fa":
        return r"\.lora_B\."
    return TRAINED[method.structure]


def wrap_structure(
    model: PreTrainedModel,
    method: Composition,
    *,
    rank: int,
    alpha: float,
    targets: Targets,
    dropout: float,
    seed: int,
    total_updates: int | None,
) -> PeftModel:
    """Inject the structure in place; the model is left as it was if that fails.

    Args:
        model: the base.
        method: with one of the structures of this module.
        rank: r; AdaLoRA's average at the end.
        alpha: the scale is alpha / r where there is one.
        targets: ``"all-linear"``, names, or a regular expression.
        dropout: on the adapters' input, where the structure has it.
        seed: of what is random.
        total_updates: optimizer updates of the run, which AdaLoRA's schedule needs.

    Raises:
        ValueError: if the targets match nothing or something that the structure can't adapt.
    """
    targets = as_names(targets)
    check_arguments(rank, alpha, targets, dropout)
    check_targets(model, targets)
    _check_reach(model, method, targets)
    config = _config(
        model, method.structure, rank, alpha / rank, targets, dropout, seed, total_updates
    )
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        peft_model = _inject(model, config)
        for name, parameter in peft_model.named_parameters():
            if ".ranknum." in name:  # a constant, which PEFT's cast to float32 sets to train
                parameter.requires_grad_(False)
        if method.structure not in ("ia3", "ln"):
            check_complete(peft_model, model, targets, ())
        _draw_start(peft_model, seed)
    except BaseException:
        unwrap(model, flags)
        raise
    return peft_model


def _check_reach(model: PreTrainedModel, method: Composition, targets: Targets) -> None:
    """Refuse what the structure would pass by without a word."""
    fused = fused_experts(model)
    asked = targets == "all-linear" or not isinstance(targets, str)
    if fused and method.structure != "ln" and asked:
        names = [name.rpartition(".")[2] for name in fused]
        if targets == "all-linear" or {"experts", *names} & set(targets):
            raise ValueError(
                f"{method.structure} does not reach fused experts ({fused[0]!r}); name other "
                "modules, e.g. target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj']"
            )
    low = next((p.dtype for p in model.parameters() if p.element_size() < 4), None)
    if method.structure == "ln" and low is not None:
        raise ValueError(
            f"ln trains the norms in the base's dtype, and small updates are lost in {low}; load "
            "the base in float32"
        )


def _config(
    model: PreTrainedModel,
    structure: str,
    rank: int,
    scale: float,
    targets: Targets,
    dropout: float,
    seed: int,
    total_updates: int | None,
) -> PeftConfig:
    """PEFT's configuration of one structure."""
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    common: dict[str, Any] = {"task_type": "CAUSAL_LM" if _is_causal(model) else None}
    if structure == "adalora":
        initial = math.ceil(_INITIAL_RANKS * rank)
        return AdaLoraConfig(
            target_modules=targets,
            init_r=initial,
            target_r=rank,
            lora_alpha=cast(int, scale * initial),  # PEFT divides it by the initial rank
            lora_dropout=dropout,
            fan_in_fan_out=turned,
            **_schedule(total_updates),
            **common,
        )
    if structure == "vera":
        return VeraConfig(
            r=rank,
            target_modules=targets,
            vera_dropout=dropout,
            projection_prng_key=seed,
            save_projection=True,
            fan_in_fan_out=turned,
            **common,
        )
    if structure == "miss":
        return MissConfig(r=rank, target_modules=targets, miss_dropout=dropout, **common)
    if dropout:
        raise ValueError(f"{structure} has no dropout; set it to 0")
    if structure == "ia3":
        names, feed_forward = _ia3_targets(model, targets)
        return IA3Config(
            target_modules=names, feedforward_modules=feed_forward, fan_in_fan_out=turned, **common
        )
    return LNTuningConfig(target_modules=_norms(model), **common)


def _schedule(total: int | None) -> dict[str, int]:
    """AdaLoRA's phases: a tenth without pruning, then pruning, then a third at the final ranks."""
    if total is None:
        warnings.warn(
            "adalora without total_updates keeps its initial ranks; pass the number of optimizer "
            "updates, and call orthora.adapters.after_update after each",
            stacklevel=5,
        )
        total = 2**31
    if total < 3:
        raise ValueError(
            f"adalora needs at least 3 optimizer updates to allocate ranks, got {total}; train "
            "longer, or use another structure"
        )
    first, last = round(_WARM_UP * total), max(1, round(_FINAL * total))
    every = max(1, (total - first - last) // _ALLOCATIONS)
    return {"total_step": total, "tinit": first, "tfinal": last, "deltaT": every}


def _ia3_targets(model: PreTrainedModel, targets: Targets) -> tuple[list[str], list[str]]:
    """Modules that (IA)^3 scales, and which of them are scaled on their input.

    Raises:
        ValueError: if keys, values and the MLP can't be told by name, or no name list is given.
    """
    known = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]

    def there(name: str) -> bool:
        return any(f".{one}".endswith(f".{name}") for one in known)

    inner = [name for name in _FEED_FORWARD if there(name)]
    if targets != "all-linear":
        if isinstance(targets, str):
            raise ValueError(
                f"ia3 takes a list of names, not the pattern {targets!r}: those of the MLP's "
                "output projection are scaled on their input"
            )
        names = list(targets)
        return names, [n for n in names if any(n.endswith(i) or i.endswith(n) for i in inner)]
    outer = next((list(names) for names in _KEYS_VALUES if all(map(there, names))), [])
    if not outer or not inner:
        raise ValueError(
            "ia3 scales keys, values and the MLP's inner activations, and this model names none of "
            f"them as usual; pass target_modules, e.g. some of {linear_names(model)}"
        )
    return outer + inner, inner


def _norms(model: PreTrainedModel) -> list[str]:
    """Names of all normalisation layers with a weight."""
    names = [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(getattr(module, "weight", None), torch.Tensor)
        and cast(torch.Tensor, module.weight).ndim == 1
    ]
    if not names:
        raise ValueError("ln trains normalisation layers, and this model has none with a weight")
    return names


def _inject(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # norms, of ln
            return cast(PeftModel, get_peft_model(model, config, adapter_name=ADAPTER))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(config).__name__.removesuffix('Config')} does not fit this model: {error} Its "
            f"linear modules are {linear_names(model)}"
        ) from error


def _draw_start(model: PeftModel, seed: int) -> None:
    """Draw AdaLoRA's A and B from (seed, name), so that other modules don't matter."""
    for name, module in model.named_modules():
        if not isinstance(module, AdaLoraLayer):
            continue
        generator = torch.Generator().manual_seed(module_seed(seed, name))
        for factors in (module.lora_A, module.lora_B):
            target = cast(torch.Tensor, factors[ADAPTER])
            drawn = torch.randn(target.shape, generator=generator) * _STD
            with torch.no_grad():
                target.copy_(drawn)


def _is_causal(model: PreTrainedModel) -> bool:
    return hasattr(model, "prepare_inputs_for_generation")
