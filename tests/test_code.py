"""Rewards for programs: how tests are split, what answers decode to, and MBPP's own solutions.

Hostile programs are in test_code_attacks.py.
"""

import ast
import copy
import json
import os
import random
import subprocess
import sys
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path

import pytest

from orthora.rewards import launch
from orthora.rewards.asserts import parse_tests, unpack
from orthora.rewards.child import MAX_BITS, MAX_DEPTH, MAX_ITEMS, AnswerTooLarge, pack
from orthora.rewards.child import UnsupportedValue as Unsupported
from orthora.rewards.code import CodeJob, code_verdict, code_verdicts, extract_program
from orthora.rewards.launch import SandboxError
from orthora.rewards.sandbox import Limits, Sandbox

MBPP = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbpp"
TIMEOUT = 20.0  # machines that run tests are busy
INC = "def inc(x):\n    return x + 1\n"


def need_sandbox() -> None:
    """Skip, loudly, where programs cannot be run at all."""
    try:
        with Sandbox.start(Limits(), 60):
            pass
    except SandboxError as error:
        pytest.skip(f"NO SANDBOX HERE, so nothing that runs programs was tested: {error}")


@pytest.fixture(name="sandbox", scope="session")
def _sandbox() -> None:
    need_sandbox()


def mbpp(part: str) -> list[CodeJob]:
    """The reference solutions of a part, with all tests."""
    path = MBPP / {"full": "mbpp.jsonl", "sanitized": "sanitized-mbpp.json"}[part]
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    text = path.read_text("utf-8")
    rows = json.loads(text) if part == "sanitized" else map(json.loads, text.splitlines())
    return [
        CodeJob(
            row["code"],
            [*row["test_list"], *row.get("challenge_test_list", [])],
            row.get("test_setup_code") or "\n".join(row.get("test_imports", [])),
        )
        for row in rows
    ]


# --- tests, split ------------------------------------------------------------------------------

SPLITS = [
    ("assert f(1, 2) == 3", ["f(1, 2)"], [3], [4]),
    ("assert (f(root)) == 3", ["f(root)"], [3], [None]),
    ("assert math.isclose(f(2), 1.5, rel_tol=0.01)", ["f(2)"], [1.501], [1.6]),
    ("assert set(f((1, 2))) == set([1, 2])", ["f((1, 2))"], [(2, 1, 1)], [(1,)]),
    ("assert f('a')", ["not not f('a')"], [True], [False]),
    ("assert not f('a')", ["not not f('a')"], [False], [True]),
    ("assert f(1) and not f(2)", ["not not f(1)", "not not f(2)"], [True, False], [True, True]),
    ("assert f((1, 2)) == sys.getsizeof((1, 2))", ["f((1, 2))"], [sys.getsizeof((1, 2))], [0]),
    ("assert f(1.0/3) == -2", ["f(1.0 / 3)"], [-2], [2]),
    ("assert f((4, 1.2), int) == [1.2]", ["f((4, 1.2), int)"], [[1.2]], [[1]]),
    ("assert f([Pair(5, 24)], n=4) == 3", ["f([Pair(5, 24)], n=4)"], [3], [None]),
    ("assert int(f(5)) == 35", ["f(5)"], ["35"], ["x"]),
    ("import math\nassert f(1) == f(2) != 3", ["f(1)", "f(2)"], [1, 1], [3, 3]),
    ("assert len(f(1)) == 2 if 1 < 2 else False", ["f(1)"], [{1, 2}], [None]),
    ("assert f(1) == {'a': {1, 2}, 2: [()]}", ["f(1)"], [{"a": {2, 1}, 2: [()]}], [{}]),
    ("assert f(1)", ["not not f(1)"], [True], [0]),
    ("assert sorted(f(1)) == [1, 2]", ["f(1)"], [iter([2, 1])], [iter([2])]),
    ("assert f(1) is None", ["f(1)"], [None], [0]),
    ("assert abs(f(1) - 2.5) <= 1e-3", ["f(1)"], [2.5004], [float("nan")]),
]


