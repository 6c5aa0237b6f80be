"""Prompt order, groups and rows."""

import pytest
import torch

from orthora.train.rollouts import Answer, Group, Stream, rows_of
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
