"""The learning rate of the next step, set by what this one did to the policy."""

import math
from dataclasses import replace
from typing import Any

import torch

from orthora.config import TrainConfig
from orthora.failures import NotFinite, TooFar
from orthora.train.control import Decision, Setting, decide, law_of
from orthora.train.optimizers import scale_learning_rate, set_learning_rate
from orthora.train.snapshot import Snapshot

_STUCK = 5  # steps taken back at the lowest learning rate, after which the run ends


class Steering:
    """Follows the config's law between steps; does nothing where its schedule is another.

    Args:
        config: of the run.
        lr_scale: what rollbacks have left of the learning rate.

    Attributes:
        setting: of the next step; all that a checkpoint needs.
    """

    def __init__(self, config: TrainConfig, lr_scale: float = 1.0) -> None:
        self._law = law_of(config, lr_scale)
        self.setting = Setting(config.learning_rate)
        self._before: Snapshot | None = None

    def begin(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Before a step's updates: remember what may have to be put back."""
        if self._law and self._law.undo:
            self._before = Snapshot(model, optimizer)

    def scale(self, scheduler: Any, factor: float) -> None:
        """Go on with another learning rate, by a factor, whatever the schedule."""
        self.setting = replace(self.setting, lr=self.setting.lr * factor)
        scale_learning_rate(scheduler, factor)

    def would_undo(self, row: dict[str, Any]) -> bool:
        """Whether a step with these metrics would be taken back."""
        found = self._decided(row)
        return found is not None and found.undo

    def _decided(self, row: dict[str, Any]) -> Decision | None:
        """What the law makes of a step; None without one."""
        if self._law is None:
            return None
        signal = row["groups_without_signal"] < 1 or row.get("groups_stale", 0) > 0
        return decide(self._law, self.setting, row["kl_update_k3"], row["step"], signal=signal)

    def end(self, row: dict[str, Any], scheduler: Any) -> dict[str, Any]:
        """After a step's updates: take them back if they went too far, and set the learning rate.

        The KL is the same number on every process, and so is what follows.

        Args:
            row: the step's metrics.
            scheduler: of the learning rate.

        Returns:
            Metrics.

        Raises:
            NotFinite: if the policy is broken: its scores are not finite, and the step was not
                taken back. It is then neither logged as a step nor saved.
            TooFar: if steps have been taken back at the lowest learning rate, one after the other.
        """
        found = self._decided(row)
        if found and found.undo and self._before:
            self._before.restore()
        elif not all(math.isfinite(row.get(key) or 0.0) for key in ("loss", "kl_update_k3")):
            raise NotFinite(
                f"the policy's scores are not finite after the updates of step {row['step']}; "
                "lower the learning rate, or train in float32; the last checkpoint is from before"
            )
        self._before = None
        if self._law is None or found is None:
            return {}
        if found.setting.stuck >= _STUCK:
            raise TooFar(
                f"{_STUCK} steps in a row moved the policy too far at the lowest learning rate of "
                f"kl_lr_bounds, {self.setting.lr:g}, and were taken back (KL "
                f"{row['kl_update_k3']:.2g} at step {row['step']}); begin anew with lower "
                "kl_lr_bounds or a higher kl_target"
            )
        self.setting = found.setting
        set_learning_rate(scheduler, found.setting.lr)
        return {
            "kl_target": self._law.target_at(row["step"]),
            "undone": int(found.undo),
            "lr_bounded": int(found.saturated),
        }
