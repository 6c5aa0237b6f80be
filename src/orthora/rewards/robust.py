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
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate

from orthora.types import Verdict

Symbolic = Callable[[str, str], tuple[bool, str]]
"""Takes a normalised answer and a normalised gold; returns whether they are equal, and a reason."""

MAX_ANSWER = 1_000
"""Characters of the longest answer that is looked at."""
MAX_LIST = 12
"""Members of the longest list, and of the longest series of boxes, that is compared as a list."""
MAX_ANSWERS = 3
"""Distinct ``Answer:`` lines, of the last 24, taken for self-correction; more are a shotgun."""

_EDGES = " \t\r\n*_`"
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_STOP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|end_of_text|eot_id|end|eos|pad)\|>"
    r"|</?s>|<eos>|<pad>|<end_of_turn>|<｜end▁of▁sentence｜>"
)
_MARKER = re.compile(r"(?<![A-Za-z])answer[*_`\s]{0,8}[:：]", re.IGNORECASE)
_FRAME = re.compile(
    r"(?is)(?:the (?:final )?answer is:?\s)?(.*?)(?:\sI hope it is correct\b.*)?\s*"
)
_HASHES = re.compile(r"####[ \t:]*([^\n]+)")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACES = re.compile(
    r"(\\{1,3}(?:(?:begin|frame|final)?boxed|f(?:rame)?box)\s{0,4}\{)|\\.|[{}]", re.DOTALL
)

_SPELLED = str.maketrans(
    {
        **dict.fromkeys("−–﹣－", "-"),
        **{"×": r"\times ", "²": "^2", "³": "^3", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "},
        **{"≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "，": ", ", "；": "; ", "±": r"\pm "},
        **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
    }
)
_TIDIED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\\$|(?<!\\)\$|(?<!\\)\\[()\[\]]", ""),
        (r",\\!\s*|\{,\}", ","),
        (r"(?<!\\)\\!|\\(?:left|right|displaystyle)(?![A-Za-z])|\^\{? ?\\circ ?\}?|°", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Z])|\s+", " "),
        (r'\\"', '"'),
        (r"(?<=[A-Za-z ])!=", r"\\neq "),
        (r">=|\\geqslant(?![A-Za-z])", r"\\geq "),
        (r"<=(?!=)|\\leqslant(?![A-Za-z])", r"\\leq "),
        (r"\*\*", "^"),
        (r"\^ ?\(([^(){}^]*)\)", r"^{\1}"),
        (r"(?<![A-Za-z\\])(?=(?:sqrt|pi|infty)(?![A-Za-z]))", r"\\"),
        (r"\\sqrt ?\(([^(){}]*)\)", r"\\sqrt{\1}"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\frac ?([0-9A-Za-z])(?=\{)", r"\\frac{\1}"),
        (r"\\frac ?(\{[^{}]*\}) ?([0-9A-Za-z])", r"\\frac\1{\2}"),
        (r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}"),
    )
)
_WRAPPED = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|mathbf|boxed|operatorname) ?\{([^{}]*)\}")

_SEPARATOR = re.compile(
    r" ?[,;] ?(?:(?:and|or)(?![A-Za-z]))? ?| ?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]) ?"
)
_INT = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INT}(?:\.[0-9]*)?|\.[0-9]+)"
_SLASH = re.compile(rf"([+-]? ?(?:{_INT} )?)({_DECIMAL}) ?/ ?(-?{_DECIMAL})")
_RATIO = re.compile(
    rf"([+-]?) ?({_INT})? ?\\frac ?\{{ ?(-?{_DECIMAL}) ?\}} ?\{{ ?(-?{_DECIMAL}) ?\}}"
)
_PLAIN = re.compile(
    rf"([+-]?) ?({_DECIMAL})(?: ?(?:\\times|\\cdot|\*) ?10\^\{{? ?([+-]?[0-9]{{1,2}}) ?\}}?)?"
)
_REMAINDER = re.compile(r"([0-9]{1,18}) ?\\bmod ?([0-9]{1,18})")
_PERCENT = re.compile(r" ?(?:%|percents?\b|per cent\b|percentage\b|pct\b)\.?$", re.IGNORECASE)
_UNIT = re.compile(
    r"(.*?[0-9.})]) ?((?:[A-Za-z]{2,20}\.? ?){1,4}(?:\^\{?[23]\}?)?|m ?\^\{?[23]\}?"
    r"|[\u4e00-\u9fff]{1,6})"
)
_NOT_UNITS = (
    "ten tens hundred hundreds thousand thousands million millions billion billions trillion "
    "trillions dozen dozens gross lakh crore mn bn half halves third thirds quarter quarters pair "
    "pairs tenth tenths hundredth hundredths thousandth thousandths score pi sqrt sin cos tan log "
    "ln exp mod squared cubed over divided minus plus times twice double triple or and not no "
    "root factorial percent percents percentage pct cent permille mille ppm basis negative "
    "below above under zero less fewer more than least most about almost nearly approximately "
    "between except without wrong incorrect"
)
_MULTIPLIERS = "十百千万亿半双打成倍"

