"""PEFT linear layers with an anchor: h = W x + s (B A - B0 A0) x, or DoRA of that weight.

A subclass of PEFT's own LoRA layer, hung in through ``LoraConfig``'s custom-module hook. The
anchor belongs to the adapter name, next to ``lora_A`` and ``lora_B`` but outside
``adapter_layer_names``: nothing that re-activates adapters can make it trainable, and a library
that copies an adapter parameter by parameter (TRL's frozen ``ref``) copies its anchor with it.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import transpose
from torch import Tensor, nn
from torch.nn.functional import linear


class AnchoredLinear(LoraLinear):
    """LoRA on ``nn.Linear`` whose update is measured from a frozen start (A0, B0).

    A new adapter's anchor is zero, which is plain LoRA; `set_start` writes both.
    """

    anchor_A: nn.ModuleDict
    anchor_B: nn.ModuleDict

    def update_layer(self, adapter_name: str, r: int, *args: Any, **kwargs: Any) -> None:
        """Create the adapter as PEFT does, and a zero anchor of the same shapes.

        Raises:
            ValueError: for per-module ranks, which the plain form can't hold.
        """
        config = kwargs.get("config")
        odd = ("rank_pattern", "alpha_pattern")
        used = [key for key in odd if getattr(config, key, None)]
        if used:
            raise ValueError(f"{used[0]} does not combine with anchored layers; leave it out")
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
        A, B, A0, B0 = self._factors(adapter)
        delta = ((B - B0) @ A + B0 @ (A - A0)) * self.scaling[adapter]
        return transpose(delta, self.fan_in_fan_out)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus ``s (B A - B0 A0) x`` for each active adapter.

        Computed as ``s ((B - B0) A x + B0 (A - A0) x)`` in float32, whatever autocast says: B A x
        and B0 A0 x differ by far less than their own size, and rounding each to bfloat16 would
        leave noise for a difference. At the start both terms are exactly zero.

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
            z = self.lora_dropout[name](x)
            if name in self.lora_magnitude_vector:
                result = self._decomposed(name, z, result, z is x)
            else:
                result = result + self._update(name, z) * self.scaling[name]
        return result.to(dtype)

    def _decomposed(self, name: str, z: Tensor, result: Tensor, plain: bool) -> Tensor:
        """DoRA's ``m / |W + D| (W + D) z + bias``, D = s (B A - B0 A0), the norm detached.

        Args:
            name: of the adapter.
            z: input, after dropout.
            result: ``W x + bias``.
            plain: there was no dropout, so that ``W z`` is in ``result``.
        """
        with torch.autocast(z.device.type, enabled=False):
            weight = self._matrix()
            magnitude = cast(Tensor, cast(nn.Module, self.lora_magnitude_vector[name]).weight)
            ratio = magnitude / self.row_lengths(name)
            base = self.get_base_layer()
            bias = cast(Tensor | None, base.bias)
            bias = 0.0 if bias is None else bias
            through = (result - bias).float() if plain else linear(z.float(), weight)
            update = self._update(name, z) * self.scaling[name]
            return result + (ratio - 1) * through + ratio * update

    def row_lengths(self, name: str) -> Tensor:
        """``|W + s (B A - B0 A0)|`` by row, (m,) float32, without a gradient."""
        delta = transpose(self.get_delta_weight(name).detach(), self.fan_in_fan_out)
        return torch.linalg.norm(self._matrix() + delta, dim=1)

    def _matrix(self) -> Tensor:
        """The base weight (m, n) in float32, without a gradient."""
        stored = cast(Tensor, self.get_base_layer().weight).detach().float()
        return transpose(stored, self.fan_in_fan_out)

    def _update(self, name: str, z: Tensor) -> Tensor:
        """``(B A - B0 A0) z`` without cancellation, in float32."""
        with torch.autocast(z.device.type, enabled=False):
            A, B, A0, B0 = self._factors(name)
            z = z.float()
            return linear(linear(z, A), B - B0) + linear(linear(z, A - A0), B0)

    def _factors(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, A0, B0 of one adapter, in float32."""
        held = (self.lora_A, self.lora_B, self.anchor_A, self.anchor_B)
        A, B, A0, B0 = (weight(factors, name).float() for factors in held)
        return A, B, A0, B0


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
    """Write the starting factors A (r, n), B (m, r), and the anchor where the layer has one.

    DoRA's lengths become those of the rows of W once more, as the forward pass computes them:
    PEFT takes them in the base's dtype, in which a bfloat16 base would start elsewhere.
    """
    with torch.no_grad():
        weight(layer.lora_A, adapter).copy_(A)
        weight(layer.lora_B, adapter).copy_(B)
        if isinstance(layer, AnchoredLinear):
            weight(layer.anchor_A, adapter).copy_(A)
            weight(layer.anchor_B, adapter).copy_(B)
        if adapter in layer.lora_magnitude_vector:
            lengths = weight(layer.lora_magnitude_vector, adapter)
            lengths.copy_(row_lengths(layer, adapter))


def row_lengths(layer: LoraLinear, adapter: str) -> Tensor:
    """Lengths (m,) of the rows of the adapted weight, by the path of the layer's forward pass."""
    if isinstance(layer, AnchoredLinear):
        return layer.row_lengths(adapter)
    dora = cast(DoraLinearLayer, layer.lora_magnitude_vector[adapter])
    product = dora.get_lora_weight(layer.lora_A[adapter], layer.lora_B[adapter])
    stored = cast(Tensor, layer.get_base_layer().weight).detach().to(product.dtype)
    return dora.get_weight_norm(stored, product, layer.scaling[adapter])


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
