"""Two tidied answers compared: as strings, lists, chains, numbers, and last symbolically."""

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate

from orthora.rewards.extraction import MAX_ANSWERS, MAX_LIST
from orthora.rewards.spelling import (
    DECIMAL,
    SEPARATOR,
    key_of,
    rational,
    same_number,
    split_unit,
    unwrapped,
)

Symbolic = Callable[[str, str], tuple[bool, str]]
"""Takes a normalised answer and a normalised gold; returns whether they are equal, and a reason."""
_RELATION = re.compile(r"(?<![<>!])=|\\approx|≈|\\equiv|\\in(?![A-Za-z])|∈")
_NAME = re.compile(
    r"(?!(?:[A-Za-z]+ ){0,3}(?:not|never|wrong|incorrect|except)(?![A-Za-z])"
    r"|\\(?:not|neg|lnot|nexists|pm|mp|log|ln|sin|cos|tan|sqrt|frac)(?![A-Za-z]))"
    r"((?:\\?[A-Za-z\u4e00-\u9fff]+(?: [A-Za-z]+){0,3})"
    r"(?:_(?:\{[A-Za-z0-9 ]{1,10}\}|[A-Za-z0-9]))?'?"
    r"(?: ?\([A-Za-z0-9, ]{1,20}\))?|\([A-Za-z](?:, ?[A-Za-z]){1,5}\))"
    r" ?(?:=|\\approx|≈|\\in(?![A-Za-z])|∈) ?"
)
_SUM = re.compile(r"[0-9]{0,5}[A-Za-z](?: ?[+-] ?[0-9]{0,5}[A-Za-z]){1,5} ?= ?")
_APPROXIMATELY = re.compile(r"(.+?) ?(?:\\approx|≈) ?-?[0-9,]*\.[0-9]+ ?(?:[A-Za-z]{2,20})?")
_SWAPPED = re.compile(r"(?=[^=]*[0-9])([^=]+?) ?= ?([A-Za-z](?:_\{?[A-Za-z0-9]\}?)?)")
_COMMA = re.compile(r"-?(?:[0-9]+,(?:[0-9]{2}|[0-9]{4,9})|0,[0-9]{2,9})")
_DECIMALS = re.compile(r"[+-]?[0-9]*\.([0-9]{6,})")
_TRAILING = re.compile(rf"[+-]?{DECIMAL} ?([A-Za-z]{{1,20}}(?: ?\^\{{?[23]\}}?)?)")
_BASE = re.compile(r"\(?(-?[0-9A-Z.]+)\)? ?_ ?\{?([0-9]+)\}?")
_LETTERS = re.compile(r"\(?[A-Z]{2,}\)?|[a-z]{2,3}")
_HIDDEN = re.compile(
    r"\\(?:text[a-z]*|mbox|mathrm|mathbf) ?\{[^{}A-Za-z]*[0-9²³.+*/^_-][^{}]*\}|\\[cl]?dots"
)
_ORDER = re.compile(r"[<>]|\\(?:lt|le|leq|gt|ge|geq)(?![A-Za-z])")
_ORDERED = re.compile(r"[<>(\[]|\\(?:lt|le|leq|gt|ge|geq|in)(?![A-Za-z])|∈")


def _sides(answer: str, gold: str) -> tuple[str, str] | None:
    """Drop ``name =`` where only one of the two has it; None for a chain or a bare equation."""
    answer, gold = (
        _SWAPPED.sub(r"\2 = \1", text) if _SWAPPED.fullmatch(text) else text
        for text in (answer, gold)
    )
    heads = [_NAME.match(text) for text in (answer, gold)]
    answer_head, gold_head = (
        None if head is None or _RELATION.search(text, head.end()) else head
        for head, text in zip(heads, (answer, gold), strict=True)
    )
    answer_relations, gold_relations = (len(_RELATION.findall(text)) for text in (answer, gold))
    if answer_head and answer_head[1].startswith("(") and not gold_head:
        letters = re.findall("[A-Za-z]", answer_head[1])
        if letters != sorted(letters):  # (y, x) = (1, 2)
            return None
    same_name = answer_head and gold_head and key_of(answer_head[1]) == key_of(gold_head[1])
    if answer_head and (same_name or not gold_relations):
        answer, answer_relations = answer[answer_head.end() :], 0
    if gold_head and (same_name or not answer_relations):
        gold, gold_relations = gold[gold_head.end() :], 0
    return None if answer_relations > gold_relations else (answer, gold)


