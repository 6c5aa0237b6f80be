"""`orthora init` writes, from the files alone, what `adapt` computes on the loaded model."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import KINDS, adamw_steps, logits, save_model, save_squares, snapshot
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

import orthora
from orthora.adapters import init_adapter
from orthora.adapters.starts import module_seed
from orthora.methods import registry

RANK, ALPHA, SEED = 4, 6.0, 3
NAMES = orthora.methods("initialisation")
ANCHORED = [name for name in NAMES if registry.get(name).anchored]
PLAIN = [name for name in NAMES if name not in ANCHORED]
SPECTRAL = [name for name in NAMES if registry.get(name).spectral]
MOE = ["qwen3_moe", "mixtral"]
ADAPTER, STATE = "adapter_model.safetensors", "orthora_state.safetensors"
CONFIG, RECORD = "adapter_config.json", "orthora.json"
BF16, F32 = torch.bfloat16, torch.float32
ALL_METHODS = [("qwen2", BF16), ("qwen2", F32), ("gpt2", BF16), ("qwen3_moe", BF16)]
OTHERS = [(kind, BF16) for kind in KINDS if kind not in ("qwen2-medium", "qwen3_moe-dense")]
CASES = [(*case, method) for case in ALL_METHODS for method in NAMES] + [
    (*case, method)
    for case in (*OTHERS, ("gpt2", F32), ("mixtral", F32))
    for method in ("rlpo", "pissa", "olora-tail")
    if case not in ALL_METHODS
]
HASH = "0123456789abcdef0123456789abcdef01234567"


def init(model, method="rlpo", *, out, **options):
    options = {"rank": RANK, "alpha": ALPHA, "seed": SEED, "workers": 1} | options
    return init_adapter(str(model), method, out=out, **options)


def adapt(model, method="rlpo", **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PEFT adds the updates of fused experts")
        options = {"rank": RANK, "alpha": ALPHA, "seed": SEED} | options
        return orthora.adapt(model, method, **options)


def load(folder):
    """As stored: the dtype of the checkpoint."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def targets_for(kind, method):
    """Everything; but attention alone where anchored methods don't go with experts."""
    anchored_moe = kind in MOE and method in ANCHORED
    return ["q_proj", "o_proj"] if anchored_moe else "all-linear"


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def strict(path):
    """JSON without NaN or Infinity."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))


def config_of(folder):
    """``adapter_config.json``, lists sorted: PEFT writes sets in any order."""
    table = strict(Path(folder) / CONFIG)
    return {key: sorted(v) if isinstance(v, list) else v for key, v in table.items()}


def assert_same_adapter(first, second):
    """The same tensors bit by bit, and the same configuration but for the base's name."""
    for name in (ADAPTER, STATE):
        assert (first / name).is_file() == (second / name).is_file()
        if (first / name).is_file():
            assert equal(load_file(first / name), load_file(second / name))
    ours, theirs = config_of(first), config_of(second)
    for table in (ours, theirs):
        table.pop("base_model_name_or_path")
    assert ours == theirs


