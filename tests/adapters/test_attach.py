import copy
import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import adamw_steps, gradients, logits, make_model, snapshot, token_ids
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

import orthora
from orthora import methods
from orthora.adapters import AnchoredLinear, adapted_layers, weight_of
from orthora.adapters.starts import module_seed

RANK, ALPHA, SEED = 4, 6.0, 3
NAMES = orthora.methods("initialisation")
ANCHORED = [name for name in NAMES if methods.get(name).anchored]
RANDOM = {"lora", "lora-gaussian"}
FAMILIES = ["qwen2", "llama", "gpt2"]
FACTORS = ("lora_A", "lora_B", "anchor_A", "anchor_B")
BOTH_PATHS = ["rlpo", "pissa"]  # without and with an anchor


def adapt(model, method="rlpo", **options):
    return orthora.adapt(model, method, **{"rank": RANK, "alpha": ALPHA, "seed": SEED} | options)


def base_part(values):
    """The base model's own parameters, under the names they had before ``adapt``."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in values.items()
        if not re.search(r"\.(lora|anchor)_[AB]\.", name)
    }


def part(values, kind):
    return {name: value for name, value in values.items() if f".{kind}." in name}


def equal(first, second):
    """Bit by bit, and by name."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def linear_names(model, but=("lm_head",)):
    """Linear layers, found without PEFT."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.split(".")[-1] not in but
    ]


def matrix(model, name):
    """W of y = W x in a model without adapters."""
    module = model.get_submodule(name)
    return module.weight.detach().mT if isinstance(module, Conv1D) else module.weight.detach()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=NAMES)
def run(request, family):
    """One model before adapt, at step 0, and after three AdamW steps; no test changes it."""
    base = make_model(family)
    seen = SimpleNamespace(family=family, method=request.param)
    seen.anchored = methods.get(request.param).anchored
    seen.base, seen.base_logits = snapshot(base), logits(base)
    seen.targets = linear_names(base)
    seen.model = adapt(base, request.param)
    seen.start, seen.start_logits = snapshot(seen.model), logits(seen.model)
    with seen.model.disable_adapter():
        seen.start_disabled = logits(seen.model)
    seen.first_gradients = gradients(seen.model)
    adamw_steps(seen.model, 3)
    seen.end, seen.end_logits = snapshot(seen.model), logits(seen.model)
    with seen.model.disable_adapter():
        seen.end_disabled = logits(seen.model)
    return seen


def test_the_start_is_the_base_function_bit_by_bit(run):
    assert torch.equal(run.start_logits, run.base_logits)


def test_training_changes_the_function(run):
    assert (run.end_logits - run.base_logits).abs().max() > 1e-2


def test_disabled_adapters_are_the_base_bit_by_bit_before_and_after_training(run):
    assert torch.equal(run.start_disabled, run.base_logits)
    assert torch.equal(run.end_disabled, run.base_logits)


def test_base_weights_are_never_written(run):
    assert equal(base_part(run.start), run.base)
    assert equal(base_part(run.end), run.base)


def test_anchors_are_the_start_and_never_move(run):
    prefix = "base_model.model."
    expected = {
        f"{prefix}{name}.anchor_{letter}.default.weight"
        for name in run.targets
        for letter in "AB"
        if run.anchored
    }
    anchors = {n: p for n, p in run.model.named_parameters() if ".anchor_" in n}
    assert anchors.keys() == expected
    for name, anchor in anchors.items():
        assert not anchor.requires_grad
        assert torch.equal(anchor, run.start[name.replace("anchor", "lora")])
        assert torch.equal(anchor, run.start[name])


def test_exactly_the_factors_of_the_targeted_modules_train(run):
    prefix = "base_model.model."
    expected = {
        f"{prefix}{name}.lora_{letter}.default.weight" for name in run.targets for letter in "AB"
    }
    assert {n for n, p in run.model.named_parameters() if p.requires_grad} == expected
    assert run.first_gradients.keys() == expected
    moved = {name for name in run.end if not torch.equal(run.end[name], run.start[name])}
    assert moved == expected
    assert {run.end[name].dtype for name in expected} == {torch.float32}


def test_the_first_gradient_of_A_is_zero_exactly_where_B_starts_at_zero(run):
    for name, gradient in run.first_gradients.items():
        if ".lora_A." in name:
            assert bool(gradient.any()) == run.anchored
            assert bool(run.start[name.replace("lora_A", "lora_B")].any()) == run.anchored
        else:
            assert bool(gradient.any())


def test_the_factors_are_the_methods_of_the_weight_seeded_by_module_name(run):
    base = make_model(run.family)
    for name, layer in adapted_layers(run.model).items():
        A, B = orthora.initialize(
            matrix(base, name), run.method, RANK, scale=ALPHA / RANK, seed=module_seed(SEED, name)
        )
        assert torch.equal(run.start[f"base_model.model.{name}.lora_A.default.weight"], A)
        assert torch.equal(run.start[f"base_model.model.{name}.lora_B.default.weight"], B)
        assert torch.equal(weight_of(layer), matrix(base, name))


def test_the_record_says_how_the_adapter_was_started(run):
    record = run.model.orthora
    assert (record.method, record.rank, record.alpha) == (run.method, RANK, ALPHA)
    assert (record.target_modules, record.seed) == ("all-linear", SEED)
    assert record.modules == tuple(run.targets) == tuple(adapted_layers(run.model))


@pytest.mark.parametrize("safe", [False, True])
def test_merging_keeps_the_trained_function_and_unmerging_restores_the_base(run, safe):
    model = copy.deepcopy(run.model)
    model.merge_adapter(safe_merge=safe)
    assert (logits(model) - run.end_logits).abs().max() <= 1e-5
    model.unmerge_adapter()
    assert (logits(model) - run.end_logits).abs().max() <= 1e-5
    for name, weight in base_part(snapshot(model)).items():
        assert (weight - run.base[name]).abs().max() <= 1e-6


def test_merge_and_unload_is_the_trained_function_in_the_plain_architecture(run):
    merged = copy.deepcopy(run.model).merge_and_unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    assert snapshot(merged).keys() == run.base.keys()
    assert (logits(merged) - run.end_logits).abs().max() <= 1e-5


def test_unload_gives_the_base_back_bit_by_bit(run):
    bare = copy.deepcopy(run.model).unload()
    assert equal(snapshot(bare), run.base)
    assert torch.equal(logits(bare), run.base_logits)


@pytest.mark.parametrize("method", NAMES)
def test_bfloat16_bases_are_read_not_rounded_and_start_exactly(method, family):
    base = make_model(family, torch.bfloat16)
    weights, before = snapshot(base), logits(base)
    model = adapt(base, method)
    assert equal(base_part(snapshot(model)), weights)
    assert torch.equal(logits(model), before)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    adamw_steps(model, 3)
    assert not torch.equal(logits(model), before)
    assert equal(base_part(snapshot(model)), weights)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("method", NAMES)
def test_dropout_leaves_the_start_exact_even_while_training(method, family):
    base = make_model(family)
    before = logits(base)
    model = adapt(base, method, dropout=0.5).train()
    assert torch.equal(model(input_ids=token_ids()).logits, before)
    adamw_steps(model, 3)
    first, second = (model.train()(input_ids=token_ids()).logits for _ in range(2))
    assert not torch.equal(first, second)  # dropout was on


@pytest.mark.parametrize("method", BOTH_PATHS)
@pytest.mark.parametrize(
    ("kind", "targets", "pattern"),
    [
        ("qwen2", "all-linear", r".*_proj"),
        ("qwen2", ["q_proj", "down_proj"], r".*\.(q_proj|down_proj)"),
        ("qwen2", ["layers.1.mlp.up_proj"], r".*\.1\.mlp\.up_proj"),
        ("qwen2", r".*layers\.1\.(self_attn|mlp)\.[kvg]\w+", r".*\.1\..*\.(k|v|gate)_proj"),
        ("qwen2", ["v_proj", "lm_head"], r".*\.v_proj|lm_head"),
        ("qwen3", "all-linear", r".*_proj"),
        ("llama", "all-linear", r".*_proj"),
        ("gpt2", ["c_attn"], r".*\.c_attn"),
        ("gpt2", "all-linear", r".*\.c_(attn|proj|fc)"),
        ("phi3", "all-linear", r".*_proj"),
        ("qwen3_moe", ["q_proj", "o_proj"], r".*\.[qo]_proj"),
    ],
)
def test_targets_are_what_was_asked_for_and_nothing_else(kind, targets, pattern, method):
    base = make_model(kind)
    before = logits(base)
    expected = [n for n in linear_names(base, but=()) if re.fullmatch(pattern, n)]
    model = adapt(base, method, target_modules=targets)
    assert list(adapted_layers(model)) == expected != []
    assert torch.equal(logits(model), before)
    asked = targets if isinstance(targets, str) else tuple(targets)
    assert model.orthora.target_modules == asked


@pytest.mark.parametrize("method", NAMES)
def test_a_fused_projection_is_one_matrix_with_one_adapter(method):
    base = make_model("phi3")
    shapes = {name: tuple(matrix(base, name).shape) for name in linear_names(base)}
    layers = adapted_layers(adapt(base, method))
    assert {n: (layer.out_features, layer.in_features) for n, layer in layers.items()} == shapes
    assert shapes["model.layers.0.self_attn.qkv_proj"] == (32 + 16 + 16, 32)
    for name, layer in layers.items():
        m, n = shapes[name]
        assert layer.lora_A["default"].weight.shape == (RANK, n)
        assert layer.lora_B["default"].weight.shape == (m, RANK)


@pytest.mark.parametrize("method", NAMES)
def test_a_tied_head_as_target_leaves_the_embeddings_alone(method):
    base = make_model("qwen2-tied")
    weights, before = snapshot(base), logits(base)
    model = adapt(base, method, target_modules=["q_proj", "lm_head"])
    assert "lm_head" in adapted_layers(model)
    assert torch.equal(logits(model), before)
    adamw_steps(model, 3)
    assert torch.equal(base.get_input_embeddings().weight, weights["model.embed_tokens.weight"])
    assert equal(base_part(snapshot(model)), weights)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("method", NAMES)
def test_a_modules_start_depends_on_no_other_module(method):
    def factors(targets):
        layers = adapted_layers(adapt(make_model("qwen2"), method, target_modules=targets))
        return {
            name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            for name, layer in layers.items()
        }

    everything = factors("all-linear")
    for targets in (["q_proj", "up_proj"], ["up_proj", "q_proj"], ["layers.1.self_attn.q_proj"]):
        for name, (A, B) in factors(targets).items():
            assert torch.equal(A, everything[name][0])
            assert torch.equal(B, everything[name][1])


@pytest.mark.parametrize("name", ["q_proj", "self_attn.q_proj", "layers.1.self_attn.q_proj"])
def test_one_name_may_come_without_a_list(name):
    alone, listed = (adapt(make_model("qwen2"), target_modules=t) for t in (name, [name]))
    assert adapted_layers(alone).keys() == adapted_layers(listed).keys() != set()
    assert equal(snapshot(alone), snapshot(listed))


@pytest.mark.parametrize("method", NAMES)
def test_the_seed_changes_the_random_methods_and_no_other(method):
    first, again, other = (
        snapshot(adapt(make_model("qwen2"), method, seed=seed)) for seed in (0, 0, 1)
    )
    assert equal(first, again)
    for name in part(first, "lora_A"):
        assert torch.equal(first[name], other[name]) == (method not in RANDOM)
    assert equal(part(first, "lora_B"), part(other, "lora_B"))


def test_modules_of_one_shape_draw_different_random_factors():
    model = adapt(make_model("qwen2"), "lora")
    drawn = [v for v in part(snapshot(model), "lora_A").values() if v.shape == (RANK, 32)]
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(len(drawn)) for j in range(i))


@pytest.mark.parametrize("method", NAMES)
def test_the_global_random_state_neither_matters_nor_moves_the_start(method):
    torch.manual_seed(1)
    first = snapshot(adapt(make_model("qwen2"), method))
    torch.manual_seed(2)
    assert equal(first, snapshot(adapt(make_model("qwen2"), method)))


@pytest.mark.parametrize("name", NAMES)
def test_aliases_and_spelling_name_the_same_start(name):
    start = snapshot(adapt(make_model("qwen2"), name))
    for other in (*methods.get(name).aliases, name.upper().replace("-", "_")):
        model = adapt(make_model("qwen2"), other)
        assert equal(snapshot(model), start)
        assert model.orthora.method == name


def spoil(name, value):
    """Write a bad number into one weight."""

    def prepare(model):
        with torch.no_grad():
            model.get_submodule(name).weight[1, 2] = value
        return model

    return prepare


def spoil_expert(model):
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 1, 1] = math.nan
    return model


def mark_quantised(model):
    model.quantization_method = "bitsandbytes"
    return model


def mark_quantised_flag(model):
    model.is_quantized = True
    return model


def one_on_meta(model):
    model.model.layers[1].mlp.up_proj.to("meta")
    return model


def unchanged(model):
    return model


DOWN = "model.layers.1.mlp.down_proj"
REFUSED = {
    "unknown method": ("qwen2", unchanged, {"method": "pisa"}, ["'pisa'", "'pissa'", "olora-qr"]),
    "rank too large": (
        "qwen2",
        unchanged,
        {"rank": 17},
        ["17", "model.layers.0.self_attn.k_proj", "(16, 32)", "at most 16"],
    ),
    "rank 0": ("qwen2", unchanged, {"rank": 0}, ["rank", "0"]),
    "rank negative": ("qwen2", unchanged, {"rank": -2}, ["rank", "-2"]),
    "rank no int": ("qwen2", unchanged, {"rank": 2.5}, ["rank", "2.5"]),
    "rank a bool": ("qwen2", unchanged, {"rank": True}, ["rank", "True"]),
    "alpha 0": ("qwen2", unchanged, {"alpha": 0}, ["alpha", "0"]),
    "alpha negative": ("qwen2", unchanged, {"alpha": -1.5}, ["alpha", "-1.5"]),
    "alpha NaN": ("qwen2", unchanged, {"alpha": math.nan}, ["alpha", "nan"]),
    "dropout 1": ("qwen2", unchanged, {"dropout": 1.0}, ["dropout", "1.0"]),
    "no module matched": (
        "qwen2",
        unchanged,
        {"target_modules": ["query"]},
        ["query", "q_proj", "down_proj"],
    ),
    "regex without match": (
        "qwen2",
        unchanged,
        {"target_modules": r".*\.query"},
        ["query", "q_proj", "down_proj"],
    ),
    "one name unmatched": (
        "qwen2",
        unchanged,
        {"target_modules": ["q_proj", "value"]},
        ["'value'", "q_proj"],
    ),
    "embedding": (
        "qwen2",
        unchanged,
        {"target_modules": ["q_proj", "embed_tokens"]},
        ["model.embed_tokens", "Embedding"],
    ),
    "layer norm": (
        "qwen2",
        unchanged,
        {"target_modules": ["q_proj", "input_layernorm"]},
        ["input_layernorm"],
    ),
    "NaN": ("qwen2", spoil(DOWN, math.nan), {}, [DOWN, "NaN"]),
    "Inf": ("qwen2", spoil(DOWN, math.inf), {}, [DOWN, "Inf"]),
    "meta": ("qwen2", one_on_meta, {}, ["meta", "model.layers.1.mlp.up_proj.weight"]),
    "fused experts": (
        "qwen3_moe",
        unchanged,
        {"method": "pissa"},
        ["anchored", "experts", "down_proj", "target_modules"],
    ),
    "dropout on experts": ("qwen3_moe", unchanged, {"dropout": 0.1, "method": "rlpo"}, ["dropout"]),
    "experts by their old names": (
        "qwen3_moe",
        unchanged,
        {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
        ["experts"],
    ),
    "experts by name": (
        "qwen3_moe",
        unchanged,
        {"method": "pissa", "target_modules": ["q_proj", "experts"]},
        ["experts"],
    ),
    "NaN in an expert": (
        "qwen3_moe",
        spoil_expert,
        {"method": "rlpo"},
        ["model.layers.1.mlp.experts.2.down_proj", "1 NaN"],
    ),
    "experts by a pattern": (
        "qwen3_moe",
        unchanged,
        {"target_modules": r".*(q|gate|up|down)_proj"},
        ["experts", "list of names"],
    ),
    "dense layers beside experts": (
        "qwen3_moe-dense",
        unchanged,
        {"method": "rlpo", "target_modules": ["gate_proj", "up_proj", "down_proj"]},
        ["skipped 3", "model.layers.0.mlp.gate_proj"],
    ),
    "one dense name beside experts": (
        "qwen3_moe-dense",
        unchanged,
        {"method": "rlpo", "target_modules": ["q_proj", "down_proj"]},
        ["skipped 1", "model.layers.0.mlp.down_proj"],
    ),
    "everything, dense beside experts": (
        "qwen3_moe-dense",
        unchanged,
        {"method": "rlpo"},
        ["skipped 3", "model.layers.0.mlp.gate_proj", "all-linear"],
    ),
    "no pattern": ("qwen2", unchanged, {"target_modules": "(q"}, ["'(q'", "regular expression"]),
    "rank above every side": (
        "qwen2",
        unchanged,
        {"rank": 33, "unfit": "skip"},
        ["rank 33", "at most 32"],
    ),
    "unknown unfit": ("qwen2", unchanged, {"unfit": "drop"}, ["'drop'", "refuse, lower, skip"]),
    "experts with another rank": (
        "qwen3_moe",
        unchanged,
        {"method": "rlpo", "rank": 25, "unfit": "lower", "target_modules": ["experts"]},
        ["fused experts", "at most 24"],
    ),
    "router": (
        "qwen3_moe",
        unchanged,
        {"target_modules": ["q_proj", "mlp.gate"]},
        ["model.layers.0.mlp.gate"],
    ),
    "quantised by method": ("qwen2", mark_quantised, {}, ["quantised", "bitsandbytes"]),
    "quantised by flag": ("qwen2", mark_quantised_flag, {}, ["quantised"]),
}


def condition(model):
    """All that a refusal must leave as it was."""
    meta = any(p.is_meta for p in model.parameters())
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "trained": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "state": list(model.state_dict()),
        "weights": None if meta else snapshot(model),
        "logits": None if meta else logits(model),
        "attributes": set(vars(model)),
    }


def assert_same_condition(after, before):
    for key in ("modules", "trained", "state", "attributes"):
        assert after[key] == before[key]
    if before["logits"] is not None:
        torch.testing.assert_close(
            after["logits"], before["logits"], rtol=0, atol=0, equal_nan=True
        )
        torch.testing.assert_close(
            after["weights"], before["weights"], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("method", BOTH_PATHS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_cause_and_leaves_the_model_as_it_was(case, method):
    kind, prepare, options, words = REFUSED[case]
    model = prepare(make_model(kind))
    model.get_input_embeddings().weight.requires_grad_(False)  # a pattern that must survive
    before = condition(model)
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        adapt(model, **{"method": method} | options)
    assert all(word in str(raised.value) for word in words)
    assert_same_condition(condition(model), before)


def test_what_is_no_model_is_refused_by_its_type():
    with pytest.raises(ValueError, match="got str"):
        orthora.adapt("qwen2")


@pytest.mark.parametrize("method", NAMES)
def test_after_a_refusal_the_model_can_be_adapted_as_if_nothing_had_been(method):
    refused = make_model("qwen2")
    with pytest.raises(ValueError, match="rank 17"):
        adapt(refused, method, rank=17)
    model, fresh = adapt(refused, method), adapt(make_model("qwen2"), method)
    assert equal(snapshot(model), snapshot(fresh))
    assert list(model.peft_config) == list(fresh.peft_config) == ["default"]


@pytest.mark.parametrize("first", BOTH_PATHS)
@pytest.mark.parametrize("second", BOTH_PATHS)
def test_a_model_that_carries_adapters_is_refused_and_keeps_them(first, second):
    base = make_model("qwen2")
    model = adapt(base, first)
    adamw_steps(model, 1)
    before = condition(model)
    for carrier in (model, base):
        with pytest.raises(ValueError, match="already carries adapters"):
            adapt(carrier, second)
        assert_same_condition(condition(model), before)


@pytest.mark.parametrize("method", NAMES)
def test_after_merge_and_unload_a_model_can_be_adapted_again(method):
    model = adapt(make_model("qwen2"), method)
    adamw_steps(model, 3)
    merged = model.merge_and_unload()
    before = logits(merged)
    assert torch.equal(logits(adapt(merged, method)), before)


def test_a_batch_that_mixes_adapters_by_row_is_refused_by_anchored_methods():
    model = adapt(make_model("qwen2"), "pissa")
    model.eval()
    with pytest.raises(ValueError, match="adapter_names"):
        model(input_ids=token_ids(), adapter_names=["default", "__base__"])


@pytest.mark.parametrize("method", ANCHORED)
def test_every_layer_of_an_anchored_method_is_anchored(method, family):
    layers = adapted_layers(adapt(make_model(family), method))
    assert all(isinstance(layer, AnchoredLinear) for layer in layers.values())


@pytest.mark.parametrize("method", ANCHORED)
def test_an_anchored_layer_computes_the_weight_plus_the_scaled_difference(method, family):
    base = make_model(family)
    weights = {name: matrix(base, name).clone() for name in linear_names(base)}
    model = adapt(base, method)
    adamw_steps(model, 3)
    generator = torch.Generator().manual_seed(0)
    for name, layer in adapted_layers(model).items():
        pick = {k: getattr(layer, k)["default"].weight.detach().double() for k in FACTORS}
        update = pick["lora_B"] @ pick["lora_A"] - pick["anchor_B"] @ pick["anchor_A"]
        effective = weights[name].double() + ALPHA / RANK * update
        x = torch.randn(5, effective.shape[1], generator=generator)
        bias = layer.get_base_layer().bias
        expected = x.double() @ effective.mT + (0.0 if bias is None else bias.detach().double())
        with torch.no_grad():
            assert (layer(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("targets", ["all-linear", ["experts"], ["q_proj", "down_proj"]])
@pytest.mark.parametrize("method", ["rlpo", "rlmo", "lora"])
def test_fused_experts_start_as_the_base_and_train(kind, targets, method):
    base = make_model(kind)
    weights, before = snapshot(base), logits(base)
    model = adapt(base, method, target_modules=targets)
    assert torch.equal(logits(model), before)
    start = snapshot(model)
    adamw_steps(model, 3)
    end = snapshot(model)
    assert {n for n in end if not torch.equal(end[n], start[n])} <= part(end, "lora_A").keys() | (
        part(end, "lora_B").keys()
    )
    assert all(not torch.equal(end[n], start[n]) for n in part(end, "lora_B"))
    assert (logits(model) - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert equal(snapshot(model.unload()), weights)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_every_expert_is_a_weight_of_its_own_in_the_record(kind):
    record = adapt(make_model(kind)).orthora
    experts = [name for name in record.modules if ".experts." in name]
    assert len(experts) == len(set(experts)) == 2 * 4 * 2  # layers, experts, parts
    assert "model.layers.1.mlp.experts.3.gate_up_proj" in experts


def test_experts_on_a_rounded_base_are_warned_of_and_nothing_else_is():
    with pytest.warns(UserWarning, match=r"base weight in torch.bfloat16.*float32"):
        adapt(make_model("qwen3_moe", torch.bfloat16))
    for kind, dtype, targets in [
        ("qwen3_moe", torch.float32, "all-linear"),
        ("qwen3_moe", torch.bfloat16, ["q_proj"]),
        ("qwen2", torch.bfloat16, "all-linear"),
    ]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapt(make_model(kind, dtype), target_modules=targets)
        assert not [w for w in caught if "fused experts" in str(w.message)]


@pytest.mark.parametrize("method", ["rlpo", "rlmo", "lora"])
@pytest.mark.parametrize("unfit", ["lower", "skip"])
def test_modules_below_the_rank_get_less_or_nothing_at_the_same_scale(unfit, method):
    base = make_model("qwen2")
    before = logits(base)
    model = adapt(base, method, rank=20, alpha=50, unfit=unfit)
    ranks = {name: layer.r["default"] for name, layer in adapted_layers(model).items()}
    assert len(ranks) == (14 if unfit == "lower" else 10)
    for name, layer in adapted_layers(model).items():
        assert ranks[name] == (16 if re.search(r"\.[kv]_proj", name) else 20)
        assert math.isclose(layer.scaling["default"], 2.5)
    assert torch.equal(logits(model), before)
    adamw_steps(model, 2)
    assert (logits(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["rlpo", "rlmo"])
def test_the_number_of_threads_does_not_change_a_bit(method):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = snapshot(adapt(make_model("qwen2-medium", torch.bfloat16), method))
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        one = snapshot(adapt(make_model("qwen2-medium", torch.bfloat16), method))
    finally:
        torch.set_num_threads(threads)
    assert equal(several, one)