def _pieces(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at a separator wherever it is outside all brackets."""
    pieces, start, depth, at = [], 0, 0, 0
    while at < len(text):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        cut = separator.match(text, at) if depth == 0 else None
        if cut and cut.end() > at:
            pieces.append(text[start:at].strip())
            start = at = cut.end()
        else:
            at += 1
    return [*pieces, text[start:].strip()]


def _bare(text: str) -> str:
    r"""Drop the one pair of brackets around everything: ``(...)``, ``{...}`` or ``\{...\}``."""
    inner = re.fullmatch(r"\\?\{(.*?)\\?\}|\((.*)\)", text)
    if inner is None:
        return text
    inside = (inner[1] or inner[2] or "").strip()
    depths = accumulate((letter in "([{") - (letter in ")]}") for letter in inside)
    return inside if min(depths, default=0) >= 0 else text


def _unnamed(text: str) -> str:
    """Drop a ``name =`` in front."""
    name = _NAME.match(text)
    return text[name.end() :] if name else text


def _name_of(text: str) -> str:
    """What is in front of ``=``, or nothing."""
    name = _NAME.match(text)
    return key_of(name[1]) if name else ""


def members(text: str) -> list[str]:
    r"""Return the members of a list or set, one for anything else; ``a \pm b`` has two."""
    text = unwrapped(text)
    if rational(text) is not None:
        return [text]
    text = _bare(text) if not text.startswith("(") else text
    members = [member for member in _pieces(text, SEPARATOR) if member]
    if len(members) == 1 and text.count(r"\pm") == 1:
        return [text.replace(r"\pm", sign).strip().removeprefix("+") for sign in "+-"]
    return members


def _same_list(answer: str, gold: str, symbolic: Symbolic) -> bool:
    """Compare two lists in any order, each member once; names go where one side has none."""
    given, wanted = members(answer), members(gold)
    if len(given) != len(wanted) or not 1 < len(wanted) <= MAX_LIST:
        return False
    named = [all(map(_NAME.match, members)) for members in (given, wanted)]
    if named[0] != named[1]:
        given, wanted = ([_unnamed(one) for one in members] for members in (given, wanted))
    for member in wanted:
        equal = next((one for one in given if _equal(one, member, symbolic)[0]), None)
        if equal is None:
            return False
        given.remove(equal)
    return True


def _same_named(answer: str, gold: str, symbolic: Symbolic) -> bool | None:
    """Compare ``x = 1, y = 2`` with values without names, in order; None for anything else."""
    texts = (answer, gold)
    sides = [members(text) for text in texts]
    for mine, others, text in ((*sides, gold), (sides[1], sides[0], answer)):
        names = {_name_of(one) for one in mine}
        if len(mine) == 1 or "" in names or len(names) < len(mine):
            continue
        tuple_ = re.fullmatch(r"\((.*)\)", unwrapped(text))
        values = _pieces(tuple_[1], SEPARATOR) if tuple_ and len(others) == 1 else others
        if len(values) == len(mine) and not any(map(_NAME.match, values)):
            pairs = zip(map(_unnamed, mine), values, strict=True)
            return all(_equal(one, other, symbolic)[0] for one, other in pairs)
    return None


def _chain(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Accept ``name = a = b`` where each of a and b alone would be right; ``4=5`` is not 5."""
    gold_head, head = _NAME.match(gold), _NAME.match(answer)
    if gold_head and head and key_of(gold_head[1]) != key_of(head[1]):
        return False, "equation chain"
    gold = gold[gold_head.end() :] if gold_head else gold
    members = _pieces(answer[head.end() :] if head else answer, re.compile("="))
    if _RELATION.search(gold) or not 1 < len(members) <= MAX_ANSWERS + 1:
        return False, "equation chain"
    for member in members:
        if _RELATION.search(member) or not _equal(member, gold, symbolic)[0]:
            return False, "equation chain"
    return True, "equal chain"


def _same_base(answer: str, gold: str) -> bool | None:
    """Compare numerals with a base; None where neither has one. The base may be left out."""
    given, wanted = _BASE.fullmatch(unwrapped(answer)), _BASE.fullmatch(unwrapped(gold))
    if given is None and wanted is None:
        return None
    if given is not None and wanted is not None:
        return given.groups() == wanted.groups()
    return wanted is not None and key_of(answer) == wanted[1]


def _rounded(answer: str, gold: str) -> bool:
    """Whether the gold is a fraction's decimals, six or more of them, cut or rounded."""
    decimals = _DECIMALS.fullmatch(gold)
    exact, given = rational(answer), rational(gold)
    if not decimals or "." in answer or exact is None or given is None:
        return False
    return abs(exact - given) < Fraction(1, 10 ** len(decimals[1]))


def _equal(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Compare two texts without relations: as strings, as numbers, then by ``symbolic``."""
    if key_of(answer) == key_of(gold):
        return True, "exact"
    if (base := _same_base(answer, gold)) is not None:
        return base, "exact" if base else "different base"
    if all(_LETTERS.fullmatch(unwrapped(text)) for text in (answer, gold)):
        return False, "different"  # Math-Verify multiplies letters
    if _HIDDEN.search(answer) and not _HIDDEN.search(gold):
        return False, "text"  # Math-Verify drops it
    same = same_number(answer, gold)
    if same is False and _rounded(answer, gold):
        return True, "equal as far as the gold goes"
    if same is not None:
        return same, "equal numbers" if same else "different number"
    tails = [_TRAILING.fullmatch(unwrapped(text)) for text in (answer, gold)]
    if tails[0] and tails[1] and tails[0][1] != tails[1][1]:
        return False, "different unit"  # Math-Verify drops km and m alike
    head, unit = split_unit(unwrapped(answer))
    if unit and not split_unit(unwrapped(gold))[1]:
        return symbolic(head, gold)
    return symbolic(answer, gold)


def compare(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Compare two tidied texts, after dropping names and splitting lists and chains."""
    if key_of(answer) == key_of(gold):
        return True, "exact"
    rough = _APPROXIMATELY.fullmatch(answer)
    if rough and not _NAME.fullmatch(rough[1] + " = ") and not _RELATION.search(gold):
        answer = rough[1]
    if rational(unwrapped(gold)) is not None and (named := _SUM.match(answer)):
        answer = answer[named.end() :]  # m + n = 25, as problems ask for it
    if (same := _same_named(answer, gold, symbolic)) is not None:
        return same, "equal values" if same else "different"
    sides = _sides(answer, gold)
    if sides is None:
        given = members(answer)
        one_name = len({_name_of(one) for one in given}) == 1 and _name_of(given[0])
        if len(given) > 1 and one_name and _same_list(answer, gold, symbolic):
            return True, "equal lists"
        return _chain(_bare(answer), gold, symbolic)
    answer, gold = sides
    if _ORDER.search(gold) and not _ORDERED.search(answer):
        return False, "no interval"
    for one, other in ((answer, gold), (gold, answer)):
        if _COMMA.fullmatch(one) and one.replace(",", ".") == other:
            return True, "decimal comma"
    if _same_list(answer, gold, symbolic):
        return True, "equal lists"
    lists = [members(text) for text in (answer, gold)]
    numbers = all(rational(one) is not None for one in (*lists[0], *lists[1]))
    if numbers and max(map(len, lists)) > 1:  # Math-Verify compares sets, in which 1, 1 is 1
        return False, "different"
    return _equal(answer, gold, symbolic)