_RELATION = re.compile(r"(?<![<>!])=|\\approx|≈|\\equiv|\\in(?![A-Za-z])|∈")
_NAME = re.compile(
    r"((?:\\?[A-Za-z\u4e00-\u9fff]+(?: [A-Za-z]+){0,3})"
    r"(?:_(?:\{[A-Za-z0-9 ]{1,10}\}|[A-Za-z0-9]))?'?"
    r"(?: ?\([A-Za-z0-9, ]{1,20}\))?|\([A-Za-z](?:, ?[A-Za-z]){1,5}\))"
    r" ?(?:=|\\approx|≈|\\in(?![A-Za-z])|∈) ?"
)


_BETWEEN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\]]|\\q?quad|\\text ?\{ ?(?:and|or) ?\}|(?:and|or)\b|\\\\"
    r"|[A-Za-z](?:_\{?[A-Za-z0-9]\}?)? ?=){0,20}"
)
_APPROXIMATELY = re.compile(r"(.+?) ?(?:\\approx|≈) ?-?[0-9,]*\.[0-9]+ ?(?:[A-Za-z]{2,20})?")
_SWAPPED = re.compile(r"(?=[^=]*[0-9])([^=]+?) ?= ?([A-Za-z](?:_\{?[A-Za-z0-9]\}?)?)")
_COMMA = re.compile(r"-?(?:[0-9]+,(?:[0-9]{2}|[0-9]{4,9})|0,[0-9]{2,9})")

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
_DENIED = re.compile(r"(?i)(?<![a-z])(?:not|no|never|wrong|incorrect|false|but)(?![a-z])|不|错")
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
_MONEY = re.compile(r"\$?\\\$|\$(?=[^$]*$)")
_DOLLARS = ("dollar", "dollars", "usd", "bucks", "us dollars")
_TRAILING = re.compile(rf"[+-]?{_DECIMAL} ?([A-Za-z]{{1,20}})(?: ?\^\{{?[23]\}}?)?")
_LONE_NUMBER = re.compile(
    rf"(?<![^\s$€£(\u4e00-\u9fff])(-?[$€£]?{_DECIMAL})(?![0-9A-Za-z%^/*!]|[.,][0-9])"
)


def _final_text(response: str) -> str:
    """Return the response without its reasoning and what follows a stop token; "" if truncated."""
    outside: list[str] = []
    start, inside = 0, False
    for tag in _THINK.finditer(response):
        if tag[1]:
            if not inside:  # the chat template opened the tag: all so far was reasoning
                outside.clear()
            start, inside = tag.end(), False
        elif not inside:
            outside.append(response[start : tag.start()])
            inside = True
    if inside:
        return ""
    pieces = _STOP.split("".join([*outside, response[start:]]))
    text = next((piece for piece in pieces if piece.strip()), "")
    return _ANSWER_TAG.sub(lambda tag: "\n" if tag[1] else "\nAnswer: ", text)