def matrix(model, entry):
    """W (m, n) of one weight's name, from a model without adapters."""
    expert = re.fullmatch(r"(.+)\.(\d+)\.(\w+)", entry)
    try:
        module = model.get_submodule(entry)
    except AttributeError:
        assert expert is not None
        stack = getattr(model.get_submodule(expert[1]), expert[3])
        return stack.detach()[int(expert[2])]
    return module.weight.detach().mT if isinstance(module, Conv1D) else module.weight.detach()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints by kind and dtype, each made once; no test changes one."""
    made = {}

    def save(kind, dtype=BF16):
        if (kind, dtype) not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind, dtype] = save_model(kind, folder / "model", dtype)
        return made[kind, dtype]

    return save


@pytest.fixture(scope="module")
def base(saved):
    """Untouched models and their logits, by kind and dtype."""
    made = {}

    def get(kind, dtype):
        if (kind, dtype) not in made:
            model = load(saved(kind, dtype))
            made[kind, dtype] = SimpleNamespace(
                kind=kind, folder=saved(kind, dtype), model=model, logits=logits(model)
            )
        return made[kind, dtype]

    return get


def title(case):
    return f"{case[0]}-{'bf16' if case[1] == BF16 else 'f32'}-{case[2]}"


@pytest.fixture(scope="module", params=CASES, ids=title)
def run(request, base, tmp_path_factory):
    """An adapter made by init and one made by adapt; no test changes them."""
    kind, dtype, method = request.param
    seen = SimpleNamespace(base=base(kind, dtype), method=method)
    seen.anchored = method in ANCHORED
    seen.targets = targets_for(kind, method)
    seen.out = tmp_path_factory.mktemp("init") / "adapter"
    seen.result = init(seen.base.folder, method, out=seen.out, target_modules=seen.targets)
    seen.model = adapt(load(seen.base.folder), method, target_modules=seen.targets)
    seen.record = strict(seen.out / RECORD)
    return seen


def of(methods):
    """``run`` for some methods only."""
    cases = [case for case in CASES if case[2] in methods]
    return pytest.mark.parametrize("run", cases, indirect=True, ids=title)


# The same as adapt


def test_init_writes_what_adapt_would_save(run, tmp_path):
    run.model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert_same_adapter(run.out, tmp_path)
    assert config_of(run.out) == config_of(tmp_path)


def test_the_folder_holds_these_files_and_no_others(run):
    files = {ADAPTER, CONFIG, RECORD} | ({STATE} if run.anchored else set())
    assert {path.name for path in run.out.iterdir()} == files
    assert [path.name for path in run.out.parent.iterdir()] == ["adapter"]
    for name in files & {ADAPTER, STATE}:
        with safe_open(run.out / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}  # noqa: SIM118


def test_plain_peft_loads_exactly_the_base_function(run):
    loaded = PeftModel.from_pretrained(load(run.base.folder), str(run.out))
    assert config_of(run.out)["init_lora_weights"] is True
    assert equal(
        {n.replace(".default", ""): t for n, t in loaded.state_dict().items() if ".lora_" in n},
        load_file(run.out / ADAPTER),
    )
    assert float((logits(loaded) - run.base.logits).abs().max()) == 0.0


@of(PLAIN)
def test_the_rows_of_A_are_the_methods_of_the_weight(run):
    tensors = load_file(run.out / ADAPTER)
    for name, entry in run.record["modules"].items():
        W = matrix(run.base.model, name)
        A, B = orthora.initialize(
            W, run.method, RANK, scale=ALPHA / RANK, seed=module_seed(SEED, name)
        )
        assert not B.any()
        path, row = name, 0
        expert = re.fullmatch(r"(.+\.experts)\.(\d+)\.(\w+)", name)
        if expert:  # PEFT hangs gate_up_proj inside down_proj
            path = expert[1] + (".base_layer" if expert[3] == "gate_up_proj" else "")
            row = int(expert[2]) * RANK
        held = tensors[f"base_model.model.{path}.lora_A.weight"]
        assert torch.equal(held[row : row + RANK], A)
        assert entry["shape"] == list(W.shape)


@of(ANCHORED)
def test_models_of_adapt_take_factors_and_anchors_from_the_folder(run):
    other = adapt(load(run.base.folder), "olora", target_modules=run.targets, seed=SEED + 1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if ".lora_" in name or ".anchor_" in name:
                parameter.zero_()
    other.load_adapter(run.out, "default")
    assert equal(snapshot(other), snapshot(run.model))
    assert torch.equal(logits(other), run.base.logits)


def test_training_goes_on_from_the_folder_in_plain_peft(run):
    loaded = PeftModel.from_pretrained(load(run.base.folder), str(run.out), is_trainable=True)
    trained = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in loaded.named_parameters() if ".lora_" in n}
    assert {p.dtype for p in loaded.parameters() if p.requires_grad} == {F32}
    before = snapshot(loaded)
    adamw_steps(loaded, 2)
    after = snapshot(loaded)
    assert {n for n in after if not torch.equal(after[n], before[n])} <= trained
    moved = [n for n in trained if ".lora_B." in n and not torch.equal(after[n], before[n])]
    assert len(moved) == sum(".lora_B." in n for n in trained)
    assert (logits(loaded) - run.base.logits).abs().max() > 1e-3
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), run.base.logits)


@pytest.mark.parametrize(("kind", "dtype", "warned"), [("mixtral", BF16, 1), ("mixtral", F32, 0)])
def test_experts_in_a_base_of_low_precision_are_warned_of(kind, dtype, warned, saved, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        init(saved(kind, dtype), out=tmp_path / "experts")
        init(saved(kind, dtype), out=tmp_path / "attention", target_modules=["q_proj"])
    assert sum("updates of fused experts" in str(one.message) for one in caught) == warned


@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("method", ["rlpo", "rlmo", "lora"])
@pytest.mark.parametrize("targets", [["experts"], ["down_proj"], ["gate_up_proj"], "all-linear"])
def test_every_expert_has_its_own_factors_inside_peft(kind, method, targets, saved, tmp_path):
    folder = saved(kind, F32)
    init(folder, method, out=tmp_path / "out", target_modules=targets)
    base, loaded = load(folder), PeftModel.from_pretrained(load(folder), str(tmp_path / "out"))
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for path, layer in loaded.named_modules():
        if not isinstance(layer, ParamWrapper):
            continue
        name = path.removeprefix("base_model.model.").removesuffix(".base_layer")
        held = layer.lora_B["default"].weight
        held.data.copy_(torch.randn(held.shape, generator=generator))
        delta = layer.get_delta_weight("default")
        experts, m, n = layer.get_param().shape
        for e in range(experts):
            entry = f"{name}.{e}.{layer.parameter_name}"
            W = matrix(base, entry)
            assert W.shape == (m, n) == delta[e].shape
            A, _ = orthora.initialize(
                W, method, RANK, scale=ALPHA / RANK, seed=module_seed(SEED, entry)
            )
            expected = ALPHA / RANK * held.data[:, e::experts] @ A
            torch.testing.assert_close(delta[e], expected, rtol=1e-5, atol=1e-5)
            seen += 1
    parts = 1 if isinstance(targets, list) and targets != ["experts"] else 2
    assert seen == 2 * 4 * parts  # layers, experts


def test_a_bfloat16_checkpoint_gives_the_bits_of_the_model_loaded_in_float32(saved, tmp_path):
    folder = saved("qwen2", BF16)
    for method in NAMES:
        init(folder, method, out=tmp_path / method)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=F32)
        adapt(model, method).save_pretrained(str(tmp_path / "adapt"), save_embedding_layers=False)
        assert equal(
            load_file(tmp_path / method / ADAPTER), load_file(tmp_path / "adapt" / ADAPTER)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["rlpo", "milora", "geora", "olora-qr"])
def test_other_dtypes_are_the_same_as_well(method, dtype, saved, tmp_path):
    init(saved("qwen2", dtype), method, out=tmp_path / "out")
    adapt(load(saved("qwen2", dtype)), method).save_pretrained(str(tmp_path / "adapt"))
    assert_same_adapter(tmp_path / "out", tmp_path / "adapt")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_models_that_see_are_adapted_in_both_towers(targets, tmp_path):
    """The checkpoint's names differ from the model's: ``language_model.model.layers...``."""
    text = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    image = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = Gemma3Config(
        text_config=text | heads,
        vision_config=image | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
    )
    Gemma3ForConditionalGeneration(config).to(BF16).save_pretrained(tmp_path / "model")
    result = init(tmp_path / "model", out=tmp_path / "out", target_modules=targets)
    assert {name.split(".")[1] for name in result.modules} == {"language_model", "vision_tower"}
    model = adapt(load(tmp_path / "model"), target_modules=targets)
    model.save_pretrained(str(tmp_path / "adapt"))
    assert_same_adapter(tmp_path / "out", tmp_path / "adapt")


def test_code_beside_the_weights_of_a_known_model_is_not_run(saved, tmp_path):
    folder = shutil.copytree(saved("phi3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit")
    init(folder, out=tmp_path / "out")
    init(saved("phi3"), out=tmp_path / "plain")
    assert_same_adapter(tmp_path / "out", tmp_path / "plain")


# The record


def test_the_record_has_one_entry_for_every_weight(run):
    record = run.record
    expected = {
        "method": run.method,
        "rank": RANK,
        "alpha": ALPHA,
        "target_modules": run.targets,
        "seed": SEED,
        "unfit": "refuse",
        "base_model": str(run.base.folder),
        "anchored": run.anchored,
        "device": "cpu",
        "orthora": orthora.__version__,
        "torch": torch.__version__,
    }
    assert {key: record[key] for key in expected} == expected
    assert record.keys() - expected.keys() == {"checkpoint", "seconds", "modules"}
    assert list(record["modules"]) == list(run.model.orthora.modules)
    stored = load_file(run.base.folder / "model.safetensors")
    used = []
    for name, entry in record["modules"].items():
        assert entry.keys() == {"shape", "rank", "tensors", "seconds", "norm", "subspaces"}
        W = torch.cat([stored[tensor] for tensor in entry["tensors"]])
        W = W.mT if run.base.kind == "gpt2" else W
        assert torch.equal(W, matrix(run.base.model, name))
        assert (entry["rank"], entry["shape"]) == (RANK, list(W.shape))
        assert bool(entry["subspaces"]) == (run.method in SPECTRAL)
        used += entry["tensors"]
    assert len(used) == len(set(used))
    assert json.loads(json.dumps(run.result.modules)) == record["modules"]


def test_the_norm_is_that_of_the_anchor(run):
    state = load_file(run.out / STATE) if run.anchored else {}
    for name, entry in run.record["modules"].items():
        norm = 0.0
        if run.anchored:
            A, B = (
                state[f"base_model.model.{name}.anchor_{letter}.weight"].double() for letter in "AB"
            )
            norm = float(torch.linalg.matrix_norm(B @ A))
        assert math.isclose(entry["norm"], norm, rel_tol=1e-6)


def check_subspace(subspace, W, V):
    """The recorded figures of rows V' of one end of W, against float64."""
    _, S, _ = torch.linalg.svd(W.double(), full_matrices=False)
    group = S[:RANK] if subspace["end"] == "top" else S[-RANK:]
    outside = S[RANK] if subspace["end"] == "top" else S[-RANK - 1]
    torch.testing.assert_close(
        torch.tensor(subspace["sigma"], dtype=torch.float64), group[[0, -1]], rtol=1e-5, atol=1e-7
    )
    inner = group[-1] if subspace["end"] == "top" else group[0]
    assert abs(subspace["gap"] - float((inner - outside).abs() / S[0])) <= 1e-5
    V = V.double()
    V = V / V.norm(dim=0)
    Y = W.double() @ V
    residual = torch.linalg.matrix_norm(W.double().mT @ Y - V * Y.square().sum(dim=0), 2)
    assert float(residual / S[0] ** 2) <= 2 * subspace["residual"] + 3e-7
    error = float((V.mT @ V - torch.eye(RANK, dtype=torch.float64)).abs().max())
    assert error <= subspace["orthonormality"] + 3e-7
    energy, own = float(group.square().sum()), float(Y.square().sum())
    missed = energy - own if subspace["end"] == "top" else own - energy
    assert missed / energy <= subspace["energy_error"] + 1e-5
    assert max(subspace["residual"], subspace["orthonormality"]) < 1e-5


