"""Bad input to `orthora init`: one line that names the cause, exit code 2, nothing left behind."""

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model, save_model
from safetensors.torch import load_file, save_file

from orthora import starting
from orthora.adapters import init_adapter
from orthora.cli import main

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWN = "model.layers.1.mlp.down_proj.weight"  # of the costliest shape
K = "model.layers.1.self_attn.k_proj.weight"  # of the cheapest
PROGRESS = re.compile(r"\d+ %  \d+/\d+ weights")


@pytest.fixture(autouse=True)
def _own_memory(monkeypatch):
    """The command tunes its process's allocator, and here that is everybody's."""
    monkeypatch.setattr(starting, "_keep_memory", lambda: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints by kind, and sharded ones; copied before they are broken."""
    made = {}

    def save(kind, shards=False):
        if (kind, shards) not in made:
            folder = tmp_path_factory.mktemp(kind) / "model"
            if shards:
                make_model(kind).save_pretrained(folder, max_shard_size="10KB")
            else:
                save_model(kind, folder)
            made[kind, shards] = folder
        return made[kind, shards]

    return save


def command(capsys, *arguments):
    """Exit code, standard output, and standard error without the lines of progress."""
    code = main(["init", *map(str, arguments)])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not PROGRESS.fullmatch(line)]
    return code, captured.out, lines


def assert_refused(capsys, tmp_path, words, *arguments):
    """Refused in one line with these words; beside what was there nothing is left."""
    before = {path.name for path in tmp_path.iterdir()}
    code, out, lines = command(capsys, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("orthora init: ")
    for word in words:
        assert word in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == before
    return lines[0]


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def set_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


# Checkpoints


def missing_shard(folder):
    name = json.loads((folder / INDEX).read_text())["weight_map"][DOWN]
    (folder / name).unlink()
    return [name, "missing"]


def truncated_shard(folder):
    name = json.loads((folder / INDEX).read_text())["weight_map"][DOWN]
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    return [name, "truncated"]


def corrupt_header(folder):
    name = json.loads((folder / INDEX).read_text())["weight_map"][DOWN]
    data = bytearray((folder / name).read_bytes())
    data[8:12] = b"!!!!"
    (folder / name).write_bytes(data)
    return [name, "corrupt"]


def absurd_header(folder):
    name = json.loads((folder / INDEX).read_text())["weight_map"][DOWN]
    data = bytearray((folder / name).read_bytes())
    data[:8] = struct.pack("<Q", 2**60)
    (folder / name).write_bytes(data)
    return [name, str(2**60)]


def index_names_an_absent_tensor(folder):
    table = json.loads((folder / INDEX).read_text())
    table["weight_map"]["model.extra.weight"] = table["weight_map"][DOWN]
    (folder / INDEX).write_text(json.dumps(table))
    return ["model.extra.weight", INDEX]


def corrupt_index(folder):
    (folder / INDEX).write_text("{")
    return [INDEX, "not JSON"]


SHARDED = [
    missing_shard,
    truncated_shard,
    corrupt_header,
    absurd_header,
    index_names_an_absent_tensor,
    corrupt_index,
]


@pytest.mark.parametrize("breaking", SHARDED)
def test_broken_shards(breaking, saved, tmp_path, capsys):
    folder = shutil.copytree(saved("qwen2", shards=True), tmp_path / "model")
    assert_refused(capsys, tmp_path, breaking(folder), folder)


def other_width(folder):
    set_config(folder, intermediate_size=50)
    return ["(48, 32)", "(50, 32)", "gate_proj", "different models"]


def more_layers(folder):
    set_config(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    return ["model.layers.2", "incomplete"]


def no_such_tensor(folder):
    edit(folder / SINGLE, lambda tensors: tensors.pop(K))
    return ["model.layers.1.self_attn.k_proj", "incomplete"]


def twice_the_same(folder):
    def change(tensors):
        tensors[K.removeprefix("model.")] = tensors[K].clone()

    edit(folder / SINGLE, change)
    return [K, "both"]


def not_a_matrix(folder):
    edit(folder / SINGLE, lambda tensors: tensors.update({K: tensors[K].reshape(2, 8, 32)}))
    return [K, "(2, 8, 32)", "(16, 32)"]


def unknown_type(folder):
    set_config(folder, model_type="qwen99")
    return ["config.json", "qwen99"]


def no_language_model(folder):
    set_config(folder, model_type="vit")
    return ["config.json", "ViTConfig"]


def nonsense_in_config(folder):
    set_config(folder, hidden_size="many")
    return ["config.json", "hidden_size", "many"]


def no_heads(folder):
    set_config(folder, num_attention_heads=0)
    return ["config.json", "ZeroDivisionError"]


def foreign_code(folder):
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    set_config(folder, model_type="mine", auto_map=names)
    return ["config.json", "custom code"]


def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": ')
    return ["config.json", "not JSON"]


def no_config(folder):
    (folder / "config.json").unlink()
    return ["config.json", "not a saved model"]


def quantised_by_config(folder):
    set_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    return ["quantised", "gptq"]


def quantised_by_dtype(folder):
    edit(folder / SINGLE, lambda tensors: tensors.update({K: tensors[K].to(torch.int8)}))
    return ["quantised", K, "I8"]


def pickled(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    return ["pytorch_model.bin", "safetensors"]


def inf_in_all_that_comes_first(folder):
    def change(tensors):
        for name in tensors:
            if ".mlp." in name:
                tensors[name][0, 0] = torch.inf

    edit(folder / SINGLE, change)
    return ["1 NaN or Inf", "(tensor model.layers."]


WHOLE = [
    other_width,
    more_layers,
    no_such_tensor,
    twice_the_same,
    not_a_matrix,
    unknown_type,
    no_language_model,
    nonsense_in_config,
    no_heads,
    foreign_code,
    broken_config,
    no_config,
    quantised_by_config,
    quantised_by_dtype,
    pickled,
    inf_in_all_that_comes_first,
]


@pytest.mark.parametrize("breaking", WHOLE)
def test_broken_models(breaking, saved, tmp_path, capsys):
    folder = shutil.copytree(saved("qwen2"), tmp_path / "model")
    words = breaking(folder)
    assert_refused(capsys, tmp_path, words, folder, "--workers", "1")


def three_experts_missing(folder):
    def change(tensors):
        for name in list(tensors):
            if re.search(r"layers\.1\.mlp\.experts\.[012]\.", name):
                del tensors[name]

    edit(folder / SINGLE, change)
    return ["1 of the 4 experts", "model.layers.1.mlp.experts."]


def one_part_of_an_expert_missing(folder):
    edit(folder / SINGLE, lambda t: t.pop("model.layers.0.mlp.experts.2.up_proj.weight"))
    return ["3 of the 4 experts", "model.layers.0.mlp.experts.gate_up_proj"]


def more_experts_in_the_config(folder):
    set_config(folder, num_local_experts=7)
    return ["4 of the 7 experts"]


def a_short_stack(folder):
    shutil.rmtree(folder)
    make_model("qwen3_moe").save_pretrained(folder, save_original_format=False)
    key = "model.layers.0.mlp.experts.gate_up_proj"
    edit(folder / SINGLE, lambda tensors: tensors.update({key: tensors[key][:1].clone()}))
    return [key, "1 experts", "4"]


def experts_in_both_forms(folder):
    def change(tensors):
        tensors["model.layers.0.mlp.experts.down_proj"] = torch.zeros(4, 32, 24)

    edit(folder / SINGLE, change)
    return ["model.layers.0.mlp.experts.down_proj"]


EXPERTS = [
    three_experts_missing,
    one_part_of_an_expert_missing,
    more_experts_in_the_config,
    a_short_stack,
    experts_in_both_forms,
]


@pytest.mark.parametrize("breaking", EXPERTS)
def test_broken_experts(breaking, saved, tmp_path, capsys):
    folder = shutil.copytree(saved("qwen3_moe"), tmp_path / "model")
    assert_refused(capsys, tmp_path, breaking(folder), folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("method", ["rlpo", "milora", "lora", "olora-qr", "geora"])
def test_nan_and_inf_are_named_and_nothing_is_kept(method, value, saved, tmp_path, capsys):
    folder = shutil.copytree(saved("qwen2"), tmp_path / "model")
    edit(folder / SINGLE, lambda tensors: tensors[K][2, 5].fill_(value))
    out = tmp_path / "out"
    arguments = [folder, "--method", method, "--rank", "4", "--out", out, "--workers", "1"]
    code, _, lines = command(capsys, *arguments)
    assert code == 2
    (line,) = lines
    assert re.search(rf"k_proj: .*1 NaN or Inf of 512 .*\(tensor {re.escape(K)}\)$", line)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # the others' work is no use
    edit(folder / SINGLE, lambda tensors: tensors[K][2, 5].fill_(0.0))
    assert command(capsys, *arguments)[0] == 0  # mended weights are other weights: all anew


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(saved, tmp_path):
    folder = shutil.copytree(saved("qwen2"), tmp_path / "model")

    def report(now):
        if now.done == 3:
            os.truncate(folder / SINGLE, 5000)

    with pytest.raises(ValueError, match=r"ends inside 'model\..*truncated or corrupt"):
        init_adapter(str(folder), out=tmp_path / "out", rank=4, workers=1, report=report)
    assert not (tmp_path / "out").exists()


# Arguments

ARGUMENTS = {
    "unknown method": (["--method", "pisa"], ["'pisa'", "did you mean 'pissa'?", "olora-qr"]),
    "rank 0": (["--rank", "0"], ["rank", "0"]),
    "rank negative": (["--rank", "-3"], ["rank", "-3"]),
    "alpha 0": (["--alpha", "0"], ["alpha", "0"]),
    "alpha NaN": (["--alpha", "nan"], ["alpha", "nan"]),
    "workers 0": (["--workers", "0"], ["workers", "0"]),
    "no GPU": (["--device", "cuda"], ["'cuda'", "not available"]),
    "targets": (["--target-modules", "q_proj", "query"], ["'query'", "q_proj", "down_proj"]),
    "pattern": (["--target-modules", ".*query"], ["'.*query'", "q_proj", "down_proj"]),
    "no pattern": (["--target-modules", "(q"], ["'(q'", "regular expression"]),
    "embedding": (["--target-modules", "q_proj", "embed_tokens"], ["embed_tokens", "Embedding"]),
    "norm": (["--target-modules", "input_layernorm"], ["input_layernorm"]),
    "rank too large": (
        ["--rank", "20"],
        ["rank 20", "4 modules", "layers.0.self_attn.k_proj", "(16, 32)", "at most 16"],
    ),
    "lower, anchored": (
        ["--rank", "20", "--unfit", "lower", "--method", "pissa"],
        ["pissa", "anchored", "at most 16"],
    ),
    "nothing fits": (["--rank", "33", "--unfit", "skip"], ["rank 33", "at most 32"]),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(case, saved, tmp_path, capsys):
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments, words = ARGUMENTS[case]
    line = assert_refused(capsys, tmp_path, [], saved("qwen2"), *arguments)
    for word in words:
        assert word.lower() in line.lower()


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu", ""])
def test_devices_that_are_not_there_are_refused_from_python_too(device, saved, tmp_path):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=rf"device .*{device}"):
        init_adapter(str(saved("qwen2")), out=tmp_path / "out", rank=4, device=device)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("qwen3_moe", ["--method", "pissa"], ["anchored", "experts", "q_proj"]),
        ("qwen3_moe", ["--target-modules", "gate_proj"], ["gate_proj", "experts"]),
        ("qwen3_moe", ["--target-modules", ".*down_proj"], ["experts", ".*down_proj"]),
        ("qwen3_moe", ["--rank", "25"], ["rank 25", "at most 16"]),
        ("qwen3_moe", ["--rank", "25", "--unfit", "lower"], ["fused experts", "at most 16"]),
        ("qwen3_moe-dense", [], ["model.layers.0.mlp.gate_proj", "all-linear"]),
        ("qwen3_moe-dense", ["--target-modules", "down_proj"], ["model.layers.0.mlp.down_proj"]),
    ],
)
def test_what_does_not_go_with_experts(kind, arguments, words, saved, tmp_path, capsys):
    rank = [] if "--rank" in arguments else ["--rank", "4"]
    assert_refused(capsys, tmp_path, words, saved(kind), *rank, *arguments)


@pytest.mark.parametrize(
    "model", ["/nowhere/at/all", "./nothing", "no/such-model", "model.safetensors"]
)
def test_models_that_are_not_there(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, tmp_path, [repr(model)], model)


def test_an_untied_head_that_is_not_in_the_files(saved, tmp_path, capsys):
    folder = shutil.copytree(saved("qwen2"), tmp_path / "model")
    edit(folder / SINGLE, lambda tensors: tensors.pop("lm_head.weight"))
    words = ["lm_head", "incomplete"]
    assert_refused(capsys, tmp_path, words, folder, "--rank", "4", "--target-modules", "lm_head")


# The place to write to


def test_an_output_that_is_in_use_is_left_alone(saved, tmp_path, capsys):
    for name in ("file", "folder"):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out"
        if name == "file":
            out.write_text("mine")
        else:
            out.mkdir()
            (out / "mine").write_text("mine")
        code, _, (line,) = command(capsys, saved("qwen2"), "--rank", "4", "--out", out)
        assert code == 2
        assert str(out) in line
        assert "not empty" in line
        assert [path.name for path in (tmp_path / name).iterdir()] == ["out"]
        assert (out if name == "file" else out / "mine").read_text() == "mine"


def test_a_place_that_can_not_be_written(saved, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code, _, (line,) = command(capsys, saved("qwen2"), "--rank", "4", "--out", tmp_path / "file/x")
    assert code == 2
    assert str(tmp_path / "file") in line
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        out = tmp_path / "closed" / "out"
        code, _, (line,) = command(capsys, saved("qwen2"), "--rank", "4", "--out", out)
        assert code == 2
        assert "Permission denied" in line


@pytest.mark.parametrize("method", ["rlpo", "pissa"])
def test_a_disk_too_small_shows_before_the_work(method, saved, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    words = ["No space left on device", "GB are needed", "adapter_model.safetensors"]
    assert_refused(capsys, tmp_path, words, saved("qwen2"), "--rank", "4", "--method", method)


@pytest.mark.parametrize("call", [2, 5])
def test_a_disk_that_fills_up_keeps_what_was_done(call, saved, tmp_path, capsys, monkeypatch):
    """The first call writes the header; each weight of rlpo takes one more."""
    calls, pwrite = [], os.pwrite

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    out = tmp_path / "out"
    code, _, (line,) = command(capsys, saved("qwen2"), "--rank", "4", "--out", out)
    assert code == 2
    assert "No space left on device" in line
    assert not out.exists()
    assert (tmp_path / ".out.unfinished").exists() == (call > 2)
    code, text, lines = command(capsys, saved("qwen2"), "--rank", "4", "--out", out)
    assert (code, lines) == (0, [])
    assert ("3 of them earlier" in text) == (call > 2)


def test_a_real_full_disk(saved, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounts need root")
    try:
        code, _, (line,) = command(capsys, saved("qwen2"), "--rank", "4", "--out", disk / "out")
        assert code == 2
        assert "No space left on device" in line
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# The command as people run it


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "orthora", "init", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_command_refuses_in_one_line_without_a_traceback(saved, tmp_path):
    folder = shutil.copytree(saved("qwen2"), tmp_path / "model")
    edit(folder / SINGLE, lambda tensors: tensors.pop(K))
    done = run_command(folder, "--out", tmp_path / "out", "--rank", "4")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "k_proj" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command_says_what_it_made_and_how_well(saved, tmp_path):
    done = run_command(saved("qwen2"), "--out", tmp_path / "out", "--rank", "4")
    assert done.returncode == 0
    first, paths, worst = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'out'}: 14 weights in ")
    assert paths == "subspaces: 14 by svd-float64"
    assert re.fullmatch(
        r"worst residual \S+e-0\d, orthonormality \S+e-0\d, energy error at most \S+", worst
    )
    assert all(PROGRESS.fullmatch(line) for line in done.stderr.splitlines())
    assert done.stderr.splitlines()[-1] == "100 %  14/14 weights"
    assert Path(tmp_path / "out" / "orthora.json").is_file()
