r"""Verdicts on mathematical answers, and the guarded call of Math-Verify behind them.

Math-Verify 0.9 is strong and easily misled: it takes ``4=5`` for 5 and ``5\%`` for 5, and needs
seconds for a tower of powers. So it is asked last, about one short answer whose shape has been
checked, and in a process that can be killed (:mod:`orthora.rewards.pool`).
"""

import difflib
import re
from itertools import accumulate

from orthora.rewards.dapo import dapo_verdict
from orthora.rewards.extraction import box_series, last_box
from orthora.rewards.gsm8k import gsm8k_verdict
from orthora.rewards.pool import shared_pool
from orthora.rewards.robust import robust_verdict
from orthora.rewards.spelling import tidy
from orthora.types import Verdict

RULES = ("robust", "robust-marked", "dapo", "gsm8k-strict", "gsm8k-flexible")
"""Names of the answer rules."""
MAX_SYMBOLIC = 200
"""Characters of the longest answer or gold that computer algebra is asked about."""
MAX_POWER = 1_000
"""Largest exponent that computer algebra is given."""
MAX_NESTED_POWER = 10_000
"""Largest product of the exponents where powers are raised to powers."""
MAX_EXPANDED = 30
"""Largest exponent of a bracket with variables in it."""
MAX_FACTORIAL = 100
"""Largest number under a factorial or a binomial."""
MAX_NESTING = 15
"""Deepest nesting of brackets that computer algebra is given."""

_SOLUTION = re.compile(r"\\boxed|#### ")
_NESTING = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}
_HEAVY = re.compile(r"\\(?:sum|prod|int|oint|lim|bmod|pmod|mod|Gamma|zeta|det)(?![A-Za-z])")
_CODE = re.compile(r"__|[\"'`@#?]|(?<![A-Za-z])lambda(?![A-Za-z])")
_ORDER = re.compile(r"[<>≤≥≠]|\\(?:lt|le|leq|gt|ge|geq|ne|neq)(?![A-Za-z])")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_LATEX_WORDS = "matrix pmatrix bmatrix vmatrix array cases sin cos tan log ln pi"
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-df-hj-z](?![A-Za-z])")  # neither e nor i
_SURD = re.compile(r"(?<![A-Za-z\\])[ei](?![A-Za-z])|\\sqrt|\\pi")
_LIST = re.compile(r",|;|\\pm|\\cup|(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_EXPONENT = re.compile(r"(?:\^|\*\*) ?")
_FACTORIAL = re.compile(r"([0-9]+|[^0-9 ]|^) ?!(?!=)(?! ?!)|(?<=!) ?!")
_BINOMIAL = re.compile(r"\\[dt]?(?:binom ?\{([^{}]*)\}|choose)")


def _group(text: str, start: int) -> str:
    """Return the braced or bracketed group, or else the single token, that begins at ``start``."""
    closer = {"{": "}", "(": ")"}.get(text[start : start + 1])
    if closer is None:
        token = re.compile(r"[+-]?(?:[0-9]+|\\[A-Za-z]+|.)?").match(text, start)
        return token[0] if token else ""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == text[start]) - (text[position] == closer)
        if depth == 0:
            return text[start : position + 1]
    return text[start:]


def _power_problem(text: str) -> str | None:
    """Say why the powers of a text are too much for computer algebra, or None."""
    nested, product = False, 1
    for power in _EXPONENT.finditer(text):
        group = _group(text, power.end())
        if _EXPONENT.search(group) or _EXPONENT.match(text, power.end() + len(group)):
            return "tower of powers"
        sizes = [int(digits) for digits in re.findall("[0-9]+", group)]
        if "!" in group or max(sizes, default=0) > MAX_POWER:
            return "huge exponent"
        product *= max(sizes, default=1) or 1
        bracketed = text[: power.start()].rstrip()[-1:] in (")", "}", "]")
        open_ = _VARIABLE.search(text) or _SURD.search(text)
        if bracketed and max(sizes, default=0) > MAX_EXPANDED and open_:
            return "huge exponent"
        nested |= bracketed
    return "tower of powers" if nested and product > MAX_NESTED_POWER else None


