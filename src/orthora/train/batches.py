"""Rows as padded tensors, one sequence per response or one per group.

A group's responses share their prompt. In the *shared* layout it stands once, followed by every
response behind a copy of the prompt's last token, and an attention mask lets each response see its
prompt and itself: the same numbers for fewer tokens, as long as the longer attention costs less
than the repeated prompts and the padding. Short groups stand one behind the other where they fit
into the longest one's length. Both layouts give matrices (S, T) by response and token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthora.train.dealing import groups_of, packed, tokens_of
from orthora.train.rollouts import Row


@dataclass(frozen=True)
class Batch:
    """S responses for one forward pass.

    Right padding keeps every token at its position, for absolute position embeddings too.

    Attributes:
        ids: (B, L) token ids; B is S, or at most the number of groups in the shared layout.
        attention: (B, L), 1 on tokens; in the shared layout (B, 1, L, L), added to the scores.
        positions: (B, L) position of each token in its own sequence.
        labels: (B, L), the token id on response tokens, -100 elsewhere.
        take: (S, T) where a response's tokens stand among the B (L - 1) predictions.
        mask: (S, T), 1 on response tokens that count in the loss.
        old: (S, T) log-probabilities of the ratio's base; None without.
        sampled: (S, T) log-probabilities of the sampling engine; None where these are the old.
        reference: (S, T) log-probabilities of the base; None without.
        advantage: (S,).
    """

    ids: Int[Tensor, "B L"]
    attention: Tensor
    positions: Int[Tensor, "B L"]
    labels: Int[Tensor, "B L"]
    take: Int[Tensor, "S T"]
    mask: Float[Tensor, "S T"]
    old: Float[Tensor, "S T"] | None
    sampled: Float[Tensor, "S T"] | None
    reference: Float[Tensor, "S T"] | None
    advantage: Float[Tensor, " S"]

    def weight(self, cap: float) -> Tensor | None:
        """Truncated importance weights (S, T) of trainer over sampler; None where they are one.

        Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training").
        A token that the sampler could not score (NaN) has weight 1.
        """
        if self.sampled is None or self.old is None or not cap:
            return None
        return (self.old - self.sampled).nan_to_num(0.0).exp().clamp(max=cap)


@dataclass
class _Sequences:
    """The tokens of a batch as they are laid out, before padding.

    Attributes:
        ids: token ids of each sequence.
        positions: of each token.
        segments: number of the prompt or response that it is of, in its sequence, from 0.
        prompts: number of the prompt that it may see.
        starts: sequence and place of the first token of each response.
    """

    ids: list[Tensor]
    positions: list[Tensor]
    segments: list[Tensor]
    prompts: list[Tensor]
    starts: list[tuple[int, int]]


def collate(
    rows: Sequence[Row],
    pad: int,
    device: torch.device | str = "cpu",
    *,
    shared: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Lay rows out and pad them.

    Args:
        rows: at least one; in the shared layout those of a group stand together.
        pad: token id of padding.
        device: where the tensors go.
        shared: one sequence per group.
        dtype: of the model, for the mask of the shared layout.
    """
    laid = _by_group(rows) if shared else _by_response(rows)
    width = max(map(len, laid.ids))
    ids = _padded(laid.ids, width, pad)
    labels = torch.full_like(ids, -100)
    longest = max(len(row.ids) for row in rows)
    take = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest)
    for i, (row, (sequence, start)) in enumerate(zip(rows, laid.starts, strict=True)):
        end = start + len(row.ids)
        labels[sequence, start:end] = ids[sequence, start:end]
        take[i, : len(row.ids)] = torch.arange(start - 1, end - 1) + sequence * (width - 1)
        mask[i, : len(row.ids)] = float(row.counts)
    segments = _padded(laid.segments, width, -1).to(device)
    if shared:
        attention = _shared_mask(segments, _padded(laid.prompts, width, -1).to(device), dtype)
    else:
        attention = (segments >= 0).long()
    return Batch(
        ids=ids.to(device),
        attention=attention,
        positions=_padded(laid.positions, width, 0).to(device),
        labels=labels.to(device),
        take=take.to(device),
        mask=mask.to(device),
        **{name: _values(rows, name, longest, device) for name in ("old", "sampled", "reference")},
        advantage=torch.tensor([row.advantage for row in rows], dtype=torch.float32).to(device),
    )


def _by_response(rows: Sequence[Row]) -> _Sequences:
    """Prompt and response, for each response."""
    ids = [torch.cat([torch.tensor(row.prompt), row.ids.long()]) for row in rows]
    zeros = [torch.zeros(len(one), dtype=torch.long) for one in ids]
    return _Sequences(
        ids,
        [torch.arange(len(one)) for one in ids],
        zeros,
        zeros,
        [(i, len(row.prompt)) for i, row in enumerate(rows)],
    )


def _by_group(rows: Sequence[Row]) -> _Sequences:
    """The prompt but for its last token, then for each response that token and the response."""
    groups = groups_of(rows)
    laid = _Sequences([], [], [], [], [(0, 0)] * len(rows))
    for number, together in enumerate(packed([tokens_of(rows, group) for group in groups])):
        parts: list[tuple[Tensor, int, int]] = []  # with first position, and number of the prompt
        place = 0
        for group in (groups[k] for k in together):
            prompt, own = torch.tensor(rows[group[0]].prompt), len(parts)
            parts.append((prompt[:-1], 0, own))
            place += len(prompt) - 1
            for i in group:
                laid.starts[i] = (number, place + 1)
                parts.append((torch.cat([prompt[-1:], rows[i].ids.long()]), len(prompt) - 1, own))
                place += len(rows[i].ids) + 1
        sizes = [len(part) for part, _, _ in parts]
        laid.ids.append(torch.cat([part for part, _, _ in parts]))
        laid.positions.append(torch.cat([torch.arange(at, at + len(p)) for p, at, _ in parts]))
        laid.segments.append(torch.arange(len(parts)).repeat_interleave(torch.tensor(sizes)))
        prompts = torch.tensor([own for _, _, own in parts])
        laid.prompts.append(prompts[laid.segments[-1]])
    return laid


def _shared_mask(
    segments: Int[Tensor, "B L"], prompts: Int[Tensor, "B L"], dtype: torch.dtype
) -> Float[Tensor, "B 1 L L"]:
    """0 where a token may look, the lowest number elsewhere: backwards, at prompt and own response.

    A padded token looks at itself, so that no row of scores is empty.
    """
    length = segments.shape[1]
    asks, asked = segments[:, :, None], segments[:, None, :]
    back = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    seen = back & ((asked == prompts[:, :, None]) | (asked == asks)) & (asked >= 0)
    seen |= torch.eye(length, dtype=torch.bool, device=segments.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _padded(values: Sequence[Tensor], width: int, fill: int) -> Tensor:
    target = torch.full((len(values), width), fill)
    for i, value in enumerate(values):
        target[i, : len(value)] = value
    return target


def _values(
    rows: Sequence[Row], name: str, longest: int, device: torch.device | str
) -> Tensor | None:
    """One kind of log-probabilities; None if a row has none."""
    if any(getattr(row, name) is None for row in rows):
        return None
    target = torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        target[i, : len(row.ids)] = getattr(row, name)
    return target.to(device)
