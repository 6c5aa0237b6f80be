"""What draws the rollouts: our sampler, or TRL's for vLLM and for weights that are sharded."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from orthora.adapters import folded, folds_exactly, merged_parameters
from orthora.config import TrainConfig
from orthora.sampling import Response, Sampling, sample, vocabulary_of

Prompts = Sequence[Sequence[int]]
Keys = Sequence[Sequence[int]]


def check_engine_available(config: TrainConfig) -> None:
    """Refuse an engine that is not installed or can't serve this run.

    Raises:
        ValueError: with the remedy.
    """
    if config.engine != "vllm":
        return
    if find_spec("vllm") is None:
        raise ValueError(
            "engine 'vllm' needs vLLM, which is not installed; pip install 'trl[vllm]' on a GPU "
            "machine, or use engine 'transformers'"
        )
    if config.vllm_mode == "server" and not config.vllm_url:
        raise ValueError(
            "vllm_mode 'server' needs vllm_url, e.g. http://localhost:8000; start it with: trl "
            f"vllm-serve --model {config.model}"
        )


class TransformersEngine:
    """Our sampler on the policy itself, adapters folded where that is exact."""

    def __init__(self, model: Any, tokenizer: Any, config: TrainConfig) -> None:
        self._model = model
        self._how = sampling_of(config)
        self._vocabulary = vocabulary_of(model, tokenizer)
        self._fold = config.fold_adapter == "auto" and folds_exactly(model)

    def __call__(self, prompts: Prompts, keys: Keys) -> list[list[Response]]:
        """Responses to each prompt, one per key."""
        found: list[dict[int, Response]] = [{} for _ in prompts]
        with folded(self._model) if self._fold else nullcontext():
            rows = sample(self._model, prompts, keys, self._how, self._vocabulary)
            for index, number, response in rows:
                found[index][number] = response
        return [[group[i] for i in range(len(group))] for group in found]


class SharedEngine:
    """TRL's own rollouts: vLLM, or generate() on weights that are sharded over processes.

    Both need every process in every call, and draw from their own random state; log-probabilities
    come from vLLM alone.
    """

    def __init__(self, trainer: Any, ends: Sequence[int]) -> None:
        self._trainer, self._ends = trainer, set(ends)

    def __call__(self, prompts: Prompts, keys: Keys) -> list[list[Response]]:
        """Responses to each prompt, as many as it has keys; every prompt has the same number."""
        G = len(keys[0]) if keys else 0
        repeated = [list(ids) for ids, group in zip(prompts, keys, strict=True) for _ in group]
        ids, logps = self._trainer._generate_single_turn(repeated, None, {}, G)
        flat = [
            self._response(tokens, None if logps is None else logps[i])
            for i, tokens in enumerate(ids)
        ]
        return [flat[i : i + G] for i in range(0, len(flat), G)]

    def _response(self, tokens: Sequence[int], logps: Sequence[float] | None) -> Response:
        """A response; a log-probability that the engine could not give is NaN."""
        values = [] if logps is None else [math.nan if x is None else x for x in logps]
        return Response(
            torch.tensor(list(tokens), dtype=torch.int32),
            torch.tensor(values, dtype=torch.float32),
            bool(tokens) and tokens[-1] in self._ends,
        )


def serve_merged_weights(trainer: Any) -> None:
    """Let vLLM's weight transfer send exactly merged weights, and leave the base as it is.

    TRL merges in place and unmerges after, which leaves rounding in the base at every step, and
    does not know anchors. With this any structure is served: DoRA, rank patterns, AdaLoRA.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainer.vllm_generation._iter_named_params = lambda: merged_parameters(model)


def sampling_of(config: TrainConfig) -> Sampling:
    """The config's sampling."""
    return Sampling(
        max_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch=config.rollout_batch,
        seed=config.seed,
    )
