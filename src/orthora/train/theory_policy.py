"""The base policy on one mini-batch, in float64, as a function of the weights that adapters change.

Adapted weights are given to the model from outside, so that every method, and full fine-tuning, is
looked at by one and the same code, which knows nothing of adapters. What the model itself computes
in float32 (the norms of most families) stays so: its outputs are good to about 1e-7.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from orthora.adapters import Slot
from orthora.config import TrainConfig
from orthora.train.batches import Batch, collate, deal
from orthora.train.losses import normaliser, total_loss
from orthora.train.rollouts import Row
from orthora.train.settings import objective_of

Weights = Sequence[Tensor]
"""One (m, n) matrix per adapted layer, in the order of the slots."""


class Policy:
    """Loss, gradients and distributions of one mini-batch under any weights.

    The mini-batch's old log-probabilities, and the base's, are those of the base policy in float64.

    Args:
        base: the base model in float64; its parameters ask for no gradient.
        slots: of an adapted model over the same base.
        rows: of the mini-batch.
        config: loss, temperature, size of a micro-batch.
        pad: token id of padding.
    """

    def __init__(
        self, base: Any, slots: Sequence[Slot], rows: Sequence[Row], config: TrainConfig, pad: int
    ) -> None:
        self._base, self._temperature = base, config.temperature
        self._keys = [(slot.key, slot.transposed) for slot in slots]
        own = dict(base.named_parameters())
        self.weights = [own[key].mT if flip else own[key] for key, flip in self._keys]
        self._objective = objective_of(config)
        self._divisor = normaliser(self._objective, sum(row.tokens for row in rows), len(rows))
        dealt = deal(rows, 1, 0, config.micro_batch, together=False)
        parts = [[rows[i] for i in micro] for micro in dealt if micro]
        self._batches = [
            self._scored(collate(part, pad, base.device, dtype=torch.float64)) for part in parts
        ]
        self.tokens = int(sum(float(batch.mask.sum()) for batch in self._batches))

    def gradients(self, weights: Weights) -> list[Tensor]:
        """G of every layer (m, n): the gradient of the mini-batch's loss at these weights."""
        leaves = [W.detach().requires_grad_() for W in weights]
        found = [torch.zeros_like(W) for W in leaves]
        for batch in self._batches:
            loss = self._loss(self._run(self._base, batch, self._given(leaves)), batch)
            for total, part in zip(found, torch.autograd.grad(loss, leaves), strict=True):
                total += part
        return found

    def backward(self, model: Any) -> None:
        """Leave the loss's gradients on a whole model's own parameters, as training does."""
        model.zero_grad()
        for batch in self._batches:
            self._loss(self._run(model, batch), batch).backward()

    @torch.no_grad()
    def logps(self, weights: Weights) -> Tensor:
        """Log-probabilities (N, V) of the whole vocabulary at every response token in the loss."""
        parts = self._given(weights)
        return torch.cat(
            [self._run(self._base, batch, parts)[batch.mask > 0] for batch in self._batches]
        )

    @torch.no_grad()
    def slopes(self, layer: int, direction: Tensor) -> Tensor:
        """Derivatives (N, V) of these log-probabilities at the base along one layer's direction.

        By forward differentiation, thus exact.

        Args:
            layer: index of the slot.
            direction: (m, n).
        """
        key, flip = self._keys[layer]
        found = []
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # the only kernel that has it
            dual = forward_ad.make_dual(self.weights[layer].detach(), direction)
            for batch in self._batches:
                logps = self._run(self._base, batch, {key: dual.mT if flip else dual})
                tangent = forward_ad.unpack_dual(logps).tangent
                found.append(tangent[batch.mask > 0])
        return torch.cat(found)

    def _given(self, weights: Weights) -> dict[str, Tensor]:
        pairs = zip(self._keys, weights, strict=True)
        return {key: W.mT if flip else W for (key, flip), W in pairs}

    @torch.no_grad()
    def _scored(self, batch: Batch) -> Batch:
        """The batch with the base's log-probabilities of its tokens."""
        old = _picked(self._run(self._base, batch), batch)
        reference = old if self._objective.beta else None
        mask, advantage = batch.mask.double(), batch.advantage.double()
        return replace(batch, old=old, reference=reference, mask=mask, advantage=advantage)

    def _run(self, model: Any, batch: Batch, given: dict[str, Tensor] | None = None) -> Tensor:
        """Log-probabilities (S, T, V) at the rollout's temperature, float64."""
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.attention,
            "position_ids": batch.positions,
            "use_cache": False,
        }
        output = functional_call(model, given, kwargs=inputs) if given else model(**inputs)
        logits = output.logits[:, :-1].flatten(0, 1)[batch.take]
        return (logits.double() / self._temperature).log_softmax(-1)

    def _loss(self, logps: Tensor, batch: Batch) -> Tensor:
        assert batch.old is not None, "scored"
        entropy = -(logps.exp() * logps).sum(-1) if self._objective.entropy_bonus else None
        return total_loss(
            _picked(logps, batch),
            entropy,
            batch.old,
            batch.reference,
            None,
            batch.advantage,
            batch.mask,
            self._objective,
            self._divisor,
        )[0]


def _picked(logps: Tensor, batch: Batch) -> Tensor:
    """Of the response's own tokens (S, T)."""
    tokens = batch.ids[:, 1:].flatten()[batch.take]
    return logps.gather(-1, tokens[..., None])[..., 0]