@pytest.mark.parametrize(("test", "calls", "right", "wrong"), SPLITS, ids=[s[0] for s in SPLITS])
def test_calls_go_to_the_program_and_the_rest_stays(test, calls, right, wrong):
    (check,) = parse_tests([test])
    assert list(check.calls) == calls
    assert check.holds(right)
    assert not check.holds(wrong)


def test_a_function_named_like_a_builtin_is_found_where_no_other_is_called():
    (check,) = parse_tests(["assert sum(10, 15) == 6"])
    assert check.calls == ("sum(10, 15)",)
    (check,) = parse_tests(["assert set(sum(1)) == set([1])"], entry="sum")
    assert check.calls == ("sum(1)",)


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == [x for x in (1, 2)]",
        "assert f(1).upper() == 'A'",
        "assert f(1) == expected",
        "assert f(1) == math.factorial(3)",
        "assert (lambda: f(1))() == 2",
        "assert 1 == 1",
        "x = f(1)",
        "assert f(1",
        "assert f(1) == dict(**{'a': 1})",
        "assert f(1) == __import__",
        "assert f(1)[0] == 2",
    ],
)
def test_a_form_that_the_judge_does_not_know_is_refused_before_anything_runs(test):
    with pytest.raises(ValueError, match=r"test"):
        parse_tests([test])
    with pytest.raises(ValueError, match=r"test"):
        code_verdicts([CodeJob(INC, ["assert inc(1) == 2"]), CodeJob(INC, [test])])


def test_no_tests_are_refused_rather_than_passed():
    with pytest.raises(ValueError, match="at least one"):
        code_verdict(INC, [])


@pytest.mark.parametrize(
    ("test", "answer"),
    [
        ("assert f(1) * 2 == 4", "a" * 1000),
        ("assert f(1) % 5 == 4", "%1000000000d"),
        ("assert 2 ** f(1) == 4", 10**9),
        ("assert f(1) ** f(1) == 4", 10**9),
    ],
)
def test_the_judges_part_cannot_be_made_to_grow(test, answer):
    checks = parse_tests([test])
    assert not checks[0].holds([answer] * len(checks[0].calls))


# --- answers -----------------------------------------------------------------------------------

PLAIN = [
    *(None, True, False, 0, -(2**200), 1.5, -0.0, float("inf"), 1 + 2j, complex(-0.0, 1)),
    *("", "é\ud800\n", b"\x00a"),
    *([1, [2]], (1, ()), {1, 2}, frozenset({(1, "a")}), {"a": {1: None}, (1,): [2.5]}),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back_as_they_were(value):
    assert repr(unpack(pack(value))) == repr(value)
    assert type(unpack(pack(value))) is type(value)


def test_a_subclass_comes_back_as_what_its_base_holds():
    class Int(int):
        def __eq__(self, other):
            return True

        def __index__(self):
            return 42

        __hash__ = int.__hash__

    class Str(str):
        def __eq__(self, other):
            return True

        def encode(self, *_):
            return b"42"

        __hash__ = str.__hash__

    class List(list):
        def __iter__(self):
            return iter([42])

    class Dict(dict):
        def items(self):
            return [(42, 42)]

    values = [Int(7), Str("seven"), List([7]), Dict({7: 7}), Counter("aab"), OrderedDict(a=1)]
    found = unpack(pack([*values, namedtuple("P", "x y")(1, 2)]))
    assert found == [7, "seven", [7], {7: 7}, {"a": 2, "b": 1}, {"a": 1}, (1, 2)]
    plain = [int, str, list, dict, dict, dict, tuple]
    assert [type(value) for value in found] == plain


def test_what_is_not_plain_or_not_small_is_refused():
    class Liar:
        __class__ = property(lambda self: int)

        def __eq__(self, other):
            return True

        __hash__ = None

    for value in (Liar(), object, len, [Liar()], {1: range(3)}):
        with pytest.raises(Unsupported):
            pack(value)
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    loop = []
    loop.append(loop)
    endless = iter(int, 1)
    for value in ([0] * MAX_ITEMS, deep, loop, endless, 1 << MAX_BITS):
        with pytest.raises(AnswerTooLarge):
            pack(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "[", "[" * 100_000, '"ab"', "{}", "NaN", '["list",[5]]', '["what",[]]'),
        *('["none",1]', '["int","' + "f" * MAX_BITS + '"]', '["set",[["list",[]]]]'),
        *('["list",[' + '["none"],' * MAX_ITEMS + '["none"]]]', '["float","0x1p9999999"]'),
        *('["list",[' * 60 + '["none"]' + "]]" * 60, '["list",[' + "1" * 5000 + "]]"),
    ],
    ids=lambda text: text[:24],
)
def test_forged_answers_are_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  the messages are json's and int's
        unpack(text)


