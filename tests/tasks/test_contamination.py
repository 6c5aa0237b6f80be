"""The contamination check: by hand, against a slow reference, and the published figures."""

import functools
import json
import random
from pathlib import Path

import pytest

from orthora.tasks import find_contamination, load_problems, load_task
from orthora.tasks.command import contamination as command
from orthora.tasks.statements import AFTER, BEFORE, key_of, words_of
from orthora.types import Problem

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data is not beside this checkout")

LONG = "Let the sum of $a$ and $b$ be seven, and let their product be twelve; find the larger one."
WORDS = LONG.split()


def problem(text: str, answer: str = "4", id: str = "x") -> Problem:
    return Problem(text, answer, id)


def only(evaluation: str, *training: Problem, **settings):
    (match,) = find_contamination([problem(evaluation)], training, **settings).matches
    return match


@functools.cache
def dapo() -> list[Problem]:
    return load_task("dapo-math", str(DATA / "dapo_math_17k" / "dapo_math_17k.parquet"))


# --- by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy",
    [
        LONG,
        LONG.upper().replace(" ", "\n"),
        LONG.replace("$a$", r"\( a \)").replace(";", ","),
        BEFORE + LONG + AFTER,
    ],
)
def test_copies_are_exact_whatever_their_dress(copy):
    match = only(LONG, problem("Something else."), problem(copy, "04", "copy"))
    assert (match.kind, match.train, match.same_gold, match.share) == ("exact", "copy", True, 1.0)


def test_half_of_the_ten_grams_count_and_less_does_not():
    grams = len(WORDS) - 9
    for kept in range(1, grams + 1):
        text = " ".join(["Altogether", "new", *WORDS[-9 - kept :], "Really"])
        match = only(LONG, problem(text))
        assert match.share == kept / grams
        assert match.kind == ("words" if 2 * kept >= grams else "none")
    assert only(LONG, problem(" ".join(WORDS[-12:])), threshold=3 / grams).kind == "words"


def test_the_share_is_of_one_training_problem_alone():
    halves = [problem(" ".join(WORDS[:13])), problem(" ".join(WORDS[-13:]))]
    grams = len(WORDS) - 9
    assert only(LONG, *halves).share == 4 / grams < 0.5


def test_an_opening_counts():
    start = LONG[:40]
    match = only(LONG, problem(start + " twenty", "5", "o"), opening=20)
    assert (match.kind, match.train, match.same_gold) == ("opening", "o", False)
    assert only(LONG, problem(start + " twenty")).kind == "none"


def test_the_strongest_match_wins_then_the_same_gold_then_the_first():
    near = " ".join(WORDS[:-1])
    rows = [
        problem(near, "4", "near"),
        problem(LONG, "5", "other gold"),
        problem(LONG, "4", "right"),
        problem(LONG, "4", "later"),
    ]
    assert only(LONG, *rows).train == "right"
    assert only(LONG, *rows[:2]).train == "other gold"
    assert only(LONG, *rows[:1]).kind == "words"


def test_signs_tell_short_problems_apart():
    assert only("47+25-18=", problem("47-25+18=")).kind == "none"
    assert only("47+25-18=", problem("47 + 25 - 18 =")).kind == "exact"
    chains = [load_task("arithmetic", split=s, count=200) for s in ("test", "train")]
    assert find_contamination(*chains).found == ()


def test_chinese_problems_are_compared_by_their_characters():
    text = "已知函数的图像经过原点，求参数的值。"
    assert len(words_of(text)) == 16
    assert only(text, problem("若方程的两根互为相反数，求参数的值。")).kind == "none"
    assert only(text, problem(text.replace("，", ", "))).kind == "exact"


def test_programs_have_the_same_gold_where_they_have_the_same_tests():
    one = Problem(LONG, "x = 1", "a", tests=("assert x", "assert 1"))
    two = Problem(LONG, "x = 2", "b", tests=("assert 1", "assert x"))
    three = Problem(LONG, "x = 1", "c", tests=("assert 1",))
    assert find_contamination([one], [two]).matches[0].same_gold
    assert not find_contamination([one], [three]).matches[0].same_gold


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n": 0}, "n is 0"), ({"threshold": 0.0}, "threshold 0.0"), ({"opening": 0}, "opening 0")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        find_contamination([problem(LONG)], [problem(LONG)], **settings)


@pytest.mark.parametrize("sides", [([], [problem(LONG)]), ([problem(LONG)], [])])
def test_empty_sets_are_refused(sides):
    with pytest.raises(ValueError, match="holds no problems"):
        find_contamination(*sides)


def test_the_index_agrees_with_comparing_every_pair():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcd", k=rng.randint(3, 14))) for _ in range(120)]
    rows = [problem(text, str(rng.randint(0, 1)), str(i)) for i, text in enumerate(texts)]
    evaluation, training = rows[:40], rows[40:]
    found = find_contamination(evaluation, training, n=3, opening=4)

    def grams(p):
        words = p.prompt.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    def compared(e, t):
        keys = [key_of(p.prompt, words_of(p.prompt)) for p in (e, t)]
        share = len(grams(e) & grams(t)) / len(grams(e))
        near = 2 if share >= 0.5 else int(keys[0][:4] == keys[1][:4])
        return (3 if keys[0] == keys[1] else near), share, e.answer == t.answer

    kinds = set()
    for e, match in zip(evaluation, found.matches, strict=True):
        best = max(training, key=lambda t, e=e: (*compared(e, t), -int(t.id)))
        level, share, same = compared(e, best)
        kinds.add(match.kind)
        assert (match.kind, match.share) == (("none", "opening", "words", "exact")[level], share)
        if level or share:
            assert (match.train, match.same_gold) == (best.id, same)
    assert kinds >= {"none", "words", "opening"}


