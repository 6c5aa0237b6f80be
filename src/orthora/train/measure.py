"""Measurements of a training step: KL between policies, clips, entropy, gradient norms."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orthora.adapters import ranks
from orthora.train.losses import Clipped
from orthora.train.sharding import norms
from orthora.train.updates import Sample
from orthora.train.world import World


def kl_sums(name: str, sample: Sample, other: Sequence[Tensor]) -> dict[str, float]:
    """Sums over tokens for the KL of the rollout's policy to another, and how many tokens.

    KL(rollout policy || other), in nats: k1 sums ``-d``: unbiased, noisy, can be negative. k3 sums
    ``exp(d) - 1 - d`` with ``d = other - sampled``: unbiased, never negative (Schulman 2020). The
    source paper's eq. 6. Policies are at the rollout's temperature. With top_p < 1 or top_k > 0 the
    samples come from a truncated policy and the scores don't, so both are estimates of something
    else; with dynamic sampling they are taken on the groups that were kept. Groups that an earlier
    policy drew are left out.

    Args:
        name: of the other policy, in the keys.
        sample: of this process's rows.
        other: log-probabilities (t,) of each row's tokens under the other policy.
    """
    sums = {"tokens": float(sample.tokens), "k1": 0.0, "k3": 0.0}
    for d, weight in _differences(sample, other):
        sums["k1"] -= weight * float(d.sum())
        sums["k3"] += weight * float((torch.expm1(d) - d).sum())
    return {f"{name}_{key}": value for key, value in sums.items()}


def _differences(sample: Sample, other: Sequence[Tensor]) -> Iterator[tuple[Tensor, float]]:
    """Log-probabilities under the other policy less the rollout policy's, and each row's weight."""
    for row, values, weight in zip(sample.rows, other, sample.weights, strict=True):
        assert row.old is not None, "a rollout is scored"
        if row.fresh:
            yield values.double() - row.old.double(), weight


def kl_quantiles(sample: Sample, after: Sequence[Tensor], world: World) -> dict[str, float]:
    """Quantiles over tokens of k3 of the update, in nats; every process must call it.

    On several processes each hands over at most 4096 of its order statistics with their weight.
    """
    pairs = list(_differences(sample, after))
    d = torch.cat([torch.zeros(0, dtype=torch.float64), *(d for d, _ in pairs)])
    weights = torch.cat([torch.zeros_like(d[:0]), *(torch.full_like(d, w) for d, w in pairs)])
    values, order = (torch.expm1(d) - d).sort()
    weights = weights[order]
    if world.size > 1:
        parts = world.gather(_thinned(values, weights))
        values, order = torch.cat([v for v, _ in parts]).sort()
        weights = torch.cat([w for _, w in parts])[order]
    if not len(values):
        return {}
    shares = weights.cumsum(0) / weights.sum()
    return {
        f"kl_update_{name}": float(values[min(int((shares < q - 1e-12).sum()), len(values) - 1)])
        for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def _thinned(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """At most 4096 of sorted values, at equal steps of weight, the largest among them."""
    if len(values) <= _ORDERS:
        return values, weights
    reached = weights.cumsum(0)
    steps = torch.arange(1, _ORDERS + 1, dtype=reached.dtype) / _ORDERS * reached[-1]
    kept = torch.searchsorted(reached, steps).clamp(max=len(values) - 1)
    return values[kept], torch.full_like(steps, float(reached[-1]) / _ORDERS)


_ORDERS = 4096


def gap(new: Tensor, old: Tensor | None, mask: Tensor) -> float:
    """Largest difference between two scorings of the same tokens, in nats."""
    if old is None:
        return 0.0
    return float(((new.detach() - old) * mask).abs().max())


def token_means(sums: dict[str, float], *, updates: int) -> dict[str, float | None]:
    """A step's loss, KL, entropy and clip fractions from sums over all processes.

    Args:
        sums: of `kl_sums` (of ``update`` and of ``base``) and `Tally.sums`.
        updates: optimizer updates, over which the loss is averaged.
    """
    scored = max(sums["scored"], 1.0)
    row: dict[str, float | None] = {"loss": sums["loss"] / updates}
    for name in ("update", "base"):
        tokens = sums[f"{name}_tokens"]
        for k in ("k1", "k3"):
            row[f"kl_{name}_{k}"] = sums[f"{name}_{k}"] / tokens if tokens else None
    row["entropy"] = sums["entropy"] / scored
    return row | {f"clip_{name}": sums[name] / scored for name in Clipped._fields}


def rank_metrics(model: Any) -> dict[str, Any]:
    """Mean and largest rank in use, where a method moves ranks about; else nothing."""
    used = ranks(model)
    if not used:
        return {}
    return {"rank_mean": sum(used.values()) / len(used), "rank_max": max(used.values())}


class Tally:
    """Sums over a training step's passes.

    Attributes:
        gap: largest difference between the sampler's and the trainer's scores, in nats.
    """

    def __init__(self) -> None:
        names: tuple[str, ...] = ("loss", "scored", "entropy", *Clipped._fields)
        self._sums = dict.fromkeys(names, 0.0)
        self.gap = 0.0

    def count(self, loss: Tensor, clipped: Clipped, entropy: Tensor, mask: Tensor) -> None:
        """Add one micro-batch: its share of the mini-batch's loss, and its tokens."""
        self._sums["loss"] += float(loss.detach())
        self._sums["scored"] += float(mask.sum())
        self._sums["entropy"] += float((entropy.detach() * mask).sum())
        for name, value in clipped._asdict().items():
            self._sums[name] += value

    def widen(self, gap: float) -> None:
        """Take a difference into account."""
        self.gap = max(self.gap, gap)

    def sums(self) -> dict[str, float]:
        """Of this process; they add up over processes."""
        return dict(self._sums)


class Gradients:
    """Frobenius norms of a step's gradients, in total and by module type, before clipping."""

    def __init__(self) -> None:
        self._updates: list[dict[str, float]] = []

    def read(self, model: torch.nn.Module) -> None:
        """Take the norms of one update."""
        named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
        if not named:  # DeepSpeed keeps them to itself
            return
        squares: dict[str, float] = defaultdict(float)
        for (name, _), norm in zip(named, norms([g for _, g in named]), strict=True):
            squares[module_type(name)] += norm**2
        total = math.sqrt(sum(squares.values()))
        by_type = {kind: math.sqrt(value) for kind, value in sorted(squares.items())}
        self._updates.append(by_type | {"": total})

    def metrics(self) -> dict[str, Any]:
        """Mean over the step's updates, and the largest total."""
        if not self._updates:
            return {"grad_norm": None, "grad_norm_max": None}
        row: dict[str, Any] = {
            f"grad_norm/{kind}" if kind else "grad_norm": sum(u[kind] for u in self._updates)
            / len(self._updates)
            for kind in self._updates[0]
        }
        row["grad_norm_max"] = max(u[""] for u in self._updates)
        return row

    @property
    def finite(self) -> bool:
        """Whether the last update's gradient is, as far as it could be read."""
        return not self._updates or math.isfinite(self._updates[-1][""])


_HELD = ("lora_", "vera_lambda_", "miss_block", "ia3_l", "ln_tuning_layers")


def module_type(name: str) -> str:
    """The type of the module that a parameter belongs to: ``q_proj``, ``down_proj``, ``norm``."""
    parts = [part for part in name.split(".") if part != "base_layer"]
    for i, part in enumerate(parts):
        if part.startswith(_HELD):
            return parts[i - 1]
    return parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]
