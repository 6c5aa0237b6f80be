import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file, save_file

import orthora
from orthora.config import read_toml
from orthora.train import trainer
from orthora.train.rewards import own_judge
from orthora.train.updates import plan_updates
from orthora.types import Problem

SMALL = {
    "prompts_per_step": 4,
    "dynamic_sampling": False,
    "group_size": 4,
    "mini_batch_prompts": 2,
    "micro_batch": 8,
    "eval_problems": 0,
    "threads": 1,
}


def run(tmp_path, name="run", **changes):
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / name)} | changes
    return orthora.train(config, progress=False), tmp_path / name


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values_of(folder):
    """Metrics without the times."""
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows_of(folder)
    ]


@pytest.mark.parametrize("method", orthora.methods("initialisation"))
def test_at_learning_rate_zero_nothing_moves(method, tmp_path):
    result, _ = run(tmp_path, method=method, steps=1, learning_rate=0.0, rank=4)
    row = result.final
    assert abs(row["kl_update_k1"]) < 1e-6
    assert row["kl_update_k3"] < 1e-6
    assert abs(row["kl_base_k1"]) < 1e-6
    assert row["kl_base_k3"] < 1e-6
    assert result.peak_grad_norm > 0


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"beta": 0.1},
        {"ratio": "sequence", "loss": "grpo"},
        {"update_epochs": 2},
        {"dynamic_sampling": True},
        {"dynamic_sampling": True, "keep_surplus": True},
        {"old_logps": "recomputed"},
        {"fold_adapter": "never"},
        {"micro_batch": 3},
        {"share_prompts": "never"},
        {"rollout_batch": 5},
        {"plain_prompts": True},
        {"kl_base_share": 0.0},
        {"loss": "grpo", "beta": 0.001},
        {"loss": "dr_grpo", "advantage_scale": "none"},
        {"advantage_scale": "batch"},
        {"schedule": "cosine", "min_lr_ratio": 0.1, "warmup_steps": 1},
        {"gradient_checkpointing": True},
        {"mask_truncated": True, "max_response_tokens": 20},
        {"entropy_bonus": 0.01},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 10},
        {"overlong_buffer": 30, "reward_rule": "dapo"},
        {"dual_clip": 0},
        {"rank": 1},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_trains_and_is_measured(change, tmp_path):
    result, folder = run(tmp_path, method="milora", steps=2, **change)
    assert (result.status, result.steps) == ("finished", 2)
    assert result.mean_kl_update is not None
    assert result.mean_kl_update > 0
    first, second = rows_of(folder)
    if change.get("kl_base_share") == 0.0:
        assert first["kl_base_k3"] is None
        return
    # The first rollout is the base's, and the next is not; a sample is padded otherwise than all.
    assert first["kl_base_k3"] < (1e-6 if "dtype" in change else 1e-12)
    assert second["kl_base_k3"] > 1e-9
    rates = [first["lr"], second["lr"]]  # of the last of two updates, as it was used
    if change.get("schedule") == "cosine":
        assert rates[0] == pytest.approx(0.5e-3)  # half the warm-up
        assert rates[1] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))  # half the cosine
    else:
        assert rates == [1e-3, 1e-3]


def test_a_run_is_bit_equal_twice_and_depends_on_its_seed(tmp_path):
    _, first = run(tmp_path, "first", steps=2)
    _, second = run(tmp_path, "second", steps=2)
    _, other = run(tmp_path, "other", steps=2, seed=7)
    assert values_of(first) == values_of(second)
    assert values_of(first) != values_of(other)
    a = load_file(first / "adapter" / "adapter_model.safetensors")
    b = load_file(second / "adapter" / "adapter_model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_with_adapter_dropout_the_rollout_is_drawn_and_scored_without_it(tmp_path):
    result, _ = run(tmp_path, method="pissa", steps=1, dropout=0.5, learning_rate=0.0)
    plain, _ = run(tmp_path, "plain", method="pissa", steps=1, learning_rate=0.0)
    for name in ("reward", "length"):
        assert result.final[name] == plain.final[name]
    assert result.final["kl_update_k3"] < 1e-6


def test_the_run_folder_is_complete_and_the_exported_rank_is_stated(tmp_path):
    result, folder = run(tmp_path, method="pissa", steps=1, eval_problems=4, eval_samples=2)
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.toml",
        "environment.json",
        "problems.json",
        "metrics.jsonl",
        "adapter",
        "result.json",
    }
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == 16
    assert json.loads((folder / "environment.json").read_text())["threads"] == 1
    assert result.evaluation is not None
    assert (result.evaluation.problems, result.evaluation.samples) == (4, 2)


def test_an_output_folder_with_another_run_is_refused_and_untouched(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="already holds"):
        run(tmp_path, steps=1)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_nan_reward_stops_the_run_and_the_folder_says_why(tmp_path):
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / "run"), "steps": 1}
    with pytest.raises(ValueError, match="the reward returned nan"):
        orthora.train(config, reward=lambda response, answer: math.nan, progress=False)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "the reward returned nan" in result["reason"]
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_own_reward_is_used(tmp_path):
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / "run"), "steps": 1}
    reward = tmp_path / "mine.py"
    reward.write_text("def length(response, answer):\n    return float(len(response))\n")
    result = orthora.train(config | {"reward": f"{reward}:length"}, progress=False)
    assert result.final["reward"] > 3
    with pytest.raises(ValueError, match="can't import the reward"):
        orthora.train(config | {"out": str(tmp_path / "b"), "reward": f"{reward}:nothing"})


