"""The weight matrices that an adapted model's factors belong to, whatever PEFT wraps around them.

A linear layer is one slot. A fused expert parameter (E, m, n), which PEFT adapts with one pair of
factors for all experts, is E slots: expert e owns rows e r to (e + 1) r of ``lora_A``, and columns
k E + e of ``lora_B`` (PEFT packs A by expert and B by rank).
"""

from dataclasses import dataclass
from typing import Any, cast

from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthora.adapters.layers import set_start, weight

_PREFIX = "base_model.model."
ADAPTER = "default"


@dataclass(frozen=True)
class Slot:
    """One weight matrix (m, n) and the place of its factors.

    Attributes:
        name: of the weight in the base model: its module, or ``<experts>.<e>.<parameter>``.
        key: of the base parameter, as the model's state dict spells it.
        path: of the layer in the PEFT model, which prefixes its factors in adapter files.
        shape: (m, n), with y = W x.
        rank: r of this layer.
        layer: PEFT's.
        expert: index into a fused parameter, else None.
        experts: number of experts; 1 for a linear layer.
    """

    name: str
    key: str
    path: str
    shape: tuple[int, int]
    rank: int
    layer: Any
    expert: int | None = None
    experts: int = 1

    @property
    def transposed(self) -> bool:
        """Whether the base stores (n, m), as GPT-2's ``Conv1D`` does."""
        return self.expert is None and isinstance(self.layer.get_base_layer(), Conv1D)

    def weight(self) -> Tensor:
        """The frozen weight (m, n), a view of the base's."""
        if self.expert is not None:
            return cast(Tensor, self.layer.get_param()).detach()[self.expert]
        stored = cast(Tensor, self.layer.get_base_layer().weight).detach()
        return stored.mT if self.transposed else stored

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r) of this slot, views of what trains, without a gradient."""
        A = weight(self.layer.lora_A, ADAPTER).detach()
        B = weight(self.layer.lora_B, ADAPTER).detach()
        if self.expert is None:
            return A, B
        rows = slice(self.expert * self.rank, (self.expert + 1) * self.rank)
        return A[rows], B[:, self.expert :: self.experts]

    def start(self, A: Tensor, B: Tensor) -> None:
        """Write starting factors A (r, n), B (m, r), and the anchor where the layer has one."""
        if self.expert is None:
            set_start(self.layer, ADAPTER, A, B)
            return
        rows = slice(self.expert * self.rank, (self.expert + 1) * self.rank)
        weight(self.layer.lora_A, ADAPTER).data[rows] = A.to(self.layer.get_param().device)
        weight(self.layer.lora_B, ADAPTER).data[:, self.expert :: self.experts] = B


def slots_of(model: PeftModel) -> list[Slot]:
    """All slots of an adapted model, in model order."""
    found: list[Slot] = []
    for path, layer in model.named_modules():
        if isinstance(layer, ParamWrapper) and layer.get_param().ndim == 3:
            found += _expert_slots(path, layer)
        elif isinstance(layer, BaseTunerLayer) and is_linear(layer.get_base_layer()):
            name = path.removeprefix(_PREFIX)
            m, n = cast(Tensor, layer.get_base_layer().weight).shape
            if isinstance(layer.get_base_layer(), Conv1D):
                m, n = n, m
            rank = getattr(layer, "r", {}).get(ADAPTER, 0)  # (IA)^3 and MiSS have none
            found.append(Slot(name, f"{name}.weight", path, (m, n), rank, layer))
    return found


def _expert_slots(path: str, layer: ParamWrapper) -> list[Slot]:
    """One slot per expert of a fused parameter (E, m, n)."""
    module = path.removeprefix(_PREFIX)
    while module.endswith(".base_layer"):  # the wrappers of several parameters are nested
        module = module.removesuffix(".base_layer")
    parameter = layer.parameter_name
    E, m, n = layer.get_param().shape
    rank = layer.r[ADAPTER]
    return [
        Slot(f"{module}.{e}.{parameter}", f"{module}.{parameter}", path, (m, n), rank, layer, e, E)
        for e in range(E)
    ]


def is_linear(module: nn.Module) -> bool:
    """A layer with a weight matrix: ``nn.Linear``, or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear | Conv1D)
