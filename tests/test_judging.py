"""Many verdicts: which verifier, what becomes of a sandbox that fails, how many at once."""

import threading
import time

import pytest

from orthora.rewards import SandboxError, judging, verdicts_of
from orthora.types import Problem, Verdict

SUM = Problem("What is 20 + 5?", "25", "sum")
ADD = Problem("Add.", "", "add", ("assert add(1, 2) == 3",))
RIGHT = Verdict(True, "p", "passed")


def test_answers_and_programs_go_to_their_verifiers_and_keep_their_order():
    texts = ["Answer: 25", "def add(a, b):\n    return a + b", "Answer: 24", "def add(a, b): pass"]
    found = verdicts_of(texts, [SUM, ADD, SUM, ADD])
    assert [verdict.correct for verdict in found if verdict] == [True, True, False, False]


def test_the_rule_is_that_of_answers():
    assert [v.correct for v in verdicts_of(["It is 25."], [SUM]) if v] == [True]
    assert [v.correct for v in verdicts_of(["It is 25."], [SUM], rule="dapo") if v] == [False]
    with pytest.raises(ValueError, match="unknown answer rule"):
        verdicts_of(["x"], [SUM], rule="nonsense")


def test_a_sandbox_is_tried_again_and_then_gives_no_score(monkeypatch):
    tries: dict[str, int] = {}

    def flaky(program, tests, **_):
        tries[program] = tries.get(program, 0) + 1
        if program == "never" or (program == "late" and tries[program] < judging.ATTEMPTS):
            raise SandboxError("no room")
        return RIGHT

    monkeypatch.setattr(judging, "code_verdict", flaky)
    told = []
    found = verdicts_of(["never", "late", "at once"], [ADD] * 3, told=lambda: told.append(1))
    assert found == [None, RIGHT, RIGHT]
    assert tries == {"never": judging.ATTEMPTS, "late": judging.ATTEMPTS, "at once": 1}
    assert len(told) == 3


def test_where_none_can_be_judged_it_is_an_error(monkeypatch):
    def none(*_, **__):
        raise SandboxError("bubblewrap is not installed")

    monkeypatch.setattr(judging, "code_verdict", none)
    with pytest.raises(SandboxError, match="not installed"):
        verdicts_of(["a", "Answer: 25", "b"], [ADD, SUM, ADD])


@pytest.mark.parametrize(("processes", "most"), [("1", 4), ("2", 2), ("9", 1)])
def test_programs_run_at_once_as_cores_allow(processes, most, monkeypatch):
    lock, now, seen = threading.Lock(), [0], [0]

    def counted(*_, **__):
        with lock:
            now[0] += 1
            seen[0] = max(seen[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return RIGHT

    monkeypatch.setattr(judging, "code_verdict", counted)
    monkeypatch.setattr(judging.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    verdicts_of(["p"] * 12, [ADD] * 12)
    assert seen[0] == most
