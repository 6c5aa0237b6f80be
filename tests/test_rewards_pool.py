"""The pool of symbolic workers: every caller gets a verdict, and no worker is lost or left over."""

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orthora.rewards import math_verdict
from orthora.rewards.maths import symbolic_equal
from orthora.rewards.pool import Pool, Worker, shared_pool

ENDLESS = ("9^{9^{9^{9}}}", "3")
EQUAL = (True, "symbolically equal")
GENEROUS = 60.0


@pytest.fixture
def pool() -> Iterator[Pool]:
    one = Pool(1, timeout=1.0)
    yield one
    one.close()


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(claim: Callable[[], bool]) -> bool:
    end = time.monotonic() + GENEROUS
    while not claim() and time.monotonic() < end:
        time.sleep(0.05)
    return claim()


def pids(pool: Pool) -> list[int]:
    return [worker.process.pid for worker in pool._all if worker.alive()]


def test_a_timeout_is_a_reason_of_its_own_and_the_worker_is_replaced(pool: Pool):
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    (before,) = pids(pool)
    assert pool.equal(*ENDLESS) == (False, "symbolic timeout")
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    (after,) = pids(pool)
    assert after != before
    assert gone(before)


def test_a_worker_that_dies_at_its_question_is_an_error_and_is_replaced():
    pool = Pool(1, timeout=GENEROUS)
    assert pool.equal("1+1", "2")[0]
    killed: list[int] = []

    def kill_two() -> None:  # as the kernel does without RAM; it is asked again once
        while len(killed) < 2:
            time.sleep(0.5)  # it is asked as soon as it is ready
            for worker in tuple(pool._all):
                if worker.alive() and worker._ready and worker.process.pid not in killed:
                    time.sleep(0.5)
                    os.kill(worker.process.pid, signal.SIGKILL)
                    killed.append(worker.process.pid)

    killer = threading.Thread(target=kill_two)
    killer.start()
    assert pool.equal(*ENDLESS) == (False, "symbolic error: the worker ended")
    killer.join()
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    pool.close()


def test_an_answer_is_asked_about_again_where_its_worker_was_killed(monkeypatch):
    from orthora.rewards.pool import ENDED, Worker

    real, asked = Worker.equal, []

    def once_killed(self, answer, gold):
        asked.append(answer)
        if len(asked) == 1:
            self.kill()
            return False, ENDED
        return real(self, answer, gold)

    pool = Pool(1, timeout=GENEROUS)
    monkeypatch.setattr(Worker, "equal", once_killed)
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    assert len(asked) == 2
    pool.close()


def test_a_worker_has_no_more_memory_than_it_was_given():
    pool = Pool(1, timeout=GENEROUS, memory=300 << 20)
    try:
        assert not pool.equal("2^{10^{10}}", "3")[0]  # sympy may report it, or give up in silence
        assert pool.equal(r"\sqrt{9}", "3") == EQUAL
        limits = Path(f"/proc/{pids(pool)[0]}/limits").read_text()
        assert re.search(rf"Max address space +{300 << 20} +{300 << 20} ", limits)
        assert re.search(r"Max file size +0 +0 ", limits)
    finally:
        pool.close()


def test_a_worker_killed_from_outside_is_replaced(pool: Pool):
    assert pool.equal("1+1", "2")[0]
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: gone(pid))
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL


def test_a_stopped_worker_is_a_timeout(pool: Pool):
    assert pool.equal("1+1", "2")[0]
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGSTOP)
    assert pool.equal(r"\sqrt{9}", "3") == (False, "symbolic timeout")
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL


def test_a_verdict_interrupted_in_the_middle_reaches_nobody_else(pool: Pool):
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    assert pool.equal("1+1", "2")[0]
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pool.equal(*ENDLESS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    assert pool.equal(r"\sqrt{9}", "4") == (False, "different")


def test_threads_get_the_verdicts_of_their_own_questions():
    numbers = list(range(1, 61))

    def judge(number: int) -> tuple[bool, bool]:
        surd = rf"Answer: \sqrt{{{number**2}}}"
        return math_verdict(surd, str(number)).correct, math_verdict(surd, f"{number + 1}").correct

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(judge, numbers)) == [(True, False)] * len(numbers)
    assert len(pids(shared_pool())) <= 2


def test_an_executor_of_asyncio_gets_verdicts():
    async def judge() -> list[bool]:
        loop = asyncio.get_running_loop()
        asked = [
            loop.run_in_executor(None, symbolic_equal, rf"\sqrt{{{n * n}}}", str(n))
            for n in range(2, 10)
        ]
        return [equal for equal, _ in await asyncio.gather(*asked)]

    assert asyncio.run(judge()) == [True] * 8


def test_a_short_lived_thread_may_start_the_worker_that_others_use(pool: Pool):
    thread = threading.Thread(target=pool.equal, args=("1+1", "2"))
    thread.start()
    thread.join()
    (pid,) = pids(pool)
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    assert pids(pool) == [pid]


