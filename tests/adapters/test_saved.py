"""Updates read from folders, weight by weight, are those of the model that wrote them."""

import json
import warnings

import pytest
import torch
from conftest import save_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from orthora import adapters, models
from orthora.adapters.fold import merged_parameters
from orthora.adapters.saved import Layouts, open_adapter, open_exact, open_model
from orthora.checkpoint import open_checkpoint
from orthora.linalg.updates import Dense, LowRank

METHODS = ["lora", "pissa", "geora", "rlpo+dora", "pissa+dora", "rlpo+rslora", "adalora", "vera",
           "miss", "ia3"]  # fmt: skip
RANK = 4


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint("tiny")


@pytest.fixture
def layouts(checkpoint):
    return Layouts(checkpoint)


def trained(method, seed=1):
    """A model whose adapter moved, as by training."""
    model = models.load_model("tiny", "float32", "cpu")
    adapted = adapters.adapt(model, method, rank=RANK, alpha=8, total_updates=100)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return adapted


def merged_weights(model):
    return {name: value.clone() for name, value in merged_parameters(model)}


def dense(update):
    if isinstance(update, Dense):
        return update.D.double()
    return update.X.double() @ update.Y.double()


@pytest.mark.parametrize("method", METHODS)
def test_the_update_is_what_merging_would_add(method, tmp_path, checkpoint, layouts):
    model = trained(method)
    adapters.export_plain(model, tmp_path / "a")
    expected = merged_weights(model)
    saved = open_adapter(tmp_path / "a", layouts)
    changed = 0
    for name, source in saved.sources.items():
        W = source.read(checkpoint).float()
        update = saved.update(name, W)
        difference = W.double() + dense(update) - expected[f"{name}.weight"].double()
        assert float(difference.abs().max()) < 3e-6
        assert update.shape == W.shape
        changed += bool(update.norm() > 1e-4)
    assert changed == len(saved.sources) == (9 if method == "ia3" else 21)
    plain = method in ("lora", "pissa", "geora", "rlpo+rslora")
    assert isinstance(update, LowRank if plain else Dense)
    assert (saved.rows(name) is not None) == plain


@pytest.mark.parametrize("method", ["lora", "pissa", "geora"])
@pytest.mark.parametrize("exact", [False, True])
def test_factors_and_anchors(method, exact, tmp_path, layouts):
    """From the exact state of a checkpoint to the bit, from an export to rounding."""
    model = trained(method)
    if exact:
        model.save_pretrained(tmp_path / "a")
    else:
        adapters.export_plain(model, tmp_path / "a")
    saved = open_adapter(tmp_path / "a", layouts, method)
    for slot in adapters.slots_of(model):
        rows = saved.rows(slot.name)
        A, _ = slot.factors()
        assert torch.equal(rows.A, A)
        if method == "lora":
            assert rows.A0 is rows.B0 is None
            continue
        anchor = [getattr(slot.layer, f"anchor_{x}")["default"].weight for x in "AB"]
        for found, expected in zip((rows.A0, rows.B0), anchor, strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0 if exact else 1e-6)


KINDS = ["qwen2-tied", "gemma3", "gpt2", "phi3", "mistral", "qwen3_moe", "mixtral"]
PAIRS = [
    (kind, method)
    for kind in KINDS
    for method in ("rlpo", "pissa", "rlpo+dora", "miss")
    if (kind, method) != ("gpt2", "miss")  # PEFT's MiSS knows no Conv1D
]


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "model"])
@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_other_architectures(kind, method, whole, tmp_path):
    """Transposed, fused, tied and expert weights: the update is what merging adds."""
    experts = kind in ("qwen3_moe", "mixtral")
    attention = kind == "gemma3" or (experts and method != "rlpo")
    save_model(kind, tmp_path / "base")
    base = models.load_model(str(tmp_path / "base"), "float32", "cpu")
    targets = ["q_proj", "v_proj"] if attention else "all-linear"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapters.adapt(base, method, rank=RANK, alpha=8, target_modules=targets)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        expected = merged_weights(model)
        write = adapters.write_merged if whole else adapters.export_plain
        write(model, tmp_path / "a")
        layouts = Layouts(open_checkpoint(str(tmp_path / "base")))
        saved = (open_model if whole else open_adapter)(tmp_path / "a", layouts)
    names = {slot.name for slot in adapters.slots_of(model)}
    assert set(saved.sources) >= names
    for name in saved.sources:
        source = saved.sources[name]
        W = source.read(layouts.checkpoint).float()
        slot = source.slot
        after = expected[slot.key]
        after = after[slot.expert] if slot.expert is not None else after
        after = after.mT if slot.transposed else after
        update = saved.update(name, W)
        assert float((W + dense(update) - after).abs().max()) < 3e-6, name
        assert bool(update.norm() > 1e-4) == (name in names)


def test_any_lora_of_peft_is_read_with_its_own_ranks_and_scales(tmp_path, checkpoint, layouts):
    model = models.load_model("tiny", "float32", "cpu")
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True,
        init_lora_weights=False, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3},
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "a")
    expected = merged_weights(adapted)
    saved = open_adapter(tmp_path / "a", layouts)
    assert len(saved.sources) == 6
    for name, source in saved.sources.items():
        W = source.read(checkpoint).float()
        torch.testing.assert_close(
            (W + dense(saved.update(name, W))).float(), expected[f"{name}.weight"]
        )
        assert len(saved.rows(name).A) == (2 if "q_proj" in name else 4)


