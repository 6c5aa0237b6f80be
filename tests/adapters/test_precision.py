"""A small update survives low precision: in the layer under autocast, and in the exported file."""

import copy

import pytest
import torch
from conftest import make_model, snapshot
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import orthora
from orthora.methods import registry

ANCHORED = [name for name in orthora.methods("initialisation") if registry.get(name).anchored]


def moved(model, step):
    """A copy of the adapted model with every factor moved by about ``step``."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A.default." in name or ".lora_B.default." in name:
                parameter += step * torch.randn(parameter.shape, generator=generator)
    return model


def layer_of(method):
    model = orthora.adapt(make_model("llama"), method, rank=4, alpha=8)
    return moved(model, 1e-4).get_submodule("base_model.model.model.layers.0.mlp.up_proj")


@pytest.mark.parametrize("method", ANCHORED)
def test_the_update_is_not_lost_under_bfloat16_autocast(method):
    layer = layer_of(method)
    x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact = layer._update("default", x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = layer._update("default", x)
    assert under.dtype == torch.float32
    assert torch.equal(under, exact)


@pytest.mark.parametrize("method", ANCHORED)
def test_the_update_equals_its_float64_value(method):
    layer = layer_of(method)
    A, B, A0, B0 = (t.double() for t in layer._factors("default"))
    x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = x.double() @ (B @ A - B0 @ A0).mT
        error = (layer._update("default", x).double() - wanted).norm() / wanted.norm()
        delta = layer.get_delta_weight("default").double() / layer.scaling["default"]
        merged = (delta - (B @ A - B0 @ A0)).norm() / (B @ A - B0 @ A0).norm()
    assert error < 1e-5
    assert merged < 1e-5


@pytest.mark.parametrize("method", ANCHORED)
def test_an_export_rounded_to_bfloat16_keeps_a_small_update(method, tmp_path):
    model = moved(orthora.adapt(make_model("llama"), method, rank=4, alpha=8), 1e-4)
    folder = orthora.export_plain(model, tmp_path / "plain")
    file = folder / "adapter_model.safetensors"
    rounded = {k: v.bfloat16().float() for k, v in load_file(file).items()}
    save_file(rounded, file, metadata={"format": "pt"})
    loaded = PeftModel.from_pretrained(make_model("llama"), folder)
    for name, module in model.named_modules():
        if isinstance(module, nn.Module) and hasattr(module, "anchor_A"):
            wanted = module.get_delta_weight("default")
            error = (loaded.get_submodule(name).get_delta_weight("default") - wanted).norm()
            assert error < 0.02 * wanted.norm(), name


@pytest.mark.parametrize("method", ANCHORED)
def test_training_goes_on_from_an_export_to_rounding_and_from_a_checkpoint_exactly(
    method, tmp_path
):
    model = moved(orthora.adapt(make_model("llama"), method, rank=4, alpha=8), 1e-2)
    model.save_pretrained(str(tmp_path / "checkpoint"))
    orthora.export_plain(model, tmp_path / "export")
    again = orthora.adapt(make_model("llama"), method, rank=4, alpha=8, seed=3)
    again.load_adapter(tmp_path / "checkpoint", "default")
    ours, theirs = snapshot(model), snapshot(again)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    again = orthora.adapt(make_model("llama"), method, rank=4, alpha=8, seed=3)
    again.load_adapter(tmp_path / "export", "default")
    theirs = snapshot(again)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize(
    "extra", [{"rank_pattern": {"q_proj": 1}}, {"alpha_pattern": {"q_proj": 1}}]
)
def test_variants_that_the_plain_form_cannot_hold_are_refused(extra):
    from peft import LoraConfig

    model = orthora.adapt(make_model("llama"), "pissa", rank=4)
    with pytest.raises(ValueError, match=next(iter(extra))):
        model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], **extra))
