"""The one final answer of a response: what is marked, boxed or after ``####``."""

import re
from typing import NamedTuple

from orthora.rewards.spelling import tidy

MAX_ANSWER = 1_000
"""Characters of the longest answer that is looked at."""
MAX_LIST = 12
"""Members of the longest list, and of the longest series of boxes, that is compared as a list."""
MAX_ANSWERS = 3
"""Distinct ``Answer:`` lines, of the last 24, taken for self-correction; more are a shotgun."""
MAX_STATEMENT = 200
"""Characters at the end of a response without a mark that are looked at, in whole sentences."""
_EDGES = " \t\r\n*_`"
_SENTENCE_END = re.compile(r"(?<=[.!。！])\s+")
_CONCLUSION = re.compile(r"(?<=\s)(?=(?:So|Thus|Hence|Therefore),? )")
_HOPE = re.compile(r"(?<!\s)\s+I hope it is correct\.?\s*\Z")
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_STOP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|end_of_text|eot_id|end|eos|pad)\|>"
    r"|</?s>|<eos>|<pad>|<end_of_turn>|<｜end▁of▁sentence｜>"
)
_MARKER = re.compile(r"(?<![A-Za-z])answer[*_`\s]{0,8}[:：]", re.IGNORECASE)
_FRAME = re.compile(
    r"(?is)(?:the (?:final )?answer is:?\s)?(.*?)(?:\sI hope it is correct\b.*)?\s*"
)
_AROUND = re.compile(r"(?:\s|[$.,!*_:]|\\[()\[\]]|\\?%|(?:[A-Za-z]\w* ?=)|[A-Za-z]+)*")
_NEGATED = re.compile(
    r"(?i)(?<![a-z])(?:not|never|wrong|or|except|minus|over|point|million|billion|thousand|hundred)"
    r"(?![a-z])"
)
_BOX_BEFORE = re.compile(
    r"(?:(?:^|[\s=$(,:{]|\\[(\[])([-±])|((?:\\pm|\\neq?|\\not|\\neg|(?<![a-z])not"
    r"|[0-9A-Za-z)}] ?[/^_]) ?))\$?$"
)
_BOX_AFTER = re.compile(
    r" ?\$? ?(?:(?:/|\\cdot|\\times) ?[\w\\({][\w\\}]{0,20}|[\^_]\{?[0-9\\]\S{0,20}"
    r"|(?:[mb]illion|thousand)(?![a-z]))"
)
_OR = re.compile(r"(?:[\s$.,]|\\[()\[\]])*(?:or|\\text ?\{ ?or ?\})(?:[\s$]|\\[()\[\]])*")
_WORDS_ALONE = re.compile(r"(?:[^\W\d_]+['’,.:;]* +){2,}[^\W\d_]+['’,.:;]*")
_HASHES = re.compile(r"####[ \t:]*([^\n]+)")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_ANSWERED = re.compile(r"<answer>([^<]{1,1000})</answer>[^<]{0,20}\Z", re.IGNORECASE)
_BRACES = re.compile(
    r"(\\{1,3}(?:(?:begin|frame|final)?boxed|f(?:rame)?box)\s{0,4}\{)|\\.|[{}]", re.DOTALL
)
_BETWEEN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\]]|\\q?quad|\\text ?\{ ?(?:and|or) ?\}|(?:and|or)\b|\\\\"
    r"|[A-Za-z](?:_\{?[A-Za-z0-9]\}?)? ?=){0,20}"
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
        tail = response[start:] if start else response
        answered = _ANSWERED.search(tail)  # the answer's tag ends reasoning that was left open
        return f"Answer: {answered[1]}" if answered else ""
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


