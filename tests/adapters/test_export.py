import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import adamw_steps, logits, make_model, snapshot
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import orthora
from orthora import methods
from orthora.adapters import AnchoredLinear, adapted_layers
from orthora.adapters import model as anchored_model

RANK, ALPHA, SEED = 4, 6.0, 3
NAMES = orthora.methods("initialisation")
ANCHORED = [name for name in NAMES if methods.get(name).anchored]
FACTORS = ("lora_A", "lora_B", "anchor_A", "anchor_B")
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def adapt(model, method, **options):
    return orthora.adapt(model, method, **{"rank": RANK, "alpha": ALPHA, "seed": SEED} | options)


def trained(method, kind="qwen2", **options):
    model = adapt(make_model(kind), method, **options)
    adamw_steps(model, 3)
    return model


def factors(model, adapter="default"):
    """Every factor and anchor of one adapter, by module and kind."""
    return {
        (name, kind): getattr(layer, kind)[adapter].weight.detach().clone()
        for name, layer in adapted_layers(model).items()
        for kind in FACTORS
        if adapter in getattr(layer, kind, {})
    }


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def plain(folder, kind="qwen2"):
    """What plain PEFT makes of the folder on the untouched base."""
    model = PeftModel.from_pretrained(make_model(kind), str(folder))
    assert not any(isinstance(module, AnchoredLinear) for module in model.modules())
    return model


@pytest.fixture(scope="module", params=["qwen2", "llama", "gpt2"])
def family(request):
    return request.param


@pytest.fixture(scope="module", params=NAMES)
def run(request, family, tmp_path_factory):
    """A trained adapter, exported and saved; no test changes it."""
    seen = SimpleNamespace(family=family, method=request.param)
    seen.anchored = methods.get(request.param).anchored
    seen.rank = 2 * RANK if seen.anchored else RANK
    seen.model = trained(request.param, family)
    seen.logits = logits(seen.model)
    folder = tmp_path_factory.mktemp("export")
    seen.exported = orthora.export_plain(seen.model, folder / "exported")
    seen.saved = folder / "saved"
    seen.model.save_pretrained(str(seen.saved))
    return seen


def test_plain_peft_loads_the_trained_function_from_an_export(run):
    assert (logits(plain(run.exported, run.family)) - run.logits).abs().max() <= 1e-5


def test_plain_peft_loads_the_trained_function_from_save_pretrained(run):
    assert (logits(plain(run.saved, run.family)) - run.logits).abs().max() <= 1e-5


def test_an_export_merges_in_plain_peft_to_the_trained_function(run):
    merged = plain(run.exported, run.family).merge_and_unload()
    assert (logits(merged) - run.logits).abs().max() <= 1e-5


def test_the_base_under_a_loaded_export_is_untouched(run):
    model = plain(run.exported, run.family)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(make_model(run.family)))


def test_files_hold_rank_r_or_2r_factors_of_the_adapted_modules_and_nothing_else(run):
    layers = adapted_layers(run.model)
    shapes = {}
    for name, layer in layers.items():
        key = f"base_model.model.{name}"
        shapes[f"{key}.lora_A.weight"] = (run.rank, layer.in_features)
        shapes[f"{key}.lora_B.weight"] = (layer.out_features, run.rank)
    for folder in (run.exported, run.saved):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes
        assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_the_file_holds_the_factors_and_their_distance_from_the_start(run):
    tensors = load_file(run.exported / "adapter_model.safetensors")
    for name, layer in adapted_layers(run.model).items():
        key = f"base_model.model.{name}"
        A, B = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
        ours_A, ours_B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.equal(A[:RANK], ours_A)
        if run.anchored:
            A0, B0 = layer.anchor_A["default"].weight, layer.anchor_B["default"].weight
            assert torch.equal(A[RANK:], ours_A - A0)
            assert torch.equal(B[:, :RANK], ours_B - B0)
            assert torch.equal(B[:, RANK:], B0)
        else:
            assert torch.equal(B, ours_B)


