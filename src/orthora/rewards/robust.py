r"""The default answer rule: one final answer, compared as text, as a number, then symbolically.

Reasoning between think tags and what follows a stop token is dropped, and one answer is taken: the
last ``Answer:`` line, else the last balanced ``\boxed{}``, else the last ``#### `` line. Shapes
that grade well for the wrong reason (``4=5``, answer shotguns, invisible characters) are refused.
Strings are compared after normalisation, then numbers as exact rationals; what is left (surds,
tuples, polynomials) goes to ``symbolic``, which the caller supplies. Nothing here evaluates model
output. The traps behind the rules were measured on Math-Verify 0.9.0 and on verl's scorers.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from orthora.types import Verdict

Symbolic = Callable[[str, str], tuple[bool, str]]
"""Takes a normalised answer and a normalised gold; returns whether they are equal, and a reason."""

MAX_ANSWER = 1_000
"""Characters of the longest answer that is looked at."""
MAX_ANSWERS = 3
"""Distinct ``Answer:`` lines, of the last 24, taken for self-correction; more are a shotgun."""

_EDGES = " \t\r\n*_`"
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_STOP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|end_of_text|eot_id|end|eos|pad)\|>"
    r"|</?s>|<eos>|<pad>|<end_of_turn>|<｜end▁of▁sentence｜>"
)
_MARKER = re.compile(r"(?<![A-Za-z])answer[*_`\s]{0,8}[:：]", re.IGNORECASE)
_FRAME = re.compile(r"(?is)(?:the (?:final )?answer is:?\s)?(.*?)(?:\sI hope it is correct\.?)?\s*")
_HASHES = re.compile(r"####[ \t:]*([^\n]+)")
_BRACES = re.compile(r"(\\{1,3}(?:boxed|fbox)\s{0,4}\{)|\\.|[{}]", re.DOTALL)

_SPELLED = str.maketrans({**dict.fromkeys("−–﹣－", "-"), "×": r"\times ", "²": "^2", "³": "^3"})
_TIDIED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\\$|(?<!\\)\$|(?<!\\)\\[()\[\]]", ""),
        (r",\\!\s*|\{,\}", ","),
        (r"(?<!\\)\\!|\\(?:left|right|displaystyle)(?![A-Za-z])|\^\{? ?\\circ ?\}?|°", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\frac ?([0-9A-Za-z])(?=\{)", r"\\frac{\1}"),
        (r"\\frac ?(\{[^{}]*\}) ?([0-9A-Za-z])", r"\\frac\1{\2}"),
        (r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}"),
    )
)
_WRAPPED = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|mathbf|boxed|operatorname) ?\{([^{}]*)\}")

_INT = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INT}(?:\.[0-9]*)?|\.[0-9]+)"
_SLASH = re.compile(rf"([+-]? ?(?:{_INT} )?)({_DECIMAL}) ?/ ?(-?{_DECIMAL})")
_RATIO = re.compile(
    rf"([+-]?) ?({_INT})? ?\\frac ?\{{ ?(-?{_DECIMAL}) ?\}} ?\{{ ?(-?{_DECIMAL}) ?\}}"
)
_PLAIN = re.compile(
    rf"([+-]?) ?({_DECIMAL})(?: ?(?:\\times|\\cdot|\*) ?10\^\{{? ?([+-]?[0-9]{{1,2}}) ?\}}?)?"
)
_PERCENT = re.compile(r" ?(?:%|percent\b|percentage\b|pct\b)\.?$", re.IGNORECASE)
_UNIT = re.compile(r"(.*?[0-9.})]) ?((?:[A-Za-z]{2,20}\.? ?){1,4}(?:\^\{?[23]\}?)?)")
_NOT_UNITS = (
    "hundred thousand million billion trillion dozen half halves third thirds quarter quarters "
    "tenths hundredths thousandths score pi sqrt sin cos tan log ln exp mod squared cubed "
    "over divided minus plus times or and not root factorial percent percentage pct"
)

_RELATION = re.compile(r"(?<![<>!])=|\\approx|≈|\\equiv|\\in(?![A-Za-z])|∈")
_NAME = re.compile(
    r"((?:\\?[A-Za-z]+(?: [A-Za-z]+){0,3})(?:_(?:\{[A-Za-z0-9 ]{1,10}\}|[A-Za-z0-9]))?'?"
    r"(?: ?\([A-Za-z0-9, ]{1,20}\))?|\([A-Za-z](?:, ?[A-Za-z]){1,5}\))"
    r" ?(?:=|\\approx|≈|\\in(?![A-Za-z])|∈) ?"
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
    return next((piece for piece in pieces if piece.strip()), "")


def last_box(text: str) -> str | None:
    r"""Find the last balanced ``\boxed{...}`` or ``\fbox{...}`` in one pass.

    Args:
        text: any text; braces after a backslash are literal.

    Returns:
        The inside of the balanced box that starts last, or None where there is none.
    """
    opened: list[int] = []  # -1 for a plain brace, else where the inside of a box begins
    best: tuple[int, int] | None = None
    for token in _BRACES.finditer(text):
        if token[1]:
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(-1)
        elif token[0] == "}" and opened:
            begin = opened.pop()
            if begin >= 0 and (best is None or begin > best[0]):
                best = (begin, token.start())
    return None if best is None else text[best[0] : best[1]]


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
    text = _final_text(response)
    markers = list(_MARKER.finditer(text))[-8 * MAX_ANSWERS :]
    lines = [_line_after(text, marker.end()) for marker in markers]
    lines = [line for line in lines if any(letter.isalnum() for letter in line)]
    if len({tidy(line) for line in lines}) > MAX_ANSWERS:
        return None, "answer shotgun"
    if lines:
        box = last_box(lines[-1])
        return (lines[-1] if box is None else box), ""
    if (box := last_box(text) or "").strip():
        return box, ""
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
    key = re.sub(r"(?<![0-9]) | (?![0-9])", "", _unwrapped(text))
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
    if answer_unit and gold_unit and answer_unit != gold_unit:
        return False
    if answer_percent and not gold_percent:
        return value / 100 == wanted
    if gold_percent and not answer_percent:  # "what percent ...?" is answered by 10 and by 0.1
        return wanted in (value, value * 100)
    return value == wanted


def _sides(answer: str, gold: str) -> tuple[str, str] | None:
    """Drop ``name =`` where only one of the two has it; None for a chain or a bare equation."""
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


def _compare(answer: str, gold: str, symbolic: Symbolic) -> tuple[bool, str]:
    """Compare two tidied texts: as strings, as numbers, then by ``symbolic``."""
    for sides in ((answer, gold), _sides(answer, gold)):
        if sides is None:
            return False, "equation chain"
        answer, gold = sides
        if _key(answer) == _key(gold):
            return True, "exact"
    same = _same_number(answer, gold)
    if same is not None:
        return same, "equal numbers" if same else "different number"
    head, unit = _split_unit(_unwrapped(answer))
    if unit and not _split_unit(_unwrapped(gold))[1]:
        return symbolic(head, gold)
    return symbolic(answer, gold)


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
    tidied = tidy(answer)
    if not _key(tidied):
        return Verdict(False, None, "no answer")
    correct, reason = _compare(tidied, tidy(gold), symbolic)
    return Verdict(correct, tidied, reason)
