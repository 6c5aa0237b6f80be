"""``orthora theory``: the theorems of the source paper, checked on the layers of a real model.

One mini-batch is drawn from the base policy. From the gradients of its loss every method's first
update, and some more, are computed in float64, beside those of full fine-tuning.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from orthora import models
from orthora.adapters import ADAPTER, Slot, slots_of
from orthora.adapters.layers import weight
from orthora.config import TheoryConfig, TrainConfig, build
from orthora.methods import compose, initialize
from orthora.quiet import quiet_libraries
from orthora.store import check_new_file, write_json
from orthora.train.collect import Collector
from orthora.train.engines import TransformersEngine
from orthora.train.loading import Parts, load_parts
from orthora.train.rollouts import Row, rows_of
from orthora.train.settings import rules_of
from orthora.train.theory_checks import (
    PARTNERS,
    Scene,
    first_updates,
    gaps,
    gradient_errors,
    lemma,
    moved_by_kl,
    ratios,
)
from orthora.train.theory_findings import Finding, as_json, table
from orthora.train.theory_policy import Policy
from orthora.train.theory_steps import (
    ADAMW,
    DESCENT,
    Start,
    optimizers,
    travel_by_factors,
    travel_in_full,
)
from orthora.train.world import World
from orthora.trained import adapted
from orthora.types import Factors


@dataclass(frozen=True)
class Conditions:
    """What the numbers are of.

    Attributes:
        model: as in the config.
        layers: adapted weights.
        rank: r.
        alpha: the scale is alpha / r, or alpha / sqrt(r) with rslora.
        responses: in the mini-batch.
        tokens: response tokens in its loss.
        updates: T.
        gradient_rate: learning rate of gradient descent.
        learning_rate: of AdamW.
    """

    model: str
    layers: int
    rank: int
    alpha: float
    responses: int
    tokens: int
    updates: int
    gradient_rate: float
    learning_rate: float

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.layers} layers, rank {self.rank}, alpha {self.alpha:g}, "
            f"{self.responses} responses ({self.tokens} tokens), T = {self.updates}, learning "
            f"rate {self.gradient_rate:g} ({DESCENT}) and {self.learning_rate:g} ({ADAMW})"
        )


def theory(
    config: TheoryConfig | dict[str, Any] | str | Path,
    *,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[Conditions, list[Finding]]:
    """Check every statement on every adapted layer, method by method.

    The mini-batch is that of a run's first update, and all methods are given the same; what is
    measured is without dropout, weight decay and gradient clipping. Memory, in float64: about ten
    times the adapted weights, the vocabulary's log-probabilities at every response token, and those
    of a micro-batch once per adapted layer.

    Args:
        config: a `TheoryConfig`, a dict of its fields, a TOML file, or a preset's name.
        told: called with a line as each method is done.

    Returns:
        What the numbers are of, and one finding per statement, method, optimizer and layer.

    Raises:
        ValueError: a bad config, as `orthora.train`; a learning rate of 0; fused experts, or
            another engine than ``transformers``; rollouts without any signal.
    """
    config = build(TheoryConfig, config)
    run = _planned(config)
    if run.threads:
        torch.set_num_threads(run.threads)
    device = models.pick_device(run.device)
    parts = load_parts(run, None, device)
    slots = _slots(parts.model)
    rows = _rows(run, parts)
    base = models.load_model(run.model, run.dtype, device).double().requires_grad_(False)
    policy = Policy(base, slots, rows, run, parts.tokenizer.pad_token_id)
    rates = {DESCENT: config.gradient_rate or run.learning_rate, ADAMW: run.learning_rate}
    scene = _scene(policy, slots, config, rates)
    told(f"base: {len(slots)} layers, {len(rows)} responses, {policy.tokens} tokens")
    found: list[Finding] = []
    for method in config.methods:
        found += _checked(scene, run, method, device)
        told(f"{method}: done")
    conditions = Conditions(
        run.model, len(slots), run.rank, run.alpha, len(rows), policy.tokens, config.updates,
        rates[DESCENT], rates[ADAMW],
    )  # fmt: skip
    return conditions, found


def run_theory(config: TheoryConfig) -> None:
    """Check, print a table, and write every layer's numbers where the config names a file.

    Raises:
        ValueError: as `theory`; or the file exists.
    """
    if config.json_out:
        check_new_file(config.json_out)
    quiet_libraries()
    conditions, found = theory(config, told=lambda text: print(text, file=sys.stderr, flush=True))
    Console().print(table(found, str(conditions)))
    if config.json_out:
        write_json(config.json_out, {"conditions": asdict(conditions)} | as_json(found))


def _planned(config: TheoryConfig) -> TrainConfig:
    """The run whose first mini-batch is drawn, and nothing else."""
    if not config.learning_rate:
        raise ValueError("the theory is about steps at the config's learning rate; set one above 0")
    if config.engine != "transformers":
        raise ValueError(
            f"engine {config.engine!r}: rollouts are drawn with engine 'transformers' here; leave "
            "engine out"
        )
    changes = {
        "method": config.methods[0], "prompts_per_step": config.mini_batch_prompts,
        "schedule": "constant", "warmup_steps": 0, "min_lr_ratio": 0.0, "save_every": 0,
        "eval_problems": 0, "eval_task": None, "eval_data": None, "eval_base": False, "watch": (),
        "watch_action": "warn", "learning_rate_match": None, "start": None, "dropout": 0.0,
        "lora_plus_ratio": TrainConfig.model_fields["lora_plus_ratio"].default,
    }  # fmt: skip
    return build(TrainConfig, config.run().model_dump() | changes)


def _slots(model: Any) -> list[Slot]:
    slots = slots_of(model)
    fused = [slot.name for slot in slots if slot.expert is not None]
    if fused:
        raise ValueError(
            f"{fused[0]} is a fused expert, which is not checked here; name other target_modules"
        )
    return slots


def _rows(run: TrainConfig, parts: Parts) -> list[Row]:
    """One mini-batch of the base policy's responses."""
    world = World()
    collector = Collector(
        stream=parts.stream,
        generate=TransformersEngine(parts.model, parts.tokenizer, run),
        decode=lambda ids: parts.tokenizer.decode(ids, skip_special_tokens=True),
        judge=parts.judge,
        rules=rules_of(run, world, sharded=False),
        world=world,
    )
    groups = collector.collect().groups
    if not any(group.teaches(mask_truncated=run.mask_truncated) for group in groups):
        raise ValueError(
            "no group of the mini-batch has a signal: all answers are right, or all wrong; use "
            "problems nearer to the model's level, a larger mini_batch_prompts, or "
            "dynamic_sampling"
        )
    return rows_of(groups, run.advantage_scale, mask_truncated=run.mask_truncated)