def raising(response, answer):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("reward", "words", "begun"),
    [
        (raising, r"reward raising raised KeyError: 'x' \(test_rlvr.py, line \d+\) for", True),
        (lambda response, answer: sys.exit(3), r"raised SystemExit: 3", True),
        (lambda response, answer: None, "returned None .*return a number", True),
        (lambda response, answer: "1.0", "returned '1.0' .*return a number", True),
        (lambda response: 1.0, "must take .response, answer.", False),
        (3, "is a int, not a function", False),
        ("nowhere.py:f", "can't import the reward", False),
    ],
)
def test_a_reward_that_can_not_be_used_is_one_line(reward, words, begun, tmp_path):
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / "run"), "steps": 1}
    with pytest.raises(ValueError, match=words) as error:
        orthora.train(config, reward=reward, progress=False)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run").exists() is begun  # a model that answered is worth its folder


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, bool, int])
def test_whatever_is_a_number_is_a_score(kind):
    (judged,) = own_judge(lambda response, answer: kind(1))([""], [Problem("", "", "")])
    assert judged.score == 1.0


def corrupt(folder, how):
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no weights":
        weights.unlink()
    elif how == "missing tensor":
        tensors = load_file(weights)
        del tensors[next(key for key in tensors if "up_proj" in key)]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "no config":
        (folder / "config.json").unlink()
    else:
        tensors = load_file(weights)
        key = next(key for key in tensors if "up_proj" in key)
        tensors[key][0, 0] = math.nan if how == "nan" else math.inf
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "how", ["truncated", "missing tensor", "no weights", "no config", "nan", "inf"]
)
def test_a_corrupt_model_is_one_line_and_leaves_no_folder(how, tmp_path):
    save_model("qwen2", tmp_path / "model")
    corrupt(tmp_path / "model", how)
    with pytest.raises(ValueError, match=r".+") as error:
        run(tmp_path, steps=1, model=str(tmp_path / "model"), rank=2)
    assert str(tmp_path / "model") in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "change", "words"),
    [
        ('{"q": "1+1", "a": "2"}\n', {"prompt_column": "question"}, "no column 'question'"),
        ('{"q": "1+1", "a": ""}\n', {}, "'a' is empty"),
        ("", {}, "is empty"),
        ("not json\n", {}, "can't read"),
        ('{"q": "1+1", "a": "2"}\n', {"max_prompt_tokens": 1}, "max_prompt_tokens"),
        (None, {}, "no data file"),
        ('{"q": "1+1", "a": ["2", "3"]}\n', {}, "holds a list"),
        ('{"q": 3, "a": "2"}\n', {}, "neither text nor a list of messages"),
    ],
)
def test_bad_data_is_one_line_and_leaves_no_folder(text, change, words, tmp_path):
    data = tmp_path / "data.jsonl"
    if text is not None:
        data.write_text(text)
    columns = {"task": "file", "data": str(data), "prompt_column": "q", "answer_column": "a"}
    with pytest.raises(ValueError, match=r".+") as error:
        run(tmp_path, steps=1, **(columns | change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("targets", [["nothing"], "nothing"])
def test_targets_that_match_nothing_leave_no_folder(targets, tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        run(tmp_path, steps=1, target_modules=targets)
    assert not (tmp_path / "run").exists()


def test_gpt2_dropout_does_not_separate_rollout_from_update(tmp_path):
    """GPT-2's default dropout is 0.1: left on, the update's KL at lr 0 would not be 0."""
    folder = save_model("gpt2", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    dropout = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
    (folder / "config.json").write_text(json.dumps(config | dropout))
    result, _ = run(
        tmp_path,
        steps=1,
        model=str(tmp_path / "model"),
        rank=2,
        learning_rate=0.0,
        max_prompt_tokens=64,
        max_response_tokens=8,
    )
    assert result.final["kl_update_k3"] < 1e-6


@pytest.mark.slow
def test_dapo_on_the_embedded_model_improves_over_the_base(tmp_path, monkeypatch):
    """In half of the demo's steps; and no update has advantages of zero alone."""
    plans = []

    def recorded(*args, **kwargs):
        plans.append(plan_updates(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(trainer, "plan_updates", recorded)
    config = read_toml("tiny") | {"out": str(tmp_path / "run"), "method": "lora", "steps": 25}
    config |= {"eval_base": True, "eval_problems": 192, "threads": 1}
    assert config["dynamic_sampling"]
    result = orthora.train(config, progress=False)
    assert result.evaluation is not None
    assert result.base_evaluation is not None
    assert result.evaluation.interval[0] > result.base_evaluation.interval[1]
    updates = [part for plan in plans for part in plan.mini_batches]
    assert len(updates) == 25 * 4
    for part in updates:
        advantages = [row.advantage for micro in part for row in micro]
        assert len(advantages) == 4 * 8
        assert sum(a != 0 for a in advantages) == 4 * 8  # of every group, not of one
    rows = rows_of(tmp_path / "run")
    assert any(row["groups_without_signal"] > 0 for row in rows)  # there was something to drop
    assert all(row["groups_trained"] == 16 for row in rows)
