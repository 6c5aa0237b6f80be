"""Real rows, tiny random models of four architectures, two steps each."""

import json
from pathlib import Path

import pytest
import torch
from conftest import save_model
from peft import PeftModel
from transformers import AutoModelForCausalLM

import orthora

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SETTINGS = {
    "steps": 2,
    "rank": 4,
    "alpha": 8,
    "prompts_per_step": 2,
    "group_size": 2,
    "mini_batch_prompts": 1,
    "micro_batch": 2,
    "max_prompt_tokens": 110,
    "max_response_tokens": 8,
    "overlong_buffer": 4,
    "learning_rate": 1e-3,
    "save_every": 0,
    "threads": 1,
}
FILES = {
    "gsm8k": {
        "data": str(DATA / "gsm8k" / "train.jsonl"),
        "prompt_column": "question",
        "answer_column": "answer",
    },
    "dapo": {
        "data": str(DATA / "dapo_math_17k" / "dapo_math_17k.parquet"),
        "prompt_column": "prompt",
        "answer_column": "reward_model.ground_truth",
        "plain_prompts": True,  # chat messages, and these tokenizers have no template
    },
}
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the shared data folder is not beside this clone"
)


@needs_data
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("kind", "method"),
    [("qwen2", "rlpo"), ("qwen3", "pissa"), ("llama", "geora"), ("gpt2", "rlmo")],
)
def test_two_steps_on_real_rows(kind, method, file, tmp_path):
    save_model(kind, tmp_path / "model")
    out = tmp_path / "run"
    config = SETTINGS | FILES[file] | {"method": method, "model": str(tmp_path / "model")}
    result = orthora.train(config | {"out": str(out)}, progress=False)
    assert (result.status, result.steps) == ("finished", 2)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        measured = {"reward", "kl_update_k3", "kl_base_k3", "grad_norm", "entropy", "clip_dual"}
        assert all(row[name] is not None for name in measured | {"length", "truncated"})
        assert row["kl_update_k3"] >= 0
        squares = sum(v**2 for k, v in row.items() if k.startswith("grad_norm/"))
        assert squares**0.5 <= row["grad_norm"] * (1 + 1e-6)  # Minkowski, over the updates
        assert row["grad_norm"] <= row["grad_norm_max"] * (1 + 1e-6)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapter = PeftModel.from_pretrained(base, out / "adapter")
    ids = torch.arange(3, 12)[None]
    assert torch.isfinite(adapter(ids).logits).all()


@needs_data
def test_gold_answers_of_gsm8k_are_the_numbers_after_the_hashes():
    from orthora.tasks import load_problems

    problems = load_problems(
        FILES["gsm8k"]["data"], prompt_column="question", template="Q: {prompt}\nA:"
    )
    assert len(problems) == 7473
    assert problems[0].answer == "72"
    assert problems[0].prompt.startswith("Q: Natalia sold clips")
    assert all("," not in problem.answer for problem in problems)
