"""Training may take its factors from a folder of `orthora init` instead of computing them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForCausalLM

from orthora.adapters import adapt, init_adapter, slots_of
from orthora.methods import registry

RANK, ALPHA, SEED = 4, 8, 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_model("qwen2").save_pretrained(folder)
    return folder


def started(saved: Path, out: Path, method: str = "rlpo", **changes) -> Path:
    settings = {"rank": RANK, "alpha": ALPHA, "seed": SEED} | changes
    return init_adapter(str(saved), method, out=out, **settings).out


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder)


def tensors(model) -> dict[str, torch.Tensor]:
    own = model.state_dict()
    return {name: own[name] for name in own if ".lora_" in name or ".anchor_" in name}


@pytest.mark.parametrize("method", registry.names())
def test_a_given_start_is_the_computed_one_bit_for_bit(saved, tmp_path, method, monkeypatch):
    folder = started(saved, tmp_path / "start", method)
    computed = adapt(load(saved), method, rank=RANK, alpha=ALPHA, seed=SEED)
    monkeypatch.setattr("orthora.adapters.starts.compute", None)  # nothing may be computed
    given = adapt(load(saved), method, rank=RANK, alpha=ALPHA, seed=SEED, start=folder)
    one, two = tensors(computed), tensors(given)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert given.orthora == computed.orthora


def test_experts_are_given_too(tmp_path):
    make_model("qwen3_moe").save_pretrained(tmp_path / "base")
    folder = started(tmp_path / "base", tmp_path / "start")
    options = {"rank": RANK, "alpha": ALPHA, "seed": SEED}
    computed = adapt(load(tmp_path / "base"), "rlpo", **options)
    given = adapt(load(tmp_path / "base"), "rlpo", start=folder, **options)
    one, two = tensors(computed), tensors(given)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(slot.expert for slot in slots_of(given))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"method": "rlmo"}, "method 'rlpo', not 'rlmo'"),
        ({"rank": 5}, "rank 4, not 5"),
        ({"alpha": 9}, "alpha 8, not 9"),
        ({"seed": 4}, "seed 3, not 4"),
        ({"target_modules": ["q_proj"]}, "target_modules"),
    ],
)
def test_other_settings_are_refused(saved, tmp_path, changes, word):
    folder = started(saved, tmp_path / "start")
    asked = {"method": "rlpo", "rank": RANK, "alpha": ALPHA, "seed": SEED} | changes
    base = load(saved)
    with pytest.raises(ValueError, match=word):
        adapt(base, start=folder, **asked)
    assert not hasattr(base, "peft_config")


def test_other_weights_are_refused(saved, tmp_path):
    folder = started(saved, tmp_path / "start")
    base = load(saved)
    with torch.no_grad():
        base.model.layers[0].self_attn.q_proj.weight.mul_(torch.linspace(0.5, 1.5, 32)[:, None])
    with pytest.raises(ValueError, match="other weights"):
        adapt(base, "rlpo", rank=RANK, alpha=ALPHA, seed=SEED, start=folder)


@pytest.mark.parametrize(("kind", "method"), [("qwen2", "milora"), ("qwen2-medium", "rlmo")])
def test_a_base_loaded_in_bfloat16_is_still_the_same_weights(kind, method, tmp_path):
    """Rounding moves the smallest singular values by more than their own hundredth."""
    make_model(kind).save_pretrained(tmp_path / "base")
    folder = started(tmp_path / "base", tmp_path / "start", method)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    given = adapt(base, method, rank=RANK, alpha=ALPHA, seed=SEED, start=folder)
    computed = adapt(load(tmp_path / "base"), method, rank=RANK, alpha=ALPHA, seed=SEED)
    one, two = tensors(given), tensors(computed)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", ["rlmo", "milora", "olora-tail"])
def test_other_weights_are_refused_at_the_bottom_too(saved, tmp_path, method):
    folder = started(saved, tmp_path / "start", method)
    base = make_model("qwen2", seed=1)
    with pytest.raises(ValueError, match="other weights"):
        adapt(base, method, rank=RANK, alpha=ALPHA, seed=SEED, start=folder)


@pytest.mark.parametrize("one", ["q_proj", ["q_proj"], ("q_proj",)])
@pytest.mark.parametrize("two", ["q_proj", ["q_proj"], ("q_proj",)])
def test_a_bare_name_is_a_list_of_one(saved, tmp_path, one, two):
    folder = started(saved, tmp_path / "start", target_modules=one)
    options = {"rank": RANK, "alpha": ALPHA, "seed": SEED, "target_modules": two}
    given = adapt(load(saved), "rlpo", start=folder, **options)
    assert len(slots_of(given)) == 2


def test_what_is_no_start_is_refused(saved, tmp_path):
    options = {"rank": RANK, "alpha": ALPHA, "seed": SEED}
    with pytest.raises(ValueError, match="no adapter of `orthora init`"):
        adapt(load(saved), "rlpo", start=tmp_path, **options)
    folder = started(saved, tmp_path / "start")
    record = json.loads((folder / "orthora.json").read_text())
    record["modules"].pop("model.layers.1.mlp.up_proj")
    (folder / "orthora.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"holds no start of 'model\.layers\.1\.mlp\.up_proj'"):
        adapt(load(saved), "rlpo", start=folder, **options)
