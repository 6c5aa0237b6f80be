"""The two answer rules of GSM8K, with the behaviour of verl's ``gsm8k`` scorer.

Both compare strings, and their traps are part of them. Strict wants ``#### `` and loses on
``#### 18.``, ``#### 18.00`` and ``#### $18``. Flexible takes the last run of digits, dots and
commas wherever it is, keeps its commas, and so loses on ``18.``, on ``1,234`` and on a comma that
comes later. The gold must have no commas; :func:`orthora.rewards.maths.gold_of` removes them.

Source: verl, ``verl/utils/reward_score/gsm8k.py`` as of August 2026. Before 2025 strict took the
first match, and of the whole response. Written from the behaviour, not from the code.
"""

import re

from orthora.types import Verdict

WINDOW = 300
"""Characters of the response, counted from its end, that the rules look at."""

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[0-9.,]+")


def gsm8k_verdict(response: str, gold: str, *, flexible: bool) -> Verdict:
    """Judge a response by one of verl's rules for GSM8K.

    Args:
        response: decoded text of the response.
        gold: the gold answer without commas; it is compared as it stands.
        flexible: take the last number of the text, instead of the last one after ``#### ``.

    Returns:
        The verdict; ``reason`` is "exact", "different" or "no answer".
    """
    tail = response[-WINDOW:]
    if flexible:
        found = _FLEXIBLE.findall(tail)
        # where all are lone dots, verl is left with the first of them
        answer = next((run for run in reversed(found) if run != "."), found[0] if found else None)
    else:
        found = _STRICT.findall(tail)
        answer = found[-1].replace(",", "") if found else None
    if answer is None:
        return Verdict(False, None, "no answer")
    return Verdict(answer == gold, answer, "exact" if answer == gold else "different")
