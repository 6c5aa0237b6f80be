"""What a sentence claims that the answer is; questions, hedges and denials claim nothing."""

import re
from collections.abc import Iterator

from orthora.rewards.extraction import MAX_ANSWERS
from orthora.rewards.spelling import DECIMAL, MULTIPLIERS, NOT_UNITS, rational, tidy

_SENTENCE = re.compile(r"(?<=[.!])\s+|[。！]")
_CLAIM = re.compile(
    r"(?i)(?<![a-z\\])(?:is|are|was|were|it['’]s|equals?|equal to|gets?|have|has|that|therefore|"
    r"thus|hence|so|gives?|answer|result|est|sont|donc|réponse)(?![a-z])"
    r"|(?<![0-9])[:：]|为|是|有|答案|所以"
)
_NOT_A_CLAIM = re.compile(
    r"(?i)[?？]|(?<![a-z])(?:either|or|maybe|perhaps|sure|guess|whether|unknown|not know)(?![a-z])"
    r"|吗|或"
)
_DENIED = re.compile(
    r"(?i)(?<![a-z])(?:not|no|never|wrong|incorrect|false|but|cannot|nobody|doubt|mistaken?|"
    r"unlikely|except|unless|nicht|pas|[a-z]+n['’]t)(?![a-z])|不|错|非"
)
_ALTERED = re.compile(
    r"(?i)(?<![a-z])(?:(?:square|cube|root|reciprocal|opposite|inverse|multiple|divisor|factor|"
    r"power|half|double|triple|twice|negative)s? of|after|before|near|twice|(?:might|could|may) be|"
    r"probably|bound is) ?\$?[-.0-9]|(?<![a-z])one possible|(?-i:[0-9] ?[KMB](?![A-Za-z]))|零下"
    r"|分之|[0-9]的|以[下上]|不对|点[零一二三四五六七八九]"
)
_CONTENT = re.compile(r"[0-9$½⅓¼¾]|\\[A-Za-z(\[]|^\(?[A-Z]\)?$")
_CJK = re.compile("[\u4e00-\u9fff]")
_ORDER_GIVEN = re.compile(
    r"(?i)[\W_]*(?:find|compute|calculate|evaluate|determine|solve|simplify|express|what|how|which|"
    r"who|when|where|let|suppose|given|if|assume|prove|show|remember|write|put|consider|factor|"
    r"convert|expand|round|add|subtract|multiply|divide|name|list|state|choose|rationalize|graph)"
    r"(?![a-z])"
)
_CONFIRMED = re.compile(
    r"(?i) ?(?:is|are) (?:the|our|my) (?:final |correct )?(?:answer|solution).*"
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_PERCENT = re.compile(rf"(?<![^\s$])(-?{DECIMAL}) ?\\?%")
_LONE_NUMBER = re.compile(
    rf"(?<![^\s$€£(\u4e00-\u9fff])(-?[$€£]?{DECIMAL})(?![0-9A-Za-z%^/*!]|[.,][0-9])"
)


def _claimed(sentence: str) -> str | None:
    """Return what a sentence says that the answer is: the last thing claimed that has content."""
    claims = list(_CLAIM.finditer(sentence))
    starts = [0, *(claim.end() for claim in claims)]
    ends = [*(claim.start() for claim in claims), len(sentence)]
    pieces = [  # a point in front may belong to a decimal
        sentence[start:end].rstrip(" ,.;，").lstrip(" ,;，")
        for start, end in zip(starts, ends, strict=True)
    ]
    said = [place for place, piece in enumerate(pieces) if _CONTENT.search(piece)]
    if not said or len(said) > MAX_ANSWERS + 1:
        return None
    place = said[-1]
    if place == 0 and claims and not _CONFIRMED.match(sentence[ends[0] :]):
        return None
    first = place
    while first > 0 and not re.search("[0-9]", pieces[first - 1]):
        first -= 1
    if _DENIED.search(sentence, starts[first]):
        return None
    return re.sub(r"(?i)^(?:de|of|to) ", "", pieces[place])


def claims_of(line: str, gold: str) -> Iterator[str]:
    """Yield the readings of an answer that is a sentence; none for questions and hedges."""
    sentences = [part for part in _SENTENCE.split(line.strip()) if part.strip(" .$")]
    if len(sentences) > 2 * MAX_ANSWERS or not sentences or _NOT_A_CLAIM.search(line):
        return
    if _ORDER_GIVEN.match(sentences[-1]) or _ALTERED.search(sentences[-1]):
        return
    claims = [_claimed(sentence) or "" for sentence in sentences]
    piece = claims[-1]
    if not piece or sum(rational(tidy(claim)) is not None for claim in claims) > MAX_ANSWERS:
        return
    formulas = _FORMULA.findall(piece) if _CLAIM.search(sentences[-1]) else []
    if len(formulas) == 1 and not _CONTENT.search(_FORMULA.sub("", piece)):
        yield "".join(formulas[0])
    worded = re.search(r"[^\W\d_]{3}", "".join(sentences[:-1]))  # a list "1. 2. 3." says nothing
    if _CLAIM.search(sentences[-1]) or (worded and not re.search("[A-Za-z]{2}", piece)):
        yield piece
    words = {word.lower() for word in re.findall("[A-Za-z]+", piece)}
    numbers = _LONE_NUMBER.findall(piece)
    odd = not words.isdisjoint(NOT_UNITS.split()) or set(piece) & set(MULTIPLIERS + "\\^%=<>{}")
    percents = _PERCENT.findall(piece)
    digits = len(re.findall(r"[0-9][0-9.,]*", piece))
    if "%" in gold and len(percents) == 1 == digits and words.isdisjoint(NOT_UNITS.split()):
        yield f"{percents[0]}%"
    lone = len(numbers) == 1 == digits
    long = len(piece.split()) + len(_CJK.findall(piece)) > 3
    if lone and long and not odd and rational(tidy(gold)) is not None:
        yield numbers[0]
