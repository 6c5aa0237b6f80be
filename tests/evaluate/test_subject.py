"""What is evaluated: base, adapter, run, checkpoint; and what is refused."""

import json

import pytest
import torch
from conftest import make_model, save_model
from safetensors.torch import load_file, save_file

import orthora
from orthora.cli import main
from orthora.config import EvalConfig, build, read_toml
from orthora.evaluate import series
from orthora.evaluate.contamination import run_of
from orthora.evaluate.subject import subject_of
from orthora.models import load_adapter, load_model
from orthora.trained import checkpoint_model

SMALL = {"task": "arithmetic", "problems": 8, "samples": 2, "max_response_tokens": 40}
SHORT = {
    "steps": 3, "prompts_per_step": 4, "group_size": 4, "mini_batch_prompts": 2, "micro_batch": 8,
    "eval_problems": 0, "save_every": 1, "keep_checkpoints": 2, "learning_rate": 3e-3, "rank": 2,
    "dynamic_sampling": False,
}  # fmt: skip


pytestmark = pytest.mark.xdist_group("subjects")  # one worker makes what all look at


@pytest.fixture(scope="module", params=["pissa", "full"])
def run(request, tmp_path_factory):
    """A run with checkpoints at two of its three steps, anchored, or of the whole model."""
    out = tmp_path_factory.mktemp("runs") / request.param
    config = read_toml("tiny") | SHORT | {"method": request.param, "out": str(out)}
    if request.param == "full":
        config["learning_rate"] = 1e-3
    orthora.train(config, progress=False)
    return out


