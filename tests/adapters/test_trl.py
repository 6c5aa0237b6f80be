import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import logits, make_model, snapshot, tokenizer
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import orthora
from orthora import methods
from orthora.adapters import adapted_layers
from orthora.config import TrainConfig
from orthora.train.loading import Parts
from orthora.train.problems import Source
from orthora.train.rewards import Judged
from orthora.train.rollouts import Stream
from orthora.train.trainer import RLVRTrainer
from orthora.train.world import World
from orthora.types import Problem

RANK, ALPHA, SEED = 4, 6.0, 3
ANCHORED = [name for name in orthora.methods("initialisation") if methods.get(name).anchored]
UPDATES = 2  # optimizer updates on each rollout
FACTORS = ("lora_A", "lora_B", "anchor_A", "anchor_B")
PROMPTS = ["1+2=", "3+4=", "5+6=", "7+8=", "9-1=", "8-3=", "7-5=", "6-2="]
DATA = Dataset.from_list([{"prompt": p, "answer": p[0], "id": p} for p in PROMPTS])


def adapt(method, dtype=torch.float32):
    model = make_model("qwen2", dtype)
    return orthora.adapt(model, method, rank=RANK, alpha=ALPHA, seed=SEED)


def token_sum(completion_ids, **_):
    """A reward that differs inside nearly every group, so that every update has a gradient."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def length_judge(responses, problems):
    """The same for orthora: texts in, scores out."""
    return [Judged(float(sum(map(ord, response)) % 7), False) for response in responses]


def orthora_trainer(model, folder, learning_rate, beta, on_step, **changes):
    """The run as `orthora.train` would set it up."""
    config = TrainConfig(
        model="unused",
        out="unused",
        task="arithmetic",
        learning_rate=learning_rate,
        beta=beta,
        weight_decay=0.0,
        steps=2,
        prompts_per_step=2 * UPDATES,
        group_size=2,
        mini_batch_prompts=2,
        micro_batch=4,
        max_response_tokens=6,
        overlong_buffer=0,
        save_every=1,
        seed=SEED,
        device="cpu",
        **changes,
    )
    problems = [Problem(p, p[0], p) for p in PROMPTS]
    words = tokenizer()
    stream = Stream(problems, [words(p)["input_ids"] for p in PROMPTS], SEED)
    source = Source("arithmetic", None, "train", "{prompt}", len(PROMPTS))
    parts = Parts(words, model, problems, stream, [], 0, length_judge, source)
    return RLVRTrainer(config, parts, World(), Path(folder), on_step)


def stock_settings(folder, learning_rate, beta, **changes):
    """The same run in TRL's own words, with its defaults where they do not hurt on a CPU."""
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": SEED,
        "learning_rate": learning_rate,
        "beta": beta,
        "max_steps": 2 * UPDATES,
        "per_device_train_batch_size": 4,
        "steps_per_generation": UPDATES,
        "num_generations": 2,
        "max_completion_length": 6,
        "logging_steps": 1,
        "save_steps": UPDATES,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return GRPOConfig(**options | changes)


class Watch(TrainerCallback):
    """Keeps what an update leaves: TRL's own KL to the reference, and the function at each save."""

    def __init__(self):
        self.trainer, self.kl, self.saved = None, [], {}

    def on_step_end(self, args, state, control, **kwargs):
        self.kl += self.trainer._metrics["train"].get("kl", [])[-1:]

    def on_save(self, args, state, control, **kwargs):
        self.saved[state.global_step] = logits(self.trainer.model)


def run_of(trainer, beta, model, learning_rate, folder, resume=None, **changes):
    """Two rollouts with two updates each, saved after each rollout."""
    seen = SimpleNamespace(kind=trainer, beta=beta, model=model, folder=folder, rows=[])
    seen.start, watch = snapshot(model), Watch()
    if trainer == "orthora":
        add = seen.rows.append
        seen.trainer = orthora_trainer(model, folder, learning_rate, beta, add, **changes)
        seen.trainer.add_callback(watch)
    else:
        seen.trainer = GRPOTrainer(
            model=model,
            reward_funcs=[token_sum],
            args=stock_settings(folder, learning_rate, beta, **changes),
            train_dataset=DATA,
            processing_class=tokenizer(),
            callbacks=[watch],
        )
    watch.trainer = seen.trainer
    seen.trainer.train(resume_from_checkpoint=resume)
    seen.kl, seen.saved = watch.kl, watch.saved
    seen.end, seen.logits = snapshot(model), logits(model)
    return seen


