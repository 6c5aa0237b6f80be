"""RLVR through adapters: a config in, a run folder out."""

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

from orthora import models, store
from orthora.adapters import export_plain
from orthora.config import TrainConfig, build, read_toml, to_toml
from orthora.evaluate import EvalResult, Sampling, score
from orthora.train.loading import Parts, load_parts
from orthora.train.progress import StepProgress
from orthora.train.rewards import OwnReward, overlong_penalty
from orthora.train.settings import grpo_config, updates_per_step
from orthora.train.trainer import RLVRTrainer, Row


@dataclass(frozen=True)
class RunResult:
    """How a run ended; the content of ``result.json``.

    Attributes:
        status: ``"finished"``, ``"failed"`` or ``"stopped"`` (interrupted).
        reason: why it did not finish, else None.
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
        final: metrics of the last step.
        peak_grad_norm: largest gradient norm of any update, before clipping.
        mean_kl_update: mean over the steps of ``kl_update_k3``, nats per token.
        kl_base: ``kl_base_k3`` of the last step: of its rollout policy, so before its updates.
        evaluation: held-out scores of the trained model, or None.
        base_evaluation: held-out scores of the base model, or None.
    """

    status: str
    reason: str | None
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
    final: Row
    peak_grad_norm: float | None
    mean_kl_update: float | None
    kl_base: float | None
    evaluation: EvalResult | None
    base_evaluation: EvalResult | None


def train(
    config: TrainConfig | dict[str, Any] | str | Path,
    *,
    reward: OwnReward | None = None,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Train an adapter by DAPO or a variant, and leave a run folder.

    The folder holds ``config.toml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``,
    ``adapter/`` (plain PEFT: rank r, or 2r for anchored methods) and ``result.json``. It is created
    only after the config, model and data have been read without error.

    Args:
        config: a `TrainConfig`, a dict of its fields, a TOML file, or a preset's name.
        reward: own reward (response, gold answer) -> score, in place of the verifier.
        resume: continue the run in ``config.out`` from its last checkpoint.
        progress: show live progress on stderr.

    Returns:
        How the run ended, as in ``result.json``.

    Raises:
        ValueError: a bad config, model or data; an output folder that holds another run; a reward
            or loss that is not finite (the folder then keeps the metrics and says why).
    """
    config = build(TrainConfig, config)
    out = Path(config.out)
    checkpoint = _resume_point(config, out) if resume else _refuse_used(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    _check_writable(out)
    parts = load_parts(config, reward)
    _open_folder(config, out, checkpoint)
    rows = store.read_metrics(out / "metrics.jsonl") if checkpoint else []
    started = time.perf_counter()
    try:
        _run(config, parts, out, rows, checkpoint, progress)
        export_plain(parts.model, out / "adapter")
        evaluation, base = _evaluate(config, parts)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        status = "stopped" if stopped else "failed"
        reason = "interrupted" if stopped else f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        result = _result(config, parts, rows, status, reason, seconds, None, None)
        store.write_json(out / "result.json", asdict(result))
        raise
    seconds = sum(row.get("seconds") or 0.0 for row in rows)
    result = _result(config, parts, rows, "finished", None, seconds, evaluation, base)
    store.write_json(out / "result.json", asdict(result))
    return result


def _refuse_used(out: Path) -> None:
    """A new run needs a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} already holds a run or other files; choose another out, resume it "
            "(--resume), or remove it"
        )


def _check_writable(out: Path) -> None:
    """The nearest existing parent of ``out`` is a folder that can be written to."""
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"can't create {out}: {parent} is not a folder that can be written to")


