"""Responses drawn from a transformers model, with their log-probabilities, wasting nothing.

Prompts are prefilled once for all their samples, finished rows leave the batch, and each row draws
from a random stream of its own: what is sampled depends on the seed and the response's key alone,
not on who shares its batch, its process, or on what was drawn before. So a run on two processes,
or one that was resumed, draws the same as any other (to rounding of the logits).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from orthora.failures import NotFinite

_DRAWS = 64  # uniform numbers that a row takes from its stream at a time
_DROP = 0.75  # share of rows still unfinished, under which the finished ones leave the batch


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        max_tokens: limit of a response; reaching it without an end token counts as truncated.
        temperature: 0 is greedy.
        top_p: nucleus; 1 is all.
        top_k: candidates; 0 is all.
        batch: responses generated at once.
        seed: of the samples.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch: int = 256
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Response:
    """One sampled response, on the CPU.

    Attributes:
        ids: (t,) token ids, the end token included.
        logps: (t,) log-probability of each under the policy at the sampling temperature, before
            top-p and top-k; empty where the engine gave none.
        ended: False if it was cut at the limit.
    """

    ids: Int[Tensor, " t"]
    logps: Float[Tensor, " t"]
    ended: bool


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that matter to sampling.

    Attributes:
        ends: token ids that end a response.
        pad: token id of padding.
    """

    ends: tuple[int, ...]
    pad: int