def test_the_config_is_stock_lora_with_the_same_scale(run, tmp_path):
    stock = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(make_model(run.family), stock).save_pretrained(str(tmp_path))
    known = json.loads((tmp_path / "adapter_config.json").read_text())
    for folder in (run.exported, run.saved):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config.keys() == known.keys()
        assert config["init_lora_weights"] is True
        assert config["peft_type"] == "LORA"
        assert config["inference_mode"] is True
        assert config["task_type"] == "CAUSAL_LM"
        assert config["r"] == run.rank
        assert config["lora_alpha"] / config["r"] == ALPHA / RANK
        assert config["fan_in_fan_out"] == (run.family == "gpt2")
        assert set(config["target_modules"]) == set(known["target_modules"])


def test_an_export_holds_safetensors_config_and_record_only(run):
    assert {path.name for path in run.exported.iterdir()} == FILES | {"orthora.json"}
    record = json.loads((run.exported / "orthora.json").read_text())
    assert record == {
        "method": run.method,
        "rank": RANK,
        "alpha": ALPHA,
        "target_modules": "all-linear",
        "seed": SEED,
        "modules": list(adapted_layers(run.model)),
        "overrides": "",
    }
    assert not list(run.saved.rglob("*.bin"))


def test_saving_changes_nothing_in_the_model(run):
    assert torch.equal(logits(run.model), run.logits)
    config = run.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.inference_mode) == (RANK, ALPHA, False)
    assert {n for n, p in run.model.named_parameters() if p.requires_grad} == {
        n for n in snapshot(run.model) if ".lora_" in n
    }


def test_a_saved_adapter_is_restored_bit_by_bit_into_a_fresh_model(run):
    fresh = adapt(make_model(run.family), run.method)
    assert not torch.equal(logits(fresh), run.logits)
    fresh.load_adapter(str(run.saved), "default", is_trainable=True)
    assert equal(factors(fresh), factors(run.model))
    assert torch.equal(logits(fresh), run.logits)
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == {
        n for n, p in run.model.named_parameters() if p.requires_grad
    }


def test_an_export_is_restored_to_rounding(run):
    fresh = adapt(make_model(run.family), run.method)
    fresh.load_adapter(str(run.exported), "default", is_trainable=True)
    ours, theirs = factors(run.model), factors(fresh)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=1e-6)


def test_a_restored_model_trains_on_as_the_unbroken_one(run):
    fresh = adapt(make_model(run.family), run.method)
    fresh.load_adapter(str(run.saved), "default", is_trainable=True)
    unbroken = adapt(make_model(run.family), run.method)
    adamw_steps(unbroken, 3)
    for model in (fresh, unbroken):
        adamw_steps(model, 2)
    assert equal(factors(fresh), factors(unbroken))


def test_an_export_loads_as_a_second_adapter_with_the_trained_function(run):
    model = adapt(make_model(run.family), run.method)
    model.load_adapter(str(run.exported), "best")
    model.set_adapter("best")
    assert (logits(model) - run.logits).abs().max() <= 1e-5
    model.set_adapter("default")
    assert torch.equal(logits(model), logits(make_model(run.family)))


