"""The loss, as pure functions of tensors: clipped policy gradient, KL to the base, entropy.

DAPO (Yu et al. 2025, arXiv 2503.14476, eqs. 8-12) as verl computes it: token mean over a whole
mini-batch, clip-higher, and the dual clip of Ye et al. 2019 (arXiv 1912.09729, eq. 5). GRPO (Shao
et al. 2024, arXiv 2402.03300, eqs. 3-4) takes the mean over sequences of their token means, Dr.
GRPO (Liu et al. 2025, arXiv 2503.20783) a constant length; the sequence-level ratio is that of GSPO
(Zheng et al. 2025, arXiv 2507.18071, eqs. 5-7).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LossName = Literal["dapo", "grpo", "dr_grpo"]
_LOG_RATIO = 20.0  # verl's bound on a log-ratio: exp stays finite
_STD = 1e-6  # verl's, added to a standard deviation


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        loss: how tokens are averaged, see `normaliser`.
        ratio: of one token, or of the whole sequence (its geometric mean per token).
        clip_low: the ratio is clipped to 1 - clip_low ...
        clip_high: ... to 1 + clip_high.
        dual_clip: c; where the advantage is negative, the loss is at most ``-c A``. None is off.
        beta: weight of the KL to the base, estimator k3.
        entropy_bonus: weight of the entropy.
        max_tokens: the constant length of Dr. GRPO.
    """

    loss: LossName = "dapo"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 10.0
    beta: float = 0.0
    entropy_bonus: float = 0.0
    max_tokens: int = 1


class Clipped(NamedTuple):
    """Sums over response tokens of where a clip held the loss; divide by the tokens."""

    low: float
    high: float
    dual: float


def advantages(
    rewards: Float[Tensor, "N G"], scale: Literal["group", "batch", "none"]
) -> Float[Tensor, "N G"]:
    """``(R - mean) / (std + 1e-6)`` within each group, as in verl.

    Args:
        rewards: of G responses to each of N prompts.
        scale: the standard deviation (unbiased) is that of the group, of the whole batch, or the
            difference is left as it is (Dr. GRPO).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (rewards.std() + _STD)
    return centred / (rewards.std(dim=1, keepdim=True) + _STD)


def policy_loss(
    new: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantage: Float[Tensor, " B"],
    mask: Float[Tensor, "B T"],
    objective: Objective,
) -> tuple[Float[Tensor, "B T"], Clipped]:
    """Clipped loss of every token, not yet averaged.

    With ``r = exp(new - old)``, the log-ratio bounded to 20: ``max(-A r, -A clip(r))``, and where
    A < 0 the smaller of that and ``-A c``.

    Args:
        new: log-probabilities under the policy that is trained.
        old: under the policy that is the ratio's base.
        advantage: of each response.
        mask: 1 on response tokens that count.
        objective: clips, and the level of the ratio.
    """
    log_ratio = (new - old) * mask
    if objective.ratio == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1.0)
        log_ratio = log_ratio.expand_as(new)
    ratio = log_ratio.clamp(-_LOG_RATIO, _LOG_RATIO).exp()
    A = advantage[:, None]
    plain = -A * ratio
    clipped = -A * ratio.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high)
    loss = torch.maximum(plain, clipped)
    held = (clipped > plain).to(mask.dtype) * mask
    dual = torch.zeros_like(held)
    if objective.dual_clip is not None:
        bound = -A * objective.dual_clip
        dual = ((A < 0) & (loss > bound)).to(mask.dtype) * mask
        loss = torch.where(A < 0, torch.minimum(loss, bound), loss)
    counts = Clipped(
        float((held * (A < 0)).sum()), float((held * (A > 0)).sum()), float(dual.sum())
    )
    return loss, counts


def kl_k3(new: Float[Tensor, "B T"], reference: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """``exp(d) - 1 - d`` with ``d = reference - new``: GRPO's KL term of every token (k3).

    Schulman 2020: unbiased for KL(new || reference) on tokens drawn from ``new``, never negative.
    """
    d = (reference - new).clamp(-_LOG_RATIO, _LOG_RATIO)
    return torch.expm1(d) - d


def normaliser(objective: Objective, tokens: int, sequences: int) -> float:
    """What a mini-batch's sum is divided by.

    ``dapo``: its response tokens (token mean). ``grpo``: its sequences, whose own token means are
    summed. ``dr_grpo``: its sequences times the constant length.

    Args:
        objective: the loss.
        tokens: response tokens that count, in the mini-batch over all processes.
        sequences: responses in it.
    """
    if objective.loss == "dapo":
        return float(max(tokens, 1))
    if objective.loss == "grpo":
        return float(max(sequences, 1))
    return float(max(sequences, 1) * objective.max_tokens)


def summed(
    per_token: Float[Tensor, "B T"], mask: Float[Tensor, "B T"], objective: Objective
) -> Float[Tensor, ""]:
    """Sum over tokens; for ``grpo`` the sum over sequences of their token means."""
    masked = per_token * mask
    if objective.loss == "grpo":
        return (masked.sum(1) / mask.sum(1).clamp(min=1.0)).sum()
    return masked.sum()


def total_loss(
    new: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"] | None,
    old: Float[Tensor, "B T"],
    reference: Float[Tensor, "B T"] | None,
    weight: Float[Tensor, "B T"] | None,
    advantage: Float[Tensor, " B"],
    mask: Float[Tensor, "B T"],
    objective: Objective,
    divisor: float,
) -> tuple[Float[Tensor, ""], Clipped]:
    """This micro-batch's share of a mini-batch's loss; the shares add up.

    ``policy_loss * weight + beta k3 - entropy_bonus H``, summed and divided by the mini-batch's
    `normaliser`.

    Args:
        new: log-probabilities under the policy that is trained, with a gradient.
        entropy: of each token's distribution; needed for an entropy bonus.
        old: as for `policy_loss`.
        reference: log-probabilities under the base; needed for beta > 0.
        weight: importance weights of the tokens, where they were drawn by another engine.
        advantage: of each response.
        mask: 1 on response tokens that count.
        objective: what is minimised.
        divisor: of the whole mini-batch.
    """
    loss, counts = policy_loss(new, old, advantage, mask, objective)
    if weight is not None:
        loss = loss * weight
    if objective.beta and reference is not None:
        loss = loss + objective.beta * kl_k3(new, reference)
    if objective.entropy_bonus and entropy is not None:
        loss = loss - objective.entropy_bonus * entropy
    return summed(loss, mask, objective) / divisor, counts