# --- the program in a response -----------------------------------------------------------------

QUOTED = 'def f():\n    """```python\n    1\n    ```"""\n'
FENCED = f"Here:\n```python\n{INC}```\nDone."


@pytest.mark.parametrize(
    ("response", "program"),
    [
        (INC, INC),
        (INC.replace("\n", "\r\n"), INC.replace("\n", "\r\n")),
        (FENCED, INC),
        (FENCED.replace("\n", "\r\n"), INC),
        (f"```py\nold = 1\n```\nbetter:\n{FENCED}", INC),
        (f"{FENCED}\n```text\n3\n```", INC),
        (f"```\n{INC}```", INC),
        (f"<think>```python\nx = 1\n```</think>\n{FENCED}", INC),
        (f"reasoning </think>{INC}", INC),
        (f"<think>{FENCED}", None),
        (QUOTED, QUOTED),
        ("I cannot.", None),
        ("None", None),
        ("```python\n```", None),
        ("", None),
        ("```python\ndef f(:\n```", "def f(:\n"),
        ("(" * 10_000, None),
        ("\0", None),
    ],
)  # fmt: skip
def test_the_program_is_found(response, program):
    assert extract_program(response) == program


def test_without_a_program_nothing_runs(monkeypatch):
    monkeypatch.setattr(Sandbox, "start", lambda *_: pytest.fail("started"))
    verdict = code_verdict("I cannot.", ["assert f(1) == 2"])
    assert (verdict.correct, verdict.answer, verdict.reason) == (False, None, "no program")


# --- verdicts ----------------------------------------------------------------------------------

REASONS = [
    (INC, ["assert inc(1) == 2", "assert inc(2) == 3"], "passed"),
    (INC, ["assert inc(1) == 2", "assert inc(2) == 4"], "failed test 2"),
    ("def inc(x):\n    return y\n", ["assert inc(1) == 2"], "error: NameError"),
    ("def other(x):\n    return x\n", ["assert inc(1) == 2"], "error: NameError"),
    ("def inc(x):\n    return x +\nz = 1", ["assert inc(1) == 2"], "no program"),
    ("```python\ndef inc(:\n```", ["assert inc(1) == 2"], "error: SyntaxError"),
    ("def inc(x):\n    return inc(x)\n", ["assert inc(1) == 2"], "error: RecursionError"),
    ("def inc(x):\n    return [0] * 10**9\n", ["assert inc(1) == 2"], "memory"),
    ("def inc(x):\n    return 'a' * 10**7\n", ["assert inc(1) == 2"], "answer too large"),
    ("def inc(x):\n    return object()\n", ["assert inc(1) == 2"], "unsupported value"),
    ("def inc(x):\n    raise SystemExit(0)\n", ["assert inc(1) == 2"], "error: SystemExit"),
    ("import numpy\nx = 1\n", ["assert inc(1) == 2"], "error: ModuleNotFoundError"),
    (INC + "print('x' * 10**6)\n", ["assert inc(1) == 2"], "passed"),
    (INC + "if __name__ == '__main__':\n    input()\n", ["assert inc(1) == 2"], "passed"),
    ("import re\ndef m(s):\n    return re.search('a', s)", ["assert m('a')"], "passed"),
    ("import re\ndef m(s):\n    return re.search('a', s)", ["assert not m('a')"], "failed test 1"),
]