@of([name for name in SPECTRAL if name != "geora"])  # whose figures are of a masked weight
def test_the_figures_hold_of_what_is_in_the_files(run):
    tensors = load_file(run.out / (STATE if run.anchored else ADAPTER))
    for name, entry in run.record["modules"].items():
        key = f"base_model.model.{name}.lora_A.weight"
        (subspace,) = entry["subspaces"]
        if key in tensors:  # not the experts, whose rows are looked at above
            check_subspace(subspace, matrix(run.base.model, name), tensors[key].mT)


# Shapes above 512, several threads


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("rlpo", BF16), ("rlpo", F32), ("rlmo", BF16), ("rlmo", F32), ("geora", BF16)],
)
def test_medium_weights_have_the_same_bits_whoever_computes_them(method, dtype, saved, tmp_path):
    folder = saved("qwen2-medium", dtype)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if "a.pad" not in tensors:  # so that no weight lies at an address that suits the processor
        save_file({"a.pad": torch.zeros(3, dtype=BF16), **tensors}, file, metadata={"format": "pt"})
    made = {w: init(folder, method, out=tmp_path / f"{w}", workers=w) for w in (1, 2, 5)}
    paths = {s["path"] for entry in made[5].modules.values() for s in entry["subspaces"]}
    lanczos = (
        {"gram+cholesky+lanczos", "lu+lanczos-float32"} if method == "rlmo" else {"gram+lanczos"}
    )
    assert lanczos <= paths
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        adapt(load(folder), method).save_pretrained(
            str(tmp_path / "adapt"), save_embedding_layers=False
        )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    for other in ("2", "5", "adapt"):
        assert_same_adapter(tmp_path / "1", tmp_path / other)


