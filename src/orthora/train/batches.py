"""Rows as padded tensors, one sequence per response or one per group.

A group's responses share their prompt. In the *shared* layout it stands once, followed by every
response behind a copy of the prompt's last token, and an attention mask lets each response see the
prompt and itself: the same numbers for fewer tokens, as long as the longer attention costs less
than the repeated prompts and the padding. Both layouts give matrices (S, T) by response and token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthora.train.rollouts import Row


@dataclass(frozen=True)
class Batch:
    """S responses for one forward pass.

    Right padding keeps every token at its position, for absolute position embeddings too.

    Attributes:
        ids: (B, L) token ids; B is S, or the number of groups in the shared layout.
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
        segments: 0 on a shared prompt, else the number of the response in its sequence, from 1.
        starts: sequence and place of the first token of each response.
    """

    ids: list[Tensor]
    positions: list[Tensor]
    segments: list[Tensor]
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
    return Batch(
        ids=ids.to(device),
        attention=_shared_mask(segments, dtype) if shared else (segments >= 0).long(),
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
    return _Sequences(
        ids,
        [torch.arange(len(one)) for one in ids],
        [torch.zeros(len(one), dtype=torch.long) for one in ids],
        [(i, len(row.prompt)) for i, row in enumerate(rows)],
    )


def _by_group(rows: Sequence[Row]) -> _Sequences:
    """The prompt but for its last token, then for each response that token and the response."""
    laid = _Sequences([], [], [], [])
    for number, (_, members) in enumerate(groupby(rows, key=lambda row: row.group)):
        group = list(members)
        prompt = group[0].prompt
        head = torch.tensor(prompt)
        ids, positions = [head[:-1]], [torch.arange(len(prompt) - 1)]
        segments = [torch.zeros(len(prompt) - 1, dtype=torch.long)]
        place = len(prompt) - 1
        for k, row in enumerate(group, start=1):
            length = len(row.ids) + 1
            ids.append(torch.cat([head[-1:], row.ids.long()]))
            positions.append(torch.arange(len(prompt) - 1, len(prompt) - 1 + length))
            segments.append(torch.full((length,), k))
            laid.starts.append((number, place + 1))
            place += length
        laid.ids.append(torch.cat(ids))
        laid.positions.append(torch.cat(positions))
        laid.segments.append(torch.cat(segments))
    return laid


def _shared_mask(segments: Int[Tensor, "B L"], dtype: torch.dtype) -> Float[Tensor, "B 1 L L"]:
    """0 where a token may look, the lowest number elsewhere: backwards, at prompt and own response.

    A padded token looks at itself, so that no row of scores is empty.
    """
    length = segments.shape[1]
    asks, asked = segments[:, :, None], segments[:, None, :]
    back = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    seen = back & ((asked == 0) | (asked == asks)) & (asked >= 0)
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


def share_pays(rows: Sequence[Row], width: int, parameters: float | int) -> bool:
    """Whether the shared layout costs less than nine tenths of the other.

    Multiplications of a layer: two per parameter and token, and four times the width per pair of
    tokens in attention, which neither layout skips where its mask says so.

    Args:
        rows: of one update, those of a group together.
        width: of the model.
        parameters: of one layer.
    """
    longest = max(row.length for row in rows)
    plain = len(rows) * _cost(longest, width, parameters)
    shared = 0.0
    for _, members in groupby(rows, key=lambda row: row.group):
        group = list(members)
        tokens = len(group[0].prompt) - 1 + sum(len(row.ids) + 1 for row in group)
        shared += _cost(tokens, width, parameters)
    return shared < 0.9 * plain


def _cost(tokens: int, width: int, parameters: float | int) -> float:
    return float(tokens * (2 * parameters + 4 * width * tokens))


def deal(
    rows: Sequence[Row], size: int, rank: int, micro_batch: int, *, together: bool
) -> list[list[int]]:
    """One process's micro-batches of a mini-batch: like lengths in one, the same number for all.

    Units (rows, or groups where they stay together) are sorted by length and dealt in turn, so that
    processes carry about the same load. A group larger than a micro-batch is cut.

    Args:
        rows: of the mini-batch, group by group.
        size: number of processes.
        rank: of this one.
        micro_batch: rows of a micro-batch, at most.
        together: keep groups together.

    Returns:
        Row indices of each micro-batch; the last may be empty where units don't go round.
    """
    units = _units(rows, micro_batch) if together else [[i] for i in range(len(rows))]
    load = [sum(rows[i].length for i in unit) for unit in units]
    order = sorted(range(len(units)), key=lambda u: (-load[u], u))
    mine = order[rank::size]
    most = math.ceil(len(units) / size)
    per_pass = max(1, micro_batch // max(map(len, units)))
    count = max(1, math.ceil(most / per_pass))
    step = max(1, math.ceil(most / count))
    return [[i for u in mine[k * step : (k + 1) * step] for i in units[u]] for k in range(count)]


def _units(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Groups by row index, cut into parts of at most ``most`` rows."""
    units = []
    for _, members in groupby(range(len(rows)), key=lambda i: rows[i].group):
        group = list(members)
        parts = math.ceil(len(group) / most)
        edges = [len(group) * k // parts for k in range(parts + 1)]
        units += [group[a:b] for a, b in pairwise(edges)]
    return units
