"""What a run must not begin with, though a run that is there may have it.

A check that is added later must not make earlier runs unreadable: such checks stand here, and not
in `check_consistent`, which every config passes that is read.
"""

from orthora.config.match import parse_match
from orthora.config.run import TrainConfig
from orthora.methods import compose
from orthora.watch import SIGNED, Rule, parse

STEERING = ("kl_target", "kl_target_floor", "kl_rule", "kl_max_change", "kl_undo")
"""Settings of adaptive-kl alone; with ``kl_rule = "sqrt"`` there is kl_smoothing as well."""
_LARGEST_TARGET = 1.0  # nats per token
_LEAST_UNDO = 4.0
_LARGEST_STEP = 2.0  # of the stepwise rule, whose dead band is a factor of four in KL


def check_start(config: TrainConfig) -> None:
    """Refuse settings that can't mean what they say, before anything is loaded.

    Raises:
        ValueError: one line with the remedy.
    """
    _check_schedule(config)
    _check_match(config)
    if config.watch_action != "warn" and not config.watch:
        raise ValueError(f"watch_action {config.watch_action!r} needs a rule; set watch")
    for text in config.watch:
        if text.strip() != "default":  # its rules are for what there is
            (rule,) = parse(text)
            _check_rule(config, text, rule)


def _check_schedule(config: TrainConfig) -> None:
    """Settings of one schedule beside another, and those at which the law does harm."""
    adaptive = config.schedule == "adaptive-kl"
    for key in sorted((*STEERING, "kl_smoothing", "min_lr_ratio")):
        if getattr(config, key) == TrainConfig.model_fields[key].default:
            continue
        if key == "min_lr_ratio":
            needs = "" if config.schedule == "cosine" else "schedule 'cosine'"
        elif key == "kl_smoothing" and config.kl_rule != "sqrt":
            needs = "kl_rule 'sqrt'"
        else:
            needs = "" if adaptive else "schedule 'adaptive-kl'"
        if needs:
            raise ValueError(f"{key} needs {needs}; set that, or leave {key} out")
    if config.kl_target > _LARGEST_TARGET:
        raise ValueError(
            f"kl_target {config.kl_target:g} nats per token is another policy after every step; "
            f"use {_LARGEST_TARGET:g} or less, e.g. 2e-3"
        )
    if 0 < config.kl_undo < _LEAST_UNDO:
        raise ValueError(
            f"kl_undo {config.kl_undo:g} would take ordinary steps back; use {_LEAST_UNDO:g} or "
            "more, or 0"
        )
    if config.kl_rule == "step" and config.kl_max_change > _LARGEST_STEP:
        raise ValueError(
            f"kl_rule 'step' would swing about its target for ever with kl_max_change "
            f"{config.kl_max_change:g}; use {_LARGEST_STEP:g} or less, or kl_rule 'sqrt'"
        )


def _check_match(config: TrainConfig) -> None:
    """Norms of updates are there for both methods, before a probe finds that they are not."""
    match = parse_match(config.learning_rate_match) if config.learning_rate_match else None
    if match and match.what == "norm":
        both = (match.method, config.method)
        if not all(compose(name).moves_by_product for name in both):
            raise ValueError(
                f"no norm of an update is known for both {both[0]} and {both[1]}; match-kl, or a "
                "number"
            )


def _check_rule(config: TrainConfig, text: str, rule: Rule) -> None:
    """A rule is one that the run can break.

    Raises:
        ValueError: with the remedy.
    """
    if rule.relative and rule.metric in SIGNED:
        raise ValueError(
            f"watch rule {text!r} is relative to a median that may be negative; give "
            f"{rule.metric} a value, without x"
        )
    if rule.relative and rule.value <= 0:
        raise ValueError(f"watch rule {text!r} has a factor that is not above 0")
    if rule.steps > config.steps:
        raise ValueError(f"watch rule {text!r} needs more steps than the run has, {config.steps}")
    product = config.geometry and compose(config.method).moves_by_product
    moves = (product, "geometry and a method that moves by B A alone")
    needs = {  # what metrics begin with: whether they are measured, and what they need
        "kl_base_": (config.kl_base_share or config.beta, "kl_base_share above 0"),
        "undone": (
            config.schedule == "adaptive-kl" and config.kl_undo,
            "schedule 'adaptive-kl' and kl_undo above 0",
        ),
        "head_energy": (product and config.head_rank != 0, f"head_rank above 0, {moves[1]}"),
        **dict.fromkeys(("update_norm", "delta_norm", "stable_rank", "condition"), moves),
    }
    for begin, (measured, remedy) in needs.items():
        if rule.metric.startswith(begin) and not measured:
            raise ValueError(f"watch rule {text!r} needs {remedy}; set that, or leave the rule out")
