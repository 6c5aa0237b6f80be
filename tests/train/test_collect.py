"""Dynamic sampling: what is drawn, kept, dropped and said."""

from dataclasses import dataclass, field
from itertools import chain, pairwise

import pytest
import torch

from orthora.sampling import Response
from orthora.train.collect import Collector, NoSignal, Rules, rollout_metrics
from orthora.train.rewards import Judged
from orthora.train.rollouts import Answer, Group, Stream, rows_of
from orthora.train.world import World
from orthora.types import Problem

PROMPTS, GROUP = 4, 3


def rules(**changes) -> Rules:
    fields = {
        "prompts": PROMPTS, "group_size": GROUP, "dynamic": True, "draws": 5, "least": 2,
        "keep_surplus": False, "multiple": 1, "limit": 10, "buffer": 0, "penalty": 1.0,
        "patience": 0, "mask_truncated": False,
    }  # fmt: skip
    return Rules(**(fields | changes))


@dataclass
class Recording(Collector):
    """A collector that knows what was asked of its engine, and of its judge: numbers by call."""

    asked: list[list[int]] = field(default_factory=list)
    judged: list[list[int]] = field(default_factory=list)


def collector(signal, the_rules: Rules | None = None, lengths=lambda key: 3) -> Recording:
    """A model whose response is its key's number; problem i has a signal if ``signal(i)``."""
    problems = [Problem(f"p{i}", str(i), str(i)) for i in range(40)]
    stream = Stream(problems, [[i + 1] for i in range(40)], 0)
    asked: list[list[int]] = []
    judged: list[list[int]] = []

    def generate(prompts, keys):
        asked.append([prompt[0] - 1 for prompt in prompts])
        return [
            [Response(torch.tensor([k] * lengths(k)), torch.zeros(lengths(k)), True) for k in ks]
            for ks in keys
        ]

    def judge(responses, problems) -> list[Judged]:
        numbers = [int(response.split()[0]) for response in responses]
        judged.append(numbers)
        good = [
            signal(int(problem.answer)) and number % GROUP == 0
            for number, problem in zip(numbers, problems, strict=True)
        ]
        return [Judged(1.0 if right else -1.0, right) for right in good]

    def decode(ids: list[int]) -> str:
        return " ".join(map(str, ids))

    known = {"asked": asked, "judged": judged}
    return Recording(stream, generate, decode, judge, the_rules or rules(), World(), **known)


def test_a_rollout_is_filled_with_groups_that_carry_a_signal():
    made = collector(lambda i: i % 2 == 0)
    rollout = made.collect()
    assert len(rollout.groups) == PROMPTS
    assert all(group.has_signal for group in rollout.groups)
    assert rollout.draws > 1
    keys = [group.key for group in rollout.drawn]
    assert keys == list(range(len(keys)))  # all that were drawn, in order, none twice
    assert made.stream.drawn == len(keys)


def test_kept_groups_are_the_first_ones_in_draw_order():
    made = collector(lambda i: i % 3 > 0)
    rollout = made.collect()
    expected = [g.key for g in rollout.drawn if int(g.problem) % 3 > 0][:PROMPTS]
    assert [group.key for group in rollout.groups] == expected


def test_without_dynamic_sampling_everything_is_kept_in_one_draw():
    rollout = collector(lambda i: False, rules(dynamic=False)).collect()
    assert (rollout.draws, len(rollout.groups), len(rollout.drawn)) == (1, PROMPTS, PROMPTS)
    assert not any(group.has_signal for group in rollout.groups)


def test_the_bound_on_draws_gives_a_smaller_rollout_that_says_so():
    made = collector(lambda i: i % 8 == 0, rules(draws=3, prompts=8, least=2))
    with pytest.warns(UserWarning, match=r"of 8 groups have a signal after 3 draws of 24 prompts"):
        rollout = made.collect()
    assert 2 <= len(rollout.groups) < 8
    assert all(group.has_signal for group in rollout.groups)
    metrics = rollout_metrics(rollout)
    assert metrics["groups_trained"] == len(rollout.groups)
    assert metrics["draws"] == 3


