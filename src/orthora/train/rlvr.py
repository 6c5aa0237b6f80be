"""RLVR through adapters: a config in, a run folder out."""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback
from trl import GRPOConfig
from trl.trainer.utils import disable_dropout_in_model

from orthora import models, store
from orthora.adapters import adapt, export_plain
from orthora.config import TrainConfig, build, read_toml, to_toml
from orthora.evaluate import EvalResult, score
from orthora.tasks import load_problems
from orthora.train.progress import StepProgress
from orthora.train.rewards import (
    OwnReward,
    import_reward,
    overlong_penalty,
    own_reward,
    verdict_reward,
)
from orthora.train.trainer import RLVRTrainer, Row
from orthora.types import Problem


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
        dropped_prompts: training prompts left out because they were too long.
        final: metrics of the last step.
        peak_grad_norm: largest gradient norm of any update, before clipping.
        mean_kl_update: mean over the steps of ``kl_update_k3``, nats per token.
        kl_base: ``kl_base_k3`` of the last step, nats per token.
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


@dataclass
class _Parts:
    """What is loaded and checked before anything is written."""

    tokenizer: Any
    model: PeftModel
    train: list[Problem]
    held_out: list[Problem]
    dropped: int
    reward: Any


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
    parts = _load(config, reward)
    _open_folder(config, out, checkpoint)
    rows = store.read_metrics(out / "metrics.jsonl") if checkpoint else []
    started = time.perf_counter()
    try:
        _run(config, parts, out, rows, checkpoint, progress)
        export_plain(parts.model, out / "adapter")
        evaluation, base = _evaluate(config, parts)
    except BaseException as error:
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {error}"
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


def _resume_point(config: TrainConfig, out: Path) -> Path | None:
    """The last whole checkpoint of an unfinished run with the same config.

    Raises:
        ValueError: if there is no such run, it is finished, or its config differs.
    """
    if not (out / "config.toml").is_file():
        raise ValueError(f"{out} holds no run to resume; start without --resume")
    if (out / "adapter").is_dir():
        raise ValueError(f"{out} is finished; choose another out for a new run")
    before = build(TrainConfig, read_toml(out / "config.toml")).model_dump()
    differing = [k for k, v in config.model_dump().items() if before[k] != v and k != "out"]
    if differing:
        raise ValueError(f"{out} was run with another config; these differ: {', '.join(differing)}")
    found = [
        path
        for path in (out / "checkpoints").glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    ]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _open_folder(config: TrainConfig, out: Path, checkpoint: Path | None) -> None:
    """Write what describes the run, and cut the metrics back to the checkpoint."""
    store.write_atomic(out / "config.toml", to_toml(config))
    store.write_json(out / "environment.json", store.environment(torch.get_num_threads()))
    metrics = out / "metrics.jsonl"
    if checkpoint is None:
        store.write_atomic(metrics, "")
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return
    done = int(checkpoint.name.rsplit("-", 1)[1]) // _updates(config)
    lines = metrics.read_text().splitlines(keepends=True)[:done]
    store.write_atomic(metrics, "".join(lines))


def _load(config: TrainConfig, reward: OwnReward | None) -> _Parts:
    """Read model and data; nothing is written yet."""
    device = models.pick_device(config.device)
    if reward is None and config.reward:
        reward = import_reward(config.reward)
    tokenizer = models.load_tokenizer(config.model)
    train_problems, held_out = _problems(config)
    kept = [
        problem
        for problem in train_problems
        if len(models.prompt_ids(problem, tokenizer)) <= config.max_prompt_tokens
    ]
    if len(kept) < config.prompts_per_step:
        raise ValueError(
            f"{len(kept)} of {len(train_problems)} prompts are within max_prompt_tokens "
            f"{config.max_prompt_tokens}, and a step needs {config.prompts_per_step}; raise "
            "max_prompt_tokens, lower prompts_per_step, or give more data"
        )
    base = models.load_model(config.model, config.dtype, device)
    disable_dropout_in_model(base)  # the policy that samples must be the policy that is updated
    model = adapt(
        base,
        config.method,
        rank=config.rank,
        alpha=config.alpha,
        target_modules=config.target_modules,
        seed=config.seed,
        dropout=config.dropout,
    )
    function = own_reward(reward) if reward else verdict_reward(config.reward_rule)
    dropped = len(train_problems) - len(kept)
    return _Parts(tokenizer, model, kept, held_out, dropped, function)


