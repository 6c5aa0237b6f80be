"""Sampling and scoring: pass@k with intervals, truncation counted apart."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from orthora.callable_module import make_callable
from orthora.config import EvalConfig, build
from orthora.rewards import math_verdict
from orthora.stats import bootstrap_interval, pass_at_k
from orthora.store import write_json
from orthora.tasks import load_problems
from orthora.types import Problem


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


_Response = tuple[int, str, int, bool]
"""Problem index, text, tokens, truncated."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        samples: per problem.
        max_tokens: limit of a response; reaching it without an end token counts as truncated.
        temperature: 0 is greedy.
        top_p: nucleus.
        batch: responses generated at once.
        seed: of the samples.
    """

    samples: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch: int = 256
    seed: int = 0


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
    how = Sampling(
        samples=config.samples,
        max_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        batch=config.batch,
        seed=config.seed,
    )
    result = score(model, tokenizer, problems, how, rule=config.reward_rule, progress=True)
    if config.out:
        write_json(config.out, {"config": config.model_dump(mode="json"), **asdict(result)})
    return result


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
    *,
    rule: str = "robust",
    progress: bool = False,
) -> EvalResult:
    """Sample responses from a model in memory, and verify them.

    The global random state is left as it was.

    Args:
        model: a transformers or PEFT causal language model.
        tokenizer: its tokenizer, padding on the left.
        problems: at least one.
        how: number and manner of the samples.
        rule: of `orthora.math_verdict`.
        progress: show a bar on a terminal.

    Returns:
        Scores with intervals.

    Raises:
        ValueError: if there are no problems.
    """
    if not problems:
        raise ValueError("no problems to score; check the data file")
    correct = [0] * len(problems)
    truncated = missing = tokens = 0
    rows: Iterable[_Response] = _responses(model, tokenizer, problems, how)
    total = len(problems) * how.samples
    if progress and sys.stderr.isatty():
        rows = track(rows, "evaluating", total=total, console=Console(stderr=True))
    for index, text, length, cut in rows:
        verdict = math_verdict(text, problems[index].answer, rule=rule)
        correct[index] += verdict.correct
        missing += verdict.answer is None
        truncated += cut
        tokens += length
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= how.samples]
    at = {k: [pass_at_k(how.samples, c, k) for c in correct] for k in ks}
    return EvalResult(
        pass_at_1=sum(at[1]) / len(at[1]),
        interval=bootstrap_interval(at[1]),
        pass_at_k={str(k): sum(values) / len(values) for k, values in at.items()},
        problems=len(problems),
        samples=how.samples,
        truncated=truncated / total,
        no_answer=missing / total,
        mean_length=tokens / total,
    )


def _responses(
    model: Any, tokenizer: Any, problems: list[Problem], how: Sampling
) -> Iterator[_Response]:
    """Every sample, prompts of like length together."""
    from transformers import GenerationConfig

    from orthora.models import prompt_ids

    settings = GenerationConfig(
        max_new_tokens=how.max_tokens,
        do_sample=how.temperature > 0,
        **(
            {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
            if how.temperature > 0
            else {}
        ),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    ids = [prompt_ids(problem, tokenizer) for problem in problems]
    order = sorted(range(len(problems)), key=lambda i: len(ids[i]))
    jobs = [index for index in order for _ in range(how.samples)]
    training, cuda = model.training, [model.device] if model.device.type == "cuda" else []
    model.eval()
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        torch.manual_seed(how.seed)
        for start in range(0, len(jobs), how.batch):
            chunk = jobs[start : start + how.batch]
            inputs = tokenizer.pad(
                {"input_ids": [ids[i] for i in chunk]}, return_tensors="pt", padding_side="left"
            ).to(model.device)
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=settings,
            )[:, inputs["input_ids"].shape[1] :]
            for index, row in zip(chunk, output.tolist(), strict=True):
                ended = tokenizer.eos_token_id in row
                length = row.index(tokenizer.eos_token_id) + 1 if ended else len(row)
                text = tokenizer.decode(row[:length], skip_special_tokens=True)
                yield index, text, length, not ended
    model.train(training)


make_callable(__name__, evaluate)
