"""Settings of a training run that don't go together."""

from typing import TYPE_CHECKING

from orthora.config.match import parse_match
from orthora.config.tasks import check_tasks
from orthora.methods import compose
from orthora.watch import parse as parse_rule

if TYPE_CHECKING:
    from orthora.config.run import TrainConfig

LORA_PLUS_RATIO = 2.0
STEERING = ("kl_target", "kl_target_floor", "kl_rule", "kl_max_change", "kl_undo")
"""Settings of adaptive-kl alone, and with ``kl_rule = "sqrt"`` kl_smoothing."""


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
    _check_match(config)
    _check_unused(config)
    _check_watch(config)
    check_tasks(config)


def check_steering_used(config: "TrainConfig") -> None:
    """Refuse settings of one schedule beside another, in a run that is about to begin.

    What was once a default is no mistake in a run that is there: it is not checked for these.

    Raises:
        ValueError: one line with the remedy.
    """
    adaptive = config.schedule == "adaptive-kl"
    changed = {
        key
        for key in (*STEERING, "kl_smoothing", "min_lr_ratio")
        if getattr(config, key) != type(config).model_fields[key].default
    }
    for key in sorted(changed):
        if key == "min_lr_ratio":
            needs = "" if config.schedule == "cosine" else "schedule 'cosine'"
        elif key == "kl_smoothing" and config.kl_rule != "sqrt":
            needs = "kl_rule 'sqrt'"
        else:
            needs = "" if adaptive else "schedule 'adaptive-kl'"
        if needs:
            raise ValueError(f"{key} needs {needs}; set that, or leave {key} out")


def _check_match(config: "TrainConfig") -> None:
    """Norms of updates are there for both methods, before a probe finds that they are not."""
    match = parse_match(config.learning_rate_match) if config.learning_rate_match else None
    if match and match.what == "norm":
        both = (match.method, config.method)
        if not all(compose(name).moves_by_product for name in both):
            raise ValueError(
                f"no norm of an update is known for both {both[0]} and {both[1]}; match-kl, or a "
                "number"
            )


def _check_unused(config: "TrainConfig") -> None:
    """A setting that would be passed over in silence."""
    optimizer = compose(config.method).optimizer
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


def _check_watch(config: "TrainConfig") -> None:
    """Rules that can't fire, and actions without a rule or a way back."""
    acts = config.watch_action != "warn"
    if acts and not config.watch:
        raise ValueError(f"watch_action {config.watch_action!r} needs a rule; set watch")
    if config.watch_action == "rollback" and not config.save_every:
        raise ValueError("watch_action 'rollback' goes back to checkpoints; set save_every above 0")
    product = compose(config.method).moves_by_product
    steered = config.schedule == "adaptive-kl" and config.kl_undo
    needs = {  # what metrics begin with: whether they are measured, and what they need
        "kl_update_": (config.kl_update_share, "kl_update_share above 0"),
        "kl_base_": (config.kl_base_share or config.beta, "kl_base_share above 0"),
        "undone": (steered, "schedule 'adaptive-kl' and kl_undo above 0"),
        "head_energy": (
            config.geometry and config.head_rank != 0 and product,
            "geometry, head_rank above 0 and a method that moves by B A alone",
        ),
        **dict.fromkeys(
            ("update_norm", "delta_norm", "stable_rank", "condition"),
            (config.geometry and product, "geometry and a method that moves by B A alone"),
        ),
    }
    for text in config.watch:
        if text.strip() == "default":
            continue  # its rules are for what there is
        (rule,) = parse_rule(text)
        if rule.steps > config.steps:
            raise ValueError(
                f"watch rule {text!r} needs more steps than the run has, {config.steps}"
            )
        for begin, (measured, remedy) in needs.items():
            if rule.metric.startswith(begin) and not measured:
                raise ValueError(
                    f"watch rule {text!r} needs {remedy}; set that, or leave the rule out"
                )


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
    if 0 < config.kl_undo < 4:
        raise ValueError(
            f"kl_undo {config.kl_undo:g} would take ordinary steps back; use 4 or more, or 0"
        )
    if config.kl_rule == "step" and config.kl_max_change > 2:
        raise ValueError(
            f"kl_rule 'step' would swing about its target for ever with kl_max_change "
            f"{config.kl_max_change:g}; use 2 or less, or kl_rule 'sqrt'"
        )