@pytest.mark.parametrize("method", NAMES)
def test_bfloat16_bases_export_the_same_float32_factors(method, tmp_path):
    model = adapt(make_model("qwen2", torch.bfloat16), method)
    adamw_steps(model, 3)
    tensors = load_file(orthora.export_plain(model, tmp_path / "out") / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    for (name, kind), value in factors(model).items():
        if kind == "lora_A":
            assert torch.equal(tensors[f"base_model.model.{name}.lora_A.weight"][:RANK], value)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("phi3", "all-linear"),
        ("qwen2-tied", ["q_proj", "lm_head"]),
        ("qwen3_moe", ["q_proj", "o_proj"]),
        ("qwen2", r".*layers\.1\.mlp\.\w+_proj"),
    ],
)
def test_every_kind_of_target_survives_the_export(kind, targets, method, tmp_path):
    model = trained(method, kind, target_modules=targets)
    folder = orthora.export_plain(model, tmp_path / "out")
    assert (logits(plain(folder, kind)) - logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("kind", ["qwen2", "qwen2-tied"])
def test_an_adapter_of_the_head_is_restored_bit_by_bit(kind, method, tmp_path):
    targets = {"target_modules": ["q_proj", "lm_head"]}
    model = trained(method, kind, **targets)
    model.save_pretrained(str(tmp_path))
    fresh = adapt(make_model(kind), method, **targets)
    fresh.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert equal(factors(fresh), factors(model))


@pytest.mark.parametrize("method", ANCHORED)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 3}, ["r 8", "r 6"]),
        ({"rank": 8}, ["r 8", "r 16"]),
        ({"alpha": 7}, ["alpha 12.0", "alpha 14"]),
        ({"target_modules": ["q_proj"]}, ["does not fit", "v_proj"]),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, ["does not fit", "up_proj"]),
    ],
)
def test_a_saved_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    method, options, words, tmp_path
):
    targets = {"target_modules": ["q_proj", "v_proj"]}
    trained(method, **targets).save_pretrained(str(tmp_path))
    fresh = adapt(make_model("qwen2"), method, **targets | options)
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=words[0]) as raised:
        fresh.load_adapter(str(tmp_path), "default")
    assert all(word in str(raised.value) for word in words)
    assert equal(snapshot(fresh), before)


@pytest.mark.parametrize("method", ANCHORED)
def test_a_file_of_which_only_the_last_module_does_not_fit_changes_nothing(method, tmp_path):
    trained(method).save_pretrained(str(tmp_path))
    file = tmp_path / "orthora_state.safetensors"
    last = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    save_file(load_file(file) | {last: torch.zeros(2 * RANK, 49)}, file)
    fresh = adapt(make_model("qwen2"), method)
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj"):
        fresh.load_adapter(str(tmp_path), "default")
    assert equal(snapshot(fresh), before)


@pytest.mark.parametrize("method", ANCHORED)
def test_a_plain_rank_r_adapter_is_refused_by_an_anchored_model(method, tmp_path):
    trained("rlpo").save_pretrained(str(tmp_path))
    fresh = adapt(make_model("qwen2"), method)
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=r"r 4 .* r 8 "):
        fresh.load_adapter(str(tmp_path), "default")
    assert equal(snapshot(fresh), before)