def answers(*given: tuple[float, float, bool]) -> Group:
    """Of (score, penalty, ended)."""
    nothing = torch.zeros(1)
    made = [Answer(nothing.int(), nothing, e, s, s > 0, p) for s, p, e in given]
    return Group(0, "p", (1,), tuple(made))


@pytest.mark.parametrize(
    ("given", "counted", "masked"),
    [
        ([(1, 0, True), (0, 0, True)], True, True),
        ([(0, 0, True), (0, -1, False)], False, False),  # accuracy alone is the filter
        ([(1, -1, True), (0, 0, True)], False, False),  # the penalty levels them
        ([(1, -1, False), (0, -1, False)], True, False),  # all were cut
        ([(1, -0.5, False), (-1, 0, True), (0, -0.25, True)], True, True),
        ([(1, 0, False), (-1, 0, True), (0, 0, True)], True, True),
        ([(1, 0, False), (-1, 0, False), (0, 0, True)], True, False),  # what is left is the mean
    ],
)
def test_a_group_teaches_where_a_token_in_the_loss_has_an_advantage(given, counted, masked):
    group = answers(*given)
    assert group.teaches(mask_truncated=False) is counted
    assert group.teaches(mask_truncated=True) is masked
    for mask in (False, True):
        rows = rows_of([group], "group", mask_truncated=mask)
        moved = any(row.advantage != 0 and row.tokens for row in rows)
        assert moved or not group.teaches(mask_truncated=mask)


def test_every_group_kept_teaches_although_the_penalty_may_level_scores():
    """Right answers at the limit get 1 - 2: what wrong ones get."""
    long = collector(
        lambda i: i % 2 == 0, rules(buffer=5, penalty=2.0), lambda key: 10 if key % 6 == 0 else 3
    )
    rollout = long.collect()
    assert any(g.has_signal and len({a.reward for a in g.answers}) == 1 for g in rollout.drawn)
    assert all(len({a.reward for a in g.answers}) > 1 for g in rollout.groups)


def test_a_rollout_without_enough_signal_is_refused_in_one_line():
    with pytest.raises(NoSignal, match=r"^0 of \d+ groups have .* after 5 draws.*max_draws$"):
        collector(lambda i: False).collect()


def test_surplus_is_dropped_by_default_and_handed_on_if_asked_for():
    dropped = collector(lambda i: i % 4 != 0)
    first, second = dropped.collect(), dropped.collect()
    assert not dropped.surplus
    assert second.groups[0].key >= len(first.drawn)

    kept = collector(lambda i: i % 4 != 0, rules(keep_surplus=True))
    rollouts = [kept.collect() for _ in range(4)]
    used = [group.key for rollout in rollouts for group in rollout.groups]
    signal = [g.key for r in rollouts for g in r.drawn if g.has_signal]
    for rollout in rollouts:  # those left over come first, and are told apart
        new = {group.key for group in rollout.drawn}
        assert [g.key in new for g in rollout.groups] == [
            i >= rollout.stale for i in range(len(rollout.groups))
        ]
    assert sum(rollout.stale for rollout in rollouts) > 0
    assert used == signal[: len(used)]  # nothing is lost, nothing comes twice
    assert all(a < b for a, b in pairwise(used))


def test_state_and_load_go_on_exactly():
    whole = collector(lambda i: i % 4 != 0, rules(keep_surplus=True))
    expected = [whole.collect() for _ in range(5)]
    first = collector(lambda i: i % 4 != 0, rules(keep_surplus=True))
    for _ in range(2):
        first.collect()
    second = collector(lambda i: i % 4 != 0, rules(keep_surplus=True))
    second.load(first.state())
    for rollout in expected[2:]:
        found = second.collect()
        assert [g.key for g in found.groups] == [g.key for g in rollout.groups]
        assert [g.key for g in found.drawn] == [g.key for g in rollout.drawn]


