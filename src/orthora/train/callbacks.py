"""What happens between optimizer updates, through the trainer's callbacks."""

from typing import Any

from transformers import TrainerCallback

from orthora.adapters import after_update


class Upkeep(TrainerCallback):
    """Work after updates, and the end of a training step.

    Args:
        trainer: an `RLVRTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Optimizer and schedule are there, a checkpoint's state in them."""
        trainer = self._trainer
        state.save_steps = args.save_steps  # a checkpoint has that of then
        if trainer.lr_scale != trainer.saved_scale:
            trainer.steering.scale(trainer.lr_scheduler, trainer.lr_scale / trainer.saved_scale)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradients are still there."""
        trainer = self._trainer
        after_update(trainer.policy, state.global_step + 1)
        if trainer.geometry:
            trainer.geometry.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL's step is one update; the rollout's last one ends a training step."""
        trainer = self._trainer
        if state.global_step % trainer.updates_per_step == 0:
            trainer.finish_step()
            if state.global_step >= args.max_steps and trainer._config.save_every:
                control.should_save = True  # what comes after training can be resumed, too
