"""TRL's GRPOTrainer around our rollouts and our loss, with measurements at every step.

A *training step* is one rollout and all optimizer updates on it (TRL counts updates). From TRL come
processes, sharding, optimizer steps, schedules, checkpoint files and vLLM; which responses are
trained on, and what is minimised, is ours. After the last update the rollout's own tokens are
scored once more under the new policy: a signal taken inside the last mini-batch misses what its own
update does, and mostly underestimates the policy's movement, several-fold.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from trl.trainer.grpo_trainer import GRPOTrainer

from orthora.adapters import base_policy, folds_exactly, orthogonality
from orthora.config import TrainConfig
from orthora.failures import NoSignal, NotFinite
from orthora.methods import compose
from orthora.train import checkpoints
from orthora.train.callbacks import Upkeep
from orthora.train.collect import Collector, Rollout
from orthora.train.engines import SharedEngine, TransformersEngine, serve_merged_weights
from orthora.train.geometry import Geometry
from orthora.train.loading import Parts
from orthora.train.losses import total_loss
from orthora.train.measure import gap, rank_metrics
from orthora.train.meter import Meter
from orthora.train.optimizers import make_optimizer
from orthora.train.rollouts import rows_of
from orthora.train.scoring import Scorer
from orthora.train.settings import grpo_config, objective_of, rules_of
from orthora.train.sharding import check_sharded
from orthora.train.steering import Steering
from orthora.train.subsample import SPREAD_TO_BASE
from orthora.train.updates import Plan, Shape, apart, plan_updates
from orthora.train.world import World, check_engine
from orthora.trained import updates_per_step

Metrics = dict[str, Any]
"""One training step's metrics, by name."""


