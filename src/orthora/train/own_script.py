"""adaptive-kl in a user's own TRL script: `steer` on their GRPOTrainer."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from orthora.config import TrainConfig, build
from orthora.config.starting import check_start
from orthora.train.control import Setting
from orthora.train.optimizers import set_learning_rate
from orthora.train.steering import Steering
from orthora.train.subsample import chances, start_of, systematic

STATE = "orthora adaptive-kl"
"""Key of ``stateful_callbacks`` in a checkpoint's ``trainer_state.json``: where the law stands."""
_IMAGES = ("pixel_values", "image_grid_thw", "num_images")


def steer(trainer: GRPOTrainer, kl_target: float = 2e-3, **settings: Any) -> "AdaptiveKL":
    """Let the learning rate of a GRPOTrainer follow the KL that its updates cause.

    After all updates on a rollout a sample of its tokens is scored once more, and the learning rate
    is set to hold KL(rollout policy || updated policy) at a target; a step that goes far beyond it
    is taken back (docs/adaptive-kl.md). It begins at ``args.learning_rate``. TRL's log gets
    ``kl_update/k3``, ``kl_update/k1``, ``kl_update/target`` and ``kl_update/undone``.

    What it costs: a forward pass over the rollout before the updates, where TRL has not scored it
    for its own ends (with vLLM it has), one over the sample after them, and a copy of the trained
    parameters and the optimizer's moments (none with ``kl_undo=0``).

    Args:
        trainer: with text alone, ``lr_scheduler_type="constant"``, not yet training.
        kl_target: nats per token and rollout.
        **settings: ``kl_rule``, ``kl_smoothing``, ``kl_max_change``, ``kl_undo``, ``kl_lr_bounds``,
            ``kl_target_floor`` (then ``args.max_steps`` must be given), ``kl_update_share``: as in
            `orthora.TrainConfig`.

    Returns:
        The callback, which the trainer has; its ``rows`` are the measurements of this process.

    Raises:
        ValueError: a setting that is none of these or out of range; a schedule that fights the law;
            sharded weights; generations that don't end with an update.
        TypeError: if it is no GRPOTrainer.
    """
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(f"steer needs TRL's GRPOTrainer, got {type(trainer).__name__}")
    unknown = settings.keys() - {k for k in TrainConfig.model_fields if k.startswith("kl_")}
    if unknown or "kl_base_share" in settings:
        name = next(iter(sorted(unknown)), "kl_base_share")
        raise ValueError(f"{name!r} is no setting of adaptive-kl; see orthora.train.own_script")
    callback = AdaptiveKL(trainer, settings | {"kl_target": kl_target})
    # The first: no other callback is to see weights that are taken back.
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