# Checkpoints of every layout


def whole(source, folder, monkeypatch):
    return shutil.copytree(source, folder)


def one_file(source, folder, monkeypatch):
    return shutil.copytree(source, folder) / "model.safetensors"


def sharded(source, folder, monkeypatch):
    load(source).save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def without_head_and_prefix(source, folder, monkeypatch):
    model = load(source)
    model.base_model.save_pretrained(folder)
    names = load_file(folder / "model.safetensors")
    assert not any(name.startswith((f"{model.base_model_prefix}.", "lm_head")) for name in names)
    return folder


def fused_on_disk(source, folder, monkeypatch):
    load(source).save_pretrained(folder, save_original_format=False)
    return folder


def hub_name(source, folder, monkeypatch):
    repository = folder / "models--some--model"
    shutil.copytree(source, repository / "snapshots" / HASH)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(HASH)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return "some/model"


LAYOUTS = [whole, one_file, sharded, without_head_and_prefix, fused_on_disk, hub_name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["qwen2", "qwen2-tied", "gpt2", "phi3", "qwen3_moe", "mixtral"])
def test_the_layout_of_the_files_does_not_matter(kind, layout, saved, tmp_path, monkeypatch):
    if layout is fused_on_disk and kind not in MOE:
        return
    source = saved(kind)
    model = layout(source, tmp_path / "model", monkeypatch)
    result = init(model, out=tmp_path / "out")
    init(source, out=tmp_path / "plain")
    assert_same_adapter(tmp_path / "out", tmp_path / "plain")
    named = str(model.parent) if layout is one_file else str(model)
    assert config_of(result.out)["base_model_name_or_path"] == named
    if layout is not hub_name:
        PeftModel.from_pretrained(load(named), str(result.out))  # the name leads to a model