def _resume_point(config: TrainConfig, out: Path) -> Path:
    """The last whole checkpoint of an unfinished run with the same config.

    Raises:
        ValueError: if there is no such run or checkpoint, it is finished, or its config differs.
    """
    if not (out / "config.toml").is_file():
        raise ValueError(f"{out} holds no run to resume; start without --resume")
    if (out / "adapter").is_dir():
        raise ValueError(
            f"{out} is finished: its adapter is written; score it with orthora eval, or choose "
            "another out for a new run"
        )
    before = build(TrainConfig, read_toml(out / "config.toml")).model_dump()
    differing = [k for k, v in config.model_dump().items() if before[k] != v and k != "out"]
    if differing:
        raise ValueError(f"{out} was run with another config; these differ: {', '.join(differing)}")
    found = [
        path
        for path in (out / "checkpoints").glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    ]
    if not found:
        raise ValueError(
            f"{out} has no checkpoint yet (save_every is {config.save_every} steps); remove it and "
            "start again"
        )
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _open_folder(config: TrainConfig, out: Path, checkpoint: Path | None) -> None:
    """Write what describes the run, and cut the metrics back to the checkpoint."""
    store.write_atomic(out / "config.toml", to_toml(config))
    store.write_json(out / "environment.json", store.environment(torch.get_num_threads()))
    metrics = out / "metrics.jsonl"
    if checkpoint is None:
        store.write_atomic(metrics, "")
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return
    done = int(checkpoint.name.rsplit("-", 1)[1]) // updates_per_step(config)
    lines = metrics.read_text().splitlines(keepends=True)[:done]
    store.write_atomic(metrics, "".join(lines))


def _run(
    config: TrainConfig,
    parts: Parts,
    out: Path,
    rows: list[Row],
    checkpoint: Path | None,
    progress: bool,
) -> None:
    """Train, appending each step's row to ``rows`` and to the metrics log."""
    rewards = [parts.reward]
    if config.overlong_buffer and config.overlong_penalty:
        limit, buffer = config.max_response_tokens, config.overlong_buffer
        rewards.append(overlong_penalty(limit, buffer, config.overlong_penalty))
    data = Dataset.from_list(
        [
            {"prompt": models.chat_prompt(p, parts.tokenizer), "answer": p.answer, "id": p.id}
            for p in parts.train
        ]
    )
    title = f"{config.method} lr {config.learning_rate:g}"
    with StepProgress(title, config.steps, shown=progress) as bar:

        def on_step(row: Row) -> None:
            rows.append(row)
            store.append_metrics(out / "metrics.jsonl", row)
            bar.update(row)

        trainer = RLVRTrainer(
            model=parts.model,
            args=grpo_config(config, out / "checkpoints", parts.model.device.type),
            reward_funcs=rewards,
            train_dataset=data,
            processing_class=parts.tokenizer,
            updates_per_step=updates_per_step(config),
            on_step=on_step,
        )
        trainer.remove_callback(PrinterCallback)  # the bar and the log say more
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _evaluate(config: TrainConfig, parts: Parts) -> tuple[EvalResult | None, EvalResult | None]:
    """Held-out scores after training, and of the base if asked for."""
    if not parts.held_out:
        return None, None
    how = Sampling(samples=config.eval_samples, max_tokens=config.max_response_tokens)
    rule = config.reward_rule
    trained = score(parts.model, parts.tokenizer, parts.held_out, how, rule=rule)
    if not config.eval_base:
        return trained, None
    with parts.model.disable_adapter():
        return trained, score(parts.model, parts.tokenizer, parts.held_out, how, rule=rule)


def _result(
    config: TrainConfig,
    parts: Parts,
    rows: list[Row],
    status: str,
    reason: str | None,
    seconds: float,
    evaluation: EvalResult | None,
    base: EvalResult | None,
) -> RunResult:
    """Sum the rows up."""
    moved = [row["kl_update_k3"] for row in rows if row.get("kl_update_k3") is not None]
    peaks = [row["grad_norm_max"] for row in rows if row.get("grad_norm_max") is not None]
    return RunResult(
        status=status,
        reason=reason,
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
        final=rows[-1] if rows else {},
        peak_grad_norm=max(peaks, default=None),
        mean_kl_update=sum(moved) / len(moved) if moved else None,
        kl_base=rows[-1]["kl_base_k3"] if rows else None,
        evaluation=evaluation,
        base_evaluation=base,
    )
