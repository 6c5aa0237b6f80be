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
from orthora.train.own_script import STATE, _Part

PROBLEMS = arithmetic.problems("train", 32)


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [
        float(orthora.math_verdict(c, a).correct) for c, a in zip(completions, answer, strict=True)
    ]


def made(
    out: Path, *, method: str = "lora", judge: Any = reward, evaluated: int = 0, **changes: Any
) -> GRPOTrainer:
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
    rows = Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in PROBLEMS])
    return GRPOTrainer(
        orthora.adapt(model, method, rank=4, alpha=8, seed=0),
        reward_funcs=judge,
        args=GRPOConfig(**(settings | changes)),
        train_dataset=rows,
        eval_dataset=rows.select(range(evaluated)) if evaluated else None,
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
    kept, original = [], trainer._generate_and_score_completions

    def generate(inputs: Any) -> Any:
        kept.append(original(inputs))
        return kept[-1]

    trainer._generate_and_score_completions = generate
    callback = orthora.steer(trainer, 1e-3, kl_update_share=1.0)
    trainer.train()
    assert trainer._generate_and_score_completions == generate  # as it was
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

    def finishing(state: Any) -> None:
        parts.extend(callback._parts)
        whole = callback._measured(1.0, 1)["kl_update_k3"]
        some = [callback._measured(0.25, n)["kl_update_k3"] for n in range(200)]
        assert len(set(some)) > 3
        assert math.fsum(some) / len(some) == pytest.approx(whole, rel=0.05)
        finish(state)

    callback._finish = finishing
    trainer.train()
    assert len(parts) == 1
    assert len(parts[0].sample(0.25, 1)[0]) == 4


@pytest.mark.parametrize("score", [1.0, 0.3])  # of 0.3, no mean is exact in float32
def test_without_a_signal_the_learning_rate_is_held(score, tmp_path):
    trainer = made(tmp_path, judge=lambda completions, **_: [score] * len(completions))
    callback = orthora.steer(trainer)
    trainer.train()
    assert [row["groups_without_signal"] for row in callback.rows] == [1.0] * 3
    assert {row["lr"] for row in callback.rows} == {1e-3}


def test_a_resumed_run_goes_on_where_the_law_stood_wherever_it_is_saved(tmp_path):
    whole = made(tmp_path / "run", save_strategy="steps", save_steps=4)
    first = orthora.steer(whole, 5e-4)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    kept = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"][STATE]
    assert Setting(**kept).lr == first.rows[2]["lr"]
    assert Setting(**kept).gain is not None
    again = made(tmp_path / "elsewhere", restore_callback_states_from_checkpoint=True)
    second = orthora.steer(again, 5e-4)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert [row["step"] for row in second.rows] == [3]
    assert second.rows[0]["lr"] == first.rows[2]["lr"]
    assert again.state.stateful_callbacks[STATE] != kept
    plain = made(tmp_path / "plain", save_strategy="steps", save_steps=2, max_steps=2)
    plain.train()  # not steered
    bare = made(tmp_path / "later")
    third = orthora.steer(bare, 5e-4)
    bare.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    assert third.rows[0]["lr"] == 1e-3


def test_training_again_begins_again(tmp_path):
    trainer = made(tmp_path)
    callback = orthora.steer(trainer, 5e-4)
    trainer.train()
    first = callback.rows
    trainer.train()
    assert [row["step"] for row in callback.rows] == [1, 2, 3]
    assert callback.rows[0]["lr"] == first[0]["lr"] == 1e-3


def test_a_rollout_that_is_not_used_up_is_guarded_too(tmp_path):
    """Three updates at two a rollout; all of them are taken back."""
    trainer = made(tmp_path, method="pissa", learning_rate=5e-2, max_steps=3)
    callback = orthora.steer(trainer, 1e-6, kl_lr_bounds=(1e-2, 0.1))
    before = trained(trainer)
    trainer.train()
    assert [row["undone"] for row in callback.rows] == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(before, trained(trainer), strict=True))