def test_a_forked_child_has_workers_of_its_own_and_leaves_the_parents_alone(pool: Pool):
    assert pool.equal("1+1", "2")[0]
    (parents,) = pids(pool)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            verdict = pool.equal(r"\sqrt{9}", "3")
            os.write(writing, f"{verdict == EQUAL} {pids(pool)[0]}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 100).decode().split()
    os.close(reading)
    os.waitpid(child, 0)
    assert said[0] == "True"
    assert int(said[1]) != parents
    assert eventually(lambda: gone(int(said[1])))
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL
    assert pids(pool) == [parents]


def test_a_child_forked_while_the_only_worker_is_busy_does_not_wait_for_it(pool: Pool):
    assert pool.equal("1+1", "2")[0]
    thread = threading.Thread(target=Pool.equal, args=(pool, *ENDLESS))
    thread.start()
    assert eventually(pool._slots.empty)
    child = os.fork()
    if child == 0:  # pragma: no cover
        signal.alarm(int(GENEROUS))
        os._exit(0 if pool.equal(r"\sqrt{9}", "3") == EQUAL else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    assert pool.equal(r"\sqrt{9}", "3") == EQUAL


@pytest.mark.slow
def test_a_process_of_multiprocessing_gets_verdicts_under_fork_and_spawn():
    assert symbolic_equal(r"\sqrt{9}", "3") == EQUAL
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as processes:
            asked = processes.apply_async(symbolic_equal, (r"\sqrt{9}", "3"))
            assert asked.get(timeout=GENEROUS) == EQUAL


PARENT = """
import os, sys, threading, time
from orthora.rewards.pool import Pool
pool = Pool(2, timeout=3.0)
pool.equal("1+1", "2")
busy = threading.Thread(target=pool.equal, args=("9^{9^{9^{9}}}", "3"), daemon=True)
busy.start()
while len(pool._all) < 1 or not any(w.alive() for w in pool._all): time.sleep(0.01)
threading.Thread(target=pool.equal, args=("1+1", "2"), daemon=True).start()
time.sleep(0.5)
if os.fork() == 0:
    time.sleep(20)  # holds copies of the pipes
    os._exit(0)
print(*[w.process.pid for w in pool._all if w.alive()], flush=True)
sys.stdin.read() if sys.argv[1] == "killed" else sys.exit()
"""


@pytest.mark.parametrize("how", ["killed", "exits"])
@pytest.mark.slow
def test_workers_end_with_their_parent(how: str):
    command = [sys.executable, "-c", PARENT, how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers
        if how == "killed":
            parent.kill()
        parent.wait(GENEROUS)
        assert eventually(lambda: all(map(gone, workers)))
        assert parent.stdin is not None
        parent.stdin.close()


def test_workers_load_neither_torch_nor_this_package():
    worker = Worker(timeout=GENEROUS, memory=1 << 30)
    try:
        assert worker.wait() == ""
        maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
        assert "torch" not in maps
        assert worker.equal(r"\sqrt{9}", "3") == EQUAL
    finally:
        worker.kill()


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    broken = Pool(1)
    with pytest.raises(RuntimeError, match=r"could be started: it ended; try /bin/false"):
        broken.equal("1", "1")
    monkeypatch.undo()
    assert broken.equal("1", "1") == EQUAL
    broken.close()


def test_a_closed_pool_says_so(pool: Pool):
    assert pool.equal("1", "1") == EQUAL
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.equal("1", "1")


@pytest.mark.parametrize("bad", [{"workers": 0}, {"timeout": 0.0}, {"memory": -1}])
def test_a_pool_needs_positive_numbers(bad: dict):
    with pytest.raises(ValueError, match="must be positive"):
        Pool(**bad)


def test_a_hostile_batch_ends_and_the_pool_still_answers():
    hostile = [
        "Answer: 9^{9^{9^9}}",
        "Answer: 3^{1000000000}",
        "Answer: 9!!!!",
        "Answer: " + "+".join(["1"] * 20_000),
        "Answer: " + "(" * 3_000 + "25" + ")" * 3_000,
        r"\boxed{" * 3_000,
        "<think>" * 6_000,
        "Answer: 26\x00" * 3,
        "Answer: \u200f25",
        "\n".join(f"Answer: {n}" for n in range(1_000)),
        "Answer: The answer is " * 40 + "26",
        "Answer: " + r"\sqrt{" * 12 + "26" + "}" * 12,
        r"Answer: \frac{x^{999}-1}{x-1}",
        "Answer: (a+b+c+d)^{500}",
        "Answer: " + ", ".join(map(str, range(26))),
        "Answer: " + "1=" * 200 + "25",
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(4) as executor:
        verdicts = list(executor.map(lambda text: math_verdict(text, "25"), hostile * 8))
    assert time.monotonic() - began < GENEROUS
    assert [verdict for verdict in verdicts if verdict.correct] == []
    assert symbolic_equal(r"\sqrt{625}", "25") == EQUAL
