"""TRL's GRPOTrainer with the measurements that RLVR through adapters needs, at every step.

A *training step* is one rollout and all optimizer updates on it (TRL counts updates). After the
last update the rollout's own tokens are scored once more under the new policy: a signal taken
inside the last mini-batch underestimates the policy's movement by an order of magnitude.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

Row = dict[str, Any]
"""One training step's metrics, by name."""


class RLVRTrainer(GRPOTrainer):
    """GRPOTrainer that hands one row of metrics per training step to ``on_step``.

    Args:
        updates_per_step: optimizer updates on each rollout.
        on_step: called with each row, after the step's last update.
        *args: of GRPOTrainer.
        **kwargs: of GRPOTrainer.
    """

    def __init__(
        self,
        *args: Any,
        updates_per_step: int,
        on_step: Callable[[Row], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._updates_per_step = updates_per_step
        self._on_step = on_step
        self._rollout: dict[str, Tensor] = {}
        self._verdicts: list[bool] = []
        self._clock: dict[str, float] = defaultdict(float)
        self._norms: list[dict[str, float]] = []
        self._started = time.perf_counter()
        self.add_callback(_StepEnd(self))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._clock[phase] += time.perf_counter() - started

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed("generate"):
            return super()._generate(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Roll out as TRL does, and keep the tokens with their log-probabilities."""
        self._started = time.perf_counter()
        self._clock.clear()
        self._norms.clear()
        self._metrics["train"].clear()
        with _dropout_off(self.model):
            output = super()._generate_and_score_completions(inputs)
        kept = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        self._rollout = {key: output[key] for key in kept}
        with self._timed("kl"):
            old = output.get("old_per_token_logps")
            self._rollout["logps"] = self._score_rollout() if old is None else old
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._scored = scores[0].detach()
        return scores

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """TRL's loss; it counts the lower and upper clip, and this adds the dual clip."""
        loss = super()._compute_loss(model, inputs)
        args: Any = self.args
        old, bound = inputs.get("old_per_token_logps"), args.delta
        if bound is not None:
            share = 0.0  # without old log-probabilities every ratio is 1
            if old is not None:
                ratio, mask = (self._scored - old).exp(), inputs["completion_mask"]
                share = dual_clipped(ratio, inputs["advantages"], mask, bound)
            self._metrics["train"]["clip_ratio/dual_mean"].append(share)
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; gradient norms are read before clipping.

        Raises:
            ValueError: if the loss is not finite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss is {float(loss)} after {self.state.global_step} updates; lower the "
                "learning rate, or train in float32"
            )
        if self.accelerator.sync_gradients:
            self._norms.append(_gradient_norms(model))
        return loss

    def finish_step(self) -> None:
        """Measure the step that just ended and hand its row over."""
        with self._timed("kl"):
            update = _kl(self._rollout["logps"], self._score_rollout(), self._mask)
            model: Any = self.accelerator.unwrap_model(self.model)
            with model.disable_adapter():
                base = _kl(self._rollout["logps"], self._score_rollout(), self._mask)
        total = time.perf_counter() - self._started
        clock = dict(self._clock)
        clock["train"] = total - sum(clock.values())
        row: Row = {"step": self.state.global_step // self._updates_per_step}
        row |= self._rollout_metrics()
        row |= {"kl_update_k1": update[0], "kl_update_k3": update[1]}
        row |= {"kl_base_k1": base[0], "kl_base_k3": base[1]}
        row |= _mean_norms(self._norms)
        row["lr"] = self._get_learning_rate()
        row["seconds"] = total
        row |= {f"seconds/{phase}": seconds for phase, seconds in sorted(clock.items())}
        self._on_step(row)

    def _rollout_metrics(self) -> Row:
        """Reward, pass rate, lengths and clip fractions, averaged over the step's passes."""
        metrics = self._metrics["train"]

        def mean(name: str) -> float | None:
            values = [v for v in metrics.get(name, []) if not math.isnan(v)]
            return sum(values) / len(values) if values else None

        return {
            "reward": mean("reward"),
            "reward_std": mean("reward_std"),
            "pass_rate": mean("pass_rate"),
            "groups_without_signal": mean("frac_reward_zero_std"),
            "entropy": mean("entropy"),
            "clip_low": mean("clip_ratio/low_mean"),
            "clip_high": mean("clip_ratio/high_mean"),
            "clip_dual": mean("clip_ratio/dual_mean"),
            "length": mean("completions/mean_length"),
            "length_max": mean("completions/max_length"),
            "truncated": mean("completions/clipped_ratio"),
        }

    @property
    def _mask(self) -> Tensor:
        return self._rollout["completion_mask"]

    def _score_rollout(self) -> Tensor:
        """Log-probabilities (B, T) of the rollout's tokens under the current policy, no dropout."""
        rollout = self._rollout
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        model: Any = self.model
        model.eval()
        with torch.no_grad():
            logps, _, _ = self._get_per_token_logps_and_entropies(
                model,
                ids,
                mask,
                rollout["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
            )
        model.train()
        return logps


class _StepEnd(TrainerCallback):
    """Calls ``finish_step`` after the last update on each rollout."""

    def __init__(self, trainer: RLVRTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL's step is one update; the rollout's last one ends a training step."""
        if state.global_step % self._trainer._updates_per_step == 0:
            self._trainer.finish_step()


@contextmanager
def _dropout_off(model: Any) -> Iterator[None]:
    """Sample, and score the samples, with the policy itself; TRL rolls out in training mode."""
    active = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for module in active:
        module.eval()
    yield
    for module in active:
        module.train()


def _kl(sampled: Tensor, other: Tensor, mask: Tensor) -> tuple[float | None, float | None]:
    """Estimates of KL(sampling policy || other), in nats per token, on the sampled tokens.

    k1 is the mean log-ratio: unbiased, noisy, can be negative. k3 is the mean of
    ``exp(d) - 1 - d`` with ``d = other - sampled``: unbiased, never negative (Schulman 2020). The
    source paper's eq. 6, with rollout policy and updated policy. Both policies are at the rollout's
    temperature. With top_p < 1 or top_k > 0 the samples come from a truncated policy and the scores
    don't, so both are estimates of something else. None if no token counts.

    Args:
        sampled: (B, T) log-probabilities under the policy that drew the tokens.
        other: (B, T) under the other policy.
        mask: (B, T), 1 on response tokens.
    """
    weight = mask.double()
    d = (other.double() - sampled.double()) * weight
    tokens = float(weight.sum())
    if tokens == 0:
        return None, None
    k3 = (torch.expm1(d) - d) * weight
    return float(-d.sum()) / tokens, float(k3.sum()) / tokens


def dual_clipped(ratio: Tensor, advantages: Tensor, mask: Tensor, bound: float) -> float:
    """Share of response tokens whose loss the dual clip bounds (Ye et al. 2019, arXiv 1912.09729).

    Args:
        ratio: (B, T), new over old probability.
        advantages: (B,).
        mask: (B, T), 1 on response tokens.
        bound: c; the clip acts where the advantage is negative and the ratio exceeds it.
    """
    clipped = (ratio > bound) & (advantages[:, None] < 0)
    return float((clipped * mask).sum() / mask.sum().clamp(min=1))


def _gradient_norms(model: torch.nn.Module) -> dict[str, float]:
    """Frobenius norms of the gradient: by module type (``q_proj``, ...) and in total."""
    squares: dict[str, float] = defaultdict(float)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            kind = name.split(".lora_")[0].rsplit(".", 1)[-1]
            squares[kind] += float(parameter.grad.detach().float().pow(2).sum())
    norms = {kind: math.sqrt(value) for kind, value in sorted(squares.items())}
    return norms | {"": math.sqrt(sum(squares.values()))}


def _mean_norms(updates: list[dict[str, float]]) -> Row:
    """Mean over the step's updates, and the largest total."""
    if not updates:
        return {"grad_norm": None, "grad_norm_max": None}
    row: Row = {
        f"grad_norm/{kind}" if kind else "grad_norm": sum(u[kind] for u in updates) / len(updates)
        for kind in updates[0]
    }
    row["grad_norm_max"] = max(u[""] for u in updates)
    return row