def test_other_callbacks_never_see_what_is_taken_back(tmp_path):
    trainer = made(tmp_path, method="pissa", learning_rate=1e-2, max_steps=2)
    before, seen = trained(trainer), []

    class Sees(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(all(torch.equal(a, b) for a, b in zip(before, trained(trainer))))  # noqa: B905

    trainer.add_callback(Sees())
    orthora.steer(trainer, 1e-4)
    trainer.train()
    assert seen == [False, True]  # within the rollout, and after it


def test_dropout_is_no_movement_of_the_policy(tmp_path):
    """TRL scores in training mode where it scores at all (here: the rollout outlives an update)."""
    trainer = made(tmp_path, learning_rate=1e-7, max_steps=2)
    trainer.model.config.attention_dropout = 0.5
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    callback = orthora.steer(trainer, 1e-3)
    trainer.train()
    assert callback.rows[0]["kl_update_k3"] < 1e-6
    assert not callback.rows[0]["undone"]


def test_what_a_tool_wrote_and_what_is_cut_does_not_count(tmp_path):
    trainer = made(tmp_path, max_steps=2, mask_truncated_completions=True, max_completion_length=2)
    callback = orthora.steer(trainer, 1e-3)
    trainer.train()
    assert callback.rows[0]["kl_update_k3"] is None
    batch = {
        "prompt_ids": torch.ones(2, 3), "prompt_mask": torch.ones(2, 3),
        "completion_ids": torch.ones(2, 2), "completion_mask": torch.tensor([[1, 1], [1, 0]]),
        "tool_mask": torch.tensor([[1, 0], [1, 1]]),
    }  # fmt: skip
    assert _Part(batch, signal=True).mask.tolist() == [[1, 0], [1, 0]]


def test_evaluation_between_updates_is_none_of_its_business(tmp_path):
    trainer = made(tmp_path)
    plain = orthora.steer(trainer, 5e-4)
    trainer.train()
    every = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    other = made(tmp_path, evaluated=4, **every)
    callback = orthora.steer(other, 5e-4)
    other.train()
    assert [row["step"] for row in callback.rows] == [row["step"] for row in plain.rows]
    assert callback._parts == []


def test_a_callback_that_is_taken_out_measures_no_more(tmp_path):
    trainer = made(tmp_path)
    callback = orthora.steer(trainer)
    trainer.remove_callback(callback)
    trainer.train()
    assert (callback.rows, callback._parts) == ([], [])


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
        ({}, {"kl_rule": "step", "kl_smoothing": 0.2}, "kl_smoothing needs kl_rule 'sqrt'"),
        ({"max_steps": -1, "num_train_epochs": 1}, {"kl_target_floor": 0.1}, "args.max_steps"),
    ],
)
def test_what_fights_the_law_is_one_line(changes, settings, words, tmp_path):
    trainer = made(tmp_path, **changes)
    with pytest.raises(ValueError, match=words) as error:
        orthora.steer(trainer, **settings)
    assert "\n" not in str(error.value)
    assert not any(isinstance(c, orthora.AdaptiveKL) for c in trainer.callback_handler.callbacks)


def test_a_scheduler_of_ones_own_is_refused_and_an_optimizer_begins_at_its_rate(tmp_path):
    for with_schedule in (True, False):
        trainer = made(tmp_path, max_steps=2)
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        trainer.optimizer = torch.optim.AdamW(parameters, lr=2e-5)
        if with_schedule:
            trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
            with pytest.raises(ValueError, match="hand the trainer no scheduler"):
                orthora.steer(trainer)
            continue
        callback = orthora.steer(trainer)
        trainer.train()
        assert callback.rows[0]["lr"] == 2e-5


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
        "file.write_text(json.dumps([steered.rows, parts]))\n"
        "trainer.accelerator.wait_for_everyone()\n"  # gloo aborts where the other is gone
        "trainer.accelerator.end_training()\n",
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