def test_masks_that_old_gpt2_checkpoints_hold_are_no_weights(saved, tmp_path):
    folder = without_head_and_prefix(saved("gpt2"), tmp_path / "model", None)
    tensors = load_file(folder / "model.safetensors")
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    init(folder, out=tmp_path / "out")
    init(saved("gpt2"), out=tmp_path / "plain")
    assert_same_adapter(tmp_path / "out", tmp_path / "plain")


def test_the_embedded_model_goes_by_its_name_and_the_config_says_where_it_lies(tmp_path):
    init("tiny", out=tmp_path / "out")
    named = config_of(tmp_path / "out")["base_model_name_or_path"]
    PeftModel.from_pretrained(load(named), str(tmp_path / "out"))
    assert strict(tmp_path / "out" / RECORD)["base_model"] == "tiny"


# Targets


@pytest.mark.parametrize("method", ["rlpo", "pissa"])
@pytest.mark.parametrize(
    ("kind", "targets", "count"),
    [
        ("qwen2", ["q_proj", "down_proj"], 4),
        ("qwen2", "q_proj", 2),
        ("qwen2", ["layers.1.mlp.up_proj"], 1),
        ("qwen2", r".*layers\.1\.(self_attn|mlp)\.[kvg]\w+", 3),
        ("qwen2", ["lm_head", "v_proj"], 3),
        ("qwen2-tied", ["lm_head", "v_proj"], 3),
        ("gemma2", ["lm_head"], 1),
        ("gpt2", ["c_attn", "lm_head"], 3),
        ("gpt2", r".*\.c_(attn|fc)", 4),
        ("phi3", ["qkv_proj"], 2),
        ("mixtral", ["q_proj", "lm_head"], 3),
        ("qwen3_moe-dense", ["q_proj", "v_proj"], 4),
    ],
)
def test_targets_mean_what_they_mean_to_adapt(kind, targets, count, method, saved, tmp_path):
    result = init(saved(kind), method, out=tmp_path / "out", target_modules=targets)
    model = adapt(load(saved(kind)), method, target_modules=targets)
    model.save_pretrained(str(tmp_path / "adapt"), save_embedding_layers=False)
    assert_same_adapter(tmp_path / "out", tmp_path / "adapt")
    assert list(result.modules) == list(model.orthora.modules)
    assert len(result.modules) == count
    before = logits(load(saved(kind)))
    loaded = PeftModel.from_pretrained(load(saved(kind)), str(tmp_path / "out"))
    assert torch.equal(logits(loaded), before)