@pytest.mark.parametrize(("program", "tests", "reason"), REASONS)
@pytest.mark.usefixtures("sandbox")
def test_the_reason_says_what_happened(program, tests, reason):
    verdict = code_verdict(program, tests, timeout=TIMEOUT)
    assert (verdict.reason, verdict.correct) == (reason, reason == "passed")


@pytest.mark.usefixtures("sandbox")
def test_a_loop_ends_in_a_timeout():
    verdict = code_verdict("def f(x):\n    while True: pass\n", ["assert f(1) == 2"], timeout=1.0)
    assert verdict.reason == "timeout"


@pytest.mark.usefixtures("sandbox")
def test_setup_runs_after_the_program_and_feeds_its_names_to_the_calls():
    program = "class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v\n"
    tests = ["assert f(root) == 3", "assert f(Node(4)) == 4"]
    verdict = code_verdict(program, tests, setup="root = Node(3)\r\n", timeout=TIMEOUT)
    assert verdict.reason == "passed"
    assert code_verdict(program, tests, timeout=TIMEOUT).reason == "error: NameError"


@pytest.mark.usefixtures("sandbox")
def test_a_batch_keeps_its_order():
    jobs = [CodeJob(f"def f():\n    return {i}\n", ["assert f() % 2 == 0"]) for i in range(8)]
    verdicts = code_verdicts(jobs, timeout=TIMEOUT, workers=3)
    assert [v.correct for v in verdicts] == [True, False] * 4
    assert [v.answer for v in verdicts] == [job.program for job in jobs]
    assert code_verdicts([]) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_senseless_timeouts_are_refused(timeout):
    with pytest.raises(ValueError, match="timeout"):
        code_verdict(INC, ["assert inc(1) == 2"], timeout=timeout)


# --- no sandbox, no score ----------------------------------------------------------------------


@pytest.fixture(name="fresh")
def _fresh(monkeypatch):
    """The command line is looked for anew, before and after; retries do not wait."""
    monkeypatch.setattr("orthora.rewards.sandbox.time.sleep", lambda _: None)
    launch._parts.cache_clear()
    yield
    launch._parts.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_bubblewrap_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("orthora.rewards.launch.shutil.which", lambda _: None)
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        code_verdict(INC, ["assert inc(1) == 2"])
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        code_verdicts([CodeJob(INC, ["assert inc(1) == 2"])] * 3)


