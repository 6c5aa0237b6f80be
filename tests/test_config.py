import re

import pytest

import orthora
from orthora.config import EvalConfig, TrainConfig, build, preset_names, read_toml, to_toml
from orthora.config.starting import check_start
from orthora.study import StudySpec, plan

MINIMAL = {"model": "tiny", "out": "x", "task": "arithmetic"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_validates_and_survives_a_round_trip_through_toml(name, tmp_path):
    kind = EvalConfig if name.startswith("eval-") else TrainConfig
    needed = {"model": "m"} if kind is EvalConfig else {}  # what an evaluation leaves to the user
    config = build(kind, needed | read_toml(name))
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert build(kind, file) == config


def test_what_is_off_stays_off_through_toml(tmp_path):
    file = tmp_path / "config.toml"
    for value in (None, 0, 0.0):
        config = build(TrainConfig, MINIMAL | {"dual_clip": value})
        assert config.dual_clip == 0
        file.write_text(to_toml(config))
        assert build(TrainConfig, file) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_target": 1e-3},
        {"schedule": "adaptive-kl", "kl_undo": 3.0},
        {"schedule": "adaptive-kl", "kl_target": 2.0},
        {"schedule": "adaptive-kl", "kl_rule": "step", "kl_max_change": 3.0},
        {"watch": ["reward < 0.5x"]},
        {"watch": [], "watch_action": "stop"},
        {"watch": ["entropy > 3 for 9"], "steps": 3},
        {"learning_rate": "match-norm:lora@1e-3", "method": "dora"},
    ],
)
def test_what_no_run_may_begin_with_is_read_all_the_same(changes, tmp_path):
    """Of runs from before it was refused; `train` and `study run` refuse it at the start."""
    config = build(TrainConfig, MINIMAL | changes)
    with pytest.raises(ValueError, match=r"\S") as error:
        check_start(config)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=re.escape(str(error.value))):
        orthora.train(MINIMAL | changes | {"out": str(tmp_path / "run")}, resume=True)
    evaluations = {"test": {"task": "arithmetic", "problems": 8}}
    settings = {key: value for key, value in changes.items() if key != "method"}
    grid = [{"method": [changes.get("method", "rlpo")], "seed": [0]}]
    watch = {"watch": [settings["watch"]]} if "watch" in settings else {}
    spec = StudySpec(
        name="old", base="tiny", grid=[grid[0] | watch], evaluations=evaluations,
        settings={k: v for k, v in settings.items() if k != "watch"},
        reference=changes.get("method", "rlpo"),
    )  # fmt: skip
    assert len(plan(spec)) == 1
    with pytest.raises(ValueError, match=re.escape(str(error.value))):
        plan(spec, starting=True)


def test_every_field_that_may_be_none_is_none_by_default():
    """TOML has no None: a config file says it by leaving the key out."""
    for kind in (TrainConfig, EvalConfig):
        for name, info in kind.model_fields.items():
            if type(None) in getattr(info.annotation, "__args__", ()):
                assert info.default is None, name


