"""PEFT linear layers with an anchor: h = W x + s (B A - B0 A0) x.

A subclass of PEFT's own LoRA layer, hung in through ``LoraConfig``'s custom-module hook. The
anchor belongs to the adapter name, next to ``lora_A`` and ``lora_B`` but outside
``adapter_layer_names``: nothing that re-activates adapters can make it trainable, and a library
that copies an adapter parameter by parameter (TRL's frozen ``ref``) copies its anchor with it.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import transpose
from torch import Tensor, nn


class AnchoredLinear(LoraLinear):
    """LoRA on ``nn.Linear`` whose update is measured from a frozen start (A0, B0).

    A new adapter's anchor is zero, which is plain LoRA; `set_start` writes both.
    """

    anchor_A: nn.ModuleDict
    anchor_B: nn.ModuleDict

    def update_layer(self, adapter_name: str, r: int, *args: Any, **kwargs: Any) -> None:
        """Create the adapter as PEFT does, and a zero anchor of the same shapes."""
        super().update_layer(adapter_name, r, *args, **kwargs)
        if "anchor_A" not in self._modules:
            self.anchor_A, self.anchor_B = nn.ModuleDict(), nn.ModuleDict()
        self.anchor_A[adapter_name] = _frozen_like(cast(nn.Linear, self.lora_A[adapter_name]))
        self.anchor_B[adapter_name] = _frozen_like(cast(nn.Linear, self.lora_B[adapter_name]))

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete the adapter together with its anchor."""
        super().delete_adapter(adapter_name)
        for anchors in (self.anchor_A, self.anchor_B):
            anchors.pop(adapter_name)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``s (B A - B0 A0)`` in the base weight's layout, for merging."""
        anchor = weight(self.anchor_B, adapter).float() @ weight(self.anchor_A, adapter).float()
        anchor = transpose(anchor, self.fan_in_fan_out) * self.scaling[adapter]
        delta = super().get_delta_weight(adapter)
        return (delta.float() - anchor).to(delta.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus ``s (B A - B0 A0) x`` for each active adapter.

        The difference is formed before it meets the base output, so that at the start, where A = A0
        and B = B0, it is exactly zero. Both products see the same dropout mask.

        Raises:
            ValueError: for batches that mix adapters by row, which PEFT's own path would run
                without the anchor.
        """
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "a batch that mixes adapters by row (adapter_names=...) is not supported with "
                "anchored methods; export the adapters as plain LoRA and load those"
            )
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            A, B = cast(nn.Linear, self.lora_A[name]), self.lora_B[name]
            z = self.lora_dropout[name](self._cast_input_dtype(x, A.weight.dtype))
            update = B(A(z)) - self.anchor_B[name](self.anchor_A[name](z))
            result = result + update * self.scaling[name]
        return result.to(dtype)


class AnchoredConv1D(AnchoredLinear):
    """The same on GPT-2's ``Conv1D``, whose weight is stored transposed (n, m)."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any
    ) -> None:
        config.fan_in_fan_out = True
        super().__init__(
            base_layer, adapter_name, config=config, is_target_conv_1d_layer=True, **kwargs
        )


def set_start(layer: LoraLinear, adapter: str, A: Tensor, B: Tensor) -> None:
    """Write the starting factors A (r, n), B (m, r), and the anchor where the layer has one."""
    with torch.no_grad():
        weight(layer.lora_A, adapter).copy_(A)
        weight(layer.lora_B, adapter).copy_(B)
        if isinstance(layer, AnchoredLinear):
            weight(layer.anchor_A, adapter).copy_(A)
            weight(layer.anchor_B, adapter).copy_(B)


def weight(factors: nn.ModuleDict, adapter: str) -> Tensor:
    """The factor of one adapter, as its layer holds it."""
    return cast(nn.Linear, factors[adapter]).weight


def _frozen_like(linear: nn.Linear) -> nn.Linear:
    """A bias-free float32 linear layer of the same shape and device: zeros that never train."""
    twin = nn.Linear(
        linear.in_features,
        linear.out_features,
        bias=False,
        device=linear.weight.device,
        dtype=torch.float32,
    )
    nn.init.zeros_(twin.weight)
    return twin.requires_grad_(False)