def vocabulary_of(model: Any, tokenizer: Any) -> Vocabulary:
    """End tokens of tokenizer and generation config, and the pad token."""
    config = getattr(model, "generation_config", None)
    more = getattr(config, "eos_token_id", None)
    more = [] if more is None else [more] if isinstance(more, int) else list(more)
    ends = dict.fromkeys([tokenizer.eos_token_id, *more])
    return Vocabulary(tuple(ends), tokenizer.pad_token_id)


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    how: Sampling,
    vocabulary: Vocabulary,
    *,
    wanted: Callable[[int, int], bool] = lambda index, number: True,
) -> Iterator[tuple[int, int, Response]]:
    """Responses to every prompt, prompts of like length together.

    Args:
        model: a causal language model, or a PEFT model around one; left in the mode it was in.
        prompts: token ids of each prompt; none may be empty.
        keys: for each prompt, one integer per response, which names its random stream.
        how: manner of sampling.
        vocabulary: end and pad tokens.
        wanted: of prompt and response; batches without a wanted one are passed over, the others are
            generated whole, so that an interrupted work goes on with the same batches, bit for bit.

    Yields:
        Index of the prompt, index of the response among its samples, and the response; prompt by
        prompt within a batch, batches by length.

    Raises:
        ValueError: an empty prompt.
        NotFinite: logits that are not finite.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens; leave it out")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for rows in _batches(prompts, keys, how.batch):
                if not any(wanted(index, number) for index, group in rows for number in group):
                    continue
                drawn = _generate(inner, [prompts[i] for i, _ in rows], rows, keys, how, vocabulary)
                yield from drawn
    finally:
        model.train(training)


Rows = list[tuple[int, range]]
"""Prompts of a batch: index, and which of their samples."""


def _batches(
    prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], size: int
) -> Iterator[Rows]:
    """Prompts sorted by length and cut so that a batch holds at most ``size`` responses."""
    rows: Rows = []
    free = size
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        start, count = 0, len(keys[index])
        while start < count:
            taken = min(free, count - start)
            rows.append((index, range(start, start + taken)))
            start, free = start + taken, free - taken
            if free == 0:
                yield rows
                rows, free = [], size
    if rows:
        yield rows


def _generate(
    model: Any,
    prompts: list[Sequence[int]],
    rows: Rows,
    keys: Sequence[Sequence[int]],
    how: Sampling,
    vocabulary: Vocabulary,
) -> Iterator[tuple[int, int, Response]]:
    """One batch: prefill each prompt once, then decode all of its samples."""
    ids, mask = _left_padded(prompts, vocabulary.pad, model.device)
    cache = DynamicCache(config=model.config)
    logits = _step(model, ids, mask, mask.cumsum(1).sub_(1).clamp_(min=0), cache)
    counts = torch.tensor([len(samples) for _, samples in rows], device=ids.device)
    spread = torch.repeat_interleave(torch.arange(len(rows), device=ids.device), counts)
    if len(spread) > len(rows):
        cache.batch_select_indices(spread)
        logits, mask = logits[spread], mask[spread]
    places = [(index, s) for index, samples in rows for s in samples]
    streams = _Streams(how.seed, [keys[index][s] for index, s in places])
    decoder = _Decoder(model, cache, mask, how, vocabulary, streams)
    for (index, s), response in zip(places, decoder.run(logits), strict=True):
        yield index, s, response


def _step(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Logits (B, V) after the last token, float32; extends the cache."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def _left_padded(
    prompts: list[Sequence[int]], pad: int, device: torch.device
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


class _Streams:
    """Uniform random numbers, an independent stream for every row (Philox, keyed)."""

    def __init__(self, seed: int, keys: list[int]) -> None:
        self._streams = [
            np.random.Generator(np.random.Philox(key=np.array([seed, key], dtype=np.uint64)))
            for key in keys
        ]
        self._block = np.empty((len(keys), 0))
        self._used = 0

    def next(self, alive: Tensor) -> Float[Tensor, " b"]:
        """The next number of each row in ``alive``, in [0, 1)."""
        if self._used == self._block.shape[1]:
            self._block = np.stack([stream.random(_DRAWS) for stream in self._streams])
            self._used = 0
        numbers = torch.from_numpy(self._block[:, self._used].copy())
        self._used += 1
        return numbers.to(alive.device)[alive]


class _Decoder:
    """Token after token for a batch of rows, until each has ended or reached the limit."""

    def __init__(
        self,
        model: Any,
        cache: Any,
        mask: Tensor,
        how: Sampling,
        vocabulary: Vocabulary,
        streams: _Streams,
    ) -> None:
        self._model, self._cache, self._how, self._streams = model, cache, how, streams
        count, width = mask.shape
        self._mask = mask.new_ones(count, width + how.max_tokens)
        self._mask[:, :width] = mask
        self._width = width
        self._positions = mask.sum(1)
        self._alive = torch.arange(count, device=mask.device)
        self._ends = torch.tensor(vocabulary.ends, device=mask.device)
        self._ids = mask.new_full((count, how.max_tokens), vocabulary.pad)
        self._logps = torch.zeros(count, how.max_tokens, device=mask.device)
        self._lengths = mask.new_full((count,), how.max_tokens)
        self._ended = torch.zeros(count, dtype=torch.bool, device=mask.device)
        self._warpers = _warpers(how)

    def run(self, logits: Tensor) -> Iterator[Response]:
        """Decode from the logits after the prompts; responses in the order of the rows."""
        open_rows = torch.ones(len(self._alive), dtype=torch.bool, device=logits.device)
        for t in range(self._how.max_tokens):
            tokens, logps = self._draw(logits)
            rows = self._alive[open_rows]
            self._ids[rows, t], self._logps[rows, t] = tokens[open_rows], logps[open_rows]
            over = open_rows & torch.isin(tokens, self._ends)
            self._lengths[self._alive[over]] = t + 1
            self._ended[self._alive[over]] = True
            open_rows = open_rows & ~over
            left = int(open_rows.sum())
            if left == 0 or t + 1 == self._how.max_tokens:
                break
            if left < _DROP * len(open_rows):
                tokens, open_rows = self._drop(tokens, open_rows)
            logits = _step(
                self._model,
                tokens[:, None],
                self._mask[:, : self._width + t + 1],
                (self._positions + t)[:, None],
                self._cache,
            )
        return self._responses()

    def _drop(self, tokens: Tensor, open_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take the finished rows out of the batch."""
        kept = open_rows.nonzero().squeeze(1)
        self._cache.batch_select_indices(kept)
        self._mask, self._positions = self._mask[kept], self._positions[kept]
        self._alive = self._alive[kept]
        return tokens[kept], open_rows[kept]

    def _draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row, by inversion of the distribution function, and its log-probability."""
        greedy = self._how.temperature == 0
        scaled = logits if greedy else logits / self._how.temperature
        logps = torch.log_softmax(scaled, dim=-1)
        if not bool(torch.isfinite(logps.amax(dim=-1)).all()):
            raise NotFinite(
                "the model's logits are not finite; lower the learning rate, or use float32"
            )
        numbers = self._streams.next(self._alive)
        if greedy:
            tokens = logits.argmax(dim=-1)
        else:
            for warper in self._warpers:
                scaled = warper(self._ids, scaled)
            probabilities = torch.softmax(scaled, dim=-1)
            below = probabilities.cumsum(dim=-1)
            whole = below[:, -1:]
            targets = numbers.to(below.dtype)[:, None] * whole
            # rounded up to the whole it would fall on the last token, however unlikely that is
            targets = targets.minimum(torch.nextafter(whole, torch.zeros_like(whole)))
            tokens = torch.searchsorted(below, targets, right=True).squeeze(1)
        return tokens, logps.gather(1, tokens[:, None]).squeeze(1)

    def _responses(self) -> Iterator[Response]:
        ids, logps = self._ids.to("cpu", torch.int32), self._logps.cpu()
        ended = self._ended.tolist()
        for row, length in enumerate(self._lengths.tolist()):
            yield Response(ids[row, :length].clone(), logps[row, :length].clone(), ended[row])


def _warpers(how: Sampling) -> list[Any]:
    """Top-k and top-p, after the temperature; transformers' own."""
    warpers: list[Any] = []
    if how.top_k:
        warpers.append(TopKLogitsWarper(top_k=how.top_k))
    if how.top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p=how.top_p))
    return warpers