@pytest.mark.usefixtures("fresh")
def test_a_sandbox_that_does_not_start_is_retried_and_never_a_verdict(tmp_path, monkeypatch):
    broken = tmp_path / "bwrap"
    count = tmp_path / "count"
    broken.write_text(f"#!/bin/sh\necho >> {count}\necho 'no user namespaces' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("orthora.rewards.launch.shutil.which", lambda _: str(broken))
    monkeypatch.setattr("orthora.rewards.launch._step_down", lambda: [])
    with pytest.raises(SandboxError, match="no user namespaces"):
        code_verdict(INC, ["assert inc(1) == 2"])
    assert len(count.read_text().splitlines()) == 3


def test_an_unknown_processor_is_refused(monkeypatch):
    monkeypatch.setattr("orthora.rewards.launch.platform.machine", lambda: "vax")
    with pytest.raises(SandboxError, match="vax"):
        launch.syscall_filter()


# --- MBPP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["full", "sanitized"])
def test_every_test_of_mbpp_has_a_known_form(part):
    jobs = mbpp(part)
    assert len(jobs) == {"full": 974, "sanitized": 427}[part]
    for job in jobs:
        checks = parse_tests(job.tests)
        assert len(checks) == len(job.tests)
        assert all(len(check.calls) == 1 for check in checks)


@pytest.mark.parametrize("part", ["full", "sanitized"])
def test_the_program_never_gets_an_expected_value(part):
    """Calls are a part of the left side, and nothing of the right side, of each comparison."""
    for job in mbpp(part):
        for test, check in zip(job.tests, parse_tests(job.tests), strict=True):
            node = ast.parse(test.strip()).body[0].test
            if isinstance(node, ast.Compare):
                assert check.calls[0] in ast.unparse(node.left)


@pytest.mark.usefixtures("sandbox")
def test_thirty_reference_solutions_pass():
    jobs = mbpp("full")
    chosen = random.Random(0).sample(jobs, 23)
    chosen += [job for job in jobs if job.setup or "sum(10,15)" in job.tests[0]]
    chosen += [job for job in jobs if "Pair(" in job.tests[0] or "getsizeof" in job.tests[0]]
    assert len(chosen) == 30
    assert {v.reason for v in code_verdicts(chosen, timeout=TIMEOUT)} == {"passed"}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["full", "sanitized"])
@pytest.mark.usefixtures("sandbox")
def test_all_reference_solutions_pass(part):
    jobs = mbpp(part)
    assert any("\r\n" in job.program for job in jobs) == (part == "full")
    verdicts = code_verdicts(jobs, timeout=TIMEOUT)
    assert [(v.reason, v.answer) for v in verdicts if not v.correct] == []


SWAPS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult},
}


def mutants(program: str) -> list[str]:
    """All programs with one operator swapped, one integer raised by one, or one return emptied."""
    tree = ast.parse(program)
    found = []
    for i, node in enumerate(ast.walk(tree)):
        changed = copy.deepcopy(tree)
        twin = next(n for j, n in enumerate(ast.walk(changed)) if j == i)
        if isinstance(twin, ast.BinOp | ast.BoolOp) and type(twin.op) in SWAPS:
            twin.op = SWAPS[type(twin.op)]()
        elif isinstance(twin, ast.Compare) and type(twin.ops[0]) in SWAPS:
            twin.ops[0] = SWAPS[type(twin.ops[0])]()
        elif isinstance(twin, ast.Constant) and type(twin.value) is int:
            twin.value += 1
        elif isinstance(twin, ast.Return) and twin.value is not None:
            twin.value = None
        else:
            continue
        assert type(node) is type(twin)
        found.append(ast.unparse(changed))
    return found


def passes_plainly(job: CodeJob) -> bool:
    """What Python itself says: program, setup and asserts as one script, without any sandbox."""
    script = "\n".join([job.program, job.setup, "import math, sys", *map(str.strip, job.tests)])
    command = [sys.executable, "-S", "-s", "-P", "-c", script]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=environment)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
def test_mutants_of_a_hundred_references_are_judged_as_python_judges_them():
    """Up to three mutants each; those that pass plainly are equivalent as far as the tests say.

    Oracle and judge disagree on purpose only where an answer is not plain; there is none here.
    """
    chance = random.Random(1)
    jobs = []
    for job in chance.sample(mbpp("full"), 100):
        found = mutants(job.program)
        for program in chance.sample(found, min(3, len(found))):
            jobs.append(CodeJob(program, job.tests, job.setup))
    plain = [passes_plainly(job) for job in jobs]
    verdicts = code_verdicts(jobs, timeout=TIMEOUT / 4)
    different = [
        (v.reason, v.answer)
        for v, passes in zip(verdicts, plain, strict=True)
        if v.correct != passes
    ]
    assert different == []
    assert plain.count(False) > 150
    assert plain.count(True) > 10
