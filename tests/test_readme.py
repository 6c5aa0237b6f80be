import importlib
import re
from pathlib import Path

import pytest
import torch

import orthora
from orthora.methods.compose import markdown

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def between(start, end):
    return README.split(start, 1)[1].split(end, 1)[0]


@pytest.mark.parametrize("kind", ["initialisation", "structure", "optimizer"])
def test_the_tables_of_methods_are_the_registry(kind):
    """Regenerate with `orthora methods --markdown`."""
    shown = between(f"<!-- methods: {kind} -->\n", f"<!-- /methods: {kind} -->").strip()
    assert shown == markdown(kind)


def test_the_five_lines_run_as_written(tmp_path, monkeypatch):
    from datasets import Dataset
    from peft import PeftModel
    from trl import GRPOConfig, GRPOTrainer

    from orthora import tiny
    from orthora.tasks import arithmetic

    code = re.search(r"<!-- test: five lines -->\n```python\n(.*?)```", README, re.S).group(1)
    assert len(code.strip().splitlines()) == 5
    model, tokenizer = tiny.load()
    problems = arithmetic.problems("train", 8)
    names = {
        "GRPOTrainer": GRPOTrainer,
        "model": model,
        "tokenizer": tokenizer,
        "reward": lambda completions, answer, **_: [
            float(orthora.math_verdict(c, a).correct)
            for c, a in zip(completions, answer, strict=True)
        ],
        "dataset": Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems]),
        "args": GRPOConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_steps=2,
            num_generations=4,
            per_device_train_batch_size=8,
            max_completion_length=40,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
        ),
    }
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    base, _ = tiny.load()
    trained = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = tokenizer(problems[0].prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        names["model"].eval()
        assert torch.equal(trained(ids).logits, names["model"](ids).logits)
        assert not torch.equal(trained(ids).logits, tiny.load()[0](ids).logits)


def test_the_benchmark_table_is_rendered_from_its_results(monkeypatch):
    root = Path(__file__).resolve().parents[1]
    monkeypatch.syspath_prepend(str(root / "bench"))
    bench = importlib.import_module("init")
    shown = between("<!-- bench-init -->", "<!-- /bench-init -->").strip()
    assert len(bench.all_results()) >= 2
    assert shown == bench.markdown(bench.all_results())
