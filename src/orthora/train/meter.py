"""One training step's measurements, from its rollout to its row."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from orthora.train.collect import Rollout, rollout_metrics
from orthora.train.measure import Gradients, Tally, kl_quantiles, kl_sums, token_means
from orthora.train.updates import Sample
from orthora.train.world import World

_DISAGREEMENT = 0.05  # nats; sampler and trainer in float32 differ by less than 1e-4


class Meter:
    """Clock, sums over passes and gradient norms of one step.

    Attributes:
        tally: sums over its passes.
        gradients: norms of its updates.
        rate: learning rate of its last update.
    """

    def __init__(self) -> None:
        self.tally, self.gradients = Tally(), Gradients()
        self._to_base = kl_sums("base", Sample([], [], 0), ())
        self.rate = 0.0
        self._started = time.perf_counter()
        self._clock: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block's wall time to a phase."""
        started = time.perf_counter()
        yield
        self._clock[phase] = self._clock.get(phase, 0.0) + time.perf_counter() - started

    def read_base(self, sample: Sample, references: Sequence[Tensor]) -> None:
        """Take what this process's sample scores under the base, once a step."""
        self._to_base = kl_sums("base", sample, references)

    def row(
        self,
        rollout: Rollout,
        sample: Sample,
        after: Sequence[Tensor],
        world: World,
        *,
        updates: int,
        compares: bool,
        recomputes: bool,
    ) -> dict[str, Any]:
        """The step's metrics, the same on every process but for gradients read locally.

        Args:
            rollout: that was trained on.
            sample: of this process's rows, on which the KL of the updates is measured.
            after: log-probabilities (t,) of each one's tokens after the updates.
            world: the processes; all must call this.
            updates: of the step.
            compares: the first update scored what the sampler had scored.
            recomputes: the trainer scored the rollout once more before the updates.
        """
        mine = kl_sums("update", sample, after) | self._to_base | self.tally.sums()
        everybody = world.gather((mine, self.tally.gap))
        sums = {key: sum(part[key] for part, _ in everybody) for key in mine}
        largest = max(gap for _, gap in everybody)
        if largest > _DISAGREEMENT and compares:
            warnings.warn(
                f"sampler and trainer differ by up to {largest:.2g} nats in a token; use "
                "old_logps 'recomputed', or train in float32",
                stacklevel=2,
            )
        row: dict[str, Any] = rollout_metrics(rollout)
        row |= token_means(sums, updates=updates)
        row |= kl_quantiles(sample, after, world)
        row["sampling_gap"] = largest if compares or recomputes else None
        return row | self.gradients.metrics() | {"lr": self.rate}

    def seconds(self, rollout: Rollout) -> dict[str, float]:
        """Wall time of the step until now, in total and by phase."""
        total = time.perf_counter() - self._started
        clock = rollout.seconds | self._clock
        clock["train"] = total - sum(clock.values())
        return {"seconds": total} | {f"seconds/{name}": clock[name] for name in sorted(clock)}