# --- the figures of DAPO-Math-17k ------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(("year", "found"), [(2022, 28), (2023, 27), (2024, 0)])
def test_aime_in_dapo(year, found):
    exams = load_task(f"aime{year % 100}", str(DATA / "aime" / "aimo-validation-aime.jsonl"))
    result = find_contamination(exams, dapo())
    assert len(result.found) == found
    assert all(match.same_gold for match in result.found)
    listed = json.loads((DATA / "dapo_math_17k" / "aime_overlap.json").read_text())
    expected = {
        f"{row['year']}-{row['exam']}-{row['problem']}": row
        for row in listed
        if row["year"] == str(year)
    }
    assert expected.keys() == {match.problem for match in result.matches}
    for match in result.matches:
        row = expected[match.problem]
        assert (match.kind == "exact") == row["exact_norm"]
        assert match.share == pytest.approx(row["ngram10_overlap"], abs=0.00501)
        near = row["exact_norm"] or row["prefix80"] or row["ngram10_overlap"] >= 0.5
        assert (match.kind != "none") == near


@needs_data
def test_aime25_is_not_in_dapo():
    exam = load_task("aime25", str(DATA / "aime" / "svs_MATH-AIME-Evaluation.parquet"))
    assert find_contamination(exam, dapo()).found == ()


@needs_data
def test_math500_in_dapo():
    problems = load_task("math500", str(DATA / "math500" / "test.jsonl"))
    result = find_contamination(problems, dapo())
    assert result.count("exact") == 7
    assert result.count("exact", "words") == 23  # the notes' "exact or near": 10-grams alone
    assert result.count("opening") == 2  # found by their opening only
    assert sum(bool(match.same_gold) for match in result.found) == 11  # others are twins


@needs_data
def test_gsm8k_is_not_in_dapo():
    problems = load_task("gsm8k", str(DATA / "gsm8k" / "test.jsonl"))
    assert find_contamination(problems, dapo()).found == ()


@needs_data
@pytest.mark.slow
def test_the_whole_of_math_in_dapo():
    file = str(DATA / "math_full" / "test.jsonl")
    problems = load_problems(file, prompt_column="problem", answer_column="solution")
    result = find_contamination(problems, dapo())
    assert result.count("exact") == 976  # a script that was not kept counted 974 and 1,325
    assert result.count("exact", "words") == 1_327
    # Signs are not looked at in long problems: z^4 + z^2 + 1 and z^4 - z^2 + 1 are told by gold.
    odd = {m.problem for m in result.matches if m.kind == "exact" and not m.same_gold}
    assert ["z^4 + z^2 + 1" in p.prompt for p in problems if p.id in odd] == [True]


# --- the command -----------------------------------------------------------------------------


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path) -> list[str]:
    evaluation = [{"question": LONG, "answer": "4"}, {"question": "1 + 1?", "answer": "2"}]
    training = [{"problem": "Two?", "solution": "2"}, {"problem": LONG, "solution": r"\boxed{4}"}]
    return [write(tmp_path / "e.jsonl", *evaluation), write(tmp_path / "t.jsonl", *training)]


def test_the_command_compares_files(files, tmp_path, capsys):
    out = tmp_path / "new" / "overlap.json"
    command([*files, "--json-out", str(out), "--list"])
    shown = capsys.readouterr().out
    assert "│ any" in shown
    assert "100%" in shown
    result = json.loads(out.read_text())
    assert (result["eval_problems"], result["train_problems"], result["found"]) == (2, 2, 1)
    assert result["totals"]["exact"] == {"problems": 1, "same_gold": 1}
    assert result["matches"] == [
        {"problem": "0", "kind": "exact", "share": 1.0, "train": "1", "same_gold": True},
        {"problem": "1", "kind": "none", "share": 0.0, "train": None, "same_gold": None},
    ]


def test_the_command_compares_tasks(files, tmp_path, capsys):
    row = {"question": LONG, "answer": "#### 4"}
    data = write(tmp_path / "gsm8k.jsonl", row)
    command(["gsm8k", files[1], "--eval-data", data])
    assert "gsm8k (1 problems)" in capsys.readouterr().out
    command(["arithmetic", "arithmetic"])
    assert "100%" not in capsys.readouterr().out


def test_the_command_asks_for_the_training_split(monkeypatch, tmp_path):
    asked = []

    def load(name, data, split, **_):
        asked.append((name, data, split))
        return [problem(LONG)]

    monkeypatch.setattr("orthora.tasks.command.load_task", load)
    command(["mbpp", "GSM8K", "--train-data", "x.jsonl"])
    assert asked == [("mbpp", None, None), ("gsm8k", "x.jsonl", "train")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: ["aime2", f[1]], "unknown task 'aime2'. Did you mean 'aime2"),
        (lambda f: [*f, "--eval-data", "x.jsonl"], "is a file already; leave --eval-data"),
        (lambda f: [*f, "--json-out", f[0]], "exists; choose another file"),
        (lambda f: ["absent.jsonl", f[1]], "no data file 'absent.jsonl'"),
    ],
)
def test_mistakes_are_one_line(files, change, message):
    with pytest.raises(ValueError, match=message) as found:
        command(change(files))
    assert "\n" not in str(found.value)


def test_files_without_known_columns_are_refused(files, tmp_path):
    odd = write(tmp_path / "odd.jsonl", {"frage": "1+1", "answer": "2"})
    with pytest.raises(ValueError, match=r"none of the columns prompt, .*: frage, answer"):
        command([odd, files[1]])


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        command(["--help"])
    shown = capsys.readouterr().out
    assert "EVAL TRAIN" in shown
    assert "orthora contamination aime24 dapo-math" in shown
