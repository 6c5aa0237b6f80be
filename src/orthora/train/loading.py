"""What a run needs, read and checked before anything is written."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trl.trainer.utils import disable_dropout_in_model

from orthora import models
from orthora.adapters import adapt
from orthora.adapters.checks import asked_for
from orthora.adapters.wrap import as_names
from orthora.config import TrainConfig
from orthora.methods import compose
from orthora.tasks import load_problems
from orthora.train.engines import check_engine_available
from orthora.train.rewards import Judge, OwnReward, import_reward, own_judge, verdict_judge
from orthora.train.rollouts import Stream
from orthora.train.settings import updates_per_step
from orthora.types import Problem


@dataclass
class Parts:
    """What is loaded and checked before anything is written.

    Attributes:
        tokenizer: of the base model.
        model: the base, adapted.
        train: training problems within the prompt limit.
        stream: the same problems in the order in which they are drawn.
        held_out: problems to score at the end; may be empty.
        dropped: training prompts over the limit, or without a token the tokenizer knows.
        judge: of responses.
    """

    tokenizer: Any
    model: Any
    train: list[Problem]
    stream: Stream
    held_out: list[Problem]
    dropped: int
    judge: Judge


def load_parts(config: TrainConfig, reward: OwnReward | str | None, device: str) -> Parts:
    """Read model and data and attach the adapters.

    Raises:
        ValueError: as `orthora.train` says, for model, data and adapter.
    """
    check_engine_available(config)
    own = reward or config.reward
    judge = (
        own_judge(import_reward(own) if isinstance(own, str) else own)
        if own
        else verdict_judge(config.reward_rule)
    )
    tokenizer = models.load_tokenizer(config.model)
    train_problems, held_out = _problems(config)
    plain = config.plain_prompts
    ids = [models.prompt_ids(problem, tokenizer, plain=plain) for problem in train_problems]
    kept = [i for i, prompt in enumerate(ids) if 0 < len(prompt) <= config.max_prompt_tokens]
    if len(kept) < config.prompts_per_step:
        raise ValueError(
            f"{len(kept)} of {len(train_problems)} prompts are within max_prompt_tokens "
            f"{config.max_prompt_tokens}, and a step needs {config.prompts_per_step}; raise "
            "max_prompt_tokens, lower prompts_per_step, or give more data"
        )
    problems, prompts = [train_problems[i] for i in kept], [ids[i] for i in kept]
    base = models.load_model(config.model, config.dtype, device)
    _check_fit(config, base, tokenizer, prompts, held_out)
    _check_head(config, base)
    disable_dropout_in_model(base)  # the policy that samples must be the policy that is updated
    model = adapt(
        base,
        config.method,
        rank=config.rank,
        alpha=config.alpha,
        target_modules=config.target_modules,
        seed=config.seed,
        dropout=config.dropout,
        unfit=None,
        start=config.start,
        total_updates=config.steps * updates_per_step(config),
    )
    stream = Stream(problems, prompts, config.seed)
    dropped = len(train_problems) - len(kept)
    return Parts(tokenizer, model, problems, stream, held_out, dropped, judge)


def _check_fit(
    config: TrainConfig,
    base: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    held_out: list[Problem],
) -> None:
    """What is trained on and what is scored at the end are within the model."""
    name, plain = config.model, config.plain_prompts
    limits = (config.max_response_tokens, config.max_prompt_tokens)
    models.fit(base, tokenizer, prompts, limits[0], name=name, prompt_tokens=limits[1])
    if held_out:
        ids = [models.prompt_ids(problem, tokenizer, plain=plain) for problem in held_out]
        models.fit(base, tokenizer, ids, limits[0], name=name)


def _check_head(config: TrainConfig, base: Any) -> None:
    """Refuse an adapter on the output head: TRL reads the head's own weight, past the adapter."""
    if compose(config.method).export == "merged":
        return
    head = base.get_output_embeddings()
    targets = as_names(config.target_modules)
    for name, module in base.named_modules():
        with suppress(re.error):  # adapt() refuses such a pattern
            if module is head and asked_for(base, name, targets):
                raise ValueError(
                    f"target_modules {config.target_modules!r} takes in the output head {name!r}, "
                    "on which no adapter can train; take it out of target_modules"
                )


def _problems(config: TrainConfig) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems."""
    if config.task == "arithmetic":
        from orthora.tasks import arithmetic

        drawn = arithmetic.problems("train", config.train_problems, seed=config.seed)
        held_out = arithmetic.problems("test", config.eval_problems) if config.eval_problems else []
        return drawn, held_out
    columns = {
        "prompt_column": config.prompt_column,
        "answer_column": config.answer_column,
        "template": config.prompt_template,
    }
    assert config.data is not None, "validated"
    drawn = load_problems(config.data, split=config.data_split, **columns)
    if not config.eval_data:
        return drawn, []
    return drawn, load_problems(config.eval_data, split="test", **columns)[: config.eval_problems]
