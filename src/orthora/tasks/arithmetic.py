"""The procedural task of the embedded model: chains of additions and subtractions.

A prompt is ``47+25-18=``. The expected response works one line per operation and ends with the
answer: ``47+25=72``, ``72-18=54``, ``Answer: 54``. Every running total lies in 0..99, so that a
step is hard only where it carries or borrows. Problems fall into splits by a hash of their prompt:
a test problem can never occur in training, whatever the seeds.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

if TYPE_CHECKING:  # orthora.types loads torch, which drawing text does not need
    from orthora.types import Problem

Sign = Literal["+", "-"]

SPLITS = ("train", "validation", "test")
"""The splits, holding 80, 10 and 10 % of all problems."""

_SHARES = (0.8, 0.1, 0.1)

FEWEST_TERMS, MOST_TERMS = 2, 5
LARGEST_TOTAL = 99
LARGEST_OPERAND = 49

_PROMPT = re.compile(r"[0-9]+(?:[+-][0-9]+)+=")
_OPERATION = re.compile(r"([+-])([0-9]+)")
# Misses in a row after which a split counts as exhausted. The smallest space (two terms) holds
# about 7000 problems, so that a single one left is overlooked with probability below 1e-5.
_MISSES = 100_000


class Chain(NamedTuple):
    """A parsed prompt.

    Attributes:
        first: the first number.
        operations: (sign, operand) pairs in reading order.
    """

    first: int
    operations: tuple[tuple[Sign, int], ...]


def apply(total: int, sign: Sign, operand: int) -> int:
    """Return ``total + operand`` or ``total - operand``.

    Args:
        total: the running total.
        sign: ``"+"`` or ``"-"``.
        operand: the number to add or subtract.

    Returns:
        The next running total; it may leave 0..99.
    """
    return total + operand if sign == "+" else total - operand


def carries(total: int, sign: Sign, operand: int) -> bool:
    """Say whether a step carries (``+``) or borrows (``-``) across the units digit.

    Args:
        total: the running total, at least 0.
        sign: ``"+"`` or ``"-"``.
        operand: the number to add or subtract, at least 0.

    Returns:
        True where the units digits alone do not settle the units digit of the result.
    """
    if sign == "+":
        return total % 10 + operand % 10 >= 10
    return total % 10 < operand % 10


def parse(prompt: str) -> Chain:
    """Read a prompt back into numbers.

    Args:
        prompt: text such as ``47+25-18=``.

    Returns:
        The first number and the operations.

    Raises:
        ValueError: if the text is not such a chain, or if a running total leaves 0..99.
    """
    if not _PROMPT.fullmatch(prompt):
        raise ValueError(f"prompt {prompt!r} is not a chain; write numbers as in '47+25-18='")
    first = int(re.split("[+-]", prompt, maxsplit=1)[0])
    pairs: tuple[tuple[Sign, int], ...] = tuple(
        (cast(Sign, s), int(y)) for s, y in _OPERATION.findall(prompt)
    )
    total = first
    for sign, operand in pairs:
        total = apply(total, sign, operand)
        if not 0 <= total <= LARGEST_TOTAL:
            raise ValueError(
                f"prompt {prompt!r} has the running total {total}; keep every total in "
                f"0..{LARGEST_TOTAL}"
            )
    return Chain(first, pairs)


def answer(prompt: str) -> str:
    """Return the gold answer of a prompt.

    Args:
        prompt: text such as ``47+25-18=``.

    Returns:
        The value as decimal text, here ``"54"``.

    Raises:
        ValueError: as `parse`.
    """
    total, operations = parse(prompt)
    for sign, operand in operations:
        total = apply(total, sign, operand)
    return str(total)


def solution(problem: "Problem | str") -> str:
    """Write the faultless worked response to a problem.

    Args:
        problem: a problem of this task, or its prompt.

    Returns:
        One line per operation and the final ``Answer:`` line, joined by newlines.

    Raises:
        ValueError: if the prompt is a chat, or as `parse`.
    """
    prompt = problem if isinstance(problem, str) else problem.prompt
    if not isinstance(prompt, str):
        raise ValueError(f"prompt {prompt!r} is a chat; pass the plain text of an arithmetic chain")
    total, operations = parse(prompt)
    lines = []
    for sign, operand in operations:
        result = apply(total, sign, operand)
        lines.append(f"{total}{sign}{operand}={result}")
        total = result
    return "\n".join([*lines, f"Answer: {total}"])


def split_of(prompt: str) -> str:
    """Say which split a prompt belongs to.

    Args:
        prompt: text such as ``47+25-18=``.

    Returns:
        One of `SPLITS`, by a hash of the text alone: the same on every machine and in every run.
    """
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 10
    return SPLITS[max(0, bucket - 7)]


def draw(rng: random.Random, split: str, terms: int) -> str:
    """Draw one prompt of a split.

    Args:
        rng: source of randomness, advanced by the call.
        split: one of `SPLITS`.
        terms: how many numbers the chain holds, 2..5.

    Returns:
        A prompt. Repeated calls may repeat it.

    Raises:
        ValueError: for an unknown split or a number of terms outside 2..5.
    """
    _check(split, (terms,))
    while split_of(prompt := _chain(rng, terms)) != split:
        pass
    return prompt


def problems(
    split: str, count: int, *, seed: int = 0, terms: Sequence[int] = (3, 4)
) -> list["Problem"]:
    """Draw distinct problems of one split.

    The list depends on (split, seed, terms) alone, and a shorter list is the start of a longer one.

    Args:
        split: one of `SPLITS`.
        count: how many problems.
        seed: any integer; lists under different seeds may overlap.
        terms: the numbers of terms to choose from, evenly, each in 2..5.

    Returns:
        ``count`` problems with different prompts; the prompt is the id.

    Raises:
        ValueError: for an unknown split, a count below 1, terms outside 2..5, or too few problems.
    """
    from orthora.types import Problem

    choices = tuple(sorted(set(terms)))
    _check(split, choices)
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 problem")
    expected = _SHARES[SPLITS.index(split)] * sum(map(_chains, choices))
    if count > expected + 5 * expected**0.5:  # standard deviations of what a hash hands out
        raise ValueError(
            f"count is {count}, but the {split} split with terms {choices} has only about "
            f"{expected:.0f} different problems; ask for fewer or allow more terms"
        )
    rng = random.Random(f"{split} {seed} {choices}")
    found: dict[str, None] = {}  # keeps the order of drawing
    misses = 0
    while len(found) < count:
        prompt = _chain(rng, rng.choice(choices))
        fresh = prompt not in found and split_of(prompt) == split
        misses = 0 if fresh else misses + 1
        if fresh:
            found[prompt] = None
        elif misses >= _MISSES:
            raise ValueError(
                f"count is {count}, but the {split} split with terms {choices} gave only "
                f"{len(found)} different problems; ask for fewer or allow more terms"
            )
    return [Problem(prompt=p, answer=answer(p), id=p) for p in found]


def _chains(terms: int) -> int:
    """How many prompts there are with so many numbers, in all splits."""
    ends = dict.fromkeys(range(1, LARGEST_TOTAL + 1), 1)  # running total: ways to reach it
    for _ in range(terms - 1):
        ends = {
            result: sum(
                ways for total, ways in ends.items() if 1 <= abs(result - total) <= LARGEST_OPERAND
            )
            for result in range(LARGEST_TOTAL + 1)
        }
    return sum(ends.values())


def _chain(rng: random.Random, terms: int) -> str:
    """Draw a prompt of any split whose running totals stay in range."""
    total = rng.randint(1, LARGEST_TOTAL)
    text = str(total)
    for _ in range(terms - 1):
        while True:
            operand = rng.randint(1, LARGEST_OPERAND)
            sign: Sign = "+" if rng.random() < 0.5 else "-"
            result = apply(total, sign, operand)
            if 0 <= result <= LARGEST_TOTAL:
                break
        total = result
        text += f"{sign}{operand}"
    return text + "="


def _check(split: str, terms: Sequence[int]) -> None:
    """Raise for a split or numbers of terms that do not exist."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    outside = [k for k in terms if not FEWEST_TERMS <= k <= MOST_TERMS]
    if outside or not terms:
        raise ValueError(
            f"terms is {tuple(terms)}; give at least one number in {FEWEST_TERMS}..{MOST_TERMS}"
        )