class AdaptiveKL(TrainerCallback):
    """Measures each rollout's updates and sets the next learning rate; made by `steer`.

    Attributes:
        rows: of the last ``trainer.train()``, one per rollout: ``step`` (from 1), ``lr`` that it
            was trained with, ``kl_update_k1``, ``kl_update_k3`` (nats per token, over all
            processes; None where no token counts), ``kl_target``, ``undone``, ``lr_bounded``,
            ``groups_without_signal`` (1 where none had one, else 0).
    """

    def __init__(self, trainer: GRPOTrainer, settings: dict[str, Any]) -> None:
        args: Any = trainer.args
        _check(trainer)
        self._every = args.steps_per_generation * trainer.num_iterations
        passes = args.gradient_accumulation_steps
        if self._every % passes and passes % self._every:
            raise ValueError(
                f"a rollout is used for {self._every} passes (steps_per_generation x "
                f"num_iterations), and an update takes {passes}: give one that is a multiple of "
                "the other"
            )
        if settings.get("kl_target_floor", 1.0) < 1 and args.max_steps <= 0:
            raise ValueError("kl_target_floor needs to know the run's end; set args.max_steps")
        self._updates = max(1, self._every // passes)
        given: Any = trainer.optimizer
        config = build(
            TrainConfig,
            {"model": "-", "out": "-", "task": "arithmetic", "schedule": "adaptive-kl"}
            | {"learning_rate": given.param_groups[0]["lr"] if given else args.learning_rate}
            | {"steps": max(1, args.max_steps // self._updates), "watch": ()}
            | settings,
        )
        check_start(config)
        self._trainer, self._share = trainer, config.kl_update_share
        self._steering = Steering(config)
        self._parts: list[_Part] = []
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin at the optimizer's learning rate; a resumed run, where its checkpoint stands."""
        trainer: Any = self._trainer
        known = (state.stateful_callbacks or {}).get(STATE)
        lr = trainer.lr_scheduler.get_last_lr()[0]
        self._steering.setting = Setting(**known) if known else Setting(lr)
        set_learning_rate(trainer.lr_scheduler, self._steering.setting.lr)
        self._parts, self.rows = [], []
        if trainer._generate_and_score_completions != self._generated:
            self._generate = trainer._generate_and_score_completions
            trainer._generate_and_score_completions = self._generated

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an update; the rollout's last one is followed by the measurement."""
        if self._parts and self._trainer._step % self._every == 0:
            self._finish(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A rollout that training has not used up is measured as far as it was trained on."""
        if self._parts:
            self._finish(state)
        trainer: Any = self._trainer
        trainer._generate_and_score_completions = self._generate

    def _generated(self, inputs: Any) -> Any:
        """TRL's rollout, scored before it is trained on."""
        batch = self._generate(inputs)
        trainer: Any = self._trainer
        if trainer.model.training and self in trainer.callback_handler.callbacks:
            if any(key in batch for key in _IMAGES):
                raise ValueError("steer scores text alone, and this rollout has images; leave it")
            if not self._parts:
                self._steering.begin(self._policy, trainer.optimizer)
            alike = trainer._metrics["train"].get("frac_reward_zero_std")  # of all processes
            part = _Part(batch, signal=not alike or alike[-1] < 1)
            if not part.scored or _drops(self._policy):
                part.old = self._score(part, slice(None))
            self._parts.append(part)
        return batch

    def _finish(self, state: Any) -> None:
        step = math.ceil(state.global_step / self._updates)
        scheduler: Any = self._trainer.lr_scheduler
        row = {"step": step, "lr": self._steering.setting.lr} | self._measured(self._share, step)
        if self._steering.would_undo(row):  # on all there is, not on a sample
            row |= self._measured(1.0, step)
        row |= self._steering.end(row, scheduler)
        self._parts = []
        state.stateful_callbacks[STATE] = asdict(self._steering.setting)
        logged = self._trainer._metrics["train"]
        for key in ("kl_update_k3", "kl_update_k1", "kl_target", "undone"):
            if row[key] is not None:
                name = key.removeprefix("kl_").removeprefix("update_")
                logged[f"kl_update/{name}"].append(row[key])
        self.rows.append(row)

    def _measured(self, share: float, step: int) -> dict[str, Any]:
        """KL of the updates over all processes, from a share of each one's responses."""
        sums = torch.zeros(3, dtype=torch.float64)
        for part in self._parts:
            rows, weights = part.sample(share, step)
            d = (self._score(part, rows).double() - part.old[rows].double()) * part.mask[rows]
            weights = weights.to(d)[:, None]
            sums += torch.stack([
                (-d * weights).sum(),
                ((torch.expm1(d) - d) * weights).sum(),
                part.mask.sum(),
            ]).double().cpu()  # fmt: skip
        everybody: Any = self._trainer.accelerator
        k1, k3, tokens = everybody.reduce(sums.to(everybody.device), "sum").tolist()
        return {
            "kl_update_k1": k1 / tokens if tokens else None,
            "kl_update_k3": k3 / tokens if tokens else None,
            "groups_without_signal": 0.0 if any(part.signal for part in self._parts) else 1.0,
        }

    def _score(self, part: "_Part", rows: Any) -> Tensor:
        """Log-probabilities (rows, tokens) of the completions under the policy of now."""
        trainer: Any = self._trainer
        was = trainer.model.training
        trainer.model.eval()
        try:
            with torch.no_grad():
                return trainer._get_per_token_logps_and_entropies(
                    trainer.model,
                    part.ids[rows],
                    part.attention[rows],
                    part.mask.shape[1],
                    batch_size=trainer.args.per_device_train_batch_size,
                )[0].detach()
        finally:
            trainer.model.train(was)

    @property
    def _policy(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)


class _Part:
    """One generation of this process: its tokens, and their scores before the updates."""

    def __init__(self, batch: dict[str, Tensor], *, signal: bool) -> None:
        self.ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        self.attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        tools: Any = batch.get("tool_mask", 1)  # what a tool wrote is not the policy's
        self.mask = batch["completion_mask"] * tools
        self.signal = signal
        old = batch.get("old_per_token_logps")
        self.scored = old is not None
        self.old = torch.zeros(0) if old is None else old

    def sample(self, share: float, step: int) -> tuple[Tensor, Tensor]:
        """Rows to measure, and what each counts: one over its chance of being among them.

        The surprising ones are preferred, in which the KL of an update sits.
        """
        count = max(1, round(share * len(self.ids)))
        sizes = (((1 - self.old.exp()) ** 2) * self.mask).sum(1).tolist()
        odds = chances(sizes, count)
        rows = systematic(odds, start_of(step)) if count < len(sizes) else [*range(len(sizes))]
        return torch.tensor(rows), torch.tensor([1 / odds[row] for row in rows])


def _check(trainer: GRPOTrainer) -> None:
    """What the law can't be applied to.

    Raises:
        ValueError: with the remedy.
    """
    schedule = str(getattr(trainer.args.lr_scheduler_type, "value", trainer.args.lr_scheduler_type))
    if schedule != "constant":
        raise ValueError(
            f"the learning rate follows the KL, and lr_scheduler_type {schedule!r} would fight it; "
            "set args.lr_scheduler_type = 'constant'"
        )
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        raise ValueError("the learning rate follows the KL; hand the trainer no scheduler")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("steer needs whole weights on every process, not FSDP or DeepSpeed")
    if any(isinstance(one, AdaptiveKL) for one in trainer.callback_handler.callbacks):
        raise ValueError("this trainer is steered already")


def _drops(model: nn.Module) -> bool:
    """Whether a score in training mode may not be that of the policy: there is dropout somewhere.

    That of attention is no module, but a number that modules keep.
    """
    return any(
        isinstance(value, float) and value > 0
        for module in model.modules()
        for name, value in vars(module).items()
        if "drop" in name or (name == "p" and isinstance(module, nn.Dropout))
    )
