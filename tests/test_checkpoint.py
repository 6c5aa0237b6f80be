import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import save_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from orthora import tiny
from orthora.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    torch.complex64,
]


def put(folder: Path, **files: dict[str, torch.Tensor]) -> Path:
    """A folder with ``config.json`` and one safetensors file for each of ``files``."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    for stem, tensors in files.items():
        save_file(tensors, folder / f"{stem}.safetensors")
    return folder


def single(folder: Path) -> Path:
    return put(folder, model={"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(4)})


def shards(folder: Path) -> Path:
    """Two shards without an index."""
    stem = FIRST.removesuffix("1-of-00002.safetensors")
    a, b = {"a.weight": torch.ones(2, 3)}, {"b.weight": torch.zeros(4)}
    return put(folder, **{f"{stem}1-of-00002": a, f"{stem}2-of-00002": b})


def indexed(folder: Path) -> Path:
    shards(folder)
    index = {"weight_map": {"a.weight": FIRST, "b.weight": SECOND}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def set_weight_map(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def header(file: Path, entries: object, data: int = 32, length: int | None = None) -> None:
    """Write a safetensors file by hand: what its header says, and so many bytes of data."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    file.write_bytes(start + text + bytes(data))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def refusal(model: str | Path) -> str:
    """The one line that ``open_checkpoint`` refuses with."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        open_checkpoint(str(model))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# What is right


@pytest.mark.parametrize("kind", ["qwen2-tied", "gpt2", "phi3", "qwen3_moe"])
def test_names_shapes_and_values_are_those_of_safetensors(kind, tmp_path):
    save_model(kind, tmp_path, torch.bfloat16)
    checkpoint = open_checkpoint(str(tmp_path))
    expected = load_file(tmp_path / SINGLE)
    assert checkpoint.folder == tmp_path
    assert checkpoint.config == json.loads((tmp_path / "config.json").read_text())
    assert set(checkpoint.tensors) == set(expected)
    for name, info in checkpoint.tensors.items():
        assert (info.file, info.dtype, info.shape) == (
            tmp_path / SINGLE,
            "BF16",
            tuple(expected[name].shape),
        )
        assert torch.equal(checkpoint.read(name), expected[name])


def test_shards_are_followed_through_their_index(tmp_path):
    folder = save_model("qwen2", tmp_path / "whole")
    expected = load_file(folder / SINGLE)
    shard = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(expected)}
    parts = {s: {n: t for n, t in expected.items() if shard[n] == f"{s}.safetensors"} for s in "ab"}
    set_weight_map(put(tmp_path / "parts", **parts), shard)
    checkpoint = open_checkpoint(str(tmp_path / "parts"))
    assert {name: info.file.name for name, info in checkpoint.tensors.items()} == shard
    assert all(torch.equal(checkpoint.read(name), expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_odd_shapes_are_read_exactly(dtype, tmp_path):
    tensors = {
        "matrix": torch.arange(-6, 6).reshape(3, 4).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.zeros(0, 5, dtype=dtype),
    }
    checkpoint = open_checkpoint(str(put(tmp_path, model=tensors)))
    with safe_open(tmp_path / SINGLE, framework="pt") as file:
        for name, expected in tensors.items():
            got = checkpoint.read(name)
            assert (got.dtype, got.shape) == (dtype, expected.shape)
            assert checkpoint.tensors[name].dtype == file.get_slice(name).get_dtype()
            assert torch.equal(got, expected)


def test_the_embedded_model_goes_by_its_name():
    checkpoint = open_checkpoint("tiny")
    assert checkpoint.folder == tiny.path()
    assert checkpoint.tensors["model.embed_tokens.weight"].dtype == "BF16"


def test_one_file_beside_its_config_will_do(tmp_path):
    put(tmp_path, x={"a": torch.ones(2)}, y={"a": torch.zeros(2)})
    assert open_checkpoint(str(tmp_path / "y.safetensors")).read("a").tolist() == [0, 0]


def test_without_an_index_one_file_or_one_whole_set_of_shards_will_do(tmp_path):
    assert set(open_checkpoint(str(shards(tmp_path / "set"))).tensors) == {"a.weight", "b.weight"}
    odd = put(tmp_path / "odd", weights={"a": torch.ones(2)})
    assert set(open_checkpoint(str(odd)).tensors) == {"a"}


def test_the_single_file_comes_before_the_index_as_in_transformers(tmp_path):
    indexed(tmp_path)
    save_file({"c.weight": torch.ones(2)}, tmp_path / SINGLE)
    assert set(open_checkpoint(str(tmp_path)).tensors) == {"c.weight"}


def test_integer_buffers_are_no_weights(tmp_path):
    buffers = {
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "embeddings.position_ids": torch.arange(4)[None],
        "mask": torch.ones(4, dtype=torch.bool),
        "norm.scale": torch.ones(4),
        "encoder.rescales.bias": torch.ones(4),
    }
    assert set(open_checkpoint(str(put(tmp_path, model=buffers))).tensors) == set(buffers)


def test_a_hub_name_is_found_in_the_local_cache(tmp_path, monkeypatch):
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    folder = single(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    checkpoint = open_checkpoint("some/model")
    assert checkpoint.folder == folder
    assert checkpoint.read("a.weight").tolist() == [[1, 1, 1], [1, 1, 1]]


# Memory


READ_ALL = """
import sys
from pathlib import Path
from orthora.checkpoint import open_checkpoint

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

