"""Answer rules against hand-computed cases, real labelled cases, and attempts to cheat.

The tables of the DAPO rule are the outcomes measured on verl's scorer; the robust rule is held to
other projects' labelled cases where the shared data folder is present.
"""

import json
import signal
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from orthora.rewards import dapo_score, gold_of, math_verdict
from orthora.rewards.dapo import dapo_verdict, normalise_dapo
from orthora.rewards.extraction import extract, last_box
from orthora.rewards.maths import symbolic_equal
from orthora.rewards.robust import robust_verdict
from orthora.rewards.spelling import rational
from orthora.tasks import load_task
from orthora.types import Verdict

FLOOR_CASES = 446
FALSE_CHAIN = "convention: a chain with a false equality (4=5) is refused, whatever it ends in"
UNMARKED = "nothing marked, and the last statement is no answer"
UNCLEAR = "two numbers and no claim, or a question: refused rather than guessed"
DISAGREEMENTS = {
    "5658fb0d0d86": FALSE_CHAIN,  # 1/2 = 10/9
    "cb058763c794": FALSE_CHAIN,
    "5d8673687ce1": FALSE_CHAIN,  # x = 5+5+1 = 7 = 11
    "66cf6e279837": FALSE_CHAIN,
    "e8795ea4844b": FALSE_CHAIN,  # x = 5+5+1 = 1/3, about 11
    "49a82aa5d3a3": FALSE_CHAIN,
    "21ef1947db25": UNMARKED,  # the answer stands far above remarks that end in mid-sentence
    "9b197542da57": UNMARKED,
    "a71ca38e653c": UNCLEAR,  # ... encore 220 $ a payer d'ici 12 mois
    "6b77f433cd64": UNCLEAR,  # how many $? just about 1$
}
"""Portable cases in which the rule and the label differ, all of them, and why: each label says
"correct". Where suites disagree with each other the stricter convention is kept, because a reward
that a wrong answer can earn is worse than one that a right answer can miss."""

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    "What is 20 + 5?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def data_file(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"labelled data {name} is not beside this checkout")
    return path


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in data_file(name).read_text("utf-8").splitlines()]


# --- the DAPO rule ---------------------------------------------------------------------------

DAPO_RIGHT = [
    ("Answer: 25", "25"),
    ("Answer: $25$", "25"),
    (r"Answer: \boxed{25}", "25"),
    (r"Answer: $\boxed{25}$", "25"),
    ("Answer: x = 25", "25"),
    ("Answer: 25 degrees", "25"),
    ("Answer: 1,234", "1234"),
    ("Answer: 1{,}234", "1234"),
    ("Answer: - 3", "-3"),
    ("Answer:\n25", "25"),
    ("Answer: 3+2=25", "25"),
    ("aNsWeR : 25", "25"),
    ("Answer: 24\nAnswer: 25", "25"),
    ("Answer: 25" + " " * 290, "25"),
    (r"Answer: $\frac12$", r"\frac{1}{2}"),
    (r"Answer: $\sqrt2$", r"\sqrt{2}"),
    (r"Answer: 25\text{ cm}", "25"),
    (r"The result is \boxed{25}.", "25"),  # no marker: the box is looked at
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("<think>Answer: 25", "25"),  # the rule knows nothing of reasoning
]
DAPO_WRONG = [
    ("**Answer:** 25", "25"),
    ("**Answer: 25**", "25"),
    ("Answer: 25.", "25"),
    (r"Answer: \(25\)", "25"),
    ("Answer: 025", "25"),
    ("Answer: 25.0", "25"),
    ("Answer: 25%", "25"),
    ("Answer: 25<|im_end|>", "25"),
    ("Answer: The answer is 25", "25"),
    ("Answer: −25", "-25"),
    ("Answer: 25 (since 5=5)", "25"),
    ("Answer: 25" + " " * 301, "25"),
    ("Answer: -1,234", "-1234"),  # commas go only where digits alone are left
    (r"\boxed{ 25 }", "25"),  # the box is compared without normalisation
    ("Answer: 24\n" + r"\boxed{25}", "25"),  # a marker blocks the box
    (r"\boxed{25}" + " " * 95, "25"),  # the box starts before the last 100 characters
    (r"\boxed{25", "25"),
    ("25", "25"),
    ("#### 25", "25"),
    ("", "25"),
]


