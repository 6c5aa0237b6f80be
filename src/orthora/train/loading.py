"""What a run needs, read and checked before anything is written."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trl.trainer.utils import disable_dropout_in_model

from orthora import models
from orthora.adapters.checks import asked_for
from orthora.adapters.wrap import as_names
from orthora.config import TrainConfig
from orthora.methods import compose
from orthora.rewards import check_programs
from orthora.train.engines import check_engine_available
from orthora.train.problems import Source, as_record, held_out_problems, training_problems
from orthora.train.rewards import (
    Judge,
    OwnReward,
    import_reward,
    own_judge,
    verdict_judge,
)
from orthora.train.rollouts import Stream
from orthora.trained import adapted
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
        source: where the training problems come from.
        held_out_source: where the others come from; None where there are none.
    """

    tokenizer: Any
    model: Any
    train: list[Problem]
    stream: Stream
    held_out: list[Problem]
    dropped: int
    judge: Judge
    source: Source
    held_out_source: Source | None = None


def load_parts(config: TrainConfig, reward: OwnReward | str | None, device: str) -> Parts:
    """Read model and data and attach the adapters.

    Raises:
        ValueError: as `orthora.train` says, for model, data and adapter; or programs are to be
            judged, and there is no sandbox for them.
    """
    check_engine_available(config)
    own = reward or config.reward
    judge = _judge(own, config.reward_rule)
    tokenizer = models.load_tokenizer(config.model)
    train_problems, source = training_problems(config)
    held_out, scored = held_out_problems(config)
    check_programs(held_out if own else [*train_problems, *held_out])
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
    model = adapted(base, config)
    stream = Stream(problems, prompts, config.seed)
    dropped = len(train_problems) - len(kept)
    return Parts(tokenizer, model, problems, stream, held_out, dropped, judge, source, scored)


def problems_record(config: TrainConfig, parts: Parts) -> dict[str, Any]:
    """What a run is trained on and scored on, for its folder.

    Args:
        config: of the run.
        parts: of the run.

    Returns:
        Source and counts of the training problems, their fingerprint, one of them with its prompt
        as the model sees it, and the source of the held-out ones.
    """
    example = parts.train[0]
    prompt = models.prompt_text(example, parts.tokenizer, plain=config.plain_prompts)
    held_out = parts.held_out_source
    return {
        **as_record(parts.source),
        "read": parts.source.read,
        "drop": list(config.drop),
        "dropped_rows": parts.source.dropped,
        "dropped_prompts": parts.dropped,
        "problems": len(parts.train),
        "fingerprint": parts.stream.fingerprint,
        "example": {"id": example.id, "prompt": prompt, "answer": example.answer},
        "held_out": held_out and as_record(held_out) | {"problems": len(parts.held_out)},
    }


def _judge(own: OwnReward | str | None, rule: str) -> Judge:
    """The user's own reward, or the verifier."""
    if not own:
        return verdict_judge(rule)
    return own_judge(import_reward(own) if isinstance(own, str) else own)


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
