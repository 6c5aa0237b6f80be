r"""The answer rule of DAPO, with the behaviour of verl's ``math_dapo`` scorer.

The rule is string equality after a list of deletions: no algebra and no reading of numbers. It is
kept for comparison with published runs. Its known traps are part of it: ``**Answer:** 25``,
``25.``, ``25.0`` and ``25<|im_end|>`` are all wrong for the gold ``25``.

Sources: verl, ``verl/utils/reward_score/math_dapo.py`` at commit bf48903d9 (August 2026), for the
window, the marker and the order of the steps; Lewkowycz et al. 2022 (Minerva, arXiv 2206.14858),
appendix D.1, for the words that are deleted. Written from the behaviour, not from the code.
"""

import re

from orthora.types import Verdict

WINDOW = 300
"""Characters of the response, counted from its end, that the rule looks at."""
BOX_WINDOW = 100
"""Characters, counted from the end, in which a box is looked for when there is no marker."""

_MARKER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

# Applied in this order; articles must go while the blanks that end them are still there.
_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
)
_WORDS_BEFORE_DOTS = "square ways integers dollars mph inches hours km units"
_WORDS_AFTER_DOTS = (
    "sue points feet minutes digits cents degrees cm gm pounds meters meals edges students "
    "childrentickets multiples"
)
_TEXT_SCRAPS = (r"\text{s}", r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3", "\\text{\n}")
_SCRAPS = (r"\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots")
_DELETED = (
    *_WORDS_BEFORE_DOTS.split(),
    r"\ldots",
    *_WORDS_AFTER_DOTS.split(),
    *_TEXT_SCRAPS,
    *_SCRAPS,
)

_REWRITTEN = (
    (re.compile(r".*?\$(.*?)\$.*"), r"$\1$"),
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


def normalise_dapo(text: str) -> str:
    r"""Bring an answer to the form in which the DAPO rule compares it.

    Args:
        text: a prediction or a gold answer.

    Returns:
        What follows the last ``=``, without blanks, articles, unit words and LaTeX wrappers. Commas
        go only where nothing but digits is left: ``1,234`` becomes ``1234``, ``-1,234`` stays.
    """
    text = text.rpartition("=")[2]
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for scrap in _DELETED:
        text = text.replace(scrap, "")
    for pattern, new in _REWRITTEN:
        text = pattern.sub(new, text)
    text = text.replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()


def _last_box(text: str) -> str | None:
    r"""Return the inside of the last ``\boxed{...}``, or None where it is absent or unbalanced."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    inside = start + len(r"\boxed{")
    depth = 1
    for position in range(inside, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[inside:position]
    return None


def dapo_verdict(response: str, gold: str) -> Verdict:
    r"""Judge a response by the DAPO rule.

    Only the last 300 characters count. The last ``answer:`` marker (any case) wins; both sides are
    normalised and compared as strings. Where there is no marker, the last ``\boxed{}`` of the last
    100 characters is compared with the gold as it stands, without normalisation. (verl before
    August 2026 had no box step; here a missing answer is never right, while verl's placeholder
    "[INVALID]" equals a gold of that text.)

    Args:
        response: decoded text of the response. Stop tokens are the caller's to remove: verl does
            not remove them, and one left in place makes a correct answer wrong.
        gold: the gold answer.

    Returns:
        The verdict; ``reason`` is "exact", "exact box", "different", "different box" or
        "no answer".
    """
    tail = response[-WINDOW:]
    found = _MARKER.findall(tail)
    if found:
        answer = normalise_dapo(found[-1])
        correct = answer == normalise_dapo(gold)
        return Verdict(correct, answer, "exact" if correct else "different")
    box = _last_box(tail[-BOX_WINDOW:])
    if box is None:
        return Verdict(False, None, "no answer")
    return Verdict(box == gold, box, "exact box" if box == gold else "different box")


def dapo_score(verdict: Verdict) -> float:
    """Turn a verdict into DAPO's reward.

    Args:
        verdict: of either rule.

    Returns:
        1.0 where it is correct and -1.0 where it is not; never 0.
    """
    return 1.0 if verdict.correct else -1.0