@pytest.mark.parametrize(("response", "gold"), DAPO_RIGHT)
def test_dapo_rule_rewards(response: str, gold: str):
    verdict = math_verdict(response, gold, rule="dapo")
    assert (verdict.correct, dapo_score(verdict)) == (True, 1.0)


@pytest.mark.parametrize(("response", "gold"), DAPO_WRONG)
def test_dapo_rule_refuses(response: str, gold: str):
    verdict = math_verdict(response, gold, rule="dapo")
    assert (verdict.correct, dapo_score(verdict)) == (False, -1.0)


def test_dapo_verdict_says_what_it_read_and_why():
    assert dapo_verdict("Answer: 25 (since 5=5)", "25") == Verdict(False, "5)", "different")
    assert dapo_verdict(r"\boxed{25}", "25") == Verdict(True, "25", "exact box")
    assert dapo_verdict(r"\boxed{2}", "25") == Verdict(False, "2", "different box")
    assert dapo_verdict("twenty-five", "25") == Verdict(False, None, "no answer")


def test_dapo_normalisation_by_hand():
    assert normalise_dapo(r"$x=\mbox{3}$ units") == "3"
    assert normalise_dapo(r"1,2,3\text{and}4") == "1234"  # and -> comma, then digits alone
    assert normalise_dapo(r"(1,234)") == "(1,234)"
    assert normalise_dapo(r"\overline{\textbf{ab}}c") == "abc"
    assert normalise_dapo("a square of an edge") == "ofedge"


# --- the rules of GSM8K ----------------------------------------------------------------------

GSM8K = [  # response, right under strict, right under flexible; the gold is 18
    ("so\n#### 18", True, True),
    ("#### -18", False, False),
    ("#### 17\n#### 18", True, True),
    ("#### 18\n#### 17", False, False),
    ("#### 18.", False, False),
    ("#### 18.00", False, False),
    ("#### $18", False, True),
    ("####18", False, True),
    ("The result is 18", False, True),
    ("18, as said", False, False),
    ("18 as said, surely", False, False),
    ("18 ... as . said", False, False),
    ("18 as said. ", False, True),
    ("#### 1,8", True, False),
    ("#### 18" + " " * 293, True, True),
    ("#### 18" + " " * 294, False, True),
    ("no number", False, False),
    (". .", False, False),
    ("", False, False),
]


@pytest.mark.parametrize(("response", "strict", "flexible"), GSM8K)
def test_gsm8k_rules_score_as_verl_does(response: str, strict: bool, flexible: bool):
    assert math_verdict(response, "18", rule="gsm8k-strict").correct is strict
    assert math_verdict(response, "18", rule="gsm8k-flexible").correct is flexible


def test_gsm8k_rules_say_what_they_read_and_why():
    assert math_verdict("#### 1,234", "1234", rule="gsm8k-strict").answer == "1234"
    assert math_verdict("1,234", "1234", rule="gsm8k-flexible").answer == "1,234"
    assert math_verdict("x", "1", rule="gsm8k-flexible") == Verdict(False, None, "no answer")
    assert math_verdict(". .", "1", rule="gsm8k-flexible") == Verdict(False, ".", "different")


# --- the robust rule -------------------------------------------------------------------------

