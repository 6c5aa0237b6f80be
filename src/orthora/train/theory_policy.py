"""The base policy on one mini-batch, in float64, as a function of the weights that adapters change.

Adapted weights are given to the model from outside, so that every method, and full fine-tuning, is
looked at by one and the same code, which knows nothing of adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from orthora.adapters import Slot
from orthora.config import TrainConfig
from orthora.linalg.theory import categorical_kl, fisher
from orthora.train.batches import Batch, collate
from orthora.train.dealing import deal
from orthora.train.losses import normaliser, total_loss
from orthora.train.rollouts import Row
from orthora.train.settings import objective_of

Weights = Sequence[Tensor]
"""One (m, n) matrix per adapted layer, in the order of the slots."""


class _Double(TorchFunctionMode):
    """Inside, what asks for float32 gets float64: models take norms and angles in float32.

    The KL of a small step is its square, so that outputs good to 1e-7 would not do.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        given = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        return func(*map(_doubled, args), **given)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


class Policy:
    """Loss, gradients and distributions of one mini-batch under any weights.

    The mini-batch's old log-probabilities, and those of the base, are the base policy's in float64.
    A mean is over the response tokens that are in the loss, N of them.

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
        batches = [collate(part, pad, base.device, dtype=torch.float64) for part in parts]
        self._batches = [self._scored(batch) for batch in batches]
        self._before = self.logps(self.weights)
        self.tokens = sum(map(len, self._before))

    def gradients(self, weights: Weights) -> list[Tensor]:
        """G of every layer (m, n): the gradient of the mini-batch's loss at these weights."""
        leaves = [W.detach().requires_grad_() for W in weights]
        found = [torch.zeros_like(W) for W in leaves]
        for batch in self._batches:
            loss = self._loss(self._exactly(batch, self._given(leaves)), batch)
            for total, part in zip(found, torch.autograd.grad(loss, leaves), strict=True):
                total += part
        return found

    def backward(self, model: Any) -> None:
        """Leave the loss's gradients on a whole model's own parameters, as training does."""
        model.zero_grad()
        for batch in self._batches:
            self._loss(self._run(model, batch), batch).backward()

    @torch.no_grad()
    def logps(self, weights: Weights) -> list[Tensor]:
        """Log-probabilities (t, V) of the vocabulary at each micro-batch's response tokens."""
        given = self._given(weights)
        return [self._exactly(batch, given)[batch.mask > 0] for batch in self._batches]

    def kl(self, weights: Weights) -> float:
        """Mean KL to the base policy, ``KL(pi_weights || pi_base)``, in nats per token."""
        pairs = zip(self.logps(weights), self._before, strict=True)
        return sum(float(categorical_kl(*pair).sum()) for pair in pairs) / self.tokens

    def fisher(self, directions: Mapping[int, Tensor]) -> Tensor:
        """Mean Fisher matrix (L, L) at the base on directions of one layer each.

        Exact: expected over the whole vocabulary, with slopes by forward differentiation.

        Args:
            directions: (m, n) by index of the slot; L of them.
        """
        parts = []
        for batch, logps in zip(self._batches, self._before, strict=True):
            slopes = [self._slopes(batch, *item) for item in directions.items()]
            parts.append(fisher(torch.stack(slopes), logps))
        return torch.stack(parts).sum(0) / self.tokens

    @torch.no_grad()
    def _slopes(self, batch: Batch, layer: int, direction: Tensor) -> Tensor:
        """Derivatives (t, V) of the base's log-probabilities along one layer's direction."""
        key, flip = self._keys[layer]
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # the only kernel that has it
            dual = forward_ad.make_dual(self.weights[layer].detach(), direction)
            logps = self._exactly(batch, {key: dual.mT if flip else dual})
            tangent = forward_ad.unpack_dual(logps).tangent
            assert tangent is not None, "the layer is used"
            return tangent[batch.mask > 0]

    def _given(self, weights: Weights) -> dict[str, Tensor]:
        pairs = zip(self._keys, weights, strict=True)
        return {key: W.mT if flip else W for (key, flip), W in pairs}

    @torch.no_grad()
    def _scored(self, batch: Batch) -> Batch:
        """The batch with the base's log-probabilities of its tokens."""
        old = _picked(self._exactly(batch, {}), batch)
        reference = old if self._objective.beta else None
        mask, advantage = batch.mask.double(), batch.advantage.double()
        return replace(batch, old=old, reference=reference, mask=mask, advantage=advantage)

    def _exactly(self, batch: Batch, given: dict[str, Tensor]) -> Tensor:
        """Log-probabilities (S, T, V) of the base with some weights given, float64 throughout."""
        with _Double():
            return self._run(lambda **kwargs: functional_call(self._base, given, (), kwargs), batch)

    def _run(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Log-probabilities (S, T, V) at the rollout's temperature."""
        output = model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
        )
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
