"""How a run ended."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from orthora import store
from orthora.config import TrainConfig
from orthora.evaluate import EvalResult
from orthora.failures import TrainingFailed
from orthora.train.loading import Parts
from orthora.train.trainer import Metrics


@dataclass(frozen=True)
class RunResult:
    """How a run ended; the content of ``result.json``.

    Attributes:
        status: ``"finished"``, ``"failed"`` or ``"stopped"`` (interrupted).
        reason: why it did not finish, else None.
        ended_by_training: True if training itself led to a failure (no signal, a loss that is not
            finite, a watchdog's stop), so that it would come again.
        out: the run folder.
        method: initialisation.
        learning_rate: peak.
        seed: of the run.
        rank: r.
        alpha: the scale is alpha / rank.
        steps: training steps done.
        seconds: wall time of training.
        trained_parameters: number of trained values.
        dropped_prompts: training prompts left out: too long, or without a known token.
        dropped_rows: training rows left out by ``drop``, before these.
        final: metrics of the last step.
        peak_grad_norm: largest gradient norm of any update, before clipping.
        mean_kl_update: mean over the steps of ``kl_update_k3``, nats per token; without those that
            adaptive-kl took back.
        kl_base: mean of ``kl_base_k1`` over the last ten steps; of the rollout policies, so before
            each step's updates. (k3 leaps where the base likes a token that the policy left.)
        first_update_norm: ``|dW|_F`` of the run's first optimizer update, over all adapted weights;
            None where the update is no product of factors.
        merge_fidelity: what of the update a merge into bfloat16 weights would realise: ``cosine``,
            ``norm_ratio``, share of entries ``changed``; None as above.
        evaluation: held-out scores of the trained model, or None.
        base_evaluation: held-out scores of the base model, or None.
    """

    status: str
    reason: str | None
    ended_by_training: bool
    out: str
    method: str
    learning_rate: float
    seed: int
    rank: int
    alpha: float
    steps: int
    seconds: float
    trained_parameters: int
    dropped_prompts: int
    dropped_rows: int
    final: Metrics
    peak_grad_norm: float | None
    mean_kl_update: float | None
    kl_base: float | None
    first_update_norm: float | None
    merge_fidelity: dict[str, float] | None
    evaluation: EvalResult | None
    base_evaluation: EvalResult | None


class Ending(NamedTuple):
    """What is measured after the last step; fields of `RunResult`."""

    evaluation: EvalResult | None = None
    base_evaluation: EvalResult | None = None
    merge_fidelity: dict[str, float] | None = None


def result_of(
    config: TrainConfig,
    parts: Parts,
    rows: list[Metrics],
    status: str,
    reason: str | None,
    seconds: float,
    ending: Ending,
    *,
    ended_by_training: bool = False,
) -> RunResult:
    """Sum the rows up.

    Args:
        config: of the run.
        parts: of the run.
        rows: of its steps.
        status: of `RunResult`.
        reason: of `RunResult`.
        seconds: wall time of training.
        ending: what was measured after the last step.
        ended_by_training: of `RunResult`.
    """
    moved = [
        row["kl_update_k3"]
        for row in rows
        if row.get("kl_update_k3") is not None and not row.get("undone")
    ]
    far = [row["kl_base_k1"] for row in rows[-10:] if row.get("kl_base_k1") is not None]
    peaks = [row["grad_norm_max"] for row in rows if row.get("grad_norm_max") is not None]
    return RunResult(
        status=status,
        reason=reason,
        ended_by_training=ended_by_training,
        out=str(config.out),
        method=config.method,
        learning_rate=config.learning_rate,
        seed=config.seed,
        rank=config.rank,
        alpha=config.alpha,
        steps=len(rows),
        seconds=seconds,
        trained_parameters=sum(p.numel() for p in parts.model.parameters() if p.requires_grad),
        dropped_prompts=parts.dropped,
        dropped_rows=parts.source.dropped,
        final=rows[-1] if rows else {},
        peak_grad_norm=max(peaks, default=None),
        mean_kl_update=sum(moved) / len(moved) if moved else None,
        kl_base=sum(far) / len(far) if far else None,
        first_update_norm=rows[0].get("first_update_norm") if rows else None,
        merge_fidelity=ending.merge_fidelity,
        evaluation=ending.evaluation,
        base_evaluation=ending.base_evaluation,
    )


def failure_of(
    config: TrainConfig,
    parts: Parts,
    rows: list[Metrics],
    error: BaseException,
    seconds: float,
) -> RunResult:
    """How a run ended that ended early, and why."""
    stopped = isinstance(error, KeyboardInterrupt)
    status = "stopped" if stopped else "failed"
    reason = str(error) or "interrupted" if stopped else f"{type(error).__name__}: {error}"
    itself = isinstance(error, TrainingFailed)
    return result_of(
        config, parts, rows, status, reason, seconds, Ending(), ended_by_training=itself
    )


def write_result(out: Path, result: RunResult) -> None:
    """Leave it in the run folder."""
    store.write_json(out / "result.json", asdict(result))
