"""Reading a transformers checkpoint tensor by tensor, without building the model.

Opening reads headers only; `Checkpoint.read` then takes one tensor at a time into memory of its
own. Files are read rather than mapped: nothing stays resident but what was asked for, and a file
that shrinks under us is an error, not a bus fault.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orthora import tiny

_CONFIG, _SINGLE = "config.json", "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})\.safetensors")
_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,19})\s*\]')
_OTHERS = {".bin", ".pt", ".pth", ".gguf"}
_HEADER_LIMIT = 100_000_000  # bytes; safetensors refuses longer headers too
_AGAIN = "it is truncated or corrupt; fetch it again"

_DTYPES = (
    {"BOOL": torch.bool, "BF16": torch.bfloat16, "C64": torch.complex64}
    | {f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)}
    | {f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)}
    | {f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)}
)
_PACKED = re.compile(  # what GPTQ, AWQ, bitsandbytes and compressed-tensors write beside a weight
    r"(^|\.)(qweight|qzeros|scales|SCB|absmax|quant_state|weight_packed|weight_scale(_inv)?)(\.|$)"
)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies, as its file's header says.

    Attributes:
        file: the safetensors file that holds it.
        dtype: in safetensors' spelling, e.g. ``"BF16"``.
        shape: as stored; GPT-2's ``Conv1D`` weights are (in, out).
        offset: of its first byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """A saved model, of which only the headers have been read.

    Attributes:
        folder: where it lies.
        config: what ``config.json`` says.
        tensors: every tensor by the name it has in the files, which may differ from the model's.
    """

    folder: Path
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """One tensor on the CPU, in the dtype it is stored in and in memory of its own.

        Args:
            name: in the files.
            index: into the first dimension, to read that slice alone.

        Raises:
            ValueError: if there is no such tensor or slice, or its file is gone or was cut short.
        """
        info = self.tensors.get(name)
        if info is None:
            near = get_close_matches(name, self.tensors, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{self.folder} has no tensor {name!r}{hint}")
        if index is not None and not (info.shape and 0 <= index < info.shape[0]):
            raise ValueError(f"{name!r} of shape {info.shape} has no slice {index}")
        shape = info.shape if index is None else info.shape[1:]
        dtype = _DTYPES[info.dtype]
        value = torch.empty(shape, dtype=dtype)
        if value.numel() == 0:
            return value
        data = memoryview(value.reshape(-1).view(torch.uint8).numpy().data)
        try:
            with info.file.open("rb") as file:
                file.seek(info.offset + (index or 0) * len(data))
                got = file.readinto(data)
        except OSError as error:
            raise ValueError(f"can't read {name!r} from {info.file}: {error.strerror}") from error
        if got != len(data):
            raise ValueError(f"{info.file} ends inside {name!r}: {_AGAIN}")
        return value

    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and headers, and of ``config.json``.

        It reads no tensor data: cheap, but blind to a change of the values alone; see `modified`.

        Raises:
            ValueError: if a file is gone or was cut short since the checkpoint was opened.
        """
        digest = hashlib.sha256()
        for file in sorted({info.file for info in self.tensors.values()}):
            header = _header(file)
            digest.update(repr((file.name, file.stat().st_size, len(header))).encode())
            digest.update(header)
        digest.update(_bytes(self.folder / _CONFIG))
        return digest.hexdigest()

    def modified(self) -> str:
        """A hash of the times when the files were last written, which a change of values moves."""
        files = sorted({info.file for info in self.tensors.values()})
        times = repr([(file.name, file.stat().st_mtime_ns) for file in files])
        return hashlib.sha256(times.encode()).hexdigest()[:16]


def open_checkpoint(model: str) -> Checkpoint:
    """Read the headers of a checkpoint and check that they are whole and consistent.

    Weights are looked for as transformers does, ``model.safetensors`` before
    ``model.safetensors.index.json``; failing both, one file or one complete set of shards will do.

    Args:
        model: a folder, one ``.safetensors`` file beside its ``config.json``, a hub name (its local
            cache where the hub is switched off), or ``tiny``, the embedded model.

    Raises:
        ValueError: in one line that names the file or tensor: something is missing, truncated,
            corrupt or ambiguous, or the checkpoint is quantised.
    """
    path = _locate(model)
    folder = path.parent if path.is_file() else path
    if not (folder / _CONFIG).is_file():
        raise ValueError(f"{folder} has no {_CONFIG}; it is not a saved model")
    config = json_object(folder / _CONFIG)
    if path.is_file():
        tensors = _union([path])
    elif not (folder / _SINGLE).is_file() and (folder / _INDEX).is_file():
        tensors = _indexed(folder / _INDEX)
    else:
        tensors = _union(_weight_files(folder))
    if not tensors:
        raise ValueError(f"the safetensors of {folder} hold no tensors; save the model again")
    refuse_quantised(config, folder, tensors)
    return Checkpoint(folder, config, tensors)


