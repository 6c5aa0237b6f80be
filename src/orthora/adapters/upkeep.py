"""What some methods need beside gradients: the base policy, and work after every update."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from orthora.adapters.dense import dense_of, originals_in_place, restore_frozen
from orthora.adapters.fold import base_parameters
from orthora.adapters.slots import ADAPTER


@contextmanager
def base_policy(model: Any) -> Iterator[None]:
    """Inside, ``model`` computes the pretrained model's function, whatever the method.

    Args:
        model: a model from `orthora.adapt`.

    Raises:
        ValueError: if it is none.
    """
    dense = dense_of(model)
    if dense is not None:
        with originals_in_place(model, dense):
            yield
    elif isinstance(model, PeftModel):
        with _switched_off(model):
            yield
    else:
        raise ValueError("base_policy() takes a model from orthora.adapt")


@contextmanager
def _switched_off(model: PeftModel) -> Iterator[None]:
    """Inside, no adapted layer adds its adapter.

    PEFT's ``disable_adapter`` takes longer than a forward pass of a small model, for a report on
    all layers, and lets frozen factors (LoRA-FA's A) train again.
    """
    on = [
        layer
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
        and not layer._disable_adapters
    ]
    try:
        for layer in on:
            layer._disable_adapters = True
        yield
    finally:
        for layer in on:
            layer._disable_adapters = False


def after_update(model: Any, update: int) -> None:
    """What the method asks for after an optimizer update, before the gradients are cleared.

    AdaLoRA measures the importance of its triplets and prunes them; the safe mask puts back the
    entries that weight decay moved. All other methods ask for nothing.

    Args:
        model: a model from `orthora.adapt`.
        update: number of this update, from 1.
    """
    allocator = _adalora(model)
    if allocator is not None:
        allocator.update_and_allocate(update)
    restore_frozen(model)


def orthogonality(model: Any) -> Tensor | None:
    """AdaLoRA's regulariser: the mean of ``|A A' - I|_F`` and ``|B' B - I|_F`` over its factors.

    Zhang et al. 2023 (arXiv 2303.10512), eq. 4, with norms as PEFT takes them; already weighted.
    None for every other method.
    """
    tuner = _adalora(model)
    if tuner is None:
        return None
    terms = []
    for name, parameter in tuner.named_parameters():
        if parameter.requires_grad and (".lora_A." in name or ".lora_B." in name):
            gram = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
            terms.append(torch.linalg.matrix_norm(gram - eye))
    weight: float = tuner.peft_config[ADAPTER].orth_reg_weight
    return weight * torch.stack(terms).mean()


def own_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Everything that makes the adapted model out of its base: what trains, and what is frozen.

    A0, B0 of anchored methods, LoRA-FA's A and VeRA's shared projections are among it.

    Args:
        model: a model from `orthora.adapt`.

    Yields:
        Names in ``model`` and the tensors themselves.
    """
    dense = dense_of(model)
    base = {id(parameter) for _, parameter in base_parameters(model)} if dense is None else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or (dense is None and id(parameter) not in base):
            yield name, parameter
    for name, buffer in model.named_buffers():
        if name.startswith(_SHARED):
            yield name, buffer


def upkeep_state(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AdaLoRA's running importances, and its rank pattern; empty for every other method."""
    tuner = _adalora(model)
    if tuner is None:
        return {}, {}
    allocator = tuner.rankallocator
    tensors = {
        f"{kind}/{name}": value
        for kind in _IMPORTANCES
        for name, value in getattr(allocator, kind).items()
    }
    return tensors, {"rank_pattern": tuner.peft_config[tuner.trainable_adapter_name].rank_pattern}


def load_upkeep_state(model: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `upkeep_state` gave."""
    tuner = _adalora(model)
    if tuner is None:
        return
    device = next(tuner.parameters()).device
    for kind in _IMPORTANCES:
        own = {
            k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")
        }
        setattr(tuner.rankallocator, kind, {name: value.to(device) for name, value in own.items()})
    tuner.peft_config[tuner.trainable_adapter_name].rank_pattern = values.get("rank_pattern")


def ranks(model: Any) -> dict[str, int]:
    """Ranks in use by module, where they differ by module: triplets of AdaLoRA with E != 0."""
    tuner = _adalora(model)
    if tuner is None:
        return {}
    return {
        name.removesuffix(f".lora_E.{ADAPTER}"): int(parameter.count_nonzero())
        for name, parameter in tuner.named_parameters()
        if ".lora_E." in name
    }


_SHARED = ("base_model.vera_A.", "base_model.vera_B.")
_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _adalora(model: nn.Module) -> Any:
    """PEFT's AdaLoRA model inside, or None."""
    inner = getattr(model, "base_model", None)
    return inner if isinstance(inner, AdaLoraModel) else None
