"""Answers in one spelling: LaTeX and Unicode tidied, numbers read exactly, units split off."""

import re
from fractions import Fraction
from functools import lru_cache

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
        (r"(?<!\\)\\!|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"(?:\^\{? ?\\circ ?\}?|°)(?! ?[0-9])", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Z])|\s+", " "),
        (r"\\(?:text|mathrm) ?\{ ?([ie]|\\pi) ?\}", r" \1"),
        (r'\\"', '"'),
        (r"(?<=,) ?(?:\.\.\.|…)", r"\\ldots "),
        (r"^[€£¥] ?(?=[0-9])", ""),
        (r"(?<![\w./}])([0-9]+) ?/ ?([0-9]+)(?= ?(?:[A-Za-z]|\\(?:pi|sqrt)))", r"\\frac{\1}{\2}"),
        (r"(?<=[A-Za-z ])!=", r"\\neq "),
        (r">=|\\geqslant(?![A-Za-z])", r"\\geq "),
        (r"<=(?!=)|\\leqslant(?![A-Za-z])", r"\\leq "),
        (r"(?<![\w)}*])\*\*(?=[^\s*])([^*]*?)(?<=[^\s*])\*\*(?![\w({*])", r"\1"),  # bold
        (r"(?<=[0-9])\*\*(?= [A-Za-z])", ""),  # the end of bold that began before the answer
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
SEPARATOR = re.compile(
    r" ?[,;] ?(?:(?:and|or)(?![A-Za-z]))? ?| ?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]) ?"
)
_INT = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)"
DECIMAL = rf"(?:{_INT}(?:\.[0-9]*)?|\.[0-9]+)"
_SLASH = re.compile(rf"([+-]? ?(?:{_INT} )?)({DECIMAL}) ?/ ?(-?{DECIMAL})")
_RATIO = re.compile(
    rf"([+-]?) ?({_INT})? ?\\frac ?\{{ ?(-?{DECIMAL}) ?\}} ?\{{ ?(-?{DECIMAL}) ?\}}"
)
_PLAIN = re.compile(
    rf"([+-]?) ?({DECIMAL})(?: ?(?:\\times|\\cdot|\*) ?10\^\{{? ?([+-]?[0-9]{{1,2}}) ?\}}?)?"
)
_LONGEST = 1_000  # characters of a number
_REMAINDER = re.compile(r"([0-9]{1,18}) ?\\bmod ?([0-9]{1,18})")
_PERCENT = re.compile(r" ?(?:%|percents?\b|per cent\b|percentage\b|pct\b)\.?$", re.IGNORECASE)
_UNIT = re.compile(
    r"(.*?[0-9.})]) ?((?:[A-Za-z]{2,20}\.? ?){1,4}(?:\^\{?[23]\}?)?|m ?\^\{?[23]\}?"
    r"|[\u4e00-\u9fff]{1,6})"
)
NOT_UNITS = (
    "ten tens hundred hundreds thousand thousands million millions billion billions trillion "
    "trillions dozen dozens gross lakh crore mn bn half halves third thirds quarter quarters pair "
    "pairs tenth tenths hundredth hundredths thousandth thousandths score pi sqrt sin cos tan log "
    "ln exp mod squared cubed over divided minus plus times twice double triple or and not no "
    "root factorial percent percents percentage pct cent permille mille ppm basis negative "
    "below above under zero less fewer more than least most about almost nearly approximately "
    "between except without wrong incorrect one two three four five six seven eight nine eleven "
    "twelve thirteen fifteen twenty thirty forty fifty sixty seventy eighty ninety point fourth "
    "fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths twelfths "
    "sixteenths recurring repeating choose base octal hex hexadecimal binary modulo remainder "
    "raised power increased reduced added nor else maybe perhaps possibly probably is isn cannot "
    "false untrue unless excluded impossible grand mil lakhs crores quadrillion scores lost owed "
    "loss debt short"
)
SHORT_UNITS = (
    "cm mm km nm kg mg ml cl dl gm ft in yd mi lb oz hr hz kw mw gb mb kb pt qt am pm cc ha"
)
"""Units of two letters; other pairs of letters are a product of variables."""
_MORE = ("more", "times")
MULTIPLIERS = "十百千万亿半双打成倍"
NOT_CHINESE_UNITS = "分之点又不错的以减加乘方零"


@lru_cache(64)  # a verdict asks for the same few texts several times, a group for one gold
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


def unwrapped(text: str) -> str:
    r"""Replace ``\text{...}`` and its kin by what they hold."""
    previous = None
    while previous != text:
        previous, text = text, _WRAPPED.sub(r" \1 ", text)
    return " ".join(text.split()).rstrip(" .")


def key_of(text: str) -> str:
    """Return the form in which two strings are the same answer: blanks stay between digits only."""
    key = SEPARATOR.sub(",", unwrapped(text))
    key = re.sub(r"(?<![0-9]) | (?![0-9])", "", key)
    key = re.sub(r"^\(([A-Za-z])\)$", r"\1", key)
    return key.lower() if re.fullmatch(r"[A-Za-z]{2,}", key) else key


def rational(text: str) -> Fraction | None:
    r"""Read a number exactly.

    Args:
        text: a tidied answer.

    Returns:
        The value of an integer, decimal, fraction, mixed number or decimal times a power of ten,
        with or without thousands separators; None for everything else and for a zero denominator.
    """
    if len(text) > _LONGEST:
        return None
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


def split_unit(text: str) -> tuple[str, str]:
    """Split trailing unit words off; number words and operators are not units."""
    match = _UNIT.fullmatch(text)
    words = set(re.findall("[a-z]+", match[2].lower())) if match else set()
    if match is None:
        return text, ""
    unit = match[2].strip(" .").lower()
    pair = re.match(r"[a-z]{2}(?![a-z])", unit)
    odd = pair and len(words) == 1 and pair[0] not in SHORT_UNITS.split()
    if odd or (unit not in _MORE and not words.isdisjoint(NOT_UNITS.split())):
        return text, ""
    if set(match[2]) & set(NOT_CHINESE_UNITS):
        return text, ""
    if match[2][0] in MULTIPLIERS and match[2][:2] not in ("千克", "千米"):
        return text, ""
    return match[1].strip(), unit


def same_number(answer: str, gold: str) -> bool | None:
    """Compare as numbers with percent signs and units; None where either is not a number."""
    answer_text, answer_unit = split_unit(unwrapped(answer))
    gold_text, gold_unit = split_unit(unwrapped(gold))
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