def _locate(model: str) -> Path:
    """The folder or file behind ``model``, fetched from the hub where it is a hub name."""
    path = tiny.path() if model == "tiny" else Path(model)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"model {model!r} is a file; give its folder, or a .safetensors file")
        shard = _SHARD.fullmatch(path.name)
        if shard and int(shard["total"]) > 1:
            raise ValueError(f"{path} is one shard of {int(shard['total'])}; give its folder")
        return path
    local = path.is_absolute() or model.startswith(".") or model.count("/") > 1
    if local or path.suffix == ".safetensors":
        raise ValueError(f"no model folder {model!r}; check the path")
    from huggingface_hub import snapshot_download  # here: local folders don't need its second

    try:
        return Path(
            snapshot_download(
                model,
                allow_patterns=["*.safetensors", "*.json"],
                ignore_patterns=["*/*", "consolidated*"],  # other formats of the same weights
            )
        )
    except (OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no model folder {model!r}, nor can the hub give it: {line}") from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model where no index says so."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    found = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not found:
        others = sorted(f.name for f in folder.iterdir() if f.suffix in _OTHERS)
        raise ValueError(
            f"{folder} has {f'only {others[0]}' if others else 'no weights'}, and orthora reads "
            "safetensors; load the model in transformers and convert it with "
            "save_pretrained(..., safe_serialization=True)"
        )
    shard = _SHARD.fullmatch(found[0].name)
    if shard:
        width, total = len(shard["number"]), shard["total"]
        numbers = range(1, int(total) + 1)
        whole = [folder / f"{shard['stem']}-{i:0{width}d}-of-{total}.safetensors" for i in numbers]
        if set(found) <= set(whole):
            _check_shards(whole, f"the {int(total)} shards in {folder}")
            return whole
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {found[0].name} and {found[-1].name}, and no {_INDEX} says whether both "
            "belong to the model; name one file, or fetch the index"
        )
    return found


def _check_shards(files: list[Path], where: str) -> None:
    """All shards are there."""
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        raise ValueError(f"{len(gone)} of {where} are missing, e.g. {gone[0]}; fetch them again")


def _indexed(index: Path) -> dict[str, TensorInfo]:
    """The tensors that an index lists, from the shard it gives for each."""
    weight_map = json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise ValueError(f"{index} has no weight_map from tensors to file names; fetch it again")
    files = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    _check_shards(files, f"the {len(files)} shards in {index}")
    held = {file.name: tensors_in(file) for file in files}
    for name, shard in weight_map.items():
        if name not in held[shard]:
            raise ValueError(f"{index} seeks {name!r} in {shard}, which lacks it; fetch both again")
    return {name: held[shard][name] for name, shard in weight_map.items()}


def _union(files: list[Path]) -> dict[str, TensorInfo]:
    """The tensors of all files; a name that occurs twice is an error."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in tensors_in(file).items():
            if name in tensors:
                both = f"{tensors[name].file} and {file.name}"
                raise ValueError(f"{name!r} is in both {both}, and no {_INDEX} picks; fetch that")
            tensors[name] = info
    return tensors


def tensors_in(file: Path) -> dict[str, TensorInfo]:
    """What the header of one file lists, after safetensors has checked it against the file.

    Raises:
        ValueError: if the file is missing, truncated or corrupt.
    """
    header, size = _header(file), file.stat().st_size
    needed = len(header) + max((int(end) for end in _END.findall(header)), default=0)
    if needed > size:
        raise ValueError(f"{file} describes {needed} bytes and has {size}: {_AGAIN}")
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {str(error).split(': ', 1)[-1]}: {_AGAIN}") from error
    entries, start = json.loads(header[8:]), len(header)
    entries.pop("__metadata__", None)
    return {
        name: TensorInfo(file, of["dtype"], tuple(of["shape"]), start + of["data_offsets"][0])
        for name, of in entries.items()
    }


def open_tensors(file: Path) -> Checkpoint:
    """One safetensors file that is no model, to read its tensors one by one.

    Raises:
        ValueError: if the file is missing, truncated or corrupt.
    """
    return Checkpoint(file.parent, {}, tensors_in(file))


def _header(file: Path) -> bytes:
    """The eight bytes of length at the start of a file, and the JSON that they measure."""
    start, size = _bytes(file, 8), file.stat().st_size
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise ValueError(f"{file} is {size} bytes long: {_AGAIN}")
    if length > min(size - 8, _HEADER_LIMIT):
        raise ValueError(f"{file} of {size} bytes claims a header of {length}: {_AGAIN}")
    return _bytes(file, 8 + length)


def json_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        ValueError: if the file is missing or holds anything but an object.
    """
    data = _bytes(file)
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): {_AGAIN}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is not a JSON object: {_AGAIN}")
    return value


def _bytes(file: Path, size: int = -1) -> bytes:
    """The first ``size`` bytes of a file, or all."""
    try:
        with file.open("rb") as handle:
            return handle.read(size)
    except OSError as error:
        raise ValueError(f"can't read {file}: {error.strerror}") from error


def refuse_quantised(
    config: dict[str, Any], where: object, tensors: Mapping[str, TensorInfo] | None = None
) -> None:
    """Refuse packed or low-bit weights; integer buffers such as masks and positions may stay.

    Args:
        config: what ``config.json`` says.
        where: what the message calls the model.
        tensors: from the files' headers, where they have been read.

    Raises:
        ValueError: if the config or a tensor says so.
    """
    found = []
    for part in (config, config.get("text_config")):  # the second in multimodal models
        how = part.get("quantization_config") if isinstance(part, dict) else None
        if how:
            found.append(how.get("quant_method", how) if isinstance(how, dict) else how)
    for name, info in (tensors or {}).items():
        integer = info.dtype[0] in "IU" and name.endswith(("weight", "_proj", "_blocks"))
        if integer or info.dtype.startswith(("F8_", "F6_", "F4")) or _PACKED.search(name):
            found.append(f"it holds {name!r} of dtype {info.dtype}")
    if found:
        raise ValueError(
            f"{where} is quantised ({found[0]}), and orthora computes with the weights as they "
            "were trained; use the bfloat16 or float16 original"
        )
