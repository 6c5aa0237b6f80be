"""Samples on the disk: resuming after a kill, damaged files, scoring again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import orthora
from orthora.evaluate import rescore
from orthora.evaluate.folder import SampleFile, stored_problems

CONFIG = {
    "model": "tiny",
    "task": "arithmetic",
    "problems": 12,
    "samples": 3,
    "max_response_tokens": 40,
    "batch": 5,  # no multiple of the samples: batches cut through problems
}
TOTAL = 36


pytestmark = pytest.mark.xdist_group("evaluation")  # one worker makes what all look at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation folder, complete, and its result."""
    out = tmp_path_factory.mktemp("evaluation") / "whole"
    return out, orthora.evaluate(CONFIG | {"out": str(out)})


def copy(whole, to, lines=None, tail=""):
    """The folder as a kill after some samples leaves it."""
    source = whole[0]
    to.mkdir()
    for name in ("config.toml", "environment.json", "problems.jsonl"):
        (to / name).write_text((source / name).read_text())
    rows = (source / "samples.jsonl").read_text().splitlines(keepends=True)
    (to / "samples.jsonl").write_text("".join(rows[:lines]) + tail)
    return to


def samples_of(out):
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return sorted((row["problem"], row["sample"], row["text"], row["tokens"]) for row in rows)


@pytest.mark.parametrize("lines", [0, 1, 7, 20, 35, 36])
@pytest.mark.parametrize("tail", ["", '{"problem": "1+'])
def test_it_goes_on_to_the_same_samples_wherever_it_was_cut(whole, lines, tail, tmp_path):
    out = copy(whole, tmp_path / "cut", lines, tail)
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == whole[1]
    assert samples_of(out) == samples_of(whole[0])
    assert (out / "verdicts.jsonl").read_bytes() == (whole[0] / "verdicts.jsonl").read_bytes()


def test_a_killed_process_goes_on_to_the_same_samples(whole, tmp_path):
    out = tmp_path / "killed"
    arguments = [f"--{k.replace('_', '-')}={v}" for k, v in (CONFIG | {"out": out}).items()]
    command = [sys.executable, "-m", "orthora", "eval", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = out / "samples.jsonl"
    until = time.monotonic() + 100
    while not (file.is_file() and file.stat().st_size):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    assert kept.count(b"\n") < TOTAL, "killed too late to test anything"
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == whole[1]
    assert file.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert samples_of(out) == samples_of(whole[0])


def test_complete_work_is_not_done_again(whole, monkeypatch, tmp_path):
    out = copy(whole, tmp_path / "done")
    monkeypatch.setattr("orthora.evaluate.run.draw", None)
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == whole[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"temperature": 0.5}, "temperature"), ({"samples": 4}, "samples")],
)
def test_another_evaluation_in_the_folder_is_refused(whole, change, named, tmp_path):
    out = copy(whole, tmp_path / "other", 5)
    with pytest.raises(ValueError, match=rf"another config; these differ: {named} \("):
        orthora.evaluate(CONFIG | change | {"out": str(out)})
    assert len(samples_of(out)) == 5


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        orthora.evaluate(CONFIG | {"out": str(tmp_path)})


def test_scoring_again_needs_no_model(whole, monkeypatch, tmp_path):
    out = copy(whole, tmp_path / "again")
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(f"orthora.models.{name}", None)
    assert rescore(out) == whole[1]
    dapo = rescore(out, rule="dapo")
    assert list(dapo.by_rule) == ["dapo", "robust"]
    assert dapo.by_rule == dict(reversed(whole[1].by_rule.items()))
    assert json.loads((out / "scores.json").read_text())["config"]["reward_rule"] == "dapo"
    with pytest.raises(ValueError, match="reward_rule"):
        rescore(out, rule="robusst")


def test_the_rule_is_applied_to_what_was_sampled(whole, tmp_path):
    """A response that the two rules judge differently."""
    out = copy(whole, tmp_path / "bold")
    golds = {problem.id: problem.answer for problem in stored_problems(out)}
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row["text"] = f"**Answer:** {golds[row['problem']]}"
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = rescore(out)
    assert (result.pass_at_1, result.disagreement) == (1.0, 1.0)
    assert result.by_rule == {"robust": 1.0, "dapo": 0.0}