def last_box(text: str) -> str | None:
    r"""Find the last balanced ``\boxed{...}`` or ``\fbox{...}`` in one pass.

    Args:
        text: any text; braces after a backslash are literal.

    Returns:
        The inside of the balanced box that starts last, or None where there is none.
    """
    boxes = _boxes(text)
    return text[boxes[-1][1] : boxes[-1][2]] if boxes else None


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Find the balanced boxes in the order of their starts: (macro, inside, end of inside)."""
    opened: list[tuple[int, int] | None] = []  # None for a plain brace
    found: list[tuple[int, int, int]] = []
    for token in _BRACES.finditer(text):
        if token[1]:
            opened.append(token.span())
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            box = opened.pop()
            if box is not None:
                found.append((*box, token.start()))
    return sorted(found)


def box_series(text: str, *, whole: bool = False) -> str | None:
    r"""Join the last boxes of a text where no more than an "and" or a comma is between them.

    Args:
        text: any text.
        whole: ask also that nothing else is in the text.

    Returns:
        The insides with commas between them, or None where there is only one box.
    """
    boxes = _boxes(text)[-MAX_LIST - 1 :]
    first = len(boxes) - 1
    while first > 0 and _BETWEEN.fullmatch(text, boxes[first - 1][2] + 1, boxes[first][0]):
        first -= 1
    around = text[: boxes[0][0]] + text[boxes[-1][2] + 1 :] if boxes else ""
    if whole and (first > 0 or not _BETWEEN.fullmatch(around)):
        return None
    series = [text[inside:end] for _, inside, end in boxes[max(first, 0) :]]
    return ", ".join(series) if 1 < len(series) <= MAX_LIST else None


def _line_after(text: str, start: int) -> str:
    """Return the answer that follows a marker: the next line with content, or a display formula."""
    rest = text[start : start + 2 * MAX_ANSWER].lstrip(_EDGES)
    end = 0
    for opener, closer in ((r"\[", r"\]"), ("$$", "$$")):
        if rest.startswith(opener):
            end = max(rest.find(closer, 2), 0)
    line = rest[: max(rest.find("\n", end), 0) or len(rest)]
    match = _FRAME.fullmatch(line.strip(_EDGES))
    return match[1] if match else line


def extract(response: str) -> tuple[str | None, str]:
    r"""Take the one final answer out of a response.

    Args:
        response: decoded text of the response, with or without stop tokens.

    Returns:
        The answer as it stands and "", or None and the reason: "no answer" (none marked, or a think
        tag never closed) or "answer shotgun" (more than three different ``Answer:`` lines).
    """
    source, problem = _source(response)
    if source is None:
        return None, problem
    box = (last_box(source) or "").strip()
    return (box or source), ""


def _source(response: str) -> tuple[str | None, str]:
    """Return the passage that holds the final answer: a marked line, or all of a boxed answer."""
    text = _final_text(response)
    markers = list(_MARKER.finditer(text))[-8 * MAX_ANSWERS :]
    lines = [_line_after(text, marker.end()) for marker in markers]
    lines = [line for line in lines if any(letter.isalnum() for letter in line)]
    if len({tidy(line) for line in lines}) > MAX_ANSWERS:
        return None, "answer shotgun"
    if lines:
        return lines[-1], ""
    if (last_box(text) or "").strip():
        return text, ""
    hashes = _HASHES.findall(text)
    return (hashes[-1].strip(_EDGES), "") if hashes else (None, "no answer")


def tidy(text: str) -> str:
    r"""Remove what does not change the meaning of an answer, and settle on one spelling.

    Args:
        text: an answer or a gold.

    Returns:
        The text without math delimiters, LaTeX spacing, degree signs, emphasis and final full
        stop, with ASCII minus signs and braced ``\frac`` and ``\sqrt``. ``\text{}`` stays.
    """
    text = text.translate(_SPELLED).replace(r"\%", "%")
    for pattern, new in _TIDIED:
        text = pattern.sub(new, text)
    return text.strip(" *_`\"'“”").rstrip(" .,;:*_`\"'“”")


def _unwrapped(text: str) -> str:
    r"""Replace ``\text{...}`` and its kin by what they hold."""
    previous = None
    while previous != text:
        previous, text = text, _WRAPPED.sub(r" \1 ", text)
    return " ".join(text.split()).rstrip(" .")


def _key(text: str) -> str:
    """Return the form in which two strings are the same answer: blanks stay between digits only."""
    key = _SEPARATOR.sub(",", _unwrapped(text))
    key = re.sub(r"(?<![0-9]) | (?![0-9])", "", key)
    key = re.sub(r"^\(([A-Za-z])\)$", r"\1", key)
    return key.lower() if re.fullmatch(r"[A-Za-z]{2,}", key) else key


def rational(text: str) -> Fraction | None:
    r"""Read a number exactly.

    Args:
        text: a tidied answer of at most some thousand characters.

    Returns:
        The value of an integer, decimal, fraction, mixed number or decimal times a power of ten,
        with or without thousands separators; None for everything else and for a zero denominator.
    """
    if remainder := _REMAINDER.fullmatch(text):
        top, bottom = map(int, remainder.groups())
        return Fraction(top % bottom) if bottom else None
    text = _SLASH.sub(r"\1\\frac{\2}{\3}", text) if _SLASH.fullmatch(text) else text
    ratio = _RATIO.fullmatch(text)
    if ratio:
        whole, top, bottom = (_decimal(part) for part in ratio.groups("0")[1:])
        if bottom == 0 or (ratio[2] and (top < 0 or bottom < 0)):
            return None
        value = whole + top / bottom
        return -value if ratio[1] == "-" else value
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        return None
    value = _decimal(plain[2]) * Fraction(10) ** int(plain[3] or 0)
    return -value if plain[1] == "-" else value


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub("[, ]", "", digits).rstrip("."))


def _split_unit(text: str) -> tuple[str, str]:
    """Split trailing unit words off; number words and operators are not units."""
    match = _UNIT.fullmatch(text)
    words = set(re.findall("[a-z]+", match[2].lower())) if match else set()
    if match is None or not words.isdisjoint(_NOT_UNITS.split()):
        return text, ""
    if match[2][0] in _MULTIPLIERS and match[2][:2] not in ("千克", "千米"):
        return text, ""
    return match[1].strip(), match[2].strip(" .").lower()


def _same_number(answer: str, gold: str) -> bool | None:
    """Compare as numbers with percent signs and units; None where either is not a number."""
    answer_text, answer_unit = _split_unit(_unwrapped(answer))
    gold_text, gold_unit = _split_unit(_unwrapped(gold))
    answer_percent, gold_percent = _PERCENT.search(answer_text), _PERCENT.search(gold_text)
    value = rational(_PERCENT.sub("", answer_text))
    wanted = rational(_PERCENT.sub("", gold_text))
    if value is None or wanted is None:
        return None
    if answer_unit and gold_unit and answer_unit.rstrip("s") != gold_unit.rstrip("s"):
        return False
    if answer_percent and not gold_percent:
        return value / 100 == wanted
    if gold_percent and not answer_percent:  # "what percent ...?" is answered by 10 and by 0.1
        return wanted in (value, value * 100)
    return value == wanted


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
    same_name = answer_head and gold_head and _key(answer_head[1]) == _key(gold_head[1])
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


def _members(text: str) -> list[str]:
    r"""Return the members of a list or set, one for anything else; ``a \pm b`` has two."""
    text = _unwrapped(text)
    if rational(text) is not None:
        return [text]
    text = _bare(text) if not text.startswith("(") else text
    members = [member for member in _pieces(text, _SEPARATOR) if member]
    if len(members) == 1 and text.count(r"\pm") == 1:
        return [text.replace(r"\pm", sign).strip().removeprefix("+") for sign in "+-"]
    return members


def _same_list(answer: str, gold: str, symbolic: Symbolic) -> bool:
    """Compare two lists in any order, each member once; names go where one side has none."""
    given, wanted = _members(answer), _members(gold)
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


def _chain(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Accept ``name = a = b`` where each of a and b alone would be right; ``4=5`` is not 5."""
    gold_head, head = _NAME.match(gold), _NAME.match(answer)
    if gold_head and head and _key(gold_head[1]) != _key(head[1]):
        return False, "equation chain"
    gold = gold[gold_head.end() :] if gold_head else gold
    members = _pieces(answer[head.end() :] if head else answer, re.compile("="))
    if _RELATION.search(gold) or not 1 < len(members) <= MAX_ANSWERS + 1:
        return False, "equation chain"
    for member in members:
        if _RELATION.search(member) or not _equal(member, gold, symbolic)[0]:
            return False, "equation chain"
    return True, "equal chain"


