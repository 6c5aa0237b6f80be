import json

import pytest
import torch
from conftest import make_model, save_model

import orthora
from orthora import tiny
from orthora.evaluate import score
from orthora.sampling import Sampling
from orthora.tasks import arithmetic

SMALL = {
    "model": "tiny",
    "task": "arithmetic",
    "problems": 24,
    "samples": 4,
    "max_response_tokens": 56,
}


def test_an_evaluation_is_deterministic_by_seed_and_leaves_the_random_state(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = orthora.evaluate(SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert orthora.evaluate(SMALL) == first
    assert orthora.evaluate(SMALL | {"seed": 1}) != first
    assert first.interval[0] <= first.pass_at_1 <= first.interval[1]
    assert list(first.pass_at_k) == ["1", "2", "3", "4"]
    assert first.pass_at_k["1"] == first.pass_at_1 <= first.pass_at_k["2"] <= first.pass_at_k["4"]


def test_the_base_leaves_headroom_on_held_out_problems():
    result = orthora.evaluate(SMALL | {"problems": 256})
    assert 0.25 <= result.pass_at_1 <= 0.5
    assert result.truncated < 0.02


def test_a_model_that_cannot_stop_is_counted_as_truncated():
    model, tokenizer = tiny.load()
    result = score(model, tokenizer, arithmetic.problems("test", 4), Sampling(max_tokens=1), 2)
    assert (result.truncated, result.pass_at_1, result.mean_length) == (1.0, 0.0, 1.0)


def test_greedy_does_not_depend_on_the_seed():
    greedy = SMALL | {"temperature": 0, "samples": 1}
    assert orthora.evaluate(greedy) == orthora.evaluate(greedy | {"seed": 9})


def test_every_sample_is_kept_and_the_scores_say_how_they_were_made(tmp_path):
    out = tmp_path / "new" / "scores"
    result = orthora.evaluate(SMALL | {"out": str(out)})
    written = json.loads((out / "scores.json").read_text())
    assert written["pass_at_1"] == result.pass_at_1
    assert written["config"]["problems"] == 24
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 24 * 4
    assert len({row["key"] for row in rows}) == 24 * 4, "a random stream for every sample"
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    correct = [row["verdicts"]["robust"]["correct"] for row in verdicts]
    assert sum(correct) / len(correct) == pytest.approx(result.pass_at_1)
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert [row["id"] for row in problems] == [p.id for p in arithmetic.problems("test", 24)]
    assert all(row["text"] == row["prompt"] for row in problems), "tiny has no chat template"


def test_what_is_kept_is_the_same_as_what_is_not(tmp_path):
    assert orthora.evaluate(SMALL | {"out": str(tmp_path / "kept")}) == orthora.evaluate(SMALL)


def test_an_adapter_of_another_base_is_one_line(tmp_path):
    folder = save_model("llama", tmp_path / "model")
    adapted = orthora.adapt(make_model("llama"), "rlpo", rank=2)
    orthora.export_plain(adapted, tmp_path / "adapter")
    with pytest.raises(ValueError, match="does not fit the model") as error:
        orthora.evaluate(SMALL | {"adapter": str(tmp_path / "adapter")})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds no adapter"):
        orthora.evaluate(SMALL | {"adapter": str(folder)})


def test_a_response_may_be_as_long_as_the_positions_leave_and_the_file_says_how_long(tmp_path):
    out = tmp_path / "scores"
    config = {k: v for k, v in SMALL.items() if k != "max_response_tokens"}
    left_out = orthora.evaluate(config | {"out": str(out)})
    limit = json.loads((out / "scores.json").read_text())["config"]["max_response_tokens"]
    longest = max(len(p.prompt) for p in arithmetic.problems("test", 24))
    assert 256 - longest - 5 <= limit < 256
    assert left_out == orthora.evaluate(config | {"max_response_tokens": limit})
    with pytest.raises(ValueError, match="positions"):
        orthora.evaluate(config | {"max_response_tokens": 256})
