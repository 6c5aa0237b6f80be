"""Named tasks end to end: prompts, golds, programs, contamination. A scripted model answers."""

import json
from pathlib import Path

import pytest

import orthora
from orthora.evaluate import rescore
from orthora.evaluate.scoring import Drawn
from orthora.rewards import SandboxError
from orthora.tasks import load_task

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data is not beside this checkout")
AIME = str(DATA / "aime" / "aimo-validation-aime.jsonl")
DAPO = str(DATA / "dapo_math_17k" / "dapo_math_17k.parquet")


@pytest.fixture
def scripted(monkeypatch):
    """Let the model answer by a function of problem and sample."""

    def script(answer):
        class Model:
            config = None

        def draw(model, tokenizer, prompts, samples, how, wanted):
            for index in range(len(prompts)):
                for number in range(samples):
                    yield Drawn(index, number, answer(index, number), 5, ended=True)

        monkeypatch.setattr("orthora.evaluate.run.draw", draw)
        monkeypatch.setattr("orthora.models.fit", lambda *args, **kwargs: None)

    return script


@needs_data
def test_programs_are_judged_in_the_sandbox(scripted, tmp_path):
    data = next(DATA.glob("mbpp/*.jsonl"))
    problems = load_task("mbpp", str(data), count=5)
    scripted(lambda i, s: f"```python\n{problems[i].answer}\n```" if s else "def f(): pass")
    config = {"model": "tiny", "task": "mbpp", "data": str(data), "problems": 5, "samples": 2}
    config |= {"max_response_tokens": 5, "out": str(tmp_path / "e")}
    result = orthora.evaluate(config)
    assert result.pass_at_k == {"1": 0.5, "2": 1.0}
    assert result.majority_at_k == {}
    assert result.by_rule == {"tests": 0.5}
    assert result.disagreement is None
    assert rescore(tmp_path / "e") == result


@needs_data
def test_a_sandbox_that_fails_is_no_score_and_can_be_tried_again(scripted, monkeypatch, tmp_path):
    from orthora.rewards import judging

    data = next(DATA.glob("mbpp/*.jsonl"))
    problems = load_task("mbpp", str(data), count=3)
    scripted(lambda i, s: problems[i].answer)
    real, calls = judging.code_verdict, []

    def flaky(program, *args, **kwargs):
        calls.append(program)
        if program == problems[1].answer and calls.count(program) <= 3:
            raise SandboxError("no room")
        return real(program, *args, **kwargs)

    monkeypatch.setattr(judging, "code_verdict", flaky)
    config = {"model": "tiny", "task": "mbpp", "data": str(data), "problems": 3, "samples": 1}
    config |= {"max_response_tokens": 5, "out": str(tmp_path / "e")}
    with pytest.raises(ValueError, match=r"failed on all samples of a problem.*orthora rescore"):
        orthora.evaluate(config)
    assert rescore(tmp_path / "e").pass_at_1 == 1.0


@needs_data
def test_without_a_sandbox_nothing_is_scored(scripted, monkeypatch, tmp_path, capsys):
    from orthora.cli import main
    from orthora.rewards import judging

    def none(*args, **kwargs):
        raise SandboxError("bubblewrap is not installed; apt-get install bubblewrap")

    monkeypatch.setattr(judging, "code_verdict", none)
    scripted(lambda i, s: "def f(): pass")
    data, out = next(DATA.glob("mbpp/*.jsonl")), tmp_path / "e"
    arguments = ["--model=tiny", "--task=mbpp", f"--data={data}", "--problems=3", "--samples=2"]
    command = ["eval", *arguments, "--max-response-tokens=5", f"--out={out}"]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith("apt-get install bubblewrap\n")
    assert not out.exists(), "said before the work, not after it"


@needs_data
def test_where_programs_can_no_longer_be_run_good_scores_stay(scripted, monkeypatch, tmp_path):
    """A response without a program needs no sandbox, and must not stand for those that do."""
    from orthora.rewards import judging

    data = next(DATA.glob("mbpp/*.jsonl"))
    problems = load_task("mbpp", str(data), count=3)
    scripted(lambda i, s: problems[i].answer if s else "I do not know.")
    config = {"model": "tiny", "task": "mbpp", "data": str(data), "problems": 3, "samples": 2}
    out = tmp_path / "e"
    result = orthora.evaluate(config | {"max_response_tokens": 5, "out": str(out)})
    assert result.pass_at_1 == 0.5
    before = (out / "scores.json").read_bytes()
    real = judging.code_verdict

    def none(program, *args, **kwargs):
        if program == "I do not know.":
            return real(program, *args, **kwargs)
        raise SandboxError("bubblewrap is not installed")

    monkeypatch.setattr(judging, "code_verdict", none)
    with pytest.raises(SandboxError):
        rescore(out)
    assert (out / "scores.json").read_bytes() == before


@needs_data
def test_what_stands_in_the_training_data_is_reported_apart(scripted, tmp_path):
    problems = load_task("aime22", AIME)
    scripted(lambda i, s: f"Answer: {problems[i].answer}" if i < 25 else "Answer: 1000")
    out = tmp_path / "e"
    result = orthora.evaluate(
        {
            "model": "tiny", "task": "aime22", "data": AIME, "samples": 1, "out": str(out),
            "max_response_tokens": 5, "trained_on": "dapo-math", "trained_on_data": DAPO,
        }
    )  # fmt: skip
    found = result.contamination
    assert found is not None
    assert sum(found["found"].values()) == len(found["problems"]) == 28
    assert all(row["same_gold"] for row in found["problems"])
    seen = {row["id"] for row in found["problems"]}
    right = [problem.id in seen for problem in problems[:25]]
    assert found["seen"]["problems"] == 28
    assert found["seen"]["pass_at_1"] == pytest.approx(sum(right) / 28)
    assert found["unseen"]["pass_at_1"] == pytest.approx((25 - sum(right)) / 2)
    assert json.loads((out / "scores.json").read_text())["contamination"]["seen"]["problems"] == 28


