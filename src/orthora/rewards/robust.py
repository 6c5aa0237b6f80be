r"""The default answer rule: one final answer, compared as text, as a number, then symbolically.

Reasoning between think tags and what follows a stop token is dropped, and one answer is taken: the
last ``Answer:`` line, else the last balanced ``\boxed{}``, else the last ``#### `` line. Shapes
that grade well for the wrong reason (``4=5``, answer shotguns, invisible characters) are refused.
Strings are compared after normalisation, then lists member by member, then numbers as exact
rationals; what is left (surds, tuples, polynomials) goes to ``symbolic``, the caller's function. A
chain ``a = b`` is right where a and b each are. Where the answer is a sentence, the last thing it
claims is compared; questions, hedges and denials claim nothing. Nothing here evaluates model
output. The traps behind the rules were measured on Math-Verify 0.9.0 and on verl's scorers.
"""

import re
import unicodedata
from collections.abc import Iterator

from orthora.rewards.comparison import Symbolic, compare, members
from orthora.rewards.extraction import MAX_ANSWER, box_series, extract, passage_of
from orthora.rewards.sentences import claims_of
from orthora.rewards.spelling import key_of, split_unit, tidy, unwrapped
from orthora.types import Verdict

_MONEY = re.compile(r"\$?\\\$|\$(?=[^$]*$)")
_PRICE = re.compile(r"\$?\\\$ ?[0-9]")
_DOLLARS = ("dollar", "dollars", "usd", "bucks", "us dollars")


def _readings(response: str, gold: str, marked: bool) -> Iterator[str]:
    """Yield the ways to read the final answer: as it stands, as a series of boxes, as a claim."""
    source = passage_of(response, marked=marked).text
    answer, _ = extract(response, marked=marked)
    if source is None or answer is None:
        return
    yield answer
    if len(members(tidy(gold))) > 1 and (series := box_series(source)):
        yield series
    if answer == source and len(answer) <= MAX_ANSWER:
        yield from claims_of(answer, gold)


def _until_a_timeout(symbolic: Symbolic) -> Symbolic:
    """``symbolic``, which is not asked again once it has timed out: one verdict, one timeout."""
    late = False

    def asked(answer: str, gold: str) -> tuple[bool, str]:
        nonlocal late
        if late:
            return False, "symbolic timeout"
        equal, reason = symbolic(answer, gold)
        late = reason == "symbolic timeout"
        return equal, reason

    return asked


def robust_verdict(response: str, gold: str, *, symbolic: Symbolic, marked: bool = True) -> Verdict:
    """Judge a response by the default rule.

    Args:
        response: decoded text of the response.
        gold: the gold answer; see :func:`orthora.rewards.maths.gold_of` for data sets' columns.
        symbolic: decides what neither strings nor rationals decide.
        marked: whether the answer must be marked; see :func:`orthora.rewards.extraction.extract`.

    Returns:
        The verdict, with the answer as it was compared.
    """
    answer, problem = extract(response, marked=marked)
    if answer is None:
        return Verdict(False, None, problem)
    if any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\t\r\n" for c in answer):
        return Verdict(False, answer, "control characters")
    if len(answer) > MAX_ANSWER:
        return Verdict(False, answer, "answer too long")
    if not key_of(tidy(answer)):
        return Verdict(False, None, "no answer")
    gold_unit = split_unit(unwrapped(tidy(gold)))[1]
    if gold_unit and gold_unit not in _DOLLARS and _MONEY.match(answer.strip()):
        return Verdict(False, tidy(answer), "different unit")
    if gold_unit == "" and _PRICE.match(gold.strip()):
        answer_unit = split_unit(unwrapped(tidy(answer)))[1]
        if answer_unit and answer_unit not in _DOLLARS:
            return Verdict(False, tidy(answer), "different unit")
    symbolic = _until_a_timeout(symbolic)
    first: Verdict | None = None
    for reading in _readings(response, gold, marked):
        tidied = tidy(reading)
        correct, reason = compare(tidied, tidy(gold), symbolic)
        verdict = Verdict(correct, tidied, reason)
        if verdict.correct:
            return verdict
        first = first or verdict
    assert first is not None
    return first
