"""adaptive-kl in a user's own TRL script: what it measures, what it sets, what it takes back."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTTrainer

import orthora
from orthora import tiny
from orthora.tasks import arithmetic
from orthora.train.control import Law, Setting, decide

PROBLEMS = arithmetic.problems("train", 32)


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [
        float(orthora.math_verdict(c, a).correct) for c, a in zip(completions, answer, strict=True)
    ]


def made(out: Path, *, method: str = "lora", judge: Any = reward, **changes: Any) -> GRPOTrainer:
    """A user's trainer: 16 responses a rollout, two updates on it."""
    torch.manual_seed(0)
    model, tokenizer = tiny.load()
    settings = {
        "output_dir": str(out), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "max_steps": 6, "num_generations": 4, "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1, "steps_per_generation": 2, "max_completion_length": 32,
        "learning_rate": 1e-3, "lr_scheduler_type": "constant", "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    return GRPOTrainer(
        orthora.adapt(model, method, rank=4, alpha=8, seed=0),
        reward_funcs=judge,
        args=GRPOConfig(**(settings | changes)),
        train_dataset=Dataset.from_list(
            [{"prompt": p.prompt, "answer": p.answer} for p in PROBLEMS]
        ),
        processing_class=tokenizer,
    )


def trained(trainer: GRPOTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]


