"""Answers made to fool the rule, and ordinary ones that it must not refuse for that.

Each was found by trying; most fooled it once, or fool Math-Verify.
"""

import pytest

from orthora import math_verdict

FOOLING = [
    ("The probability is .25", "25"),
    ("The rate is .5%", r"5\%"),
    ("52_9", "52_8"),
    ("101_3", "101_2"),
    ("25_8", "25"),
    ("HTH", "HHT"),
    ("SSA", "SAS"),
    ("BAC", "CAB"),
    ("AB", "BA"),
    ("DNE", "END"),
    ("on", "no"),
    (r"\boxed{\not= 25}", "25"),
    (r"\boxed{\not\in 2}", "2"),
    (r"\neg x=2", "2"),
    ("not x = 2", "2"),
    ("wrong = 2", "2"),
    ("x does not = 2", "2"),
    (r"\pm = 2", "2"),
    ("The wrong answer is 25", "25"),
    ("It is not true that x is 25", "25"),
    ("I don't think the answer is 25", "25"),
    ("not equal to 25", "25"),
    ("答案不是25", "25"),
    ("Die Antwort ist nicht 25", "25"),
    ("I doubt the answer is 25", "25"),
    ("3 fifths", "3"),
    ("7 eighths", "7"),
    ("0.3 repeating", "0.3"),
    ("10 choose three", "10"),
    ("10 base two", "10"),
    ("3 point five", "3"),
    ("5 feet six inches", "5"),
    ("5 grand", "5"),
    ("5 quadrillion", "5"),
    ("5 lakhs", "5"),
    ("25 is false", "25"),
    ("25 cannot be", "25"),
    ("25 out of fifty", "25"),
    ("25分之一", "25"),
    ("25点五", "25"),
    ("25不对", "25"),
    ("25的平方", "25"),
    ("25以下", "25"),
    ("2xy", "2"),
    ("25ab", "25"),
    ("6rs", "6"),
    ("25xy^2", "25"),
    ("25dx", "25"),
    (r"2\mathrm{i}", "2"),
    (r"2\text{i}", "2"),
    (r"2\mathrm{e}", "2"),
    (r"3\mathrm{\pi}", "3"),
    (r"25\text{.5}", "25"),
    (r"25\text{00}", "25"),
    (r"25\text{ 26}", "25"),
    (r"x+1\text{+1}", "x+1"),
    (r"-\boxed{5}", "5"),
    (r"$x=-\boxed{5}$", "5"),
    (r"\boxed{1}/2", "1"),
    (r"\boxed{25}_7", "25"),
    (r"\boxed{25} million", "25"),
    (r"\boxed{24} or \boxed{25}", "25"),
    (r"not \boxed{25}", "25"),
    (r"x \neq \boxed{25}", "25"),
    ("It is less than 5%", r"5\%"),
    ("anything except 5%", r"5\%"),
    ("the loss is twice 5%", r"5\%"),
    ("minus 5%", r"5\%"),
    ("2, 1", "x=1, y=2"),
    ("4, 5", "a=5, b=4"),
    ("(2,1)", "x=1, y=2"),
    (r"1,2,3,\ldots", "1,2,3"),
    (r"25,\ldots", "25"),
    ("1,2,...", "1,2"),
    ("0,500", "500"),
    ("25°30'", "2530"),
    ("1°23", "123"),
    (r"\pm 2", "-2<x<2"),
    ("-2,2", "-2<x<2"),
    (r"\{0,\infty\}", "x>0"),
    ("25 cents", r"\$25"),
    ("25 hours", r"\$25"),
    (r"25\text{ m}", r"25\text{ m}^2"),
    ("1,2,1", "1,2,2"),
    ("1,1", "1"),
    ("The answer is 25 K dollars total", "25"),
    ("It is the square of 25", "25"),
    ("It is the number after 25", "25"),
    ("零下25度", "25"),
    ("An upper bound is 25", "25"),
    ("It might be 25", "25"),
    ("One possible answer is 25", "25"),
    (r"4/3\pi", r"\frac{4}{3\pi}"),
    ("(y,x)=(1,2)", "(1,2)"),
]
FAIR = [
    ("$m+n=25$", "25"),
    (r"\boxed{p+q=25}", "25"),
    ("$m+n=12+13=25$", "25"),
    ("The answer is **25**.", "25"),
    ("**25** apples", "25"),
    ("x=3 or x=4", "3,4"),
    ("x = 3, x = 4", "3,4"),
    (r"\boxed{x=3\text{ or }x=4}", "3,4"),
    ("\nThe number of ways is\n\\[\\boxed{25}\\]", "25"),
    ("The probability is .25", "0.25"),
    ("25 more", "25"),
    ("5 times", "5"),
    ("€25", "25"),
    ("1/2 x + 2", "x/2+2"),
    ("4/3 π", r"\frac{4}{3}\pi"),
    ("3/5 i", r"\frac{3}{5}i"),
    ("∞", r"\infty"),
    (r"25^\circ", "25"),
    (r"\boxed{25}", "25"),
    (r"**\boxed{25}**", "25"),
    (r"The final answer is $\boxed{25}$.", "25"),
    ("10,4,-2", "4,10,-2"),
    ("(1,2)", "(1,2)"),
    ("25 cm", "25"),
    ("5 km", "5"),
    ("HTH", "HTH"),
    ("even", "even"),
    ("52_8", "52_8"),
    ("52", "52_8"),
    ("(204)_5", "204_5"),
    (r"\boxed{25}!", "25"),
    ("x=1, y=2", "(1,2)"),
    ("1/3", "0.33333333"),
    ("y=2, x=1", "x=1, y=2"),
    (r"12\pi", r"12\pi"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt 3}{2}"),
    (r"x \in (-\infty, 3]", r"(-\infty,3]"),
    ("3,4", "4,3"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("$25", "25"),
    ("25 dollars", r"\$25"),
    ("7 square feet", "7"),
    ("the total is 540 meters", "540"),
]


@pytest.mark.parametrize("rule", ["robust", "robust-marked"])
@pytest.mark.parametrize(("answer", "gold"), FOOLING)
def test_what_is_not_the_answer_does_not_pass(answer, gold, rule):
    assert not math_verdict(f"Answer: {answer}", gold, rule=rule).correct


@pytest.mark.parametrize(("answer", "gold"), FOOLING)
def test_nor_without_a_mark(answer, gold):
    assert not math_verdict(answer, gold).correct


@pytest.mark.parametrize("rule", ["robust", "robust-marked"])
@pytest.mark.parametrize(("answer", "gold"), FAIR)
def test_what_is_the_answer_passes(answer, gold, rule):
    assert math_verdict(f"Answer: {answer}", gold, rule=rule).correct


BOXES = [
    (r"so $x = -\boxed{5}$", "5", "-5"),
    (r"it is $\boxed{1}/2$.", "1", "1/2"),
    (r"we get $2^\boxed{5}$", "5", "32"),
    (r"in base seven \boxed{25}_7", "25", "25_7"),
    (r"about \boxed{25} million people", "25", "25 million"),
]


@pytest.mark.parametrize(("response", "wrong", "right"), BOXES)
def test_what_stands_at_a_box_belongs_to_the_answer(response, wrong, right):
    assert not math_verdict(response, wrong).correct
    if right in ("-5", "1/2"):
        assert math_verdict(response, right).correct


@pytest.mark.parametrize(
    "response",
    [
        "**\\boxed{25}**",
        "- \\boxed{25}",
        "The answer is $\\boxed{25}$!",
        "$$\\boxed{25}$$",
        "Total: 12 + 13 = \\boxed{25} apples.",
        "**Answer:**\n\nThe number of ways is\n\\[\\boxed{25}\\]",
        "\\boxed{25}\n\nExplanation of the answer: we multiplied both sides.",
    ],
)
def test_what_stands_around_a_box_does_not_hide_it(response):
    assert math_verdict(response, "25").correct


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 100_000,
        " " * 100_000,
        "a. " * 33_000,
        "Answer: " + ", ".join(["(2+i)^{1000}"] * 12),
        "Answer: it is $(2+i)^{1000}$",
        "Answer: " + "{" * 40_000,
        "Answer: " + r"\text{" * 10_000,
    ],
    ids=range(7),
)
def test_degenerate_texts_are_judged_and_wrong(text):
    """Each took seconds to minutes once; all together take one."""
    for gold in ("25", "1,2,3,4,5,6,7,8,9,10,11,12"):
        assert not math_verdict(text, gold).correct


def test_one_verdict_waits_for_computer_algebra_once(monkeypatch):
    from orthora.rewards.robust import robust_verdict

    asked = []

    def slow(answer, gold):
        asked.append(answer)
        return False, "symbolic timeout"

    members = ", ".join(f"x^{n}+{n}" for n in range(2, 8))
    assert not robust_verdict(f"Answer: {members}", members[::-1], symbolic=slow).correct
    assert len(asked) == 1


def test_a_number_of_thousands_of_digits_is_no_error():
    assert not math_verdict("Answer: 25", "1" * 5_000).correct
    assert not math_verdict("Answer: " + "1" * 5_000, "25").correct