checkpoint = open_checkpoint(sys.argv[1])
before, grown = resident(), []
for name in checkpoint.tensors:
    tensor = checkpoint.read(name)
    assert int(tensor.count_nonzero()) == 0  # touches every page
    grown.append(resident() - before)
    del tensor
assert sys.argv[1] not in Path("/proc/self/maps").read_text()
print(max(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_no_more_than_one_tensor_is_resident(tmp_path):
    size = 32 * 2**20
    entries = {
        f"{i}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(8)
    }
    header(put(tmp_path) / SINGLE, entries, data=0)
    with (tmp_path / SINGLE).open("r+b") as file:
        file.truncate((tmp_path / SINGLE).stat().st_size + 8 * size)  # zeros that take no disk
    # A process of its own: in this one, memory that earlier tests freed would be used again
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 30 < float(done.stdout) < 80  # MB


def test_a_tensor_is_a_private_copy(tmp_path):
    checkpoint = open_checkpoint(str(single(tmp_path)))
    tensor = checkpoint.read("a.weight")
    assert tensor.untyped_storage().nbytes() == 24
    data = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(bytes(len(data)))
    assert tensor.tolist() == [[1, 1, 1], [1, 1, 1]]
    tensor.zero_()
    (tmp_path / SINGLE).write_bytes(data)
    assert checkpoint.read("a.weight").tolist() == [[1, 1, 1], [1, 1, 1]]


# Reading what is not there


def test_an_unknown_tensor_is_named_with_its_neighbour(tmp_path):
    with pytest.raises(ValueError, match=r"no tensor 'a\.weigth'; did you mean 'a\.weight'\?"):
        open_checkpoint(str(single(tmp_path))).read("a.weigth")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: cut(file, file.stat().st_size - 30), r"ends inside 'a\.weight'.*fetch"),
        (Path.unlink, r"can't read 'a\.weight' from .*No such file"),
    ],
    ids=["cut", "gone"],
)
def test_a_file_that_shrinks_after_opening_is_an_error(damage, message, tmp_path):
    checkpoint = open_checkpoint(str(single(tmp_path)))
    damage(tmp_path / SINGLE)
    with pytest.raises(ValueError, match=message):
        checkpoint.read("a.weight")


# The fingerprint


def test_the_fingerprint_does_not_depend_on_the_folder(tmp_path):
    first, second = (open_checkpoint(str(indexed(tmp_path / name))) for name in "xy")
    assert first.fingerprint() == second.fingerprint()
    assert len(first.fingerprint()) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "config.json").write_text("{}"),
        lambda f: save_file({"a.weight": torch.ones(3, 2)}, f / FIRST),
        lambda f: save_file({"a.weight": torch.ones(2, 3)}, f / FIRST, metadata={"x": "y"}),
        lambda f: set_weight_map(f, {"b.weight": SECOND}),
        lambda f: set_weight_map(
            f, {"a.weight": (f / FIRST).rename(f / f"{FIRST}.x").name, "b.weight": SECOND}
        ),
    ],
    ids=["config", "shape", "metadata", "files", "file name"],
)
def test_the_fingerprint_sees(change, tmp_path):
    known = open_checkpoint(str(indexed(tmp_path))).fingerprint()
    change(tmp_path)
    assert open_checkpoint(str(tmp_path)).fingerprint() != known


def test_the_fingerprint_sees_a_file_grow(tmp_path):
    checkpoint = open_checkpoint(str(single(tmp_path)))
    known = checkpoint.fingerprint()
    with (tmp_path / SINGLE).open("ab") as file:
        file.write(b"0")
    assert checkpoint.fingerprint() != known


