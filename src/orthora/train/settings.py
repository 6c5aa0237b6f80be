"""A run's config in TRL's terms."""

from pathlib import Path

from trl.trainer.grpo_config import GRPOConfig

from orthora.config import TrainConfig


def updates_per_step(config: TrainConfig) -> int:
    """Optimizer updates on each rollout."""
    return config.prompts_per_step // config.mini_batch_prompts


def grpo_config(config: TrainConfig, checkpoints: Path, device: str) -> GRPOConfig:
    """The run in TRL's terms; every field that matters is set, none is left to a default."""
    updates = updates_per_step(config)
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
