import errno
import os
import re
import struct
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from orthora.adapters.slotfile import SlotFile

SHAPES = {"b.lora_A.weight": (6, 5), "a": (3,), "c": (2, 3, 4)}


def values():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def write_all(path, shapes=SHAPES):
    file = SlotFile(path, shapes)
    for name, value in values().items():
        file.write(name, value)
    file.close()
    return path.read_bytes()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_safetensors_reads_what_was_written(tmp_path):
    write_all(tmp_path / "f")
    assert equal(load_file(tmp_path / "f"), values())
    with safe_open(tmp_path / "f", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_data_begins_at_a_multiple_of_eight_as_in_files_of_safetensors(tmp_path):
    for length in range(8):
        path = tmp_path / str(length)
        SlotFile(path, {"x" * (length + 1): (2,)}).close()
        assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0
        assert load_file(path)["x" * (length + 1)].tolist() == [0.0, 0.0]


def test_the_order_of_writing_and_of_the_shapes_does_not_matter(tmp_path):
    whole = write_all(tmp_path / "whole")
    for number, names in enumerate(permutations(SHAPES)):
        file = SlotFile(tmp_path / str(number), {name: SHAPES[name] for name in reversed(names)})
        for name in names:
            file.write(name, values()[name])
        file.close()
        assert (tmp_path / str(number)).read_bytes() == whole


def test_rows_find_their_place(tmp_path):
    whole = write_all(tmp_path / "whole")
    file = SlotFile(tmp_path / "rows", SHAPES)
    for name, value in values().items():
        for row in reversed(range(len(value))):
            file.write(name, value[row : row + 1], row)
    file.close()
    assert (tmp_path / "rows").read_bytes() == whole


def test_views_are_written_as_what_they_show(tmp_path):
    value = values()["b.lora_A.weight"].requires_grad_()
    file = SlotFile(tmp_path / "f", {"t": (5, 6), "s": (3, 5)})
    file.write("t", value.mT)
    file.write("s", value[::2])
    file.close()
    read = load_file(tmp_path / "f")
    assert torch.equal(read["t"], value.detach().mT)
    assert torch.equal(read["s"], value.detach()[::2])


def test_what_was_never_written_is_zero_and_the_file_has_its_final_size_from_the_start(tmp_path):
    size = len(write_all(tmp_path / "whole"))
    file = SlotFile(tmp_path / "f", SHAPES)
    assert (tmp_path / "f").stat().st_size == size
    file.write("c", values()["c"])
    file.close()
    read = load_file(tmp_path / "f")
    assert torch.equal(read["c"], values()["c"])
    assert not read["a"].any()
    assert not read["b.lora_A.weight"].any()


def test_the_space_is_reserved_not_only_promised(tmp_path):
    SlotFile(tmp_path / "f", {"x": (1024, 1024)}).close()
    assert (tmp_path / "f").stat().st_blocks * 512 >= 4 * 2**20


def test_a_file_goes_on_where_it_stopped(tmp_path):
    whole = write_all(tmp_path / "whole")
    for name, value in values().items():
        file = SlotFile(tmp_path / "f", SHAPES)
        file.write(name, value)
        file.close()
    assert (tmp_path / "f").read_bytes() == whole


@pytest.mark.parametrize(
    "shapes", [{}, SHAPES | {"a": (4,)}, SHAPES | {"new": (1,)}, {"a": (3,)}], ids=str
)
def test_a_file_of_other_tensors_is_refused_and_stays_as_it_was(shapes, tmp_path):
    before = write_all(tmp_path / "f")
    with pytest.raises(ValueError, match=r"holds other tensors") as raised:
        SlotFile(tmp_path / "f", shapes)
    assert str(tmp_path / "f") in str(raised.value)
    assert (tmp_path / "f").read_bytes() == before


@pytest.mark.parametrize("size", [-1, 1, 100])
def test_a_file_of_another_size_is_refused(size, tmp_path):
    whole = write_all(tmp_path / "f")
    (tmp_path / "f").write_bytes(whole[:size])
    with pytest.raises(ValueError, match="holds other tensors"):
        SlotFile(tmp_path / "f", SHAPES)


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (torch.zeros(6, 5, dtype=torch.float64), 0),
        (torch.zeros(6, 5, dtype=torch.bfloat16), 0),
        (torch.zeros(6, 4), 0),
        (torch.zeros(7, 5), 0),
        (torch.zeros(2, 5), 5),
    ],
    ids=["float64", "bfloat16", "columns", "rows", "offset"],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(value, row, tmp_path):
    file = SlotFile(tmp_path / "f", SHAPES)
    before = (tmp_path / "f").read_bytes()
    with pytest.raises(AssertionError, match=re.escape("b.lora_A.weight")):
        file.write("b.lora_A.weight", value + 1, row)
    file.close()
    assert (tmp_path / "f").read_bytes() == before


def test_short_writes_are_continued(tmp_path, monkeypatch):
    whole, pwrite = write_all(tmp_path / "whole"), os.pwrite
    file = SlotFile(tmp_path / "f", SHAPES)
    monkeypatch.setattr(os, "pwrite", lambda to, data, at: pwrite(to, bytes(data)[:7], at))
    for name, value in values().items():
        file.write(name, value)
    file.close()
    assert (tmp_path / "f").read_bytes() == whole


def test_a_full_disk_shows_at_the_start_and_says_how_much_is_needed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device \(4.19 GB are needed\)") as raised:
        SlotFile(tmp_path / "f", {"x": (1024, 1024, 1000)})
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "f")


def test_without_fallocate_the_file_is_the_same(tmp_path, monkeypatch):
    whole = write_all(tmp_path / "whole")
    monkeypatch.delattr(os, "posix_fallocate")
    assert write_all(tmp_path / "f") == whole


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads Linux's /proc")
def test_no_handle_stays_open(tmp_path, monkeypatch):
    before = len([*Path("/proc/self/fd").iterdir()])
    file = SlotFile(tmp_path / "f", SHAPES)
    file.close()
    file.close()
    for shapes in ({"a": (1,)}, {}):
        with pytest.raises(ValueError, match="holds other"):
            SlotFile(tmp_path / "f", shapes)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
