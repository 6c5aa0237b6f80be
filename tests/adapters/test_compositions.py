"""Every legal composition on small models: start, what trains, base policy, folding, exports."""

import re

import pytest
import torch
from conftest import make_model, some_compositions
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import orthora
from orthora.adapters import base_policy, dense_of, folded, merged_parameters, own_parameters
from orthora.adapters.dense import restore_frozen
from orthora.methods import compose, compositions

RANK, ALPHA = 4, 6
TOKENS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
KINDS = ("qwen2", "gpt2")
SLOW = pytest.mark.slow
CASES = [
    pytest.param(kind, name, marks=() if name in some_compositions() else SLOW)
    for kind in KINDS
    for name in compositions()
    if (kind, name) != ("gpt2", "miss")
]
every_case = pytest.mark.parametrize(("kind", "name"), CASES)

TRAINED = {  # written out, not read from the package
    "lora": r"\.lora_[AB]\.default\.weight$",
    "dora": r"\.(lora_[AB]|lora_magnitude_vector)\.default\.weight$",
    "adalora": r"\.lora_[ABE]\.default$",
    "vera": r"\.vera_lambda_[bd]\.default$",
    "miss": r"\.miss_block\.default$",
    "ia3": r"\.ia3_l\.default$",
    "ln": r"norm.*\.ln_tuning_layers\.default\.weight$|ln_.*\.ln_tuning_layers\.default\.\w+$",
    "full": r".",
    "safe-mask": r"(_proj|c_attn|c_fc|c_proj)\.weight$",
}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def adapted(kind: str, name: str, rank: int = RANK):
    return orthora.adapt(make_model(kind), name, rank=rank, alpha=ALPHA, total_updates=10)


def moved(model, size: float = 0.02):
    """The model after every trained value took a random step."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    restore_frozen(model)
    return model


@every_case
def test_the_start_is_the_base_function_exactly(kind, name):
    model = adapted(kind, name)
    assert torch.equal(logits(model), logits(make_model(kind)))
    assert model.orthora.method == name


@every_case
def test_exactly_the_stated_parameters_train(kind, name):
    model = adapted(kind, name)
    pattern = TRAINED[compose(name).structure]
    if name.endswith("lora-fa"):
        pattern = r"\.lora_B\.default\.weight$"
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if re.search(pattern, n)} != set()


@every_case
def test_the_base_policy_is_exact_after_training_and_leaves_no_trace(kind, name):
    model = moved(adapted(kind, name))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = logits(model)
    with base_policy(model):
        assert torch.equal(logits(model), logits(make_model(kind)))
    assert torch.equal(logits(model), trained)
    assert not torch.equal(trained, logits(make_model(kind)))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    flags = {n for n, p in model.named_parameters() if p.requires_grad}
    assert flags == {n for n, p in adapted(kind, name).named_parameters() if p.requires_grad}


def test_the_base_policy_can_be_nested_and_ends_with_an_error():
    model = moved(adapted("qwen2", "rlpo"))
    trained, plain = logits(model), logits(make_model("qwen2"))
    with base_policy(model):
        with base_policy(model):
            assert torch.equal(logits(model), plain)
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), trained)
    with pytest.raises(RuntimeError, match="of the block"), base_policy(model):
        raise RuntimeError("of the block")
    assert torch.equal(logits(model), trained)


def test_the_base_policy_has_no_copy_of_a_module_that_peft_trains_whole():
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"])
    model = moved(get_peft_model(make_model("qwen2"), config))
    plain = logits(make_model("qwen2"))
    assert not torch.equal(logits(model), plain)
    with base_policy(model):
        assert torch.equal(logits(model), plain)


@every_case
def test_folding_is_the_same_function_and_leaves_no_trace(kind, name):
    model = moved(adapted(kind, name))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained, base = logits(model), logits(make_model(kind))
    with folded(model):
        inside = logits(model)
    change = float((trained - base).abs().max())
    assert float((inside - trained).abs().max()) <= 1e-5 + 1e-5 * change
    assert torch.equal(logits(model), trained)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@every_case
def test_merged_parameters_are_the_base_models_by_name_and_shape(kind, name):
    model = moved(adapted(kind, name))
    found = {n: p.clone() for n, p in merged_parameters(model)}
    plain = make_model(kind)
    own = dict(plain.named_parameters())
    assert {n: p.shape for n, p in found.items()} == {n: p.shape for n, p in own.items()}
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(found[n])
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)


@every_case
def test_the_export_is_the_trained_function(kind, name, tmp_path):
    """In plain PEFT where it has a form for it, and merged in any case."""
    model = moved(adapted(kind, name))
    trained = logits(model)
    orthora.export_merged(model, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-5, atol=1e-5)
    if dense_of(model) is not None:
        with pytest.raises(ValueError, match="has no adapter; use export_merged"):
            orthora.export_plain(model, tmp_path / "plain")
        assert not (tmp_path / "plain").exists()
        return
    orthora.export_plain(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(make_model(kind), str(tmp_path / "plain")).eval()
    torch.testing.assert_close(logits(plain), trained, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("name", some_compositions())
def test_rank_one_works_everywhere(name):
    model = adapted("qwen2", name, rank=1)
    assert torch.equal(logits(model), logits(make_model("qwen2")))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    loss = moved(model)(TOKENS, labels=TOKENS).loss
    loss.backward()
    for n, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, n
            assert p.grad.isfinite().all()
    assert before


@pytest.mark.parametrize("name", some_compositions())
def test_what_a_checkpoint_must_hold_is_listed_once(name):
    """Own parameters and the base's make the whole model, and nothing is in both."""
    model = adapted("qwen2", name)
    own = dict(own_parameters(model))
    base = dict(make_model("qwen2").named_parameters())
    listed = [n for n, _ in own_parameters(model)]
    assert len(listed) == len(set(listed))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained <= set(own)
    if dense_of(model) is None:
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for n, p in own.items() if n in dict(model.named_parameters())
        ) + sum(p.numel() for p in base.values())


