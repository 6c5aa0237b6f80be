"""Measurements of a training step: KL between policies, clips, entropy, gradient norms."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orthora.adapters import ranks
from orthora.train.losses import Clipped
from orthora.train.rollouts import Row
from orthora.train.sharding import norms
from orthora.train.world import World


def kl_sums(name: str, rows: Sequence[Row], other: Sequence[Tensor]) -> dict[str, float]:
    """Sums over tokens for the KL of the rollout's policy to another, and how many tokens.

    KL(rollout policy || other), in nats: k1 sums ``-d``: unbiased, noisy, can be negative. k3 sums
    ``exp(d) - 1 - d`` with ``d = other - sampled``: unbiased, never negative (Schulman 2020). The
    source paper's eq. 6. Policies are at the rollout's temperature. With top_p < 1 or top_k > 0 the
    samples come from a truncated policy and the scores don't, so both are estimates of something
    else; with dynamic sampling they are taken on the groups that were kept. Groups that an earlier
    policy drew are left out.

    Args:
        name: of the other policy, in the keys.
        rows: of this process.
        other: log-probabilities (t,) of each row's tokens under the other policy.
    """
    sums = {"tokens": 0.0, "k1": 0.0, "k3": 0.0}
    for d in _differences(rows, other):
        sums["tokens"] += len(d)
        sums["k1"] -= float(d.sum())
        sums["k3"] += float((torch.expm1(d) - d).sum())
    return {f"{name}_{key}": value for key, value in sums.items()}


def _differences(rows: Sequence[Row], other: Sequence[Tensor]) -> Iterator[Tensor]:
    """Log-probabilities under the other policy less the rollout policy's, in float64."""
    for row, values in zip(rows, other, strict=True):
        assert row.old is not None, "a rollout is scored"
        if row.fresh:
            yield values.double() - row.old.double()


def kl_quantiles(rows: Sequence[Row], after: Sequence[Tensor], world: World) -> dict[str, float]:
    """Quantiles over tokens of k3 of the update, in nats; every process must call it.

    On several processes each hands over at most 4096 of its order statistics with their weight.
    """
    parts = list(_differences(rows, after))
    d = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    values = (torch.expm1(d) - d).sort().values
    if world.size > 1:
        kept = values[torch.linspace(0, len(values) - 1, min(len(values), _ORDERS)).long()]
        gathered = world.gather((kept, len(values) / max(1, len(kept))))
        values = torch.cat([v for v, _ in gathered])
        weights = torch.cat([torch.full_like(v, w) for v, w in gathered])
        values, order = values.sort()
        weights = weights[order]
    else:
        weights = torch.ones_like(values)
    if not len(values):
        return {}
    shares = weights.cumsum(0) / weights.sum()
    return {
        f"kl_update_{name}": float(values[int((shares < q - 1e-12).sum())])
        for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


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