def extract(response: str, *, marked: bool = True) -> tuple[str | None, str]:
    r"""Take the one final answer out of a response.

    Args:
        response: decoded text of the response, with or without stop tokens.
        marked: False reads a response without any mark as well: as an answer alone, or by its last
            statement.

    Returns:
        The answer as it stands and "", or None and the reason: "no answer" (none marked, or a think
        tag never closed) or "answer shotgun" (more than three different ``Answer:`` lines).
    """
    passage = passage_of(response, marked=marked)
    if passage.text is None:
        return None, passage.problem
    return _boxed(passage) or passage.text, ""


class Passage(NamedTuple):
    """What holds the final answer.

    Attributes:
        text: a marked line, the last statement, or all of a response with a box; None without one.
        problem: why there is none.
        line: whether it is a line, so that what stands beside a box in it is part of the answer.
    """

    text: str | None
    problem: str = ""
    line: bool = True


def passage_of(response: str, *, marked: bool = True) -> Passage:
    """Find the passage that holds the final answer.

    Args:
        response: as `extract`.
        marked: as `extract`.

    Returns:
        The passage.
    """
    text = _final_text(response)
    markers = list(_MARKER.finditer(text))[-8 * MAX_ANSWERS :]
    lines = [_line_after(text, marker.end()) for marker in markers]
    lines = [line for line in lines if any(letter.isalnum() or letter in "∞∅" for letter in line)]
    if len({tidy(line) for line in lines}) > MAX_ANSWERS:
        return Passage(None, "answer shotgun")
    boxed = bool((last_box(text) or "").strip())
    if lines and not (boxed and _WORDS_ALONE.fullmatch(lines[-1].strip(_EDGES + "*"))):
        return Passage(lines[-1])
    if boxed:
        return Passage(text, line=False)
    hashes = _HASHES.findall(text)
    if hashes:
        return Passage(hashes[-1].strip(_EDGES))
    if marked or markers or "boxed" in text:  # a mark without an answer is no answer
        return Passage(None, "no answer")
    return Passage(_last_statement(text), "no answer")


def _boxed(passage: Passage) -> str | None:
    r"""Return the last box's answer, with what beside the box changes it: ``-\boxed{5}`` is -5."""
    text = passage.text or ""
    boxes = _boxes(text)
    if not boxes or not (answer := text[boxes[-1][1] : boxes[-1][2]].strip()):
        return None
    start, _, end = boxes[-1]
    if not passage.line:
        if len(boxes) > 1 and _OR.fullmatch(text, boxes[-2][2] + 1, start):
            return f"{text[boxes[-2][1] : boxes[-2][2]].strip()} or {answer}"
        before = _BOX_BEFORE.search(text[max(0, start - 40) : start])
        after = _BOX_AFTER.match(text, end + 1)
        sign = (before[1] or before[2]) if before else ""
        return f"{sign}{answer}{after[0] if after else ''}"
    bare = text
    for start, inside, end in reversed(boxes):
        bare = bare[:start] + bare[inside:end] + bare[end + 1 :] if end < len(bare) else bare
    around = text[: boxes[-1][0]] + text[boxes[-1][2] + 1 :]
    plain = _AROUND.fullmatch(around) and not _NEGATED.search(around)
    return answer if plain or len(text) > MAX_ANSWER else bare.strip()


def _last_statement(text: str) -> str | None:
    """Return the end of a response without a mark: all of a short one, else its last line."""
    text = _HOPE.sub("", text)
    lines = [line.strip() for line in text.splitlines() if line.strip(_EDGES)]
    if not lines:
        return None
    if lines[-1].startswith("A: "):  # as OpenAI's GSM8K solutions end
        return lines[-1][3:]
    whole = " ".join(text.split())
    if len(whole) <= MAX_STATEMENT:
        return whole
    sentences = _SENTENCE_END.split(lines[-1])[-MAX_STATEMENT:]
    while len(sentences) > 1 and sum(map(len, sentences)) > MAX_STATEMENT:
        del sentences[0]
    statement = _CONCLUSION.split(" ".join(sentences))[-1]
    return statement if len(statement) <= MAX_ANSWER else None