def test_draws_are_multiples_where_processes_must_keep_in_step():
    made = collector(lambda i: i % 2 == 0, rules(multiple=3))
    made.collect()
    assert all(len(asked) % 3 == 0 for asked in made.asked)


def test_keys_name_the_draw_and_the_response():
    made = collector(lambda i: True, rules(dynamic=False))
    made.collect()
    rollout = made.collect()
    assert [[int(a.ids[0]) for a in g.answers] for g in rollout.groups] == [
        [g.key * GROUP + s for s in range(GROUP)] for g in rollout.groups
    ]
    assert rollout.groups[0].key == PROMPTS


def test_the_judge_is_asked_once_a_draw_for_all_of_its_responses_in_order():
    made = collector(lambda i: i % 2 == 0)
    rollout = made.collect()
    assert rollout.draws == len(made.judged) > 1
    assert [len(numbers) for numbers in made.judged] == [len(one) * GROUP for one in made.asked]
    assert list(chain(*made.judged)) == list(range(len(rollout.drawn) * GROUP))
    for group in rollout.drawn:  # and its verdicts go where they belong
        good = [int(group.problem) % 2 == 0 and i == 0 for i in range(GROUP)]
        assert [answer.passed for answer in group.answers] == good


def test_the_filter_looks_at_accuracy_before_length_shaping():
    """Lengths differ in every group, so rewards do; only right against wrong is a signal."""
    made = collector(lambda i: i % 2 == 0, rules(buffer=8), lengths=lambda key: 3 + key % 3)
    rollout = made.collect()
    dropped = [g for g in rollout.drawn if not g.has_signal]
    assert dropped
    assert all(len({a.reward for a in g.answers}) > 1 for g in dropped)
    assert all(int(g.problem) % 2 == 0 for g in rollout.groups)


def test_metrics_tell_drawn_from_kept():
    rollout = collector(lambda i: i % 2 == 0).collect()
    metrics = rollout_metrics(rollout)
    kept = sum(g.has_signal for g in rollout.drawn)
    assert metrics["groups_drawn"] == len(rollout.drawn)
    assert metrics["groups_kept"] == kept
    assert metrics["groups_trained"] == PROMPTS
    assert metrics["groups_without_signal"] == 1 - kept / len(rollout.drawn)
    assert metrics["pass_rate"] == pytest.approx(kept / GROUP / len(rollout.drawn))
    assert metrics["pass_rate_trained"] == pytest.approx(1 / GROUP)
    assert metrics["reward"] == pytest.approx(-1 / GROUP)
    assert metrics["length"] == 3


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0)]
)
def test_the_length_penalty_by_hand(length, expected):
    """L = 10, buffer 4: nothing to 6, then a quarter per token."""
    made = collector(lambda i: True, rules(buffer=4, dynamic=False), lengths=lambda key: length)
    assert {a.penalty for g in made.collect().groups for a in g.answers} == {expected}


def test_rollouts_without_signal_are_borne_with_patience_and_counted_from_the_last_signal():
    """Problems 0 to 3 alone carry a signal, and every problem comes once per epoch of 40."""
    made = collector(lambda i: i < 4, rules(dynamic=False, patience=3))
    idle = []

    def run() -> None:
        for _ in range(100):
            made.collect()
            idle.append(made.idle)

    with pytest.raises(NoSignal, match=r"^for 3 steps all answers .*pass rate 0.00.*patience = 0"):
        run()
    assert set(idle) <= {0, 1, 2}
    again = collector(lambda i: False, rules(dynamic=False, patience=3))
    again.load({"drawn": 0, "surplus": [], "idle": 2})  # a resumed run does not start to count anew
    with pytest.raises(NoSignal):
        again.collect()
    endless = collector(lambda i: False, rules(dynamic=False, patience=0))
    for _ in range(50):
        endless.collect()