def test_the_fingerprint_needs_the_files(tmp_path):
    checkpoint = open_checkpoint(str(single(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"can't read .*config\.json: No such file"):
        checkpoint.fingerprint()


# What is refused


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "no model folder '/no/such/folder'; check the path"),
        ("./folder", "no model folder './folder'; check the path"),
        ("a/b/c", "no model folder 'a/b/c'; check the path"),
        ("model.safetensors", "no model folder 'model.safetensors'; check the path"),
        ("some/model", "no model folder 'some/model', nor can the hub give it: "),
        ("no hub name", "no model folder 'no hub name', nor can the hub give it: "),
    ],
)
def test_a_model_that_is_nowhere_is_refused(model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert refusal(model).startswith(message)


def test_other_files_are_no_models(tmp_path):
    shards(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    assert refusal(tmp_path / "model.bin").endswith("; give its folder, or a .safetensors file")
    assert refusal(tmp_path / SECOND).endswith(f"{SECOND} is one shard of 2; give its folder")


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        ["has no config.json; it is not a saved model"],
    ),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        ["config.json is not JSON (", "fetch it again"],
    ),
    "config not UTF-8": (
        lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'),
        ["config.json is not JSON (", "fetch it again"],
    ),
    "config not an object": (
        lambda f: (f / "config.json").write_text("[]"),
        ["config.json is not a JSON object", "fetch it again"],
    ),
    "no weights": (
        lambda f: (f / SINGLE).unlink(),
        ["has no weights", "save_pretrained(..., safe_serialization=True)"],
    ),
    "only .bin": (
        lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"),
        ["has only pytorch_model.bin", "save_pretrained(..., safe_serialization=True)"],
    ),
    "no tensors": (
        lambda f: header(f / SINGLE, {}, data=0),
        ["hold no tensors; save the model again"],
    ),
    "empty file": (
        lambda f: cut(f / SINGLE, 0),
        [f"{SINGLE} is 0 bytes long", "fetch it again"],
    ),
    "cut in the length": (
        lambda f: cut(f / SINGLE, 7),
        [f"{SINGLE} is 7 bytes long", "fetch it again"],
    ),
    "cut in the header": (
        lambda f: cut(f / SINGLE, 40),
        [f"{SINGLE} of 40 bytes claims a header of", "fetch it again"],
    ),
    "cut in the data": (
        lambda f: header(f / SINGLE, {"a": ENTRY}, data=15),
        [f"{SINGLE} describes 89 bytes and has 88", "fetch it again"],
    ),
    "absurd header length": (
        lambda f: header(f / SINGLE, {"a": ENTRY}, data=16, length=2**62),
        [f"{SINGLE} of 89 bytes claims a header of {2**62}", "fetch it again"],
    ),
    "header above safetensors' limit": (
        lambda f: (
            header(f / SINGLE, {"a": ENTRY}, data=16, length=10**8 + 1),
            os.truncate(f / SINGLE, 2 * 10**8),
        ),
        [f"{SINGLE} of 200000000 bytes claims a header of 100000001", "fetch it again"],
    ),
    "git-lfs pointer": (
        lambda f: (f / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\n"),
        [f"{SINGLE} of 43 bytes claims a header of", "fetch it again"],
    ),
    "header not JSON": (
        lambda f: header(f / SINGLE, b"no JSON at all"),
        [f"{SINGLE}: invalid JSON in header", "fetch it again"],
    ),
    "header not UTF-8": (
        lambda f: header(f / SINGLE, b"\xff\xfe{}"),
        [f"{SINGLE}: invalid UTF-8 in header", "fetch it again"],
    ),
    "too much data": (
        lambda f: header(f / SINGLE, {"a": ENTRY}, data=17),
        [f"{SINGLE}: incomplete metadata, file not fully covered", "fetch it again"],
    ),
    "overlap": (
        lambda f: header(f / SINGLE, {"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 24]}}, 24),
        [f"{SINGLE}: invalid offset for tensor", "fetch it again"],
    ),
    "offsets that do not fit the shape": (
        lambda f: header(f / SINGLE, {"a": ENTRY | {"data_offsets": [0, 12]}}, 12),
        [f"{SINGLE}: invalid shape, data type, or offset", "fetch it again"],
    ),
    "negative offset": (
        lambda f: header(f / SINGLE, {"a": ENTRY | {"data_offsets": [-16, 0]}}, 0),
        [f"{SINGLE}: invalid JSON in header", "`-16`", "fetch it again"],
    ),
    "unknown dtype": (
        lambda f: header(f / SINGLE, {"a": ENTRY | {"dtype": "Q4"}}, 16),
        [f"{SINGLE}: invalid JSON in header", "`Q4`", "fetch it again"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_and_files_are_refused(kind, tmp_path):
    damage, parts = BROKEN[kind]
    damage(single(tmp_path))
    line = refusal(tmp_path)
    assert str(tmp_path) in line
    assert [part for part in parts if part not in line] == [], line


BROKEN_SHARDS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "index not JSON": (
        lambda f: (f / INDEX).write_text('{"weight_map": '),
        [f"{INDEX} is not JSON (", "fetch it again"],
    ),
    "no weight_map": (
        lambda f: (f / INDEX).write_text('{"metadata": {}}'),
        [f"{INDEX} has no weight_map", "fetch it again"],
    ),
    "weight_map not a map": (
        lambda f: set_weight_map(f, ["a.weight"]),
        [f"{INDEX} has no weight_map", "fetch it again"],
    ),
    "weight_map to numbers": (
        lambda f: set_weight_map(f, {"a.weight": 1}),
        [f"{INDEX} has no weight_map", "fetch it again"],
    ),
    "weight_map to other folders": (
        lambda f: set_weight_map(f, {"a.weight": f"../{f.name}/{FIRST}"}),
        [f"{INDEX} has no weight_map", "fetch it again"],
    ),
    "empty weight_map": (
        lambda f: set_weight_map(f, {}),
        ["hold no tensors; save the model again"],
    ),
    "missing shard": (
        lambda f: (f / SECOND).unlink(),
        [f"1 of the 2 shards in {{folder}}/{INDEX} are missing, e.g. {SECOND}", "fetch"],
    ),
    "tensor not in its shard": (
        lambda f: set_weight_map(f, {"a.weight": FIRST, "c.weight": SECOND}),
        [f"{INDEX} seeks 'c.weight' in {SECOND}", "fetch both again"],
    ),
    "truncated shard": (
        lambda f: cut(f / SECOND, (f / SECOND).stat().st_size - 1),
        [f"{SECOND} describes ", "fetch it again"],
    ),
    "missing shard, no index": (
        lambda f: ((f / INDEX).unlink(), (f / FIRST).unlink()),
        [f"1 of the 2 shards in {{folder}} are missing, e.g. {FIRST}", "fetch"],
    ),
    "twice, no index": (
        lambda f: ((f / INDEX).unlink(), save_file({"a.weight": torch.ones(1)}, f / SECOND)),
        [f"'a.weight' is in both {{folder}}/{FIRST} and {SECOND}, and no {INDEX}", "fetch"],
    ),
    "two sets, no index": (
        lambda f: ((f / INDEX).unlink(), save_file({"c": torch.ones(1)}, f / "other.safetensors")),
        [f"has {FIRST} and other.safetensors, and no {INDEX}", "name one file, or fetch"],
    ),
    "two files, no index": (
        lambda f: (
            (f / INDEX).unlink(),
            (f / FIRST).rename(f / "x.safetensors"),
            (f / SECOND).rename(f / "y.safetensors"),
        ),
        [f"has x.safetensors and y.safetensors, and no {INDEX}", "name one file, or fetch"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN_SHARDS)
def test_broken_indexes_and_sets_of_shards_are_refused(kind, tmp_path):
    damage, parts = BROKEN_SHARDS[kind]
    damage(indexed(tmp_path))
    line = refusal(tmp_path)
    assert str(tmp_path) in line
    assert [p for p in parts if p.replace("{folder}", str(tmp_path)) not in line] == [], line


CONFIGS = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "fp8": {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
    "load_in_8bit": {"quantization_config": {"load_in_8bit": True}},
}


@pytest.mark.parametrize("how", CONFIGS)
def test_a_config_that_says_quantised_is_refused(how, tmp_path):
    single(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[how]))
    line = refusal(tmp_path)
    assert f"{tmp_path} is quantised (" in line
    assert how in line
    assert line.endswith("weights as they were trained; use the bfloat16 or float16 original")


@pytest.mark.parametrize(
    "config",
    [{"quantization_config": None}, {"quantization_config": {}}, {"text_config": None}],
)
def test_a_config_that_says_nothing_of_quantisation_is_fine(config, tmp_path):
    single(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(tmp_path)).config == config


PACKED = {
    "q_proj.weight": torch.int8,
    "k_proj.weight": torch.uint8,
    "w.weight": torch.uint32,
    "experts.down_proj": torch.int8,
    "experts.gate_up_proj_blocks": torch.uint8,
    "o_proj.weight": torch.float8_e4m3fn,
    "experts.gate_up_proj": torch.float8_e5m2,
    "g": torch.float8_e8m0fnu,
    "a.qweight": torch.int32,
    "a.qzeros": torch.int32,
    "a.scales": torch.float16,
    "a.SCB": torch.float32,
    "a.weight.absmax": torch.uint8,
    "a.weight.quant_state.bitsandbytes__nf4": torch.uint8,
    "a.weight_packed": torch.int32,
    "a.weight_scale": torch.bfloat16,
    "a.weight_scale_inv": torch.float32,
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_tensors_are_refused(name, tmp_path):
    odd = torch.zeros(2, 2).to(PACKED[name])
    line = refusal(put(tmp_path, model={"b.weight": torch.ones(2, 2), name: odd}))
    assert f"{tmp_path} is quantised (it holds {name!r} of dtype " in line
    assert line.endswith("weights as they were trained; use the bfloat16 or float16 original")
