"""AdamW over the parameters that train, and the optimizers that a method may name."""

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from orthora.adapters import ADAPTER
from orthora.config import TrainConfig
from orthora.methods import Composition

_SPARED = re.compile(r"(norm|ln_|layernorm|magnitude_vector|ia3_l)", re.IGNORECASE)


def make_optimizer(model: Any, method: Composition, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Weight decay spares biases and norms, as transformers' trainer does, and the vectors of DoRA and
    (IA)^3, which mean "no change" at other values than 0; all else that trains is pulled to 0.

    Args:
        model: from `orthora.adapt`.
        method: names the optimizer, or none for AdamW.
        config: learning rate, betas, weight decay.
    """
    settings: dict[str, Any] = {"betas": config.adam_betas, "eps": 1e-8}
    name = method.optimizer.name if method.optimizer else "adamw"
    if name == "lora-plus":
        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=config.learning_rate,
            loraplus_lr_ratio=config.lora_plus_ratio,
            loraplus_weight_decay=config.weight_decay,
            **settings,
        )
    decayed, spared = [], []
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bare = parameter_name.endswith("bias") or _SPARED.search(parameter_name)
            (spared if bare else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, **settings
    )
    if name == "lora-fa":
        optimizer.register_step_pre_hook(project_gradients(model))
    return optimizer


def set_learning_rate(scheduler: Any, lr: float) -> None:
    """Train on with another learning rate; groups keep their ratios, as LoRA+'s.

    Args:
        scheduler: torch's, with a constant schedule, or accelerate's around it.
        lr: of the first group.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    first = inner.base_lrs[0]
    inner.base_lrs = [lr * (base / first) for base in inner.base_lrs]
    for group, base in zip(inner.optimizer.param_groups, inner.base_lrs, strict=True):
        group["lr"] = base
    inner._last_lr = list(inner.base_lrs)


def scale_learning_rate(scheduler: Any, factor: float) -> None:
    """Multiply the learning rates of now and of all later steps.

    Args:
        scheduler: torch's, or accelerate's around it.
        factor: of every group.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    inner.base_lrs = [base * factor for base in inner.base_lrs]
    for group in inner.optimizer.param_groups:
        group["lr"] *= factor
    inner._last_lr = [group["lr"] for group in inner.optimizer.param_groups]


def project_gradients(model: Any) -> Callable[..., None]:
    """LoRA-FA's step: B's gradient g becomes ``s^-2 g (A A')^-1``, A being frozen.

    Zhang et al. 2023 (arXiv 2308.03303) freeze A; the projection, which brings the change of W
    nearest to full fine-tuning's, is that of PEFT's LoRA-FA, here in float32 throughout (PEFT's
    forms it in bfloat16 wherever the machine knows that type).
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, LoraLayer):
            A, B = (cast(nn.Linear, m[ADAPTER]).weight for m in (module.lora_A, module.lora_B))
            gram = (A.detach() @ A.detach().mT).double()
            inverse = torch.linalg.pinv(gram) / module.scaling[ADAPTER] ** 2
            pairs.append((B, inverse.to(A.dtype)))

    def hook(*_: Any) -> None:
        for B, inverse in pairs:
            if B.grad is not None:
                B.grad = B.grad @ inverse

    return hook