class RLVRTrainer(GRPOTrainer):
    """GRPOTrainer that collects and trains as `TrainConfig` says.

    Args:
        config: of the run.
        parts: model, tokenizer, problems, judge.
        world: the processes.
        folder: of checkpoints.
        on_step: called with each row, after the step's last update, on every process.
        lr_scale: what rollbacks have left of the learning rate.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        world: World,
        folder: Any,
        on_step: Callable[[Metrics], None],
        lr_scale: float = 1.0,
    ) -> None:
        self._config, self._world, self._on_step = config, world, on_step
        self._method = compose(config.method)
        self._objective = objective_of(config)
        self.updates_per_step = updates_per_step(config)
        args = grpo_config(config, folder, parts.model.device.type, world)
        super().__init__(
            model=parts.model,
            args=args,
            reward_funcs=[_unused_reward],
            train_dataset=Dataset.from_list([{"prompt": parts.train[0].id}]),
            processing_class=parts.tokenizer,
        )
        check_engine(self.accelerator)
        if self._sharded:
            check_sharded(config)
        self.collector = Collector(
            stream=parts.stream,
            generate=self._engine(parts),
            decode=lambda ids: parts.tokenizer.decode(ids, skip_special_tokens=True),
            judge=parts.judge,
            rules=rules_of(config, world, sharded=self._sharded),
            world=world,
        )
        self._pad: int = parts.tokenizer.pad_token_id
        self._plan = Plan([], [], False, [], _shape(config, args, world, even=self._sharded))
        self._step_number = 0
        self._position = 0
        self.steering = Steering(config, lr_scale)
        self.lr_scale, self.saved_scale = lr_scale, 1.0
        wanted = config.geometry and not self._sharded
        self.geometry = Geometry(self.policy, config) if wanted else None
        self._meter = Meter()
        self.add_callback(Upkeep(self))

    # What TRL asks for

    def get_train_dataloader(self) -> DataLoader:
        """Ticks, one per micro-batch; the collector draws the prompts."""
        ticks = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        generator = torch.Generator()  # its own: the global one belongs to dropout
        return DataLoader(ticks, batch_size=1, collate_fn=list, generator=generator)  # pyright: ignore[reportArgumentType]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or the optimizer that the method names."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self._method, self._config)
        return self.optimizer

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The next micro-batch; a new rollout where the last one is used up."""
        if self._position >= len(self._plan.passes):
            self._start_step()
        self._position += 1
        return self._plan.passes[self._position - 1]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; gradient norms are read before clipping.

        Raises:
            NotFinite: if the loss or the update's gradient is not finite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # summed over the processes: all see the same
            self._meter.rate = self._get_learning_rate()
            self._meter.gradients.read(self.policy)
        if not self._meter.gradients.finite or (
            self._world.size == 1 and not bool(loss.isfinite())
        ):
            raise NotFinite(
                f"the loss or its gradient is not finite after {self.state.global_step} updates "
                f"(loss {float(loss):.3g}); lower the learning rate, or train in float32"
            )
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """This micro-batch's share of the mini-batch's loss."""
        rows, divisor = inputs
        batch = self._scorer.batch(rows, shared=self._plan.shared)
        new, entropy = self._scorer.score(model, batch)
        assert batch.old is not None, "a rollout is scored"
        loss, clipped = total_loss(
            new,
            entropy,
            batch.old,
            batch.reference,
            batch.weight(self._config.importance_cap),
            batch.advantage,
            batch.mask,
            self._objective,
            divisor,
        )
        self._meter.tally.count(loss, clipped, entropy, batch.mask)
        if self._position <= self.args.gradient_accumulation_steps and self._compares:
            self._meter.tally.widen(gap(new, batch.old, batch.mask))  # the policy has not moved yet
        term = orthogonality(self.policy)
        if term is not None:
            loss = loss + term / self.args.gradient_accumulation_steps / self._world.size
        return loss * self._world.size  # gradients are averaged over processes

    # One training step

    def _start_step(self) -> None:
        """Roll out, and lay out the passes of all updates."""
        self._meter = Meter()
        self._step_number = self.state.global_step // self.updates_per_step + 1
        config = self._config
        self.steering.begin(self.policy, self.optimizer)
        if self.geometry:
            self.geometry.begin()
        self._rollout = self._collect()
        rows = rows_of(
            self._rollout.groups,
            config.advantage_scale,
            mask_truncated=config.mask_truncated,
            stale=self._rollout.stale,
        )
        with self._meter.timed("kl"):
            self._scorer.check(rows)
            shared = self._scorer.shares(*apart(rows))
            self._plan = plan_updates(rows, self._objective, self._plan.shape, shared=shared)
            self._score_beforehand(self._plan)
        self._position = 0

    def _collect(self) -> Rollout:
        """The next rollout; where there is none, what was trained so far is kept."""
        try:
            return self.collector.collect()
        except NoSignal:
            if self.state.global_step and not checkpoints.is_saved(self):
                self._save_checkpoint(self.model, None)
            raise

    def _score_beforehand(self, plan: Plan) -> None:
        """Log-probabilities of the rollout under the policy and under the base, where needed."""
        if self._recomputes:
            scores = self._scorer.logps(plan.once, shared=plan.shared)
            for row, values in zip(plan.rows, scores, strict=True):
                row.sampled, row.old = row.old, values
                if row.sampled is not None:
                    known = ~row.sampled.isnan()
                    self._meter.tally.widen(gap(values, row.sampled.nan_to_num(0.0), known))
        share = 1.0 if self._config.beta else self._config.kl_base_share
        sample = plan.sample(share, self._step_number, self._scorer.shares, SPREAD_TO_BASE)
        with base_policy(self.policy):
            scores = self._scorer.logps(sample.micro_batches, shared=sample.shared, fold=False)
        self._meter.read_base(sample, scores)  # a process without rows in it has tokens, too
        if self._config.beta:
            for row, values in zip(sample.rows, scores, strict=True):
                row.reference = values

    def finish_step(self) -> None:
        """Measure the step that just ended, steer by it, and hand its row over."""
        meter = self._meter
        row = self._measured(self._config.kl_update_share)
        if self.steering.would_undo(row):  # on all there is, not on a sample
            row = self._measured(1.0)
        row |= rank_metrics(self.policy)
        if self.geometry:
            with meter.timed("geometry"):
                row |= self.geometry.metrics()
        row |= self.steering.end(row, self.lr_scheduler)
        if row.get("undone"):  # the weights are what they were
            row |= rank_metrics(self.policy)
            row |= self.geometry.metrics() if self.geometry else {}
        self._on_step(row | meter.seconds(self._rollout))

    def _measured(self, share: float) -> Metrics:
        """The step's row, with the KL of its updates on a share of the responses."""
        with self._meter.timed("kl"):
            sample = self._plan.sample(share, self._step_number, self._scorer.shares)
            after = self._scorer.logps(sample.micro_batches, shared=sample.shared)
        return {"step": self._step_number} | self._meter.row(
            self._rollout,
            sample,
            after,
            self._world,
            updates=self.updates_per_step,
            compares=self._compares,
            recomputes=self._recomputes,
        )

    # What decides how

    @property
    def policy(self) -> Any:
        """The adapted model, without wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def _sharded(self) -> bool:
        """Whether weights are sharded over processes, so that all must run every forward pass."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @cached_property
    def _recomputes(self) -> bool:
        """Whether the ratio's base is scored by the trainer, and not taken from the sampler."""
        if self._config.old_logps != "auto":
            return self._config.old_logps == "recomputed"
        low = any(p.element_size() < 4 for p in self.policy.parameters())
        return self._sharded or low or self._config.engine != "transformers"

    @property
    def _compares(self) -> bool:
        """Whether the first update scores what the sampler scored: no dropout, no older groups."""
        return not (self._recomputes or self._config.dropout or self._config.keep_surplus)

    @cached_property
    def _scorer(self) -> Scorer:
        fold = self._config.fold_adapter == "auto" and not self._sharded
        return Scorer(
            self.model,
            lambda: self.accelerator.autocast(),
            self.accelerator.device,
            self._pad,
            fold=fold and folds_exactly(self.policy),
            share=self._config.share_prompts == "auto" and not self._sharded,
        )

    def _engine(self, parts: Parts) -> Any:
        if self._config.engine == "vllm" and not self._sharded:
            serve_merged_weights(self)
        if self._config.engine == "vllm" or self._sharded:
            return SharedEngine(self, self.eos_token_ids)
        return TransformersEngine(parts.model, parts.tokenizer, self._config)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's checkpoint, and what makes it exact."""
        with checkpoints.whole_ranks(self.policy):
            super()._save_checkpoint(model, trial)
        checkpoints.complete(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Put back what `_save_checkpoint` wrote, bit for bit."""
        if self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            marker = checkpoints.restore_position(self, resume_from_checkpoint)
            checkpoints.restore_tensors(self, resume_from_checkpoint, marker)


def _shape(config: TrainConfig, args: Any, world: World, *, even: bool) -> Shape:
    return Shape(
        group_size=config.group_size,
        updates=config.prompts_per_step // config.mini_batch_prompts,
        epochs=config.update_epochs,
        passes=args.gradient_accumulation_steps,
        micro_batch=config.micro_batch,
        rank=world.rank,
        size=world.size,
        even=even,
    )


def _unused_reward(**_: Any) -> list[float | None]:
    raise AssertionError("the collector judges")
