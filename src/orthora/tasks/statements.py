"""What a problem says and what its gold is, without the prompt around it and in comparable form."""

import re

from orthora.rewards.spelling import rational, tidy
from orthora.types import Message, Problem

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'
MATH_TEMPLATE = f"{BEFORE}{{prompt}}{AFTER}"
"""DAPO's prompt, word for word: that of DAPO-Math-17k and of its authors' AIME file."""

_SHORT = 10
# A Chinese character is a word of its own; elsewhere a word is a run of letters and digits.
_WORD = re.compile("[\u3400-\u9fff]|[^\\W_\u3400-\u9fff]+")


def unwrap(text: str) -> str:
    """Take DAPO's prompt off a problem.

    Args:
        text: a problem, with the prompt around it or without.

    Returns:
        The problem, stripped.
    """
    return text.strip().removeprefix(BEFORE).removesuffix(AFTER).strip()


def last_user_text(prompt: str | list[Message]) -> str:
    """What the user says last in a prompt.

    Args:
        prompt: plain text, or chat messages.

    Returns:
        The text, or the content of the last user message; "" where there is none.
    """
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in reversed(prompt) if m["role"] == "user"), "")


def statement(problem: Problem) -> str:
    """The problem itself.

    Args:
        problem: of any task; other prompts than DAPO's are part of what it says.

    Returns:
        Its text without DAPO's prompt.
    """
    return unwrap(last_user_text(problem.prompt))


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case.

    Args:
        text: any language; a Chinese character counts as a word.

    Returns:
        Runs of letters and digits, in order.
    """
    return _WORD.findall(text.lower())


def key_of(text: str, words: list[str]) -> str:
    """The form in which two problems are the same.

    Args:
        text: a problem.
        words: `words_of` it.

    Returns:
        Letters and digits alone, in lower case: copies of a problem differ in blanks, dollar signs
        and LaTeX. Under ten words the signs stay, or ``1+2-3`` would be ``1-2+3``.
    """
    return "".join(text.lower().split() if len(words) < _SHORT else words)


def gold_key(problem: Problem) -> str:
    """The form in which two golds are the same.

    Args:
        problem: of any task.

    Returns:
        The number, exactly, so that ``025`` is ``25``; else the tidied text; of a programming
        problem, its tests in sorted order.
    """
    if problem.tests:
        return "\n".join(sorted(problem.tests))
    text = tidy(problem.answer)
    number = rational(text)
    return text if number is None else str(number)