def base_part(values):
    return {n: v for n, v in values.items() if ".lora_" not in n and ".anchor_" not in n}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def pick(values, *kinds, adapter="default"):
    return {n: v for n, v in values.items() if any(f".{k}.{adapter}." in n for k in kinds)}


@functools.cache
def base_logits():
    return logits(make_model("qwen2"))


@pytest.fixture(scope="module", params=["orthora", "trl"])
def trainer(request):
    return request.param


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["beta 0", "beta 0.1"])
def beta(request):
    return request.param


@pytest.fixture(scope="module", params=["rlpo", *ANCHORED])
def method(request):
    return request.param


@pytest.fixture(scope="module")
def still(trainer, beta, method, tmp_path_factory):
    """Four updates at learning rate 0."""
    return run_of(trainer, beta, adapt(method), 0.0, tmp_path_factory.mktemp("still"))


@pytest.fixture(scope="module")
def moved(trainer, beta, method, tmp_path_factory):
    """Four real updates."""
    return run_of(trainer, beta, adapt(method), 1e-3, tmp_path_factory.mktemp("moved"))


def test_at_learning_rate_0_the_model_stays_the_base_bit_by_bit(still):
    assert still.trainer.state.global_step == 4
    assert torch.equal(still.logits, base_logits())
    assert equal({n: v for n, v in still.end.items() if ".ref." not in n}, still.start)


def test_at_learning_rate_0_every_measured_kl_is_0(still):
    assert bool(still.kl) == (still.beta > 0 and still.kind == "trl")
    assert bool(still.rows) == (still.kind == "orthora")
    assert all(abs(value) <= 1e-6 for value in still.kl)
    for row in still.rows:
        assert all(abs(row[key]) <= 1e-6 for key in row if key.startswith("kl_"))
    logged = [row["kl"] for row in still.trainer.state.log_history if "kl" in row]
    assert all(abs(value) <= 1e-6 for value in logged)


def test_real_updates_move_the_function_and_the_kl_shows_it(moved):
    assert (moved.logits - base_logits()).abs().max() > 1e-3
    assert len(moved.rows) in (0, 2)  # stock TRL hands over no rows
    assert all(row["kl_update_k3"] > 1e-8 for row in moved.rows)
    # Of the policy that sampled to the base: at the first rollout they are the same.
    assert [row["kl_base_k3"] > 1e-8 for row in moved.rows] in ([], [False, True])
    assert [value > 1e-8 for value in moved.kl] == [False, True, True, True][: len(moved.kl)]
    assert bool(moved.kl) == (moved.beta > 0 and moved.kind == "trl")


def test_exactly_the_factors_of_default_change(moved):
    names = pick(moved.start, "lora_A", "lora_B").keys()
    assert len(names) == 2 * len(adapted_layers(moved.model))
    changed = {n for n in moved.start if not torch.equal(moved.start[n], moved.end[n])}
    assert changed == names


def test_anchors_are_the_start_bit_by_bit_and_frozen(moved):
    anchors = pick(moved.end, "anchor_A", "anchor_B")
    assert bool(anchors) == methods.get(moved.model.orthora.method).anchored
    for name, value in anchors.items():
        assert torch.equal(value, moved.start[name.replace("anchor", "lora")])
    trainable = {n for n, p in moved.model.named_parameters() if p.requires_grad}
    assert trainable == pick(moved.start, "lora_A", "lora_B").keys()


def test_the_optimizer_holds_the_factors_of_default_and_nothing_else(moved):
    held = {id(p) for group in moved.trainer.optimizer.param_groups for p in group["params"]}
    named = dict(moved.model.named_parameters())
    assert held == {id(named[name]) for name in pick(moved.start, "lora_A", "lora_B")}