RIGHT = [
    *[(f"Answer: {text}", "25") for text in ("25", "25.", "$25$", r"\(25\)", "025", "25.0", "+25")],
    *[(f"So.\n{text}", "25") for text in ("**Answer:** 25", "**Answer: 25**", "__Answer__: `25`")],
    ("Answer: 25<|im_end|>", "25"),
    ("Answer: 25<|im_end|>\n<|im_start|>user\nAnswer: 7<|endoftext|>", "25"),
    ("<s>Answer: 25</s>", "25"),
    ("Answer: 25<eos>", "25"),
    ("Answer: 25" + " " * 301, "25"),
    ("Answer:\n25", "25"),
    ("**Final Answer:**\n\\[\n\\boxed{25}\n\\]", "25"),
    ("Final Answer: The final answer is $25$. I hope it is correct.", "25"),
    ("<think>Answer: 24</think>Answer: 25", "25"),
    ("reasoning, Answer: 24</think>\\boxed{25}", "25"),
    ("Answer: 24\n<think>a</think>b</think>\\boxed{25}", "25"),  # a stray close
    ("Answer: 24\nWait.\nAnswer: 25", "25"),
    (PROMPT + "\nAnswer: 25", "25"),
    (r"\boxed{9}, \boxed{ 25 }", "25"),
    (r"\boxed{25} and then \boxed{7", "25"),  # the last balanced box
    ("First #### 3\n#### 25", "25"),
    ("#### $1,234.00", "1234"),
    ("Answer: 1,234", "1234"),
    ("Answer: 1{,}234", "1234"),
    (r"Answer: 11,\! 111,\! 111,\! 100", "11111111100"),
    (r"Answer: 12\,345\,678", "12345678"),
    ("Answer: −3", "-3"),
    ("Answer: - 3", "-3"),
    (r"Answer: \dfrac{1}{2}", "0.5"),
    (r"Answer: \frac12", r"\frac{1}{2}"),
    ("Answer: 2/4", r"\frac{1}{2}"),
    ("Answer: .5", "1/2"),
    (r"Answer: \frac95", r"1\frac{4}{5}"),
    ("Answer: 1 4/5", "1.8"),
    (r"Answer: 1.5 \times 10^3", "1500"),
    ("Answer: x = 25", "25"),
    ("Answer: 25", "x=25"),
    (r"Answer: $\angle ABC = 25^\circ$", "25"),
    ("Answer: 25 degrees", "25"),
    ("Answer: 25 square inches.", "25"),
    (r"Answer: $25\text{ cm}^2$", "25"),
    ("Answer: 25 dollars", "$25"),
    ("Answer: 125", r"125\text{ miles}"),
    ("Answer: 28%", r"28\%"),
    (r"Answer: 33.5\%", "0.335"),
    ("Answer: 28 percent", r"28\%"),
    ("Answer: Evelyn", r"\text{Evelyn}"),
    ("Answer: Odd", r"\text{odd}"),
    ("Answer: C", r"\text{(C)}"),
    (r"Answer: $\left(3, \frac{\pi}2\right)$", r"(3,\frac{\pi}{2})"),
    (r"Answer: \sqrt{625}", "25"),
    ("Answer: x+1", "1 + x"),
    ("Answer: -2, 1", "1,-2"),
    (r"Answer: \frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    (r"Answer: 2k+2", "2(k+1)"),
    (r"Answer: \boxed{\{1,2\}}", r"\{1,2\}"),
    ("Answer: 20+5=25", "25"),  # either side alone would be right
    ("Answer: x=20+5=25", "25"),
    (r"Answer: \frac{\sqrt{3}}{3} \approx 0.577", r"\frac{\sqrt{3}}{3}"),
    ("Answer: 25 = x", "25"),
    ("Answer: 1 and 2", "1,2"),
    (r"$\boxed{2}$ and $\boxed{1}$", "1,2"),
    ("Answer: y=2, x=1", "x=1, y=2"),
    ("Answer: 5, -5", r"\pm 5"),
    (r"Answer: 1+\sqrt2 or 1-\sqrt2", r"1 \pm \sqrt{2}"),
    ("Answer: sqrt(2)/2", r"\frac{1}{\sqrt{2}}"),
    ("Answer: 2π", r"2\pi"),
    (r"Answer: x \geq 5", "x >= 5"),
    ("Answer: 25 m²", "25"),
    ("Answer: 1,22", "1.22"),
    ("<answer>25</answer>", "25"),
    ("Answer: The result is $25$", "25"),
    ("Answer: Therefore $x = 25$ is the solution.", "25"),
    ("Answer: The largest $n$ is 25.", "25"),
    ("Answer: So Tom has 25 apples left.", "25"),
    ("Answer: 所以答案是25。", "25"),
    ("Answer: La réponse est 25.", "25"),
    ("Answer: The result is 2½", "2.5"),
    ("Answer: I think the correct answer is (C).", "C"),
]
WRONG = [
    ("Answer: 4=25", "25", "equation chain"),
    ("Answer: 20+5=26", "26", "equation chain"),
    ("Answer: 20+5=24=25", "25", "equation chain"),
    ("Answer: x=21+5=25", "25", "equation chain"),
    ("Answer: x=y=25", "25", "equation chain"),
    ("Answer: y=20+5=25", "x=25", "equation chain"),
    ("Answer: x=5 or x=-5", "5", "equation chain"),
    ("Answer: 5 or -5", "5", "different"),
    (r"Answer: \pm 5", "5", "different"),
    (r"\boxed{5, -5}", "5", "different"),
    ("Answer: 5", r"\pm 5", "different"),
    (r"\boxed{1}, \boxed{2}, \boxed{3}", "1,2", "different"),
    ("Answer: 5 hundreds", "5", "words"),
    ("Answer: 5 degrees below zero", "5", "words"),
    ("Answer: 5万", "5", "different"),
    ("Answer: 5 km", "5 m", "different unit"),
    (r"Answer: 5\text{ cm}", r"5\text{ m}", "different unit"),
    (r"Answer: \$5", "5 cents", "different unit"),
    ("Answer: 2.3", "2,3", "different"),
    ("Answer: a=5, b=4", "a=4, b=5", "different"),
    ("Answer: The answer is not 5", "5", "words"),
    ("Answer: It is 4 or it is 5", "5", "words"),
    ("Answer: I think the answer is A or C", "C", "words"),
    ("Answer: A, B, C, D", "C", "different"),
    ("Answer: The answer is 5 percent.", "5", "different number"),
    ("Answer: The total is 5 million dollars", "5", "words"),
    ("Answer: The answer is 1, 2, 3, 4, 5", "5", "different"),
    ("Answer: It is 1. It is 2. It is 3. It is 4. It is 5", "5", "words"),
    ("Answer: 1. 2. 3. 4. 5", "5", "different"),
    ("Answer: 12:05", "5", "different"),
    ("Answer: Compute $20+5$.", "25", "words"),
    ("Answer: What is 20+5?", "25", "not an expression"),
    ("Answer: 25 (since 5=5)", "25", "equation chain"),
    (r"\boxed{4=5}", "5", "equation chain"),
    (r"\boxed{5\%}", "5", "different number"),
    ("Answer: 5 percent", "5", "different number"),
    ("Answer: 25 million", "25", "words"),
    ("Answer: 25 dozen", "25", "words"),
    ("Answer: 25 or 26", "25", "different"),
    ("Answer: 5 dollars", "5 cents", "different number"),
    ("Answer: 25x", "25", "different"),
    ("Answer: 1 2 3 4 5", "5", "different"),
    ("Answer: 1 2 3", "123", "different"),
    ("Answer: 1, 2, 3", "3", "different"),
    ("Answer: 25²", "252", "different"),
    ("Answer: 24.9999999", "25", "different number"),
    ("Answer: 5/0", "5", "different"),
    ("Answer: y=5", "x=5", "different"),
    ("Answer: 4=5", "x=5", "different"),
    ("Answer: x<5", "5", "relation"),
    ("Answer: (1,2)", "(2,1)", "different"),
    (r"Answer: [0,1)", "[0,9)", "different"),
    ("<think>Answer: 25", "25", "no answer"),
    ("<think>Answer: 25<|im_end|>", "25", "no answer"),
    ("<think>Answer: 25</think>", "25", "no answer"),
    ("<think>a</think>b<think>Answer: 25", "25", "no answer"),
    (r"\boxed{25", "25", "no answer"),
    (r"\boxed{}", "25", "no answer"),
    ("Is the result 25?", "25", "not an expression"),
    ("The result is not 25", "25", "words"),
    ("24", "25", "different number"),
    ("4=5", "5", "equation chain"),
    ("It is 23 or 24 or 25.", "25", "words"),
    ("1 2 3 25", "25", "different"),
    ("1, 2, 3, 25", "25", "different"),
    ("25%", "25", "different number"),
    ("25\x00", "25", "control characters"),
    ("Answer: 24\n\\boxed{25}", "25", "different number"),  # the line outranks the box
]


@pytest.mark.parametrize("rule", ["robust", "robust-marked"])
@pytest.mark.parametrize(("response", "gold"), RIGHT)
def test_robust_rule_rewards(response: str, gold: str, rule: str):
    verdict = math_verdict(response, gold, rule=rule)
    assert verdict.correct, verdict


UNMARKED_RIGHT = [
    ("25", "25"),
    ("$25$", "25"),
    ("-5", "-5"),
    ("1 000", "1000"),
    ("1,000.99", "1000.99"),
    (r"\(\frac{1}{3}\)", "1/3"),
    ("The result is 25", "25"),
    ("So he runs 540 meters a week.", "540"),
    ("5 * 5 = <<5*5=25>>25 pies\nA: 25", "25"),
    ("Many words before. " * 30 + "Therefore, the sum is $25$. I hope it is correct.", "25"),
    ("He says $x = 3$ and $y = 4$ " * 20 + "So, the pair that solves it is $(7, 6)$.", "(7,6)"),
    ("The error increases by 25%.", r"$25\%$"),
]


@pytest.mark.parametrize(("response", "gold"), UNMARKED_RIGHT)
def test_without_a_mark_the_last_statement_counts_but_not_in_training(response: str, gold: str):
    assert math_verdict(response, gold).correct
    marked = math_verdict(response, gold, rule="robust-marked")
    assert (marked.correct, marked.answer, marked.reason) == (False, None, "no answer")


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        (r"\boxed{\frac{10}{3}}", "3.33333333", True),
        ("Answer: 10/3", "3.333333", True),
        ("Answer: 2/3", "0.66666667", True),
        ("Answer: 2/3", "0.66666666", True),
        ("Answer: 10/3", "3.33333", False),  # five digits may be all there are
        ("Answer: 3.3333333333", "3.33333333", False),
        ("Answer: 11/3", "3.33333333", False),
        ("Answer: 3.33333333", "10/3", False),
    ],
)
def test_a_fraction_equals_its_decimals_where_the_gold_has_many(response, gold, correct):
    assert math_verdict(response, gold).correct is correct


