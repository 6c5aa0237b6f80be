"""Settings of a training run that don't go together."""

from typing import TYPE_CHECKING

from orthora.config.tasks import check_tasks
from orthora.methods import compose
from orthora.watch import parse as parse_rule

if TYPE_CHECKING:
    from orthora.config.run import TrainConfig

LORA_PLUS_RATIO = 2.0


def check_consistent(config: "TrainConfig") -> None:
    """Refuse what contradicts itself, and what would be passed over in silence.

    Raises:
        ValueError: one line with the remedy.
    """
    method = compose(config.method)
    if config.prompts_per_step % config.mini_batch_prompts:
        raise ValueError(
            f"prompts_per_step {config.prompts_per_step} is not a multiple of "
            f"mini_batch_prompts {config.mini_batch_prompts}"
        )
    if config.schedule == "adaptive-kl":
        _check_adaptive(config)
    if config.start and not method.has_factors:
        raise ValueError(f"{method.name} starts from no factors; leave start out")
    if config.keep_surplus and not config.dynamic_sampling:
        raise ValueError("keep_surplus needs dynamic_sampling")
    if config.engine == "vllm" and config.old_logps == "sampled":
        raise ValueError(
            "old_logps 'sampled' needs engine 'transformers': vLLM's log-probabilities differ "
            "from the trainer's; use 'auto'"
        )
    if config.overlong_buffer and config.overlong_buffer >= config.max_response_tokens:
        raise ValueError(
            f"overlong_buffer {config.overlong_buffer} must be below max_response_tokens "
            f"{config.max_response_tokens}, or 0"
        )
    if "{prompt}" not in config.prompt_template:
        raise ValueError("prompt_template must contain {prompt}")
    _check_unused(config)
    if config.watch_action == "rollback" and not config.save_every:
        raise ValueError("watch_action 'rollback' goes back to checkpoints; set save_every above 0")
    check_tasks(config)


def _check_unused(config: "TrainConfig") -> None:
    """A setting that would be passed over in silence."""
    optimizer = compose(config.method).optimizer
    unmeasured = [
        text
        for text in config.watch
        if text.strip() != "default"
        and any(rule.metric.startswith("kl_update_") for rule in parse_rule(text))
    ]
    for wrong, key, remedy in (
        (
            config.task == "arithmetic" and config.data,
            "data",
            "task 'file', or a named task that has data",
        ),
        (
            config.task == "arithmetic" and config.eval_data and not config.eval_task,
            "eval_data",
            "task 'file', or an eval_task that has data",
        ),
        (config.eval_task and not config.eval_problems, "eval_task", "eval_problems"),
        (config.eval_base and not config.eval_problems, "eval_base", "eval_problems"),
        (config.vllm_url and config.engine != "vllm", "vllm_url", "engine 'vllm'"),
        (
            unmeasured and not config.kl_update_share,
            f"watch rule {unmeasured[:1]}",
            "kl_update_share above 0",
        ),
        (
            "lora_plus_ratio" in config.model_fields_set
            and config.lora_plus_ratio != LORA_PLUS_RATIO
            and not (optimizer and optimizer.name == "lora-plus"),
            "lora_plus_ratio",
            f"method '{config.method}+lora-plus'",
        ),
        (
            config.warmup_steps and config.warmup_steps >= config.steps,
            f"warmup_steps {config.warmup_steps}",
            f"more than the {config.steps} steps of the run",
        ),
    ):
        if wrong:
            raise ValueError(f"{key} needs {remedy}; set that, or leave {key.split()[0]} out")


def _check_adaptive(config: "TrainConfig") -> None:
    """Nothing else may move the learning rate."""
    lowest, highest = config.kl_lr_bounds
    if lowest > highest:
        raise ValueError(
            f"kl_lr_bounds ({lowest:g}, {highest:g}) has the larger learning rate first; turn it "
            "about"
        )
    if not lowest <= config.learning_rate <= highest:
        raise ValueError(
            f"learning_rate {config.learning_rate:g} is outside kl_lr_bounds "
            f"({lowest:g}, {highest:g}); adaptive-kl begins at it"
        )
    if config.warmup_steps:
        raise ValueError(
            "schedule 'adaptive-kl' would undo a warm-up; set warmup_steps = 0 and begin at a "
            "low learning_rate"
        )
    if config.min_lr_ratio:
        raise ValueError(
            "min_lr_ratio is the cosine schedule's floor; adaptive-kl has kl_target_floor"
        )
    if not config.kl_update_share:
        raise ValueError(
            "schedule 'adaptive-kl' steers by the KL of the updates; set kl_update_share above "
            "0, e.g. 0.25"
        )
    if 0 < config.kl_undo <= 2:
        raise ValueError(
            f"kl_undo {config.kl_undo:g} would take ordinary steps back; use 4 or more, or 0"
        )
