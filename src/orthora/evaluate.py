"""Sampling and scoring: pass@k with intervals, truncation counted apart."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from orthora.callable_module import make_callable
from orthora.config import EvalConfig, build
from orthora.rewards import math_verdict
from orthora.sampling import Response, Sampling, sample, vocabulary_of
from orthora.stats import bootstrap_interval, pass_at_k
from orthora.store import write_json
from orthora.tasks import load_problems
from orthora.types import Problem

_USUAL = 2048  # tokens of a response, at most


@dataclass(frozen=True)
class EvalResult:
    """Scores of one model on one set of problems.

    Attributes:
        pass_at_1: mean over problems of the share of correct samples.
        interval: 95 % bootstrap interval of it, problems resampled.
        pass_at_k: unbiased pass@k for k = 1, 2, 4, ... up to the samples, by k.
        problems: number of problems.
        samples: samples per problem.
        truncated: share of responses cut at the token limit.
        no_answer: share of responses in which the verifier found no answer.
        mean_length: response tokens.
    """

    pass_at_1: float
    interval: tuple[float, float]
    pass_at_k: dict[str, float]
    problems: int
    samples: int
    truncated: float
    no_answer: float
    mean_length: float


def evaluate(config: EvalConfig | dict[str, Any] | str | Path) -> EvalResult:
    """Sample responses of a model, with or without an adapter, and verify them.

    Args:
        config: an `EvalConfig`, a dict of its fields, or a TOML file.

    Returns:
        The scores; also written to ``config.out`` as JSON where that is set.

    Raises:
        ValueError: a bad config, a model, adapter or data file that can't be read, or an output
            file that exists.
    """
    from orthora import models

    config = build(EvalConfig, config)
    if config.out and Path(config.out).exists():
        raise ValueError(f"{config.out} exists; choose another file, or remove it")
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)  # fails now, not after the work
    device = models.pick_device(config.device)
    tokenizer = models.load_tokenizer(config.model)
    problems = eval_problems(config)
    model = models.load_model(config.model, config.dtype, device)
    if config.adapter:
        model = models.load_adapter(model, config.adapter)
    limit = config.max_response_tokens or _room(
        model, tokenizer, problems, plain=config.plain_prompts
    )
    config = config.model_copy(update={"max_response_tokens": limit})
    how = Sampling(
        max_tokens=limit,
        temperature=config.temperature,
        top_p=config.top_p,
        batch=config.batch,
        seed=config.seed,
    )
    result = score(
        model,
        tokenizer,
        problems,
        how,
        config.samples,
        rule=config.reward_rule,
        progress=True,
        plain=config.plain_prompts,
    )
    if config.out:
        write_json(config.out, {"config": config.model_dump(mode="json"), **asdict(result)})
    return result


def _room(model: Any, tokenizer: Any, problems: list[Problem], *, plain: bool) -> int:
    """Tokens for a response: 2048, or what the longest prompt leaves of the model's positions."""
    from orthora.models import prompt_ids

    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions:
        return _USUAL
    longest = max((len(prompt_ids(p, tokenizer, plain=plain)) for p in problems), default=0)
    return max(1, min(_USUAL, positions - longest))


def eval_problems(config: EvalConfig) -> list[Problem]:
    """The problems that an evaluation config asks for, in order."""
    if config.task == "arithmetic":
        from orthora.tasks import arithmetic

        return arithmetic.problems("test", config.problems or 256)
    assert config.data is not None, "validated"
    problems = load_problems(
        config.data,
        split=config.data_split,
        prompt_column=config.prompt_column,
        answer_column=config.answer_column,
        template=config.prompt_template,
    )
    return problems[: config.problems] if config.problems else problems


def score(
    model: Any,
    tokenizer: Any,
    problems: list[Problem],
    how: Sampling,
    samples: int,
    *,
    rule: str = "robust",
    progress: bool = False,
    plain: bool = False,
) -> EvalResult:
    """Sample responses from a model in memory, and verify them.

    Every sample has a random stream of its own, keyed by the problem's place and the sample's
    number. The global random state is left as it was.

    Args:
        model: a transformers or PEFT causal language model.
        tokenizer: its tokenizer.
        problems: at least one.
        how: manner of the samples.
        samples: per problem.
        rule: of `orthora.math_verdict`.
        progress: show a bar on a terminal.
        plain: don't use the tokenizer's chat template.

    Returns:
        Scores with intervals.

    Raises:
        ValueError: if there are no problems, or they are not within the model's positions and
            vocabulary.
    """
    from orthora.models import fit, prompt_ids

    if not problems:
        raise ValueError("no problems to score; check the data file")
    prompts = [prompt_ids(problem, tokenizer, plain=plain) for problem in problems]
    name = getattr(model.config, "name_or_path", None) or type(model).__name__
    fit(model, tokenizer, prompts, how.max_tokens, name=name)
    keys = [[i * samples + s for s in range(samples)] for i in range(len(problems))]
    correct = [0] * len(problems)
    truncated = missing = tokens = 0
    rows: Iterable[tuple[int, int, Response]] = sample(
        model, prompts, keys, how, vocabulary_of(model, tokenizer)
    )
    total = len(problems) * samples
    if progress and sys.stderr.isatty():
        rows = track(rows, "evaluating", total=total, console=Console(stderr=True))
    for index, _, response in rows:
        text = tokenizer.decode(response.ids.tolist(), skip_special_tokens=True)
        verdict = math_verdict(text, problems[index].answer, rule=rule)
        correct[index] += verdict.correct
        missing += verdict.answer is None
        truncated += not response.ended
        tokens += len(response.ids)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
    at = {k: [pass_at_k(samples, c, k) for c in correct] for k in ks}
    return EvalResult(
        pass_at_1=sum(at[1]) / len(at[1]),
        interval=bootstrap_interval(at[1]),
        pass_at_k={str(k): sum(values) / len(values) for k, values in at.items()},
        problems=len(problems),
        samples=samples,
        truncated=truncated / total,
        no_answer=missing / total,
        mean_length=tokens / total,
    )


make_callable(__name__, evaluate)