def _size_problem(text: str) -> str | None:
    """Say why a text is too costly for computer algebra, or None."""
    if len(text) > MAX_SYMBOLIC:
        return "too long for symbolic comparison"
    if _HEAVY.search(text):
        return "unevaluated operator"
    for base in (*_FACTORIAL.findall(text), *_BINOMIAL.findall(text)):
        if not re.fullmatch("[0-9]{1,3}", base) or int(base) > MAX_FACTORIAL:
            return "huge factorial"
    if max(accumulate(_NESTING.get(letter, 0) for letter in text), default=0) > MAX_NESTING:
        return "nested too deep"
    return _power_problem(text)


def _shape_problem(answer: str, gold: str) -> str | None:
    """Say what the answer holds that the gold gives no reason to expect, or None."""
    if _CODE.search(answer) and not _CODE.search(gold):
        return "not an expression"
    if "%" in answer and "%" not in gold:
        return "percent"
    if _ORDER.search(answer) and not _ORDER.search(gold):
        return "relation"
    known = {*_LATEX_WORDS.split(), *_WORD.findall(gold)}
    if _LIST.search(gold):
        known |= {"and", "or"}
    letters = {letter for word in _WORD.findall(gold) or gold.split() for letter in word}
    for word in _WORD.findall(answer):
        if word not in known and not (len(word) <= 3 and set(word) <= letters):
            return "words"
    return None


def symbolic_equal(answer: str, gold: str) -> tuple[bool, str]:
    """Compare two expressions by computer algebra, where that is safe.

    Args:
        answer: the answer as :func:`orthora.rewards.spelling.tidy` leaves it.
        gold: the gold, likewise.

    Returns:
        Whether they are equal, and why: "symbolically equal", "different", or the guard that
        refused ("tower of powers", "huge exponent", "words", "percent", ...), "symbolic timeout",
        or "symbolic error: ...". All but the first count as not equal.

    Raises:
        RuntimeError: the workers of :mod:`orthora.rewards.pool` cannot be started.
    """
    problem = _size_problem(answer) or _size_problem(gold) or _shape_problem(answer, gold)
    if problem is not None:
        return False, problem
    if not set(_VARIABLE.findall(answer)) <= set(gold):
        return False, "different"  # Math-Verify takes letters behind a number for its unit
    return shared_pool().equal(answer, gold)


def gold_of(text: str) -> str:
    r"""Take the gold answer out of a data set's answer column.

    Args:
        text: a GSM8K solution, a MATH solution, or the answer itself.

    Returns:
        What follows the last ``#### `` without commas, else the inside of the last ``\boxed{}``
        (of all boxes, where the text is a list of boxes and nothing else), else the text; stripped.

    Raises:
        ValueError: there is nothing left.
    """
    _, hashes, tail = text.rpartition("#### ")
    box = None if hashes else box_series(text, whole=True) or last_box(text)
    gold = tail.replace(",", "").strip() if hashes else (text if box is None else box).strip()
    if not gold:
        raise ValueError(f"no gold answer in {text[-80:]!r}; drop the row or repair the column")
    return gold


def math_verdict(response: str, gold: str, *, rule: str = "robust") -> Verdict:
    """Judge a response to a problem with one mathematical answer.

    Args:
        response: decoded text of the response.
        gold: the gold answer, e.g. from :func:`gold_of`.
        rule: "robust", the default rule of this package, which takes the last statement where no
            answer is marked; "robust-marked", the same without that, for training, where a response
            that was cut must not pass; "dapo", verl's rule for DAPO; or "gsm8k-strict" or
            "gsm8k-flexible", verl's two rules for GSM8K.

    Returns:
        The verdict.

    Raises:
        ValueError: an unknown rule, a response that is not text, or a gold that is empty or not
            text.
    """
    if rule not in RULES:
        close = difflib.get_close_matches(str(rule), RULES, n=1, cutoff=0.65)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(RULES)}"
        raise ValueError(f"unknown answer rule {rule!r}; {hint}")
    if not isinstance(gold, str) or not tidy(gold):
        raise ValueError(f"gold is {gold!r}; pass the answer as text that is not empty, e.g. '25'")
    if not isinstance(response, str):
        raise ValueError(f"response is {response!r}; pass decoded text")
    if rule == "dapo":
        return dapo_verdict(response, gold)
    if rule.startswith("gsm8k-"):
        return gsm8k_verdict(response, gold, flexible=rule == "gsm8k-flexible")
    marked = rule == "robust-marked"
    gold = gold_of(gold) if _SOLUTION.search(gold) else gold
    return robust_verdict(response, gold, symbolic=symbolic_equal, marked=marked)
