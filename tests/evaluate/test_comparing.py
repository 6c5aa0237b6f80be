"""Paired comparison of two evaluation folders."""

import json
from math import comb

import pytest

import orthora
from orthora.cli import main
from orthora.evaluate import compare, rescore
from orthora.evaluate.folder import stored_problems

CONFIG = {
    "model": "tiny",
    "task": "arithmetic",
    "problems": 20,
    "samples": 1,
    "max_response_tokens": 30,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One evaluation of each kind of decoding; `answered` replaces its samples."""
    out = tmp_path_factory.mktemp("evaluation") / "one"
    orthora.evaluate(CONFIG | {"out": str(out)})
    return out


def answered(folder, to, right):
    """A copy in which exactly these problems are answered rightly."""
    to.mkdir()
    for name in ("config.toml", "environment.json", "problems.jsonl"):
        (to / name).write_text((folder / name).read_text())
    lines = []
    for number, problem in enumerate(stored_problems(folder)):
        text = f"Answer: {problem.answer if number in right else int(problem.answer) + 1}"
        row = {"problem": problem.id, "sample": 0, "key": number, "tokens": 4, "ended": True}
        lines.append(json.dumps(row | {"text": text}) + "\n")
    (to / "samples.jsonl").write_text("".join(lines))
    rescore(to)
    return to


def test_one_sample_each_is_mcnemars_test(folder, tmp_path):
    first = answered(folder, tmp_path / "a", range(12))  # 0 to 11
    second = answered(folder, tmp_path / "b", [*range(9, 12), 15])  # 9 to 11, 15
    found = compare(first, second)
    assert (found.first, found.second) == (12 / 20, 4 / 20)
    assert found.difference == pytest.approx(8 / 20)
    assert (found.better, found.worse, found.problems) == (9, 1, 20)
    binomial = 2 * sum(comb(10, i) for i in range(2)) / 2**10
    assert found.p_value == pytest.approx(binomial)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.differing == {}


def test_turned_round_it_is_the_opposite(folder, tmp_path):
    first = answered(folder, tmp_path / "a", range(12))
    second = answered(folder, tmp_path / "b", range(9, 20))
    one, other = compare(first, second), compare(second, first)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx(tuple(-x for x in reversed(other.interval)), abs=0.06)


def test_with_itself_there_is_no_difference(folder):
    found = compare(folder, folder)
    assert (found.difference, found.interval, found.p_value) == (0, (0, 0), 1)


def test_another_protocol_is_told(folder, tmp_path):
    out = tmp_path / "greedy"
    orthora.evaluate(CONFIG | {"temperature": 0, "out": str(out)})
    assert compare(out, folder).differing == {"temperature": (0.0, 1.0)}


def test_other_problems_are_refused(folder, tmp_path):
    out = tmp_path / "fewer"
    orthora.evaluate(CONFIG | {"problems": 19, "out": str(out)})
    with pytest.raises(ValueError, match=r"not of the same problems \(1 differ\)"):
        compare(out, folder)


def test_what_has_no_scores_is_refused(folder, tmp_path):
    out = answered(folder, tmp_path / "unscored", [])
    (out / "scores.json").unlink()
    with pytest.raises(ValueError, match="has no scores yet"):
        compare(out, folder)


def test_the_command_prints_and_writes(folder, tmp_path, capsys):
    out, written = answered(folder, tmp_path / "a", range(20)), tmp_path / "c.json"
    assert main(["compare", str(folder), str(out), "--json-out", str(written)]) == 0
    row = json.loads(written.read_text())[0]
    assert row["first"] == 1.0
    assert f"{row['p_value']:.3g}" in capsys.readouterr().out
    assert main(["compare", str(folder), str(out), "--json-out", str(written)]) == 2
    assert main(["compare", str(folder)]) == 2
    assert "two evaluation folders" in capsys.readouterr().err


def test_with_unequal_numbers_of_samples_there_is_no_p_value(folder, tmp_path, capsys):
    """Their differences are not symmetric: 1 against 32 samples would reject 40 % of equals."""
    out = tmp_path / "more"
    orthora.evaluate(CONFIG | {"samples": 3, "out": str(out)})
    found = compare(out, folder)
    assert found.p_value is None
    assert found.differing["samples"] == (3, 1)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert main(["compare", str(folder), str(out)]) == 0
    assert "unequal n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("verdicts.jsonl", "{}\n", "line 1 is no verdict"),
        ("verdicts.jsonl", "", "has no verdicts on some problems"),
        ("verdicts.jsonl", None, "is missing"),
        ("scores.json", "[]", "is no JSON object"),
        ("scores.json", "{}", "is damaged"),
        ("problems.jsonl", '{"id": "x"}\n', "line 1 is no problem"),
    ],
)
def test_damaged_files_are_named(folder, file, text, words, tmp_path):
    out = answered(folder, tmp_path / "damaged", [1])
    (out / file).unlink() if text is None else (out / file).write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        compare(out, folder)
    assert "\n" not in str(error.value)


def test_half_the_verdicts_are_not_compared(folder, tmp_path):
    out = answered(folder, tmp_path / "half", [1])
    lines = (out / "verdicts.jsonl").read_text().splitlines(keepends=True)
    (out / "verdicts.jsonl").write_text("".join(lines[::2]))
    with pytest.raises(ValueError, match="has no verdicts on some problems"):
        compare(out, folder)


def test_names_with_marks_are_printed_as_they_are(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = answered(folder, tmp_path / "[red]x[bold]", [1])
    assert main(["compare", str(folder), out.name]) == 0
    assert "[red]x[bold]" in capsys.readouterr().out.replace("\n", "")
    assert main(["rescore", out.name]) == 0
    assert "[red]x[bold]" in capsys.readouterr().out.replace("\n", "")