def test_adalora_whose_ranks_were_cut_is_what_was_trained(tmp_path):
    config = read_toml("tiny") | SHORT | {"method": "adalora", "steps": 6, "out": str(tmp_path)}
    orthora.train(config, progress=False)
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    kept = [sum(mask) for mask in settings["rank_pattern"].values()]
    assert min(kept) < max(map(len, settings["rank_pattern"].values()))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        last = tmp_path / "checkpoints/checkpoint-12"  # uncut: every triplet, some of them 0
        wanted = checkpoint_model(last, "float32", "cpu")(tokens).logits
        found = load_adapter(load_model("tiny", "float32", "cpu"), str(tmp_path))(tokens).logits
        base = load_model("tiny", "float32", "cpu")(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (found - base).abs().max() > 1e-3


def samples_of(out):
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return sorted((row["problem"], row["sample"], row["text"]) for row in rows)


def test_a_series_goes_from_the_base_to_the_end(run, tmp_path, capsys):
    out = tmp_path / "series"
    told = []
    found = series(
        SMALL | {"adapter": str(run), "out": str(out)}, told=lambda name, _: told.append(name)
    )
    assert list(found) == told == ["base", "step-2", "step-3", "final"]
    kept = {name: samples_of(out / name) for name in found}
    assert kept["step-3"] == kept["final"], "the last checkpoint is what was exported"
    assert kept["base"] != kept["step-2"] != kept["final"]
    alone = SMALL | {"model": "tiny", "out": str(tmp_path / "alone")}
    assert orthora.evaluate(alone).pass_at_1 == found["base"].pass_at_1
    assert samples_of(tmp_path / "alone") == kept["base"]
    assert found["final"].contamination == {
        "training": "arithmetic",
        "training_problems": None,
        "found": {"exact": 0, "words": 0, "opening": 0},
        "problems": [],
    }
    arguments = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    arguments += ["--adapter", str(run), "--checkpoints", "--out", str(out)]
    assert main(["eval", *arguments]) == 0, capsys.readouterr().err  # goes on: nothing to do
    printed = capsys.readouterr().out
    assert all(f"{result.pass_at_1:.4f}" in printed for result in found.values())


def test_one_checkpoint_and_the_base_that_the_run_names(run):
    checkpoint = max((run / "checkpoints").iterdir())
    by_step = orthora.evaluate(SMALL | {"adapter": str(checkpoint)})
    assert by_step == orthora.evaluate(SMALL | {"adapter": str(run)})
    with pytest.raises(ValueError, match=r"was trained on 'tiny', and model is 'other'.*any_base"):
        orthora.evaluate(SMALL | {"adapter": str(run), "model": "other"})


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    checkpoint = max((copy / "checkpoints").iterdir())
    (checkpoint / "orthora_exact.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"no sound checkpoint.*5 of \d+ bytes"):
        orthora.evaluate(SMALL | {"adapter": str(checkpoint)})


def test_a_run_folder_is_found_from_what_lies_in_it(run):
    checkpoint = max((run / "checkpoints").iterdir())
    assert run_of(str(run)) == run_of(str(run / "adapter")) == run_of(str(checkpoint)) == run
    assert run_of(str(run.parent)) is None


def test_an_unfinished_run_has_no_adapter(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text('model = "tiny"\nout = "x"\ntask = "arithmetic"\n')
    (out / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no finished adapter; let the run finish"):
        orthora.evaluate(SMALL | {"adapter": str(out)})


def adapter(tmp_path, kind="llama", **changes):
    model = make_model(kind)
    folder = orthora.export_plain(orthora.adapt(model, "rlpo", rank=2), tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_an_adapter_of_a_base_with_another_name_is_refused_unless_told(tmp_path):
    folder = adapter(tmp_path, base_model_name_or_path="org/Other-7B")
    base = save_model("llama", tmp_path / "mine")
    given = SMALL | {"model": str(base), "adapter": str(folder)}
    with pytest.raises(ValueError, match=r"was trained on 'org/Other-7B'.*any_base = true"):
        orthora.evaluate(given)
    orthora.evaluate(given | {"any_base": True})
    (tmp_path / "Other-7B").mkdir()
    base = save_model("llama", tmp_path / "Other-7B")
    if base.name == "Other-7B":
        orthora.evaluate(given | {"model": str(base)})


@pytest.mark.parametrize("change", ["deeper", "shallower", "wider"])
def test_an_adapter_of_another_shape_is_one_line(change, tmp_path):
    """PEFT drops what a model has no layer for, and only warns of what is missing."""
    folder = adapter(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if change == "deeper":
        tensors |= {k.replace("layers.1", "layers.2"): v for k, v in tensors.items()}
    elif change == "shallower":
        tensors = {k: v for k, v in tensors.items() if "layers.1" not in k}
    else:
        tensors = {k: v.repeat(1, 2) for k, v in tensors.items()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file)
    base = save_model("llama", tmp_path / "mine")
    with pytest.raises(ValueError, match="does not fit the model") as error:
        orthora.evaluate(SMALL | {"model": str(base), "adapter": str(folder), "any_base": True})
    assert "\n" not in str(error.value)


def test_hub_caches_and_case_are_seen_through(tmp_path):
    folder = adapter(tmp_path, base_model_name_or_path="Qwen/Qwen2.5-1.5B")
    cached = "/c/hub/models--Qwen--Qwen2.5-1.5B/snapshots/0123abc"
    for model in (cached, "qwen/qwen2.5-1.5b", "/data/Qwen2.5-1.5B"):
        config = build(EvalConfig, SMALL | {"model": model, "adapter": str(folder)})
        assert subject_of(config).adapter == folder
    config = build(EvalConfig, SMALL | {"model": "Qwen/Qwen2.5-7B", "adapter": str(folder)})
    with pytest.raises(ValueError, match=r"trained on 'Qwen/Qwen2.5-1.5B'"):
        subject_of(config)


def test_a_merged_model_is_evaluated_as_a_model(tmp_path):
    out = tmp_path / "run"
    config = read_toml("tiny") | SHORT | {"method": "rlpo", "out": str(out), "save_every": 0}
    orthora.train(config, progress=False)
    merged = orthora.export_merged(out, tmp_path / "merged")
    one = orthora.evaluate(SMALL | {"model": str(merged)})
    other = orthora.evaluate(SMALL | {"adapter": str(out)})
    assert one.pass_at_1 == other.pass_at_1
    assert one.mean_length == other.mean_length


def test_a_series_named_by_a_checkpoint_is_that_of_its_run(run, tmp_path):
    checkpoint = min((run / "checkpoints").iterdir())
    given = SMALL | {"adapter": str(checkpoint), "out": str(tmp_path / "s")}
    found = series(given)
    assert list(found) == ["base", "step-2", "step-3", "final"]
    assert samples_of(tmp_path / "s" / "final") == samples_of(tmp_path / "s" / "step-3")
    assert samples_of(tmp_path / "s" / "final") != samples_of(tmp_path / "s" / "step-2")
    with pytest.raises(ValueError, match="vLLM serves no checkpoint"):
        series(given | {"engine": "vllm"})


def test_a_base_that_has_moved_is_given_by_its_new_name(tmp_path):
    import shutil

    from orthora import tiny

    base = tmp_path / "base-1"
    shutil.copytree(tiny.path(), base)
    out = tmp_path / "run"
    config = read_toml("tiny") | SHORT | {"model": str(base), "method": "rlpo", "out": str(out)}
    orthora.train(config, progress=False)
    before = series(SMALL | {"adapter": str(out), "out": str(tmp_path / "before")})
    moved = base.rename(tmp_path / "base-2")
    given = SMALL | {"adapter": str(out), "model": str(moved), "out": str(tmp_path / "after")}
    with pytest.raises(ValueError, match="any_base"):
        series(given)
    given["any_base"] = True
    assert series(given) == before
    assert series(given) == before, "a second call reads what the first one wrote"


def test_weights_that_changed_under_their_name_are_another_evaluation(tmp_path):
    folder = adapter(tmp_path)
    base = save_model("llama", tmp_path / "mine")
    out = tmp_path / "e"
    given = SMALL | {"model": str(base), "adapter": str(folder), "any_base": True, "out": str(out)}
    first = orthora.evaluate(given)
    assert orthora.evaluate(given) == first
    file = folder / "adapter_model.safetensors"
    tensors = {k: v + 1 if "lora_B" in k else v for k, v in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(ValueError, match="holds samples of other weights"):
        orthora.evaluate(given)


def test_adapters_that_change_prompts_are_refused_not_passed_over(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    model = make_model("qwen2")
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    tuned.save_pretrained(str(tmp_path / "prompt"))
    base = save_model("qwen2", tmp_path / "mine")
    given = SMALL | {"model": str(base), "adapter": str(tmp_path / "prompt"), "any_base": True}
    with pytest.raises(ValueError, match="PROMPT_TUNING changes prompts, not weights"):
        orthora.evaluate(given)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2-tied"])
def test_what_peft_saves_beside_its_factors_is_no_reason_to_refuse(kind, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    adapted = get_peft_model(make_model(kind), config)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    base = save_model(kind, tmp_path / "mine")
    given = SMALL | {"model": str(base), "adapter": str(tmp_path / "adapter"), "any_base": True}
    assert orthora.evaluate(given).problems == 8


@pytest.mark.parametrize("marker", ["[]", '{"files": []}', '{"files": {}}', "{"])
def test_a_damaged_marker_is_no_traceback(run, marker, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    (checkpoint / "orthora_checkpoint.json").write_text(marker)
    with pytest.raises(ValueError, match="no sound checkpoint"):
        orthora.evaluate(SMALL | {"adapter": str(checkpoint)})
