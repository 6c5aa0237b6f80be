"""The learning rate that holds the policy's movement: KL of each rollout's updates at a target.

Adapting a step size to the measured KL is standard in RL for robots (Heess et al. 2017,
arXiv 1707.02286; rl_games, rsl_rl, skrl). Here the signal is the KL after all updates on a rollout,
and the law is a pure function, so that it is the same on every process and after a resume.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from orthora.config import TrainConfig

_DEEPEST = 0.1  # of the learning rate, that one undone step may leave
_LEAST = 1e-30  # nats
_HELD = 2.0  # the stepwise rule holds within this factor of the target


@dataclass(frozen=True)
class Law:
    """How the learning rate follows the measured KL.

    Attributes:
        target: KL(rollout policy || updated policy) to hold, in nats per token.
        rule: ``"sqrt"``: for small updates the KL grows with the square of the learning rate, so
            that the running ratio of the two says which one meets the target. ``"step"``: divide by
            ``max_change`` above twice the target, multiply below half of it (rsl_rl's rule).
        smoothing: share of the past in the running mean of KL / lr^2; of ``"sqrt"``.
        max_change: factor that one step may change the learning rate by.
        undo: multiple of the target beyond which a step's updates are taken back; 0 never does.
        bounds: smallest and largest learning rate.
        floor: share of the target that is left at the last step, by a half cosine; 1 holds it.
        steps: of the run.
    """

    target: float
    rule: Literal["sqrt", "step"] = "sqrt"
    smoothing: float = 0.5
    max_change: float = 1.3
    undo: float = 10.0
    bounds: tuple[float, float] = (1e-9, 0.1)
    floor: float = 1.0
    steps: int = 1

    def target_at(self, step: int) -> float:
        """The target of a training step, from 1."""
        if self.steps <= 1:
            return self.target
        progress = min(1.0, (step - 1) / (self.steps - 1))
        decay = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.target * (self.floor + (1.0 - self.floor) * decay)


@dataclass(frozen=True)
class Setting:
    """What the next step trains with.

    Attributes:
        lr: learning rate.
        gain: running mean of KL / lr^2; None before the first measurement.
        stuck: steps in a row that were taken back at the lowest learning rate.
    """

    lr: float
    gain: float | None = None
    stuck: int = 0


@dataclass(frozen=True)
class Decision:
    """What a measurement leads to.

    Attributes:
        setting: of the next step.
        undo: take the step's updates back.
        saturated: the law wants a learning rate outside its bounds.
    """

    setting: Setting
    undo: bool = False
    saturated: bool = False


def law_of(config: TrainConfig, lr_scale: float = 1.0) -> Law | None:
    """The config's law; None where its schedule is another.

    Args:
        config: of the run.
        lr_scale: what rollbacks have left of the learning rate; as the KL grows with its square,
            the target falls by that, or the law would take the rate back up.
    """
    if config.schedule != "adaptive-kl":
        return None
    return Law(
        target=config.kl_target * lr_scale**2,
        rule=config.kl_rule,
        smoothing=config.kl_smoothing,
        max_change=config.kl_max_change,
        undo=config.kl_undo,
        bounds=config.kl_lr_bounds,
        floor=config.kl_target_floor,
        steps=config.steps,
    )


def decide(
    law: Law, setting: Setting, kl: float | None, step: int, *, signal: bool = True
) -> Decision:
    """The next learning rate, from the KL that this step's updates caused.

    Args:
        law: how to follow.
        setting: that the step was trained with.
        kl: measured after the step's last update, in nats per token; None holds the setting; what
            is not finite is undone like a step that went too far.
        step: that was measured, from 1; the next one's target is aimed at.
        signal: whether any group had something to learn from. Where none had, the KL says nothing
            of the learning rate, and the setting is held.
    """
    if kl is None:
        return Decision(setting)
    now, ahead = law.target_at(step), law.target_at(step + 1)
    if law.undo and not kl <= law.undo * now:
        ratio = math.sqrt(ahead / kl) if math.isfinite(kl) else 0.0
        found = _bounded(law, setting.lr * max(ratio, _DEEPEST), None, undo=True)
        stuck = setting.stuck + 1 if setting.lr <= law.bounds[0] else 0
        return replace(found, setting=replace(found.setting, stuck=stuck))
    if not math.isfinite(kl):
        return _bounded(law, setting.lr / law.max_change, None)
    if not signal:
        return Decision(replace(setting, stuck=0))
    if kl == 0.0:  # too small a step to change a number
        return _bounded(law, setting.lr * law.max_change, None)
    if law.rule == "step":
        high, low = kl > _HELD * ahead, kl < ahead / _HELD
        change = 1.0 / law.max_change if high else law.max_change if low else 1.0
        return _bounded(law, setting.lr * change, None)
    gain = max(kl, _LEAST) / setting.lr**2  # k3 is never negative but for rounding
    if setting.gain is not None:
        gain = law.smoothing * setting.gain + (1.0 - law.smoothing) * gain
    wanted = math.sqrt(ahead / gain)
    lowest, highest = setting.lr / law.max_change, setting.lr * law.max_change
    return _bounded(law, min(max(wanted, lowest), highest), gain)


def _bounded(law: Law, lr: float, gain: float | None, *, undo: bool = False) -> Decision:
    inside = min(max(lr, law.bounds[0]), law.bounds[1])
    return Decision(Setting(inside, gain), undo, inside != lr)