@pytest.mark.parametrize("lines", [0, 35])
def test_half_a_samples_file_is_not_scored(whole, lines, tmp_path):
    out = copy(whole, tmp_path / "half", lines)
    with pytest.raises(ValueError, match=rf"has {lines} of 36 samples; the orthora eval"):
        rescore(out)
    assert not (out / "scores.json").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 37 is not JSON"),
        ("[1, 2]", "line 37 is no JSON object"),
        ('{"problem": "1+1="}', "line 37 is no sample of this evaluation"),
        ('{"sample": 0}', "line 37 is no sample of this evaluation"),
        (None, "line 37 has sample 0 of .* again"),
    ],
)
def test_a_damaged_line_is_named(whole, line, words, tmp_path):
    out = copy(whole, tmp_path / "damaged")
    first = (out / "samples.jsonl").read_text().splitlines()[0]
    with (out / "samples.jsonl").open("a") as file:
        file.write((line or first) + "\n")
    with pytest.raises(ValueError, match=words):
        rescore(out)


def test_a_sample_beyond_n_is_named(whole, tmp_path):
    out = copy(whole, tmp_path / "beyond", 35)
    row = json.loads((out / "samples.jsonl").read_text().splitlines()[0]) | {"sample": 3}
    with (out / "samples.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 36 is sample 3 of .* there are 3, from 0"):
        rescore(out)


def test_no_evaluation_folder(tmp_path):
    with pytest.raises(ValueError, match="is no evaluation folder"):
        rescore(tmp_path)


def test_changed_problems_are_refused(whole, tmp_path):
    out = copy(whole, tmp_path / "changed", 5)
    text = (out / "problems.jsonl").read_text()
    (out / "problems.jsonl").write_text(text.replace('"answer": "', '"answer": "1', 1))
    with pytest.raises(ValueError, match="the problems are not those of"):
        orthora.evaluate(CONFIG | {"out": str(out)})


def test_the_file_tells_what_is_missing(whole):
    problems = stored_problems(whole[0])
    file = SampleFile(whole[0], problems, 3)
    assert (len(file.drawn), file.missing) == (TOTAL, 0)
    assert SampleFile(whole[0], problems, 5).missing == 24


def test_two_processes_do_not_write_into_one_folder(whole, tmp_path):
    out = copy(whole, tmp_path / "both", 5)
    first = SampleFile(out, stored_problems(out), 3)
    with first.appending(), pytest.raises(ValueError, match="another process is sampling into"):
        orthora.evaluate(CONFIG | {"out": str(out)})
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == whole[1]


def test_what_another_process_wrote_in_the_meantime_is_kept(whole, tmp_path):
    out = copy(whole, tmp_path / "late", 5)
    late = SampleFile(out, stored_problems(out), 3)  # reads, and waits
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == whole[1]
    with late.appending():
        assert late.missing == 0
    assert samples_of(out) == samples_of(whole[0])


def test_a_prompt_that_says_the_date_goes_on_as_it_began(whole, monkeypatch, tmp_path):
    from orthora import models

    days = iter(["1+1=", "2+2=", "2+2="])
    real = models.prompt_text
    monkeypatch.setattr(
        "orthora.evaluate.run.models.prompt_text", lambda *a, **k: day + real(*a, **k)
    )
    day = next(days)
    out = tmp_path / "e"
    complete = orthora.evaluate(CONFIG | {"out": str(out)})
    kept = samples_of(out)
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(lines[:7]))
    day = next(days)
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == complete
    assert samples_of(out) == kept
    assert '"text": "1+1=' in (out / "problems.jsonl").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": None},
        {"ended": 1},
        {"ended": None},
        {"text": 5},
        {"sample": True},
        {"problem": [1]},
    ],
)
def test_values_of_a_wrong_type_are_named(whole, change, tmp_path):
    out = copy(whole, tmp_path / "types", 35)
    last = json.loads((whole[0] / "samples.jsonl").read_text().splitlines()[-1])
    with (out / "samples.jsonl").open("a") as file:
        file.write(json.dumps(last | change) + "\n")
    with pytest.raises(ValueError, match="line 36 "):
        rescore(out)


def test_odd_characters_in_settings_survive(tmp_path):
    data, out = tmp_path / "d.jsonl", tmp_path / "e"
    data.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    config = {"model": "tiny", "data": str(data), "max_response_tokens": 9, "out": str(out)}
    first = orthora.evaluate(config | {"prompt_template": "{prompt}\x7f\u2028"})
    assert rescore(out) == first
