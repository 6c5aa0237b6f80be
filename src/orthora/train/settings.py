"""A run's config in the terms of TRL, of the loss and of the collector."""

from pathlib import Path

from trl.trainer.grpo_config import GRPOConfig

from orthora.config import TrainConfig
from orthora.train.collect import Rules
from orthora.train.losses import Objective
from orthora.train.updates import passes_per_update
from orthora.train.world import World
from orthora.trained import updates_per_step


def objective_of(config: TrainConfig) -> Objective:
    """What is minimised."""
    return Objective(
        loss=config.loss,
        ratio=config.ratio,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip or None,
        beta=config.beta,
        entropy_bonus=config.entropy_bonus,
        max_tokens=config.max_response_tokens,
    )


def rules_of(config: TrainConfig, world: World, *, sharded: bool) -> Rules:
    """What a rollout must hold.

    Args:
        config: of the run.
        world: the processes.
        sharded: weights are sharded over processes.
    """
    collective = sharded or config.engine == "vllm"  # every process takes part, with equal shares
    return Rules(
        prompts=config.prompts_per_step,
        group_size=config.group_size,
        dynamic=config.dynamic_sampling,
        mask_truncated=config.mask_truncated,
        draws=config.max_draws,
        least=config.prompts_per_step // config.mini_batch_prompts,
        keep_surplus=config.keep_surplus,
        multiple=world.size if collective else 1,
        limit=config.max_response_tokens,
        buffer=config.overlong_buffer,
        penalty=config.overlong_penalty,
        patience=config.patience,
    )


def grpo_config(config: TrainConfig, checkpoints: Path, device: str, world: World) -> GRPOConfig:
    """The run in TRL's terms.

    Of these TRL uses processes, optimizer steps, schedule, clipping of gradients, checkpoints and
    vLLM; rollouts, rewards and loss are orthora's, so that ``beta`` stays 0 here: TRL would load or
    copy a reference policy of its own.
    """
    updates = updates_per_step(config)
    G = config.group_size
    groups = -(-config.prompts_per_step // world.size)
    cosine = {"min_lr_rate": config.min_lr_ratio} if config.schedule == "cosine" else {}
    constant = "constant_with_warmup" if config.warmup_steps else "constant"
    return GRPOConfig(
        output_dir=str(checkpoints),
        use_cpu=device == "cpu",
        bf16=False,  # the base's dtype is the config's; adapters stay float32
        seed=config.seed,
        data_seed=config.seed,
        max_steps=config.steps * updates,
        per_device_train_batch_size=G,  # with the next line: vLLM's sequences at a time
        steps_per_generation=groups,
        gradient_accumulation_steps=passes_per_update(
            config.mini_batch_prompts, G, config.micro_batch, world.size
        ),
        num_generations=G,
        num_iterations=1,
        max_completion_length=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        beta=0.0,
        use_vllm=config.engine == "vllm",
        vllm_mode=config.vllm_mode,
        vllm_server_base_url=config.vllm_url,
        vllm_max_model_length=config.max_prompt_tokens + config.max_response_tokens,
        vllm_gpu_memory_utilization=config.vllm_memory,
        vllm_tensor_parallel_size=config.vllm_tensor_parallel,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if cosine else constant,
        lr_scheduler_kwargs=cosine or None,
        warmup_steps=config.warmup_steps * updates,
        max_grad_norm=config.grad_clip,
        gradient_checkpointing=config.gradient_checkpointing,
        ddp_find_unused_parameters=False,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every * updates or 1,
        save_total_limit=None,  # orthora rotates: by completeness, not by time
        ignore_data_skip=True,  # the prompt stream knows its place
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