def test_a_tied_head_without_a_tensor_of_its_own_is_the_embedding(saved, tmp_path):
    assert "lm_head.weight" not in load_file(saved("qwen2-tied") / "model.safetensors")
    result = init(saved("qwen2-tied"), out=tmp_path / "out", target_modules=["lm_head"])
    assert result.modules["lm_head"]["tensors"] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("unfit", ["lower", "skip"])
def test_modules_below_the_rank_get_less_or_nothing_at_the_same_scale(
    unfit, method, saved, tmp_path
):
    options = {"rank": 20, "alpha": 50.0, "unfit": unfit}  # k and v have 16 rows
    result = init(saved("qwen2"), method, out=tmp_path / "out", **options)
    model = adapt(load(saved("qwen2")), method, **options)
    model.save_pretrained(str(tmp_path / "adapt"), save_embedding_layers=False)
    assert_same_adapter(tmp_path / "out", tmp_path / "adapt")
    ranks = {name: entry["rank"] for name, entry in result.modules.items()}
    small = {name: rank for name, rank in ranks.items() if re.search(r"[kv]_proj", name)}
    assert set(small.values()) == ({16} if unfit == "lower" else set())
    assert len(ranks) == (14 if unfit == "lower" else 10)
    assert set(ranks.values()) - {16} == {20}
    before = logits(load(saved("qwen2")))
    loaded = PeftModel.from_pretrained(load(saved("qwen2")), str(tmp_path / "out"))
    assert torch.equal(logits(loaded), before)
    for name, rank in ranks.items():
        layer = loaded.get_submodule(f"base_model.model.{name}")
        assert layer.r["default"] == rank
        assert math.isclose(layer.scaling["default"], 2.5)


def test_anchored_methods_skip_small_modules_too(saved, tmp_path):
    result = init(saved("qwen2"), "pissa", out=tmp_path / "out", rank=20, unfit="skip")
    assert len(result.modules) == 10
    loaded = PeftModel.from_pretrained(load(saved("qwen2")), str(tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(load(saved("qwen2"))))


# Progress


def test_progress_counts_every_weight_and_all_the_work(saved, tmp_path):
    seen = []
    result = init(saved("qwen2"), out=tmp_path / "out", report=seen.append)
    assert [now.done for now in seen] == list(range(15))
    assert {now.total for now in seen} == {14}
    assert {now.name for now in seen} == {"", *result.modules}
    assert (seen[0].name, seen[0].work_done) == ("", 0)
    assert [now.work_done for now in seen] == sorted({now.work_done for now in seen})
    assert seen[-1].work_done == seen[-1].work
    assert (result.resumed, result.out) == (0, tmp_path / "out")


# Memory

PEAK = """
import sys
from orthora.adapters import init_adapter
from orthora.starting import _keep_memory
_keep_memory()  # as the command does
for model in sys.argv[1:]:
    init_adapter(model, "pissa", out=model + "-out", rank=4, workers=2, target_modules=
        ["q_proj", "k_proj", "v_proj", "o_proj"])
    lines = open("/proc/self/status").read().split("\\n")
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_weights(tmp_path):
    folders = [str(save_squares(tmp_path / f"{layers}", layers)) for layers in (3, 15)]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *folders],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    first, second = (int(line) / 1024 for line in done.stdout.split())
    assert second - first < 40  # in MB; 48 more weights are 96 of bfloat16
