"""What one step on low-rank factors does to a weight, and what bounds it, as formulas.

The statements are those of "geometry-preserving orthonormal initialisation" (Zhang et al. 2026,
arXiv 2606.31813) with the scale s written out, and of "The Path Not Taken" (Zhu et al. 2025, arXiv
2511.08567). Throughout ``W_eff = W + s (B A - B0 A0)``, ``G = dL/dW_eff`` (m, n), eta is the
learning rate, A is (r, n) and B is (m, r). Inputs are taken to float64.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.types import Factors


def factor_gradients(
    G: Float[Tensor, "m n"], A: Float[Tensor, "r n"], B: Float[Tensor, "m r"], scale: float
) -> Factors:
    """Lemma A.1: ``dL/dA = s B' G`` and ``dL/dB = s G A'``.

    Args:
        G: gradient of the effective weight.
        A: now.
        B: now.
        scale: s.

    Returns:
        The two gradients, float64, in the places of A and B.
    """
    G = G.double()
    return Factors(A=scale * B.double().mT @ G, B=scale * G @ A.double().mT)


def adam_moves(gradients: Factors, eps: float) -> Factors:
    """What Adam's first step subtracts, over the learning rate: ``g / (|g| + eps)``.

    Both moments are exact after the bias correction of the first step, so the betas don't enter.

    Args:
        gradients: of A and B.
        eps: Adam's.
    """
    return Factors(*(g / (g.abs() + eps) for g in gradients))


@dataclass(frozen=True)
class Step:
    """The change of a weight by one step on its factors, by orders of the learning rate.

    Attributes:
        first: (m, n), ``-eta s (uB A + B uA)``.
        second: (m, n), ``eta^2 s uB uA``.
    """

    first: Float[Tensor, "m n"]
    second: Float[Tensor, "m n"]

    @cached_property
    def exact(self) -> Float[Tensor, "m n"]:
        """The whole change; there is no third order."""
        return self.first + self.second


def first_step(
    A: Float[Tensor, "r n"], B: Float[Tensor, "m r"], moves: Factors, scale: float, rate: float
) -> Step:
    """``s ((B - eta uB)(A - eta uA) - B A)``.

    Args:
        A: before.
        B: before.
        moves: (uA, uB), the gradients themselves for gradient descent, `adam_moves` for Adam.
        scale: s.
        rate: eta.
    """
    uA, uB = moves.A.double(), moves.B.double()
    first = -rate * scale * (uB @ A.double() + B.double() @ uA)
    return Step(first, rate**2 * scale * uB @ uA)


def smallest_carried(A: Float[Tensor, "r n"], B: Float[Tensor, "m r"]) -> float:
    """The smallest of the r singular values of ``B A``: Theorem 4.1's bound on a ratio of updates.

    Where ``A = D^(1/2) V'`` and ``B = U D^(1/2)`` with orthonormal U and V, the first step of
    gradient descent is, to first order and whatever the gradient, at least this many times as large
    as that of ``A = V', B = 0`` with the same s and eta. D is ``S / s`` for PiSSA and MiLoRA, thus
    the bound is ``sigma_r / s``; it is the identity for OLoRA.
    """
    left = torch.linalg.qr(B.double(), mode="r")[1]
    right = torch.linalg.qr(A.double().mT, mode="r")[1]
    return float(torch.linalg.svdvals(left @ right.mT)[-1])


def gap_factor(
    A: Float[Tensor, "r n"], B: Float[Tensor, "m r"] | None = None, scale: float = 1.0
) -> float:
    """Theorem 5.2's factor: how far from full fine-tuning one unit of gradient can end.

    Full fine-tuning changes W by ``-eta G``, the factors by ``-eta s^2 (G A'A + B B' G)`` to first
    order. This is the norm of the difference as a map of G, ``max |1 - s^2 (p + q)|`` over the
    eigenvalues p of A'A and q of B B'. With B = 0 and s = 1 it is the paper's ``|I - A'A|_2``; with
    B = 0 alone it is that of the rows s A. Grams of size r are formed, nothing of size n.

    Args:
        A: (r, n) at the start.
        B: (m, r) at the start; None is 0.
        scale: s.

    Returns:
        At least 1 where r < min(m, n), as a gradient outside the factors is lost whole; for B = 0
        where r < n.
    """
    low, high = _ends(A.double() @ A.double().mT, A.shape[1])
    if B is not None:
        least, most = _ends(B.double().mT @ B.double(), B.shape[0])
        low, high = low + least, high + most
    return max(abs(1 - scale**2 * low), abs(1 - scale**2 * high))


def _ends(gram: Float[Tensor, "r r"], size: int) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the (size, size) matrix that has these, and else 0."""
    values = torch.linalg.eigvalsh(gram)
    return (float(values[0]) if len(gram) == size else 0.0), float(values[-1])


def first_update_bound(
    G: Float[Tensor, "m n"], A: Float[Tensor, "r n"], scale: float, rate: float
) -> float:
    """Proposition 5.3: with B = 0 gradient descent's first update is ``<= s^2 eta |G| |A|_2^2``."""
    size = float(torch.linalg.matrix_norm(G.double()))
    return scale**2 * rate * size * _spectral(A) ** 2


def sign_update_bound(A: Float[Tensor, "r n"], rows: int, scale: float, rate: float) -> float:
    """The same for Adam's first step, whose entries are at most 1: ``eta s sqrt(m r) |A|_2``.

    Not in the paper. G does not enter.

    Args:
        A: at the start, where B = 0.
        rows: m.
        scale: s.
        rate: eta.
    """
    return rate * scale * math.sqrt(rows * A.shape[0]) * _spectral(A)


def _spectral(A: Tensor) -> float:
    return float(torch.linalg.matrix_norm(A.double(), ord=2))


def categorical_kl(new: Float[Tensor, "N V"], old: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(new || old) in nats of N distributions over V outcomes, from log-probabilities.

    ``sum q (d e^d - (e^d - 1))`` with q = old and d = new - old: every term is at least 0, and good
    to rounding times d, where ``sum p d`` is good to rounding alone, which hides small steps.
    """
    d = new - old
    return (new.exp() * d - old.exp() * torch.expm1(d.clamp(max=700.0))).sum(-1)


def fisher(slopes: Float[Tensor, "L N V"], logps: Float[Tensor, "N V"]) -> Float[Tensor, "L L"]:
    """Fisher matrix on the span of L directions, summed over N states.

    ``F_ab = sum_states Cov_p(z_a, z_b)``, where z_a is the derivative of the logits along direction
    a: the score of an outcome is ``z_a - E_p z_a``. Along a step d in these directions
    ``KL = d' F d / 2`` to leading order.

    Args:
        slopes: derivatives of the logits; a constant over the outcomes does not matter.
        logps: log-probabilities of the outcomes.
    """
    centred = slopes - (slopes * logps.exp()).sum(-1, keepdim=True)
    weighted = (centred * (logps / 2).exp()).flatten(1)
    return weighted @ weighted.mT


def norm_bound(kl: float, smallest: float) -> float:
    """``sqrt(2 K / mu)``: what a step of KL K can move, to leading order (Zhu et al.).

    Args:
        kl: K, nats.
        smallest: mu, the smallest eigenvalue of the Fisher matrix on the span of the update.

    Returns:
        Infinity where mu is 0: the KL then bounds nothing.
    """
    return math.sqrt(2 * max(kl, 0.0) / smallest) if smallest > 0 else math.inf