def _scene(
    policy: Policy, slots: Sequence[Slot], config: TheoryConfig, rates: dict[str, float]
) -> Scene:
    makers = optimizers(config, rates[DESCENT])
    return Scene(
        policy=policy,
        layers=[slot.name for slot in slots],
        gradients=policy.gradients(policy.weights),
        rates=rates,
        updates=config.updates,
        full={name: travel_in_full(policy, make, config.updates) for name, make in makers.items()},
    )


def _checked(scene: Scene, run: TrainConfig, method: str, device: str) -> Iterator[Finding]:
    """All statements about one method."""
    changed = build(TrainConfig, run.model_dump() | {"method": method})
    model = adapted(models.load_model(run.model, run.dtype, device), changed).float()
    slots = slots_of(model)
    start = Start(method, _factors(slots), compose(method).scale(run.rank, run.alpha))
    travels = {
        name: travel_by_factors(scene.policy, start, make, scene.updates)
        for name, make in optimizers(run, scene.rates[DESCENT]).items()
    }
    at_start = _errors(scene, model, start)
    for slot, (A, B) in zip(slots, travels[ADAMW].factors, strict=True):
        for held, factor in zip(slot.factors(), (A, B), strict=True):
            held.copy_(factor)
    errors = [
        {f"{key} at the start": a[key] for key in a} | {f"{key} after T": b[key] for key in b}
        for a, b in zip(at_start, _errors(scene, model, start), strict=True)
    ]
    del model, slots
    yield from lemma(start, scene.layers, errors)
    partner = _partner(scene, run, start)
    if partner is not None:
        yield from ratios(scene, start, partner)
    yield from gaps(scene, start, travels)
    if not start.anchored:
        yield from first_updates(scene, start)
    for optimizer in scene.rates:
        yield from moved_by_kl(scene, start, optimizer)


def _factors(slots: Sequence[Slot]) -> list[Factors]:
    """Copies of A and B in float64."""
    return [Factors(*(factor.double().clone() for factor in slot.factors())) for slot in slots]


def _errors(scene: Scene, model: Any, start: Start) -> list[dict[str, float]]:
    """Lemma A.1's errors on the real layers as they now are, in their own float32."""
    slots, policy = slots_of(model), scene.policy
    policy.backward(model)
    now = _factors(slots)
    moved = zip(policy.weights, start.moved(now), strict=True)
    gradients = policy.gradients([W + dW for W, dW in moved])
    errors = []
    for slot, G, pair in zip(slots, gradients, now, strict=True):
        held = (slot.layer.lora_A, slot.layer.lora_B)
        found = Factors(*(cast(Tensor, weight(one, ADAPTER).grad) for one in held))
        errors.append(
            dict(zip(("dL/dA", "dL/dB"), gradient_errors(found, G, pair, start.scale), strict=True))
        )
    return errors


def _partner(scene: Scene, run: TrainConfig, start: Start) -> Start | None:
    """The start on the same directions with orthonormal rows and B0 = 0, where there is one."""
    name = PARTNERS.get(compose(start.method).init.name)
    if name is None:
        return None
    stored = getattr(torch, run.dtype)  # what the methods start from, so that ties break alike
    factors = [
        initialize(W.to(stored), name, len(A), scale=start.scale)
        for W, (A, _) in zip(scene.policy.weights, start.factors, strict=True)
    ]
    return Start(name, [Factors(A.double(), B.double()) for A, B in factors], start.scale)