def test_golds_may_be_solutions():
    assert math_verdict("Answer: 25", r"Since $5^2$ is odd, it is $\boxed{25}$.").correct
    assert math_verdict("Answer: 25", "Five times five.\n#### 25").correct
    assert not math_verdict("Answer: 5", r"Since $5^2$ is odd, it is $\boxed{25}$.").correct


@pytest.mark.parametrize(("response", "gold", "reason"), WRONG)
def test_robust_rule_refuses_with_a_reason(response: str, gold: str, reason: str):
    verdict = math_verdict(response, gold)
    assert (verdict.correct, verdict.reason) == (False, reason), verdict


CHEATS = {
    "empty": ("", "no answer"),
    "blank": (" \n\t", "no answer"),
    "zero": ("Answer: 0", "different number"),
    "another problem's gold": ("Answer: 26", "different number"),
    "copied prompt": (PROMPT, "words"),
    "answer shotgun": ("\n".join(f"Answer: {n}" for n in range(1, 26)), "answer shotgun"),
    "shotgun on one line": ("Answer: " + ", ".join(map(str, range(1, 26))), "different"),
    "box shotgun": ("".join(rf"\boxed{{{n}}}" for n in range(30)), "different number"),
    "chain of equations": ("Answer: 1=2=3=25", "equation chain"),
    "percent of the gold": (r"\boxed{25\%}", "different number"),
    "tower": ("Answer: 9^{9^{9^9}}", "tower of powers"),
    "flat tower": ("Answer: 9^9^9^9", "tower of powers"),
    "python tower": ("Answer: 9**9**9", "tower of powers"),
    "bracketed tower": ("Answer: (((9^{99})^{99})^{99})^{99}", "tower of powers"),
    "huge exponent": ("Answer: 3^{1000000000}", "huge exponent"),
    "factorial": ("Answer: (10^9)!", "huge factorial"),
    "digits of a factorial": ("Answer: 1000000000!", "huge factorial"),
    "factorials of factorials": ("Answer: 9!!!!", "huge factorial"),
    "binomial": (r"Answer: \binom{1000000000}{500000000}", "huge factorial"),
    "infinite sum": (r"Answer: \sum_{n=1}^{1000} n^n", "equation chain"),
    "product": (r"Answer: \prod_{n}^{9} n", "unevaluated operator"),
    "long sum": ("Answer: " + "+".join(["1"] * 20_000), "answer too long"),
    "medium sum": ("Answer: " + "+".join(["1"] * 300), "too long for symbolic comparison"),
    "deep brackets": ("Answer: " + "(" * 3_000 + "25" + ")" * 3_000, "no answer"),
    "less deep brackets": ("Answer: " + "(" * 40 + "25" + ")" * 40, "nested too deep"),
    "deep boxes": (r"\boxed{" * 3_000, "no answer"),
    "backslashes": ("\\" * 40_000, "no answer"),
    "open tags": ("<think>" * 6_000, "no answer"),
    "null byte": ("Answer: 25\x00", "control characters"),
    "null byte in front": ("Answer: \x0025", "control characters"),
    "right-to-left mark": ("Answer: \u200f25", "control characters"),
    "right-to-left override": ("Answer: \u202e52", "control characters"),
    "zero-width space": ("\\boxed{2\u200b5}", "control characters"),
    "code": ("Answer: __import__('os').getpid()", "not an expression"),
    "attribute": ("Answer: ().__class__", "not an expression"),
    "other digits": ("Answer: ٢٥", "different"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_negative_controls_score_nothing(name: str):
    response, reason = CHEATS[name]
    for rule in ("robust", "robust-marked"):
        verdict = math_verdict(response, "25", rule=rule)
        assert (verdict.correct, verdict.reason) == (False, reason)


DAPO_FOOLED = {"chain of equations", "answer shotgun"}  # last "=" and last marker win: measured


@pytest.mark.parametrize("name", sorted(set(CHEATS) - DAPO_FOOLED))
def test_negative_controls_score_nothing_under_dapo_either(name: str):
    assert dapo_score(math_verdict(CHEATS[name][0], "25", rule="dapo")) == -1.0


@pytest.mark.parametrize("name", sorted(DAPO_FOOLED))
def test_controls_that_fool_the_dapo_rule_are_known(name: str):
    assert dapo_score(math_verdict(CHEATS[name][0], "25", rule="dapo")) == 1.0


def test_an_answer_that_is_text_equal_needs_no_computer_algebra():
    def refuse(answer: str, gold: str) -> tuple[bool, str]:
        raise AssertionError(f"asked about {answer} and {gold}")

    for answer, gold in [("2024^{4046}", "2024^{4046}"), ("0.50", "1/2"), ("7", "8"), ("4=5", "5")]:
        robust_verdict(f"Answer: {answer}", gold, symbolic=refuse)


def test_extraction_by_hand():
    assert extract("Answer: 1\n\nAnswer: $2$ apples") == ("$2$ apples", "")
    assert extract("MyAnswer: 3") == (None, "no answer")
    assert extract("答：Answer：5") == ("5", "")
    assert last_box(r"\boxed{\frac{1}{2}} \boxed{\{3\}}") == r"\{3\}"
    assert last_box(r"\\boxed{5}") == "5"
    assert last_box("}{" * 5) is None


def test_rationals_are_exact():
    for text, value in [
        ("1,234.50", Fraction(2469, 2)),
        ("-.25", Fraction(-1, 4)),
        ("12 345", Fraction(12345)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        (r"\frac{-3}{6}", Fraction(-1, 2)),
        (r"2 \times 10^{-3}", Fraction(1, 500)),
        ("12345678901234567890123", Fraction(12345678901234567890123)),
    ]:
        assert rational(text) == value, text
    for text in ("1,23", "1/0", "x", "", "1.2.3", "1_000", "0x19", "inf", "²", "1e5", "--5"):
        assert rational(text) is None, text


# --- math-verify's neighbourhood --------------------------------------------------------------


def test_an_outer_alarm_is_left_alone():
    rung: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    handler = signal.getsignal(signal.SIGALRM)
    try:
        signal.setitimer(signal.ITIMER_REAL, 50.0, 7.0)
        assert symbolic_equal(r"\sqrt{9}", "3") == (True, "symbolically equal")
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 50.0
        assert interval == 7.0
        assert signal.getsignal(signal.SIGALRM) is handler
        assert not rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_importing_the_rewards_does_not_import_math_verify():
    code = "import sys, orthora.rewards; sys.exit('math_verify' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the entry point -------------------------------------------------------------------------


@pytest.mark.parametrize("gold", ["", "  ", "$$", None, 25])
def test_a_gold_that_is_empty_or_not_text_is_refused(gold: object):
    for rule in ("robust", "dapo"):
        with pytest.raises(ValueError, match="gold is"):
            math_verdict("Answer: 25", gold, rule=rule)  # pyright: ignore[reportArgumentType]


def test_a_response_that_is_not_text_is_refused():
    with pytest.raises(ValueError, match="response is None"):
        math_verdict(None, "25")  # pyright: ignore[reportArgumentType]


def test_an_unknown_rule_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"'robst'; did you mean 'robust'\?"):
        math_verdict("Answer: 25", "25", rule="robst")
    with pytest.raises(ValueError, match="choose one of robust, robust-marked, dapo, gsm8k-strict"):
        math_verdict("Answer: 25", "25", rule="zzz")


def test_golds_are_taken_out_of_answer_columns():
    assert gold_of("She has #### 3? No: 1,234.\n#### 1,234") == "1234"
    assert gold_of("#### -5 ") == "-5"
    assert gold_of(r"so \boxed{1} and \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert gold_of(" 25\n") == "25"
    assert gold_of(r"\(\boxed{1}\) and \(\boxed{-2}\).") == "1, -2"
    for empty in ("", " ", "#### ", r"\boxed{}"):
        with pytest.raises(ValueError, match="no gold answer"):
            gold_of(empty)


# --- real data -------------------------------------------------------------------------------


def test_agreement_with_the_labelled_cases_of_other_projects():
    """As they stand: no marker added, no gold taken out."""
    total, disagreements, rewarded = 0, set(), set()
    for case in rows_of("verifier_cases.jsonl"):
        if case["config_dependent"]:
            continue
        total += 1
        verdict = math_verdict(case["response"], case["gold"])
        if verdict.correct != case["expected"]:
            disagreements.add(case["id"])
            rewarded |= {case["id"]} if verdict.correct else set()
    print(f"{len(disagreements)} of {total} cases disagree")
    assert not rewarded, "an answer that its suite labels wrong was rewarded"
    assert total >= FLOOR_CASES
    assert disagreements == set(DISAGREEMENTS)
    conventions = sum(reason == FALSE_CHAIN for reason in DISAGREEMENTS.values())
    assert 1 - (len(DISAGREEMENTS) - conventions) / (total - conventions) >= 0.99


def test_no_copied_problem_passes():
    """With its prompt or without, in the right place or not."""
    sets = {"gsm8k": "gsm8k/test.jsonl", "math500": "math500/test.jsonl"}
    for name, file in sets.items():
        for template in (None, "{prompt}"):
            for problem in load_task(name, str(data_file(file)), template=template):
                assert not math_verdict(problem.prompt, problem.answer).correct, problem.prompt


def test_no_problem_verifies_as_its_own_answer():
    for row in rows_of("gsm8k/test.jsonl"):
        problem = " ".join(row["question"].split())
        assert not math_verdict(f"Answer: {problem}", gold_of(row["answer"])).correct, problem
    for row in rows_of("math500/test.jsonl"):
        problem = " ".join(row["problem"].split())
        assert not math_verdict(f"Answer: {problem}", row["answer"]).correct, problem


def test_gsm8k_golds_verify_against_themselves():
    names = ("gsm8k/test.jsonl", "gsm8k/train.jsonl")
    golds = [gold_of(row["answer"]) for name in names for row in rows_of(name)]
    assert len(golds) == 1_319 + 7_473
    for gold in golds:
        for form in (f"Answer: {gold}", rf"\boxed{{{gold}}}"):
            assert math_verdict(form, gold).correct, gold
            assert math_verdict(form, gold, rule="dapo").correct, gold
        assert math_verdict(f"#### {gold}", gold).correct, gold
        assert math_verdict(f"#### {gold}", gold, rule="dapo").reason == "no answer"
        for rule in ("gsm8k-strict", "gsm8k-flexible"):
            assert math_verdict(f"#### {gold}", gold, rule=rule).correct, gold


def test_gsm8k_golds_do_not_verify_against_their_neighbours():
    golds = [gold_of(row["answer"]) for row in rows_of("gsm8k/test.jsonl")]
    for gold, other in pairwise(golds):
        assert math_verdict(f"Answer: {other}", gold).correct == (int(gold) == int(other))


@pytest.mark.slow
def test_dapo_golds_verify_against_themselves():
    from pyarrow import parquet

    path = data_file("dapo_math_17k/dapo_math_17k.parquet")
    column = parquet.read_table(path, columns=["reward_model"])["reward_model"].to_pylist()
    golds = [row["ground_truth"] for row in column]
    assert len(golds) == 17_917
    for gold in golds:
        for form in (f"Answer: {gold}", rf"\boxed{{{gold}}}"):
            for rule in ("robust", "dapo"):
                assert math_verdict(form, gold, rule=rule).correct, (form, rule)


def test_math500_golds_verify_against_themselves():
    for row in rows_of("math500/test.jsonl"):
        for form in (f"Answer: ${row['answer']}$.", rf"So \boxed{{{row['answer']}}}."):
            assert math_verdict(form, row["answer"]).correct, form
