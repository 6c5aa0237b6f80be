"""Prompt order, rows, batches, and how rows are shared out."""

import itertools
import math

import pytest
import torch

from orthora.train.rollouts import Answer, Group, Row, Stream, collate, deal, rows_of
from orthora.types import Problem


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{i}", str(i), str(i)) for i in range(count)]


def stream(count: int = 7, seed: int = 3) -> Stream:
    return Stream(problems(count), [[i] for i in range(count)], seed)


def test_every_epoch_holds_every_problem_once_in_an_order_of_its_own():
    taken = [problem.id for _, problem, _ in stream().take(21)]
    epochs = [taken[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == sorted(p.id for p in problems(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("cuts", [(1,) * 20, (7, 7, 6), (5, 13, 2)])
def test_the_order_does_not_depend_on_how_it_is_cut(cuts):
    whole, parts = stream().take(20), stream()
    assert [one for cut in cuts for one in parts.take(cut)] == whole
    assert [key for key, _, _ in whole] == list(range(20))


def test_a_stream_goes_on_from_its_position_alone():
    first = stream()
    first.take(11)
    second = stream()
    second.drawn = 11
    assert first.take(9) == second.take(9)


def test_the_seed_decides_the_order():
    assert stream(50, seed=1).take(50) != stream(50, seed=2).take(50)


def answer(length: int, score: float, *, ended: bool = True, penalty: float = 0.0) -> Answer:
    ids = torch.arange(10, 10 + length, dtype=torch.int32)
    return Answer(ids, -ids.float() / 100, ended, score, score > 0, penalty)


def group(*answers: Answer, key: int = 0, prompt: tuple[int, ...] = (1, 2, 3)) -> Group:
    return Group(key, str(key), prompt, answers)


def test_a_signal_is_a_difference_of_scores_and_not_of_penalties():
    assert group(answer(2, 1.0), answer(2, -1.0)).has_signal
    assert not group(answer(2, -1.0), answer(9, -1.0, penalty=-0.5)).has_signal
    assert not group(answer(2, 1.0), answer(9, 1.0, penalty=-0.5)).has_signal
    assert group(answer(2, 0.2), answer(2, 0.3)).has_signal


def test_advantages_see_the_penalty():
    """Scores 1, 1, -1 and penalties 0, -1, 0: rewards 1, 0, -1, whose deviation is 1."""
    rows = rows_of(
        [group(answer(2, 1.0), answer(4, 1.0, penalty=-1.0), answer(3, -1.0))],
        "group",
        mask_truncated=False,
    )
    assert [row.advantage for row in rows] == pytest.approx([1.0, 0.0, -1.0], abs=2e-6)


def test_masked_truncated_rows_have_no_token_and_still_weigh_in_the_mean():
    rows = rows_of(
        [group(answer(2, 1.0), answer(4, -1.0, ended=False))], "none", mask_truncated=True
    )
    assert [(row.advantage, row.tokens, row.counts) for row in rows] == [
        (1.0, 2, True),
        (-1.0, 0, False),
    ]
    assert [row.tokens for row in rows_of(
        [group(answer(2, 1.0), answer(4, -1.0, ended=False))], "none", mask_truncated=False
    )] == [2, 4]  # fmt: skip


def test_a_batch_holds_every_value_at_the_place_of_its_token():
    rows = rows_of(
        [group(answer(2, 1.0), answer(4, -1.0), prompt=(7, 8, 9)),
         group(answer(1, 1.0), answer(3, -1.0), prompt=(5,))], "none", mask_truncated=False,
    )  # fmt: skip
    batch = collate(rows, pad=0)
    assert batch.ids.shape == (4, 7)
    assert batch.mask.shape == (4, 6)
    for i, row in enumerate(rows):
        whole = [*row.prompt, *row.ids.tolist()]
        assert batch.ids[i].tolist() == whole + [0] * (7 - len(whole))
        assert batch.attention[i].tolist() == [1] * len(whole) + [0] * (7 - len(whole))
        scored = batch.labels[i, 1:] != -100
        assert torch.equal(scored, batch.mask[i].bool())
        assert batch.labels[i, 1:][scored].tolist() == row.ids.tolist()
        assert torch.equal(batch.old[i][scored], row.old)
        assert not batch.old[i][~scored].any()
    assert batch.advantage.tolist() == [1.0, -1.0, 1.0, -1.0]
    assert batch.sampled is batch.reference is None


def test_rows_that_do_not_count_are_scored_but_masked():
    (row, _) = rows_of(
        [group(answer(3, 1.0, ended=False), answer(1, -1.0))], "none", mask_truncated=True
    )
    batch = collate([row], pad=0)
    assert not batch.mask.any()
    assert int((batch.labels != -100).sum()) == 3


def test_importance_weights_are_capped_and_one_where_nothing_is_known():
    row = rows_of([group(answer(3, 1.0), answer(3, -1.0))], "none", mask_truncated=False)[0]
    row.sampled = row.old - torch.tensor([0.0, 5.0, float("nan")])
    weight = collate([row], pad=0).weight(2.0)
    assert weight[0, 2:5].tolist() == [1.0, 2.0, 1.0]
    assert collate([row], pad=0).weight(0.0) is None


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 32, 33])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3, 8, 100])
def test_rows_are_dealt_once_and_evenly(rows, size, micro):
    lengths = [(7 * i) % 13 + 1 for i in range(rows)]
    dealt = [deal(lengths, size, rank, micro) for rank in range(size)]
    everything = sorted(itertools.chain(*itertools.chain(*dealt)))
    assert everything == list(range(rows))
    assert len({len(batches) for batches in dealt}) == 1  # the same number of passes for all
    assert all(len(batch) <= micro for batches in dealt for batch in batches)
    most = math.ceil(rows / size)
    assert len(dealt[0]) == max(1, math.ceil(most / micro))  # and no pass too many
    counts = [sum(map(len, batches)) for batches in dealt]
    assert max(counts) - min(counts) <= 1
    loads = [sum(lengths[i] for batch in batches for i in batch) for batches in dealt]
    assert max(loads) - min(loads) <= max(lengths)


def test_rows_of_like_length_share_a_micro_batch():
    batches = deal([5, 1, 9, 2, 8, 1], 1, 0, 2)
    assert batches == [[2, 4], [0, 3], [1, 5]]


def test_an_old_row_without_scores_gives_a_batch_without():
    row = Row((1,), torch.tensor([4]), None, None, None, 0.5, True)
    assert collate([row], pad=0).old is None