@needs_data
def test_training_data_that_cannot_be_read(scripted, tmp_path):
    scripted(lambda i, s: "Answer: 1")
    config = {"model": "tiny", "task": "aime24", "data": AIME, "samples": 1, "problems": 2}
    config |= {"max_response_tokens": 5}
    with pytest.raises(ValueError, match=r"no data file 'gone.jsonl'"):
        orthora.evaluate(config | {"trained_on": "gone.jsonl"})
    run = tmp_path / "run"  # which says itself what it was trained on
    model, _ = orthora.tiny.load()
    orthora.export_plain(orthora.adapt(model, "rlpo", rank=2), run / "adapter")
    (run / "config.toml").write_text('model = "tiny"\nout = "x"\ndata = "gone.jsonl"\n')
    (run / "metrics.jsonl").write_text("")
    found = orthora.evaluate(config | {"adapter": str(run)}).contamination
    assert found == {
        "training": "file gone.jsonl",
        "error": "no data file 'gone.jsonl'; check the path",
    }


def test_an_unknown_task_and_a_count_that_is_too_large(tmp_path):
    with pytest.raises(ValueError, match=r"unknown task 'aime42'. Did you mean 'aime2"):
        orthora.evaluate({"model": "tiny", "task": "aime42"})
    file = tmp_path / "two.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    config = {"model": "tiny", "data": str(file), "max_response_tokens": 9}
    assert orthora.evaluate(config).problems == 2
    with pytest.raises(ValueError, match="problems is 3, and there are 2"):
        orthora.evaluate(config | {"problems": 3})


def test_repeated_problems_are_dropped_when_asked(tmp_path):
    file = tmp_path / "twice.jsonl"
    rows = [("1+1=", "2"), ("1+2=", "3"), ("1+1=", "2"), ("1+2=", "4")]
    text = "".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows)
    file.write_text(text)
    config = {"model": "tiny", "data": str(file), "samples": 1, "max_response_tokens": 9}
    assert orthora.evaluate(config).problems == 4
    assert orthora.evaluate(config | {"drop": ["duplicates"]}).problems == 3
    assert orthora.evaluate(config | {"drop": ["duplicates", "contradictions"]}).problems == 1


def test_training_problems_are_found_when_they_are_evaluated_on(scripted, tmp_path):
    out = tmp_path / "run"
    (out / "adapter").mkdir(parents=True)
    model, _ = orthora.tiny.load()
    (out / "adapter").rmdir()
    orthora.export_plain(orthora.adapt(model, "rlpo", rank=2), out / "adapter")
    (out / "config.toml").write_text('model = "tiny"\nout = "x"\ntask = "arithmetic"\nseed = 0\n')
    (out / "metrics.jsonl").write_text("")
    scripted(lambda i, s: "Answer: 1")
    config = {"adapter": str(out), "task": "arithmetic", "problems": 20, "samples": 1}
    config |= {"max_response_tokens": 5}
    held_out = orthora.evaluate(config).contamination
    assert held_out is not None
    assert sum(held_out["found"].values()) == 0
    trained = orthora.evaluate(config | {"data_split": "train"}).contamination
    assert trained is not None
    assert sum(trained["found"].values()) > 0


def test_a_response_that_was_cut_is_taken_at_its_mark_alone():
    from orthora.evaluate.scoring import scored
    from orthora.types import Problem

    problem = Problem("What is 20 + 5?", "25", "sum")
    texts = ["The sum is 25.", "Answer: 25"]
    drawn = [
        Drawn(0, 2 * i + ended, text, 5, ended=bool(ended))
        for i, text in enumerate(texts)
        for ended in (0, 1)
    ]
    judged = scored(drawn, [problem], "robust")
    assert [one.outcome for one in judged] == ["truncated", "correct", "correct", "correct"]


@pytest.mark.parametrize(
    ("rows", "template", "words"),
    [
        ('{"prompt": "1+1=", "answer": "$$"}', None, "the gold of problem '0' is"),
        ('{"prompt": "1+1=", "answer": "2"}', "Solve:", r"has no \{prompt\}"),
    ],
)
def test_what_could_never_be_scored_is_refused_before_sampling(rows, template, words, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text(rows + "\n")
    config = {"model": "tiny", "data": str(data), "prompt_template": template}
    with pytest.raises(ValueError, match=words):
        orthora.evaluate(config | {"out": str(tmp_path / "e")})
    assert not (tmp_path / "e").exists()
    with pytest.raises(ValueError, match=r"unknown task 'gsm8'. Did you mean 'gsm8k'"):
        orthora.evaluate({"model": "tiny", "task": "arithmetic", "trained_on": "gsm8"})


def test_samples_can_be_scored_where_the_training_data_is_not(scripted, tmp_path):
    scripted(lambda i, s: "Answer: 1")
    training, out = tmp_path / "train.jsonl", tmp_path / "e"
    training.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    config = {"model": "tiny", "task": "arithmetic", "problems": 4, "samples": 1}
    config |= {"max_response_tokens": 5, "trained_on": str(training), "out": str(out)}
    first = orthora.evaluate(config)
    (out / "scores.json").unlink()
    training.unlink()
    again = rescore(out)
    assert again.pass_at_1 == first.pass_at_1
    assert again.contamination is not None
    assert "no data file" in again.contamination["error"]