@pytest.mark.parametrize("name", ["dora", "rlpo+dora", "pissa+dora", "pissa+rslora", "ia3", "vera"])
def test_a_bfloat16_base_starts_exactly_too(name):
    base = make_model("qwen2", torch.bfloat16)
    expected = logits(base)
    model = orthora.adapt(base, name, rank=RANK, alpha=ALPHA)
    assert torch.equal(logits(model), expected)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("name", ["full", "safe-mask", "ln"])
def test_weights_that_train_in_low_precision_are_refused(name):
    with pytest.raises(ValueError, match="float32"):
        orthora.adapt(make_model("qwen2", torch.bfloat16), name, rank=RANK)


@pytest.mark.parametrize("name", ["dora", "adalora", "vera", "miss", "safe-mask"])
def test_fused_experts_that_would_be_passed_by_are_refused(name):
    with pytest.raises(ValueError, match="experts"):
        orthora.adapt(make_model("qwen3_moe"), name, rank=RANK, total_updates=10)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("name", ["rlpo", "lora+rslora", "full", "ln"])
def test_fused_experts_merge_and_fold(kind, name, tmp_path):
    model = moved(adapted(kind, name))
    trained = logits(model)
    with folded(model):
        torch.testing.assert_close(logits(model), trained, rtol=1e-5, atol=1e-5)
    orthora.export_merged(model, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("name", ["pissa", "geora+rslora", "olora-tail"])
def test_the_residual_form_is_the_trained_function_at_rank_r(kind, name, tmp_path):
    model = moved(adapted(kind, name))
    orthora.export_residual(model, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base").eval()
    plain = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    assert plain.peft_config["default"].r == RANK
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(plain), logits(plain))


@pytest.mark.parametrize(
    ("name", "reason"), [("rlpo", "no anchor|anchored"), ("pissa+dora", "DoRA")]
)
def test_the_residual_form_is_refused_where_there_is_none(name, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        orthora.export_residual(adapted("qwen2", name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merged_export_of_a_tied_head_is_refused(tmp_path):
    model = orthora.adapt(make_model("qwen2-tied"), "rlpo", rank=4, target_modules=["lm_head"])
    with pytest.raises(ValueError, match="tied head"):
        orthora.export_merged(model, tmp_path / "merged")
    with folded(model):  # stays as it is, which is right
        pass


def test_settings_that_a_structure_does_not_take_are_on_record():
    assert "alpha" in adapted("qwen2", "vera").orthora.overrides
    assert adapted("qwen2", "rlpo+dora").orthora.overrides == ""


@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "vera", "miss", "ia3"])
def test_structures_start_on_bfloat16_bases(name):
    model = orthora.adapt(make_model("qwen2", torch.bfloat16), name, rank=RANK, total_updates=10)
    trains = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trains
    assert not [key for key in trains if not re.search(TRAINED[name], key)]
    assert {p.dtype for _, p in model.named_parameters() if p.requires_grad} == {torch.float32}