def _problems(config: TrainConfig) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems."""
    if config.task == "arithmetic":
        from orthora.tasks import arithmetic

        drawn = arithmetic.problems("train", config.train_problems, seed=config.seed)
        held_out = arithmetic.problems("test", config.eval_problems) if config.eval_problems else []
        return drawn, held_out
    columns = {
        "prompt_column": config.prompt_column,
        "answer_column": config.answer_column,
        "template": config.prompt_template,
    }
    assert config.data is not None, "validated"
    if config.eval_problems and not config.eval_data:
        raise ValueError("eval_problems of task 'file' need eval_data, a file with held-out rows")
    drawn = load_problems(config.data, split=config.data_split, **columns)
    if not (config.eval_data and config.eval_problems):
        return drawn, []
    return drawn, load_problems(config.eval_data, split="test", **columns)[: config.eval_problems]


def _updates(config: TrainConfig) -> int:
    """Optimizer updates per training step."""
    return config.prompts_per_step // config.mini_batch_prompts


def grpo_config(config: TrainConfig, checkpoints: Path, device: str) -> GRPOConfig:
    """The run in TRL's terms; every field that matters is set, none is left to a default."""
    updates = _updates(config)
    mini_batch = config.mini_batch_prompts * config.group_size
    accumulate = mini_batch // config.micro_batch
    cosine = {"min_lr_rate": config.min_lr_ratio} if config.schedule == "cosine" else {}
    constant = "constant_with_warmup" if config.warmup_steps else "constant"
    return GRPOConfig(
        output_dir=str(checkpoints),
        use_cpu=device == "cpu",
        bf16=False,  # the base's dtype is the config's; adapters stay float32
        seed=config.seed,
        data_seed=config.seed,
        max_steps=config.steps * updates,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=accumulate,
        steps_per_generation=accumulate * updates,
        num_generations=config.group_size,
        num_iterations=1,
        max_completion_length=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        loss_type=config.loss,
        scale_rewards=config.advantage_scale,
        epsilon=config.clip_low,
        epsilon_high=config.clip_high,
        delta=config.dual_clip,
        beta=config.beta,
        entropy_coef=config.entropy_bonus,
        mask_truncated_completions=config.mask_truncated,
        optim="adamw_torch",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if cosine else constant,
        lr_scheduler_kwargs=cosine or None,
        warmup_steps=config.warmup_steps * updates,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        max_grad_norm=config.grad_clip,
        gradient_checkpointing=config.gradient_checkpointing,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every * updates or 1,
        save_total_limit=config.keep_checkpoints,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _run(
    config: TrainConfig,
    parts: _Parts,
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
            updates_per_step=_updates(config),
            on_step=on_step,
            dropout=config.dropout > 0,
        )
        trainer.remove_callback(PrinterCallback)  # the bar and the log say more
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _evaluate(config: TrainConfig, parts: _Parts) -> tuple[EvalResult | None, EvalResult | None]:
    """Held-out scores after training, and of the base if asked for."""
    if not parts.held_out:
        return None, None
    settings = {
        "samples": config.eval_samples,
        "max_tokens": config.max_response_tokens,
        "rule": config.reward_rule,
    }
    trained = score(parts.model, parts.tokenizer, parts.held_out, **settings)
    if not config.eval_base:
        return trained, None
    with parts.model.disable_adapter():
        return trained, score(parts.model, parts.tokenizer, parts.held_out, **settings)


def _result(
    config: TrainConfig,
    parts: _Parts,
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
