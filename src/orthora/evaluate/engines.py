"""What draws the samples: our sampler, or vLLM. Both go on where an evaluation was interrupted."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from orthora.checkpoint import json_object
from orthora.config import EvalConfig
from orthora.evaluate.scoring import Drawn
from orthora.sampling import Sampling, sample, vocabulary_of

Wanted = Callable[[int, int], bool]

_UNSERVED = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias",
    "target_parameters", "layer_replication", "trainable_token_indices",
)  # fmt: skip
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM reserves room for."""


def keys_of(problems: int, samples: int) -> list[list[int]]:
    """The key of every sample's own random stream, by problem."""
    return [[i * samples + s for s in range(samples)] for i in range(problems)]


def draw(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    samples: int,
    how: Sampling,
    wanted: Wanted = lambda index, number: True,
) -> Iterator[Drawn]:
    """Samples from a transformers model, prompts of like length together.

    Args:
        model: a transformers or PEFT causal language model.
        tokenizer: its tokenizer.
        prompts: token ids.
        samples: of each.
        how: manner of the samples.
        wanted: as in `orthora.sampling.sample`.
    """
    keys = keys_of(len(prompts), samples)
    rows = sample(model, prompts, keys, how, vocabulary_of(model, tokenizer), wanted=wanted)
    for index, number, response in rows:
        ids = response.ids.tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        yield Drawn(index, number, text, len(ids), response.ended)


def seed_of(seed: int, key: int) -> int:
    """A sample's own seed for vLLM, 63 bits; another for every pair."""
    return int(np.random.SeedSequence([seed, key]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def check_vllm(adapter: Path | None, dtype: str) -> None:
    """Refuse what vLLM can't do here.

    Args:
        adapter: folder of a PEFT adapter.
        dtype: of the weights.

    Raises:
        ValueError: with the remedy.
    """
    if find_spec("vllm") is None:
        raise ValueError(
            "engine 'vllm' needs vLLM, which is not installed; pip install vllm on a GPU machine, "
            "or use engine 'transformers'"
        )
    if adapter is None:
        return
    if dtype == "float32":
        raise ValueError(
            "vLLM serves adapters in 16 bits only; set dtype 'bfloat16', or use engine "
            "'transformers'"
        )
    settings = json_object(adapter / "adapter_config.json")
    kept = settings.get("peft_type") != "LORA" and f"peft_type {settings.get('peft_type')}"
    odd = [
        kept,
        *(name for name in _UNSERVED if settings.get(name)),
        settings.get("bias", "none") != "none" and "bias",
        settings.get("r", 0) > _RANKS[-1] and f"rank {settings.get('r')}",
    ]
    if found := [name for name in odd if name]:
        raise ValueError(
            f"vLLM can't serve adapter {str(adapter)!r} ({', '.join(map(str, found))}); write the "
            "merged model with orthora export --form merged and evaluate that as model, or use "
            "engine 'transformers'"
        )


def draw_vllm(
    config: EvalConfig,
    model: str,
    adapter: Path | None,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    samples: int,
    how: Sampling,
    wanted: Wanted = lambda index, number: True,
) -> Iterator[Drawn]:
    """Samples from vLLM, ``how.batch`` requests at a time, each with a seed of its own.

    vLLM's kernels depend on what shares a batch: equal seeds give equal samples on one machine and
    version only to rounding.

    Args:
        config: for the engine's settings.
        model: folder or hub name.
        adapter: folder of a PEFT adapter, served beside it.
        tokenizer: the model's.
        prompts: token ids.
        samples: of each.
        how: manner of the samples.
        wanted: of problem and sample; the others are passed over.

    Raises:
        ValueError: if vLLM returns another number of samples than asked for.
    """
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    request, more = _served(adapter)
    engine = LLM(
        model=model,
        dtype=config.dtype,
        seed=config.seed % 2**31,
        gpu_memory_utilization=config.vllm_memory,
        tensor_parallel_size=config.vllm_tensor_parallel,
        max_model_len=max(map(len, prompts)) + how.max_tokens,
        **more,
    )
    keys = keys_of(len(prompts), samples)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    places = [(i, s) for i in order for s in range(samples) if wanted(i, s)]
    for start in range(0, len(places), how.batch):
        block = places[start : start + how.batch]
        manner = [
            SamplingParams(
                n=1,
                temperature=how.temperature,
                top_p=how.top_p,
                top_k=how.top_k or -1,
                max_tokens=how.max_tokens,
                seed=seed_of(how.seed, keys[i][s]),
            )
            for i, s in block
        ]
        asked = [{"prompt_token_ids": list(prompts[i])} for i, _ in block]
        answers = engine.generate(asked, manner, lora_request=request, use_tqdm=False)
        found = [output for answer in answers for output in answer.outputs]
        if len(found) != len(block):
            raise ValueError(
                f"vLLM returned {len(found)} samples where {len(block)} were asked for; nothing of "
                "this batch was kept, the same command tries again"
            )
        for (i, s), output in zip(block, found, strict=True):
            ids = list(output.token_ids)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield Drawn(i, s, text, len(ids), output.finish_reason == "stop")


def _served(adapter: Path | None) -> tuple[Any, dict[str, Any]]:
    """The request to vLLM for an adapter, and the engine's settings for it."""
    if adapter is None:
        return None, {}
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    settings = json_object(adapter / "adapter_config.json")
    room = next(rank for rank in _RANKS if rank >= settings["r"])
    request = LoRARequest("adapter", 1, str(adapter))
    return request, {"enable_lora": True, "max_lora_rank": room}