def test_defaults_are_the_source_papers_table_2():
    config = build(TrainConfig, "paper")
    assert (config.rank, config.alpha, config.learning_rate) == (16, 32, 1e-5)
    assert (config.prompts_per_step, config.group_size, config.mini_batch_prompts) == (128, 8, 32)
    assert (config.max_prompt_tokens, config.max_response_tokens) == (512, 16384)
    assert (config.clip_low, config.clip_high, config.dual_clip) == (0.2, 0.28, 10.0)
    assert (config.overlong_buffer, config.overlong_penalty) == (4096, 1.0)
    assert (config.beta, config.weight_decay, config.grad_clip) == (0.0, 0.1, 1.0)
    assert (config.loss, config.schedule, config.target_modules) == (
        "dapo",
        "constant",
        "all-linear",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learnin_rate": 1}, ["unknown config key 'learnin_rate'", "'learning_rate'"]),
        ({"method": "pisa"}, ["'pisa'", "'pissa'"]),
        ({"rank": 0}, ["rank", "0"]),
        ({"rank": 2.5}, ["rank", "2.5"]),
        ({"learning_rate": float("nan")}, ["learning_rate"]),
        ({"learning_rate": -1}, ["learning_rate", "-1"]),
        ({"prompts_per_step": 10, "mini_batch_prompts": 4}, ["10", "4"]),
        ({"micro_batch": 0}, ["micro_batch", "0"]),
        ({"method": "rlpo+pissa"}, ["two initialisations"]),
        ({"method": "vera", "start": "x"}, ["vera", "start"]),
        ({"keep_surplus": True}, ["dynamic_sampling"]),
        ({"engine": "vllm", "old_logps": "sampled"}, ["old_logps", "transformers"]),
        ({"lora_plus_ratio": 0.5}, ["lora_plus_ratio", "0.5"]),
        ({"overlong_buffer": 16384}, ["16384"]),
        ({"prompt_template": "no hole"}, ["{prompt}"]),
        ({"task": "file"}, ["needs data"]),
        ({"task": "file", "data": "a.jsonl", "eval_data": "b.jsonl"}, ["eval_problems"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"adam_betas": [2, 0.9]}, ["adam_betas", "2"]),
        ({"loss": "ppo"}, ["loss", "'ppo'"]),
        ({"group_size": 1}, ["group_size", "1"]),
        ({"dual_clip": 0.5}, ["dual_clip", "0.5"]),
        ({"data": "mine.jsonl"}, ["data", "task 'file'"]),
        ({"eval_data": "mine.jsonl"}, ["eval_data", "task 'file'"]),
        ({"eval_base": True}, ["eval_base", "eval_problems"]),
        ({"vllm_url": "http://x"}, ["vllm_url", "engine 'vllm'"]),
        ({"lora_plus_ratio": 4.0}, ["lora_plus_ratio", "rlpo+lora-plus"]),
        ({"steps": 5, "warmup_steps": 5}, ["warmup_steps 5", "5 steps"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_value(change, words):
    with pytest.raises(ValueError, match=r".+") as error:
        build(TrainConfig, MINIMAL | change)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_required_fields_have_no_default():
    with pytest.raises(ValueError, match="model"):
        build(TrainConfig, {"out": "x"})


def test_a_config_of_another_kind_is_refused():
    other = build(EvalConfig, {"model": "tiny", "task": "arithmetic"})
    with pytest.raises(ValueError, match="can't be made of a EvalConfig"):
        build(TrainConfig, other)


def test_a_config_is_frozen():
    config = build(TrainConfig, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.rank = 3


def test_missing_and_broken_toml_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nofile.*presets?: eval-dapo, .*paper, tiny"):
        read_toml("nofile")
    broken = tmp_path / "broken.toml"
    broken.write_text("rank = = 3")
    with pytest.raises(ValueError, match=r"broken\.toml is not valid TOML"):
        read_toml(broken)


def test_greedy_evaluation_takes_one_sample():
    greedy = {"model": "tiny", "task": "arithmetic", "temperature": 0}
    assert build(EvalConfig, greedy).samples_of() == 1
    with pytest.raises(ValueError, match="samples = 1"):
        build(EvalConfig, greedy | {"samples": 4})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "gsm9k"}, ["'gsm9k'", "'gsm8k'"]),
        ({"task": "file"}, ["needs data"]),
        ({"model": None}, ["give model, or adapter"]),
        ({"checkpoints": True}, ["adapter", "out"]),
        ({"prompt_column": "question"}, ["prompt_column", "task 'file'"]),
        ({"answer_column": "gold"}, ["answer_column", "task 'file'"]),
        ({"task": "mbpp", "reward_rule": "dapo"}, ["reward_rule", "answers"]),
        ({"trained_on_data": "x.jsonl"}, ["trained_on_data", "trained_on"]),
        ({"any_base": True}, ["any_base", "adapter"]),
        ({"samples": 0}, ["samples", "0"]),
        ({"drop": ["copies"]}, ["drop", "copies"]),
        ({"reward_rule": "exact"}, ["reward_rule", "exact"]),
        ({"temperatur": 1}, ["'temperatur'", "'temperature'"]),
    ],
)
def test_a_mistake_in_an_evaluation_is_one_line_that_names_the_value(change, words):
    with pytest.raises(ValueError, match=r".+") as error:
        build(EvalConfig, {"model": "tiny", "task": "arithmetic"} | change)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("task", "samples"),
    [("aime24", 32), ("math500", 4), ("gsm8k", 4), ("mbpp", 10), ("arithmetic", 4)],
)
def test_the_usual_number_of_samples_is_the_tasks(task, samples):
    assert build(EvalConfig, {"model": "tiny", "task": task}).samples_of() == samples
    assert build(EvalConfig, {"model": "tiny", "task": task, "samples": 7}).samples_of() == 7
