"""Some updates on one mini-batch, of factors and of whole weights, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orthora.config import TrainConfig
from orthora.linalg.theory import factor_gradients
from orthora.train.theory_policy import Policy, Weights
from orthora.types import Factors

DESCENT, ADAMW = "gradient descent", "adamw"
EPS = 1e-8  # of AdamW, as in training
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
"""Parameters -> the optimizer over them."""


@dataclass(frozen=True)
class Start:
    """Where a method begins.

    Attributes:
        method: its name.
        factors: A0 (r, n) and B0 (m, r) of every layer, float64.
        scale: s.
    """

    method: str
    factors: list[Factors]
    scale: float

    @property
    def anchored(self) -> bool:
        """Whether any B0 is not 0."""
        return any(bool(B.any()) for _, B in self.factors)

    def moved(self, now: Sequence[Factors]) -> list[Tensor]:
        """``s (B A - B0 A0)`` of every layer, without cancellation."""
        pairs = zip(self.factors, now, strict=True)
        return [self.scale * ((B - B0) @ A + B0 @ (A - A0)) for (A0, B0), (A, B) in pairs]


@dataclass(frozen=True)
class Travel:
    """Where some updates led.

    Attributes:
        moved: ``W_T - W_0`` (m, n) of every layer.
        largest: the largest ``|G|_F`` of every layer at the weights that an update began from.
        factors: A and B at the end; empty where the weights themselves trained.
    """

    moved: list[Tensor]
    largest: list[float]
    factors: list[Factors] = field(default_factory=list)


def optimizers(config: TrainConfig, gradient_rate: float) -> dict[str, Make]:
    """Gradient descent, and the config's AdamW without weight decay, clipping and schedule."""
    adam = {"lr": config.learning_rate, "betas": config.adam_betas, "eps": EPS}
    return {
        DESCENT: lambda parameters: torch.optim.SGD(parameters, lr=gradient_rate),
        ADAMW: lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.0, **adam),
    }


def travel_by_factors(policy: Policy, start: Start, make: Make, updates: int) -> Travel:
    """Train A and B of every layer on the mini-batch, again and again.

    The weights' gradients are those of autograd; the factors' follow by Lemma A.1.

    Args:
        policy: of the mini-batch.
        start: of the method.
        make: the optimizer.
        updates: T.
    """
    now = [Factors(A.clone(), B.clone()) for A, B in start.factors]
    optimizer = make([factor for pair in now for factor in pair])
    largest = [0.0] * len(now)
    for _ in range(updates):
        gradients = policy.gradients(_added(policy.weights, start.moved(now)))
        largest = _widened(largest, gradients)
        for pair, G in zip(now, gradients, strict=True):
            found = factor_gradients(G, pair.A, pair.B, start.scale)
            pair.A.grad, pair.B.grad = found.A, found.B
        optimizer.step()
    return Travel(start.moved(now), largest, now)


def travel_in_full(policy: Policy, make: Make, updates: int) -> Travel:
    """Train the same weights themselves.

    Args:
        policy: of the mini-batch.
        make: the optimizer.
        updates: T.
    """
    now = [W.clone() for W in policy.weights]
    optimizer = make(now)
    largest = [0.0] * len(now)
    for _ in range(updates):
        gradients = policy.gradients(now)
        largest = _widened(largest, gradients)
        for W, G in zip(now, gradients, strict=True):
            W.grad = G
        optimizer.step()
    return Travel([W - W0 for W, W0 in zip(now, policy.weights, strict=True)], largest)


def _added(weights: Weights, moved: Weights) -> list[Tensor]:
    return [W + dW for W, dW in zip(weights, moved, strict=True)]


def _widened(largest: Sequence[float], gradients: Sequence[Tensor]) -> list[float]:
    return [max(a, float(G.norm())) for a, G in zip(largest, gradients, strict=True)]