@pytest.mark.parametrize("method", ["rlpo", "pissa"])
def test_an_export_refuses_a_folder_that_holds_files_and_keeps_them(method, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=re.escape(str(out))):
        orthora.export_plain(trained(method), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine.txt").read_text() == "keep"
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("method", ["rlpo", "pissa"])
def test_an_export_takes_an_empty_or_a_new_deep_folder(method, tmp_path):
    model = trained(method)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert orthora.export_plain(model, str(out)) == out
        assert {path.name for path in out.iterdir()} == FILES | {"orthora.json"}
        assert {path.name for path in out.parent.iterdir()} <= {"empty", "a", "b"}


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    model = trained("pissa")

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(anchored_model, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        orthora.export_plain(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_exporting_a_run_without_an_adapter_names_it_and_leaves_nothing_behind(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match=re.escape(str(run))):
        orthora.export_plain(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [run]


def test_exporting_a_run_copies_its_adapter(tmp_path):
    model = trained("geora")
    orthora.export_plain(model, tmp_path / "run" / "adapter")
    out = orthora.export_plain(tmp_path / "run", tmp_path / "out")
    assert (logits(plain(out)) - logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ANCHORED)
def test_pickled_weights_are_refused(method, tmp_path):
    model = adapt(make_model("qwen2"), method)
    with pytest.raises(ValueError, match="safetensors"):
        model.save_pretrained(str(tmp_path / "out"), safe_serialization=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ANCHORED)
def test_an_unknown_adapter_name_is_refused(method, tmp_path):
    model = adapt(make_model("qwen2"), method)
    with pytest.raises(ValueError, match="'other'"):
        model.save_pretrained(str(tmp_path / "out"), selected_adapters=["other"])


def second_config(targets):
    return LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM")


@pytest.mark.parametrize("method", ANCHORED)
@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "v_proj"], ["k_proj", "lm_head"]],
    ids=["the same modules", "fewer modules", "another module"],
)
def test_a_second_adapter_on_an_anchored_model_is_plain_lora(method, targets, tmp_path):
    model = trained(method)
    first = logits(model)
    model.add_adapter("second", second_config(targets))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(make_model("qwen2")))
    adamw_steps(model, 3)
    second = logits(model)
    start = {key: v for key, v in factors(model, "second").items() if "anchor" in key[1]}
    assert not any(bool(anchor.any()) for anchor in start.values())
    stock = get_peft_model(make_model("qwen2"), second_config(targets))
    with torch.no_grad():
        for name, layer in adapted_layers(stock).items():
            mine = adapted_layers(model)[name]
            layer.lora_A["default"].weight.copy_(mine.lora_A["second"].weight)
            layer.lora_B["default"].weight.copy_(mine.lora_B["second"].weight)
    assert (logits(stock) - second).abs().max() <= 1e-5
    model.save_pretrained(str(tmp_path))
    assert (logits(plain(tmp_path)) - first).abs().max() <= 1e-5
    assert (logits(plain(tmp_path / "second")) - second).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ANCHORED)
@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "v_proj"]],
    ids=["the same modules", "fewer modules"],
)
def test_a_second_adapter_of_an_anchored_model_is_restored_bit_by_bit(method, targets, tmp_path):
    model = trained(method)
    model.add_adapter("second", second_config(targets))
    model.set_adapter("second")
    adamw_steps(model, 3)
    model.save_pretrained(str(tmp_path))
    fresh = adapt(make_model("qwen2"), method)
    fresh.add_adapter("second", second_config(targets))
    fresh.load_adapter(str(tmp_path / "second"), "second")
    fresh.load_adapter(str(tmp_path), "default")
    assert equal(factors(fresh, "second"), factors(model, "second"))
    assert equal(factors(fresh), factors(model))


@pytest.mark.parametrize("method", ANCHORED)
def test_an_export_of_a_model_with_two_adapters_is_the_default_one(method, tmp_path):
    model = trained(method)
    expected = logits(model)
    model.add_adapter("second", second_config("all-linear"))
    out = orthora.export_plain(model, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == FILES | {"orthora.json"}
    assert (logits(plain(out)) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ANCHORED)
def test_deleting_an_adapter_deletes_its_anchors(method):
    model = trained(method)
    model.add_adapter("second", second_config("all-linear"))
    expected = logits(model)
    assert any(".anchor_A.second." in name for name in snapshot(model))
    model.delete_adapter("second")
    assert not any(".second." in name for name in snapshot(model))
    assert torch.equal(logits(model), expected)
    model.add_adapter("second", second_config("all-linear"))
    model.set_adapter("second")
    model.delete_adapter("default")
    assert not any(".default." in name for name in snapshot(model))
    assert torch.equal(logits(model), logits(make_model("qwen2")))


@pytest.mark.parametrize("method", ANCHORED)
def test_merging_two_adapters_adds_their_updates(method):
    model = trained(method)
    model.add_adapter("second", second_config("all-linear"))
    model.set_adapter("second")
    adamw_steps(model, 3)
    model.base_model.set_adapter(["default", "second"])
    expected = logits(model)
    merged = model.merge_and_unload(adapter_names=["default", "second"])
    assert (logits(merged) - expected).abs().max() <= 1e-5
