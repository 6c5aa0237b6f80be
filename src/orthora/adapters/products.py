"""The update of a weight as a product of thin factors, and what can be read off it cheaply.

``dW = s (B A - B0 A0) = X Y`` with X (m, k) and Y (k, n), where k is r, or 2r for anchored methods:
norms, energies and singular values of dW then cost O((m + n) k^2), and dW is never formed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from orthora.adapters.layers import AnchoredLinear, weight
from orthora.adapters.model import scale_of
from orthora.adapters.slots import ADAPTER, Slot, slots_of


@dataclass(frozen=True)
class Product:
    """One weight's update, or the step between two updates.

    Attributes:
        slot: the weight.
        X: (m, k), scale included.
        Y: (k, n).
    """

    slot: Slot
    X: Tensor
    Y: Tensor

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """``X' X`` and ``Y Y'`` (k, k) in float64, on the CPU."""
        return (self.X.mT @ self.X).double().cpu(), (self.Y @ self.Y.mT).double().cpu()

    def norm(self) -> float:
        """``|X Y|_F``, from the grams."""
        return _norm(*self.grams)

    def spectral_norm(self) -> float:
        """``|X Y|_2``: the root of the largest eigenvalue of ``X' X Y Y'``; NaN if it overflows."""
        left, right = self.grams
        if not (left @ right).isfinite().all():
            return math.nan
        return float(torch.linalg.eigvals(left @ right).real.max().clamp_min(0.0).sqrt())

    def energy_in(self, V: Tensor) -> float:
        """Share of ``|X Y|_F^2`` whose inputs lie in the span of V (n, q), orthonormal columns."""
        whole = self.norm()
        if whole == 0.0:
            return 0.0
        inside = self.Y @ V.to(self.Y)
        return (_norm(self.grams[0], (inside @ inside.mT).double().cpu()) / whole) ** 2


def _norm(left: Tensor, right: Tensor) -> float:
    """``|X Y|_F`` of ``X' X`` and ``Y Y'``."""
    return float((left * right).sum().clamp_min(0.0).sqrt())


Factors = Sequence[tuple[Tensor, Tensor]]
"""Copies of (A, B) of every slot, in order."""


def has_products(model: Any) -> bool:
    """Whether the update of every adapted weight is ``s (B A - B0 A0)``: plain LoRA, no DoRA."""
    if not isinstance(model, PeftModel):
        return False
    config = model.peft_config[ADAPTER]
    return type(config) is LoraConfig and not config.use_dora


def factors_of(model: PeftModel) -> list[tuple[Tensor, Tensor]]:
    """Copies of A and B of every slot, to measure a step from."""
    return [(A.clone(), B.clone()) for A, B in (slot.factors() for slot in slots_of(model))]


def products_of(model: PeftModel, before: Factors | None = None) -> list[Product]:
    """The updates of all adapted weights.

    Args:
        model: from `orthora.adapt`, with `has_products`.
        before: `factors_of` an earlier moment, to measure the step since; None measures from the
            base.

    Returns:
        One product per slot, in model order, without cancellation: ``X Y`` with
        ``X = s [B - B0, B0]`` and ``Y = [A; A - A0]``.
    """
    config = model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig), "has_products"
    scale = scale_of(config)
    found = []
    for number, slot in enumerate(slots_of(model)):
        A, B = (factor.float() for factor in slot.factors())
        start = before[number] if before is not None else _anchor(slot)
        if start is None:
            found.append(Product(slot, scale * B, A))
            continue
        A0, B0 = (factor.to(A) for factor in start)
        found.append(Product(slot, scale * torch.cat([B - B0, B0], 1), torch.cat([A, A - A0])))
    return found


def _anchor(slot: Slot) -> tuple[Tensor, Tensor] | None:
    layer = slot.layer
    if not isinstance(layer, AnchoredLinear):
        return None
    return weight(layer.anchor_A, ADAPTER).detach(), weight(layer.anchor_B, ADAPTER).detach()


def merge_fidelity(model: PeftModel, dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """What of the update is left when it is merged into weights of a lower precision.

    Args:
        model: from `orthora.adapt`, with `has_products`.
        dtype: of the merged weights.

    Returns:
        ``cosine`` of the realised and the true update over all adapted entries, ``norm_ratio`` of
        the two, and ``changed``, the share of entries whose rounded value differs from the base's.
        Zeros where nothing was trained. Memory: three matrices of the largest layer in float32.
    """
    dot = true = real = 0.0
    changed = entries = 0
    for product in products_of(model):
        W = product.slot.weight().float()
        delta = product.X @ product.Y
        rounded = W.to(dtype).float()
        realised = (W + delta).to(dtype).float() - rounded
        dot += float((realised * delta).sum(dtype=torch.float64))
        true += float(delta.square().sum(dtype=torch.float64))
        real += float(realised.square().sum(dtype=torch.float64))
        changed += int(realised.count_nonzero())
        entries += realised.numel()
    return {
        "cosine": dot / (true * real) ** 0.5 if true and real else 0.0,
        "norm_ratio": (real / true) ** 0.5 if true else 0.0,
        "changed": changed / entries,
    }