def logps(model: Any, ids: torch.Tensor, attention: torch.Tensor, tokens: int) -> torch.Tensor:
    """Log-probabilities of the last tokens by the textbook, in float64."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -tokens - 1 : -1]
    return logits.double().log_softmax(-1).gather(2, ids[:, -tokens:, None])[..., 0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"num_iterations": 2},
        {"gradient_accumulation_steps": 4},  # two rollouts an update
    ],
    ids=["two updates", "one update", "two iterations", "two rollouts"],
)
def test_it_measures_the_kl_of_all_updates_on_a_rollout(changes, tmp_path):
    passes = 2 * changes.get("num_iterations", 1)
    updates = max(1, passes // changes.get("gradient_accumulation_steps", 1))
    trainer = made(tmp_path, max_steps=updates, **changes)
    callback = orthora.steer(trainer, 1e-3, kl_update_share=1.0)
    kept, original = [], callback._generate

    def generate(inputs: Any) -> Any:
        kept.append(original(inputs))
        return kept[-1]

    callback._generate = generate
    trainer.train()
    before = orthora.adapt(tiny.load()[0], "lora", rank=4, alpha=8, seed=0)
    d, tokens = [], 0
    for batch in kept:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        mask = batch["completion_mask"]
        with torch.no_grad():
            both = [logps(m.eval(), ids, attention, mask.shape[1]) for m in (trainer.model, before)]
        d.append(((both[0] - both[1]) * mask).flatten())
        tokens += int(mask.sum())
    d = torch.cat(d)
    (row,) = callback.rows
    assert len(kept) == (2 if changes.get("gradient_accumulation_steps") == 4 else 1)
    assert row["kl_update_k3"] == pytest.approx(float((d.exp() - 1 - d).sum()) / tokens, rel=1e-3)
    assert row["kl_update_k1"] == pytest.approx(float(-d.sum()) / tokens, rel=1e-3, abs=1e-6)
    assert row["kl_update_k3"] > 1e-7


def test_the_learning_rate_follows_the_law_and_the_log_says_so(tmp_path):
    trainer = made(tmp_path, method="pissa", learning_rate=3e-4)
    callback = orthora.steer(trainer, 1e-3, kl_smoothing=0.2)
    used = []

    class Rates(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            used.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.add_callback(Rates())
    trainer.train()
    law, setting = Law(1e-3, smoothing=0.2, steps=3), Setting(3e-4)
    assert [row["step"] for row in callback.rows] == [1, 2, 3]
    for number, row in enumerate(callback.rows):
        assert row["lr"] == pytest.approx(setting.lr, rel=1e-12)
        assert used[2 * number : 2 * number + 2] == pytest.approx([setting.lr] * 2, rel=1e-12)
        setting = decide(law, setting, row["kl_update_k3"], row["step"]).setting
    assert len({row["lr"] for row in callback.rows}) == 3
    logged = [line["kl_update/k3"] for line in trainer.state.log_history if "kl_update/k3" in line]
    assert logged == pytest.approx([row["kl_update_k3"] for row in callback.rows])


def test_a_step_that_goes_too_far_is_taken_back_bit_for_bit(tmp_path):
    trainer = made(tmp_path, method="pissa", learning_rate=1e-2, max_steps=2)
    callback = orthora.steer(trainer, 1e-4)
    before = trained(trainer)
    trainer.train()
    (row,) = callback.rows
    assert row["undone"]
    assert row["kl_update_k3"] > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, trained(trainer), strict=True))
    kept = made(tmp_path, method="pissa", learning_rate=1e-2, max_steps=2)
    orthora.steer(kept, 1e-4, kl_undo=0)
    kept.train()
    assert not all(torch.equal(a, b) for a, b in zip(before, trained(kept), strict=True))


def test_a_sample_tells_about_what_all_responses_do(tmp_path):
    """Over many draws from one rollout it is the KL of all of them."""
    trainer = made(tmp_path, max_steps=2)
    callback = orthora.steer(trainer, 1e-3, kl_update_share=0.25)
    parts = []
    finish = callback._finish

    def finishing(step: int) -> None:
        parts.extend(callback._parts)
        whole = callback._measured(1.0, 1)["kl_update_k3"]
        some = [callback._measured(0.25, n)["kl_update_k3"] for n in range(200)]
        assert len(set(some)) > 3
        assert math.fsum(some) / len(some) == pytest.approx(whole, rel=0.05)
        finish(step)

    callback._finish = finishing
    trainer.train()
    assert len(parts) == 1
    assert len(parts[0].sample(0.25, 1)[0]) == 4


def test_without_a_signal_the_learning_rate_is_held(tmp_path):
    trainer = made(tmp_path, judge=lambda completions, **_: [1.0] * len(completions))
    callback = orthora.steer(trainer)
    trainer.train()
    assert [row["groups_without_signal"] for row in callback.rows] == [1.0] * 3
    assert {row["lr"] for row in callback.rows} == {1e-3}


def test_a_resumed_run_goes_on_where_the_law_stood(tmp_path):
    whole = made(tmp_path / "run", save_strategy="steps", save_steps=4)
    first = orthora.steer(whole, 5e-4)
    whole.train()
    state = tmp_path / "run" / "checkpoint-4" / "adaptive_kl.json"
    kept = Setting(**json.loads(state.read_text()))
    assert kept.lr == first.rows[2]["lr"]
    assert kept.gain is not None
    again = made(tmp_path / "run", save_strategy="no")
    second = orthora.steer(again, 5e-4)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert [row["step"] for row in second.rows] == [3]
    assert second.rows[0]["lr"] == first.rows[2]["lr"]
    state.unlink()  # a checkpoint of a trainer that was not steered
    bare = made(tmp_path / "run", save_strategy="no")
    third = orthora.steer(bare, 5e-4)
    bare.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert third.rows[0]["lr"] == first.rows[2]["lr"]


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"lr_scheduler_type": "linear"}, {}, "lr_scheduler_type 'linear' would fight"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, {}, "a multiple of"),
        ({}, {"kl_target": 0.0}, "kl_target"),
        ({}, {"kl_undo": 2.0}, "use 4 or more"),
        ({}, {"kl_targets": 1e-3}, "'kl_targets' is no setting of adaptive-kl"),
        ({}, {"kl_base_share": 0.5}, "'kl_base_share' is no setting"),
        ({}, {"kl_update_share": 0.0}, "kl_update_share above"),
        ({"learning_rate": 0.5}, {}, "outside kl_lr_bounds"),
        ({"max_steps": -1, "num_train_epochs": 1}, {"kl_target_floor": 0.1}, "args.max_steps"),
    ],
)
def test_what_fights_the_law_is_one_line(changes, settings, words, tmp_path):
    trainer = made(tmp_path, **changes)
    with pytest.raises(ValueError, match=words) as error:
        orthora.steer(trainer, **settings)
    assert "\n" not in str(error.value)
    assert not any(isinstance(c, orthora.AdaptiveKL) for c in trainer.callback_handler.callbacks)


def test_one_trainer_is_steered_once_and_only_grpo_is(tmp_path):
    trainer = made(tmp_path)
    orthora.steer(trainer)
    with pytest.raises(ValueError, match="steered already"):
        orthora.steer(trainer)
    with pytest.raises(TypeError, match="needs TRL's GRPOTrainer, got"):
        orthora.steer(SFTTrainer.__new__(SFTTrainer))


@pytest.mark.xdist_group("torchrun")
def test_two_processes_measure_and_set_the_same(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import json, os\n"
        "from test_own_script import made, orthora, trained, Path\n"
        "trainer = made(Path(sys.argv[1]), per_device_train_batch_size=4, max_steps=4)\n"
        "steered = orthora.steer(trainer, 1e-3)\n"
        "trainer.train()\n"
        "parts = float(sum(p.double().abs().sum() for p in trained(trainer)))\n"
        "file = Path(sys.argv[1]) / f\"{os.environ['RANK']}.json\"\n"
        "file.write_text(json.dumps([steered.rows, parts]))\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc_per_node", "2", str(script), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (rows, sizes), (others, other_sizes) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert rows == others
    assert sizes == other_sizes
    assert len({row["lr"] for row in rows}) == 2
