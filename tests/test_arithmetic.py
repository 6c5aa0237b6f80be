import random
import re
import subprocess
import sys

import pytest

from orthora.tasks import arithmetic
from orthora.tasks.arithmetic import (
    SPLITS,
    answer,
    carries,
    draw,
    parse,
    problems,
    solution,
    split_of,
)
from orthora.types import Problem


def running_totals(prompt: str) -> list[int]:
    parts = re.findall(r"[+-]?[0-9]+", prompt)
    return [eval("".join(parts[: i + 1])) for i in range(len(parts))]


@pytest.mark.parametrize("terms", [(2,), (3,), (3, 4), (5,)])
@pytest.mark.parametrize("split", SPLITS)
def test_problems_are_distinct_in_range_and_true(split, terms):
    rows = problems(split, 200, seed=1, terms=terms)
    assert len({p.prompt for p in rows}) == len({p.id for p in rows}) == 200
    for row in rows:
        totals = running_totals(row.prompt[:-1])
        assert len(totals) in terms
        assert all(0 <= t <= 99 for t in totals)
        assert row.answer == str(totals[-1])
        assert split_of(row.prompt) == split
    assert {len(running_totals(p.prompt[:-1])) for p in rows} == set(terms)


def test_splits_are_disjoint_and_have_their_shares():
    prompts = {s: {p.prompt for p in problems(s, 300)} for s in SPLITS}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    every = [f"{a}+{b}=" for a in range(50) for b in range(1, 50)]
    counts = {s: sum(split_of(p) == s for p in every) for s in SPLITS}
    assert sum(counts.values()) == len(every)  # exhaustive: every prompt has a split
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        deviation = (share * (1 - share) / len(every)) ** 0.5
        assert abs(counts[split] / len(every) - share) < 4 * deviation


def test_split_is_pinned():
    # A different hash would silently move test problems into the embedded model's training data.
    pinned = {"validation": [1, 4, 7, 9, 13], "test": [14]}
    for split, numbers in pinned.items():
        assert [n for n in range(15) if split_of(f"{n}+1=") == split] == numbers


def test_lists_repeat_by_seed_and_extend():
    assert problems("train", 20, seed=3) == problems("train", 20, seed=3)
    assert problems("train", 20, seed=3) == problems("train", 50, seed=3)[:20]
    assert problems("train", 20, seed=3) != problems("train", 20, seed=4)
    assert problems("train", 20, terms=(4, 3)) == problems("train", 20, terms=(3, 4))


def test_solution_works_line_by_line():
    text = "47+25=72\n72-18=54\nAnswer: 54"
    assert solution("47+25-18=") == text
    assert solution(Problem(prompt="47+25-18=", answer="54", id="x")) == text
    assert answer("47+25-18=") == "54"
    assert parse("47+25-18=") == (47, (("+", 25), ("-", 18)))


def test_carries_means_that_the_tens_change_beyond_the_operands():
    for total in range(100):
        for operand in range(50):
            assert carries(total, "+", operand) == (
                (total + operand) // 10 != total // 10 + operand // 10
            )
            assert carries(total, "-", operand) == (
                (total - operand) // 10 != total // 10 - operand // 10
            )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("dev", 1, {}), "'dev'"),
        (("train", 0, {}), "count is 0"),
        (("train", 1, {"terms": (1,)}), r"terms is \(1,\)"),
        (("train", 1, {"terms": (3, 6)}), r"terms is \(3, 6\)"),
        (("train", 1, {"terms": ()}), r"terms is \(\)"),
        (("test", 10_000, {"terms": (2,)}), "only .* different problems"),
    ],
)
def test_errors_name_the_value(arguments, named):
    split, count, rest = arguments
    with pytest.raises(ValueError, match=named):
        problems(split, count, **rest)


@pytest.mark.parametrize("prompt", ["", "47=", "47+25", "47*2=", "90+20=", "3-4=", " 1+1="])
def test_what_is_no_chain_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt"):
        solution(prompt)


def test_a_chat_is_refused():
    chat = Problem(prompt=[{"role": "user", "content": "1+1="}], answer="2", id="x")
    with pytest.raises(ValueError, match="chat"):
        solution(chat)


def test_draw_keeps_to_its_split():
    rng = random.Random(0)
    assert {split_of(draw(rng, "validation", 3)) for _ in range(50)} == {"validation"}
    with pytest.raises(ValueError, match="terms"):
        draw(rng, "train", 9)


def test_module_itself_loads_no_heavy_package():
    # By its path: what else the package `orthora.tasks` imports is not this module's doing.
    code = f"""
import runpy, sys
runpy.run_path({arithmetic.__file__!r})["answer"]("1+1=")
print({{"torch", "transformers"}} & {{*sys.modules}})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