def test_a_whole_model_is_its_difference(tmp_path, checkpoint, layouts):
    model = trained("pissa")
    adapters.write_merged(model, tmp_path / "m")
    expected = merged_weights(model)
    saved = open_model(tmp_path / "m", layouts)
    assert len(saved.sources) == 21
    for name, source in saved.sources.items():
        W = source.read(checkpoint).float()
        difference = expected[f"{name}.weight"] - W
        torch.testing.assert_close(dense(saved.update(name, W)).float(), difference)


def test_weights_trained_in_place(tmp_path, checkpoint, layouts):
    name = "model.layers.1.self_attn.q_proj"
    W = layouts.linear()[name].read(checkpoint).float()
    save_file({f"model/{name}.weight": W + 1, "model/model.norm.weight": W[0]}, tmp_path / "x")
    saved = open_exact(tmp_path, tmp_path / "x", layouts)
    assert list(saved.sources) == [name]
    torch.testing.assert_close(dense(saved.update(name, W)).float(), torch.ones_like(W))


def broken(folder, change):
    """The adapter's file with its tensors changed."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors, sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, k: t.pop(k), "lora_A.weight is missing in the folder, and 0 more"),
        (lambda t, k: t.update({"x.lora_A.weight": t[k].clone()}), "x.lora_A.weight has no place"),
        (lambda t, k: t.update({k: t[k][:, :-1].contiguous()}), "has shape .* base needs"),
        (lambda t, k: t[k].fill_(float("nan")), "holds NaN or Inf; the run diverged"),
    ],
)
def test_factors_that_do_not_fit_or_are_not_finite(change, words, tmp_path, checkpoint, layouts):
    adapters.export_plain(trained("lora"), tmp_path / "a")
    broken(tmp_path / "a", change)

    def read_all():
        saved = open_adapter(tmp_path / "a", layouts)
        for name, source in saved.sources.items():
            saved.update(name, source.read(checkpoint))

    with pytest.raises(ValueError, match=words) as error:
        read_all()
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a") in str(error.value)


@pytest.mark.parametrize("method", ["miss", "adalora"])
def test_nan_in_a_structure(method, tmp_path, layouts):
    adapters.export_plain(trained(method), tmp_path / "a")
    broken(tmp_path / "a", lambda t, k: t[k].fill_(float("nan")))
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        open_adapter(tmp_path / "a", layouts)


def test_norms_have_no_geometry(tmp_path, layouts):
    adapters.export_plain(trained("ln"), tmp_path / "a")
    with pytest.raises(ValueError, match="LN_TUNING changes no weight matrix"):
        open_adapter(tmp_path / "a", layouts)


def test_an_adapter_of_another_model(tmp_path, layouts):
    adapters.export_plain(trained("lora"), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_modules": ["c_attn"]}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit the base: Target modules .*c_attn"):
        open_adapter(tmp_path / "a", layouts)


def test_a_model_of_other_layers(tmp_path, layouts):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"does not fit the base: .* is missing in the folder"):
        open_model(tmp_path / "m", layouts)


def test_peft_reads_what_we_read(tmp_path, checkpoint, layouts):
    """The function in PEFT and the update here come from the same file."""
    adapters.export_plain(trained("pissa"), tmp_path / "a")
    base = models.load_model("tiny", "float32", "cpu")
    model = PeftModel.from_pretrained(base, str(tmp_path / "a")).merge_and_unload()
    saved = open_adapter(tmp_path / "a", layouts)
    for name, source in saved.sources.items():
        W = source.read(checkpoint).float()
        torch.testing.assert_close(
            (W + dense(saved.update(name, W))).float(), model.get_submodule(name).weight
        )


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_peft_starts_that_change_the_base_are_refused(start, tmp_path, layouts):
    model = models.load_model("tiny", "float32", "cpu")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start)
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=f"{start}.*path_initial_model_for_weight_conversion"):
        open_adapter(tmp_path / "a", layouts)


def test_what_is_no_update_of_a_linear_weight_is_named(tmp_path, layouts):
    model = models.load_model("tiny", "float32", "cpu")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"], bias="all"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, config).save_pretrained(tmp_path / "a")
    saved = open_adapter(tmp_path / "a", layouts)
    assert len(saved.sources) == 3
    assert [note.split(": ", 1)[1] for note in saved.notes] == [
        "trained copies of norm are not measured",
        "updates of embeddings are not measured",
        "trained biases are not measured",
    ]


def test_an_adapter_of_tokens_alone_has_no_geometry(tmp_path, layouts):
    from peft import TrainableTokensConfig

    model = models.load_model("tiny", "float32", "cpu")
    config = TrainableTokensConfig(token_indices=[1, 2], target_modules=["embed_tokens"])
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="changes no weight of a linear layer"):
        open_adapter(tmp_path / "a", layouts)


def test_another_name_of_the_base_is_no_warning(tmp_path, layouts):
    adapters.export_plain(trained("lora"), tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_adapter(tmp_path / "a", layouts)
    assert not [str(one.message) for one in caught if "renamed" in str(one.message)]