def _equal(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Compare two texts without relations: as strings, as numbers, then by ``symbolic``."""
    if _key(answer) == _key(gold):
        return True, "exact"
    same = _same_number(answer, gold)
    if same is not None:
        return same, "equal numbers" if same else "different number"
    tails = [_TRAILING.fullmatch(_unwrapped(text)) for text in (answer, gold)]
    if tails[0] and tails[1] and tails[0][1] != tails[1][1]:
        return False, "different unit"  # Math-Verify drops km and m alike
    head, unit = _split_unit(_unwrapped(answer))
    if unit and not _split_unit(_unwrapped(gold))[1]:
        return symbolic(head, gold)
    return symbolic(answer, gold)


def _compare(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Compare two tidied texts, after dropping names and splitting lists and chains."""
    if _key(answer) == _key(gold):
        return True, "exact"
    rough = _APPROXIMATELY.fullmatch(answer)
    if rough and not _NAME.fullmatch(rough[1] + " = ") and not _RELATION.search(gold):
        answer = rough[1]
    sides = _sides(answer, gold)
    if sides is None:
        return _chain(_bare(answer), gold, symbolic)
    answer, gold = sides
    for one, other in ((answer, gold), (gold, answer)):
        if _COMMA.fullmatch(one) and one.replace(",", ".") == other:
            return True, "decimal comma"
    if _same_list(answer, gold, symbolic):
        return True, "equal lists"
    return _equal(answer, gold, symbolic)


def _claimed(sentence: str) -> str | None:
    """Return what a sentence says that the answer is: the last thing claimed that has content."""
    claims = list(_CLAIM.finditer(sentence))
    starts = [0, *(claim.end() for claim in claims)]
    ends = [*(claim.start() for claim in claims), len(sentence)]
    pieces = [sentence[start:end].strip(" ,.;，") for start, end in zip(starts, ends, strict=True)]
    said = [place for place, piece in enumerate(pieces) if _CONTENT.search(piece)]
    if not said or len(said) > MAX_ANSWERS + 1:
        return None
    place = said[-1]
    if place == 0 and claims and not _CONFIRMED.match(sentence[ends[0] :]):
        return None
    if _DENIED.search(sentence, starts[place]):
        return None
    return re.sub(r"(?i)^(?:de|of|to) ", "", pieces[place])


def _from_prose(line: str, gold: str) -> Iterator[str]:
    """Yield the readings of an answer that is a sentence; none for questions and hedges."""
    sentences = [part for part in _SENTENCE.split(line.strip()) if part.strip(" .$")]
    if len(sentences) > 2 * MAX_ANSWERS or not sentences or _NOT_A_CLAIM.search(line):
        return
    if _ORDER_GIVEN.match(sentences[-1]):
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
    odd = not words.isdisjoint(_NOT_UNITS.split()) or set(piece) & set(_MULTIPLIERS + "\\^%=<>{}")
    lone = len(numbers) == 1 == len(re.findall(r"[0-9][0-9.,]*", piece))
    long = len(piece.split()) + len(_CJK.findall(piece)) > 3
    if lone and long and not odd and rational(tidy(gold)) is not None:
        yield numbers[0]


def _readings(response: str, gold: str) -> Iterator[str]:
    """Yield the ways to read the final answer: as it stands, as a series of boxes, as a claim."""
    source, _ = _source(response)
    answer, _ = extract(response)
    if source is None or answer is None:
        return
    yield answer
    if len(_members(tidy(gold))) > 1 and (series := box_series(source)):
        yield series
    if answer == source and len(answer) <= MAX_ANSWER:
        yield from _from_prose(answer, gold)


def robust_verdict(response: str, gold: str, *, symbolic: Symbolic) -> Verdict:
    """Judge a response by the default rule.

    Args:
        response: decoded text of the response.
        gold: the gold answer; see :func:`orthora.rewards.maths.gold_of` for data sets' columns.
        symbolic: decides what neither strings nor rationals decide.

    Returns:
        The verdict, with the answer as it was compared.
    """
    answer, problem = extract(response)
    if answer is None:
        return Verdict(False, None, problem)
    if any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\t\r\n" for c in answer):
        return Verdict(False, answer, "control characters")
    if len(answer) > MAX_ANSWER:
        return Verdict(False, answer, "answer too long")
    if not _key(tidy(answer)):
        return Verdict(False, None, "no answer")
    gold_unit = _split_unit(_unwrapped(tidy(gold)))[1]
    if gold_unit and gold_unit not in _DOLLARS and _MONEY.match(answer.strip()):
        return Verdict(False, tidy(answer), "different unit")
    first: Verdict | None = None
    for reading in _readings(response, gold):
        tidied = tidy(reading)
        correct, reason = _compare(tidied, tidy(gold), symbolic)
        verdict = Verdict(correct, tidied, reason)
        if verdict.correct:
            return verdict
        first = first or verdict
    assert first is not None
    return first