def test_disabled_adapters_are_the_base_after_training(moved):
    with moved.model.disable_adapter():
        assert torch.equal(logits(moved.model), base_logits())


def test_the_reference_adapter_of_trl_is_the_start_and_computes_the_base(moved):
    """Stock TRL copies the start as its reference; orthora's trainer needs no copy."""
    copied = moved.beta > 0 and moved.kind == "trl"
    assert ("ref" in moved.model.peft_config) == copied
    for name in pick(moved.start, *FACTORS):
        copy = moved.end.get(name.replace(".default.", ".ref."))
        assert (copy is not None) == copied
        assert copy is None or torch.equal(copy, moved.start[name])
    if copied:
        active = moved.model.active_adapter
        try:
            moved.model.set_adapter("ref")
            assert torch.equal(logits(moved.model), base_logits())
        finally:
            moved.model.set_adapter(active)
        assert torch.equal(logits(moved.model), moved.logits)


def test_save_model_writes_what_plain_peft_loads_as_the_trained_function(moved, tmp_path):
    moved.trainer.save_model(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_model("qwen2"), str(tmp_path))
    assert (logits(loaded) - moved.logits).abs().max() <= 1e-5
    if moved.beta > 0 and moved.kind == "trl":
        reference = PeftModel.from_pretrained(make_model("qwen2"), str(tmp_path / "ref"))
        assert (logits(reference) - base_logits()).abs().max() <= 1e-5


def test_an_export_after_training_is_the_trained_function(moved, tmp_path):
    out = orthora.export_plain(moved.model, tmp_path / "out")
    loaded = PeftModel.from_pretrained(make_model("qwen2"), str(out))
    assert (logits(loaded) - moved.logits).abs().max() <= 1e-5
    assert not (out / "ref").exists()


def test_a_checkpoint_is_plain_lora_of_the_policy_at_its_update(moved):
    assert list(moved.saved) == [2, 4]
    for step, expected in moved.saved.items():
        folder = moved.folder / f"checkpoint-{step}"
        loaded = PeftModel.from_pretrained(make_model("qwen2"), str(folder))
        assert (logits(loaded) - expected).abs().max() <= 1e-5
        assert not list(folder.glob("adapter_model.bin"))


def test_a_run_resumed_at_a_rollout_boundary_is_bit_equal_to_the_unbroken_one(moved, tmp_path):
    model = adapt(moved.model.orthora.method)
    resume = str(moved.folder / "checkpoint-2")
    rest = run_of(moved.kind, moved.beta, model, 1e-3, tmp_path, resume=resume)
    assert list(rest.saved) == [4]
    assert equal(rest.end, moved.end)
    assert torch.equal(rest.logits, moved.logits)
    assert pick(rest.end, "anchor_A") == {} or equal(
        pick(rest.end, "anchor_A", "anchor_B"), pick(moved.start, "anchor_A", "anchor_B")
    )


@pytest.mark.parametrize("started", ["rlpo", "pissa"])
def test_at_learning_rate_0_a_bfloat16_base_has_kl_0_as_well(trainer, beta, started, tmp_path):
    """Exactly, on all responses; a sample of them is padded otherwise, and bfloat16 rounds."""
    model = adapt(started, torch.bfloat16)
    whole = {"kl_update_share": 1.0, "kl_base_share": 1.0} if trainer == "orthora" else {}
    seen = run_of(trainer, beta, model, 0.0, tmp_path, **whole)
    assert torch.equal(seen.logits, logits(make_model("qwen2", torch.bfloat16)))
    assert all(value == 0.0 for value in seen.kl)
    assert all(row[key] == 0.0 for row in seen.rows for key in row if key.startswith("kl_"))


@pytest.mark.parametrize("started", ["rlpo", "pissa"])
def test_gradient_checkpointing_changes_memory_and_not_the_result(trainer, started, tmp_path):
    plain, frugal = (
        run_of(trainer, 0.1, adapt(started), 1e-3, tmp_path, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert equal(plain.end, frugal.end)
