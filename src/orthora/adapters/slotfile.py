"""A safetensors file whose tensors are written one by one, in any order, at their final place.

safetensors writes a file from tensors that are all in memory. An adapter for a large model is
gigabytes, so here the header is written first, the space is reserved (a full disk shows at once,
not after an hour), and what was never written reads as zeros.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_ALIGNMENT = 8  # of the header, as safetensors pads it


class SlotFile:
    """Float32 tensors of known shapes in one safetensors file.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Open ``path`` to go on, or create it.

        Args:
            path: of the file; one that exists must have the same header.
            shapes: of the tensors, by name.

        Raises:
            OSError: if the disk is full.
            ValueError: if the file exists and holds other tensors.
        """
        self.path = path
        self._shapes = dict(sorted(shapes.items()))
        header, size = self._layout()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            found, size = os.fstat(self._file).st_size, len(header) + size
            if found == 0:
                os.pwrite(self._file, header, 0)
                self._reserve(size)
            elif found != size or os.pread(self._file, len(header), 0) != header:
                raise ValueError(f"{path} holds other tensors; remove it")
        except BaseException:
            os.close(self._file)
            raise

    def _layout(self) -> tuple[bytes, int]:
        """The header, and the size of the data; fills the offsets."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        starts: dict[str, int] = {}
        for name, shape in self._shapes.items():
            starts[name], end = end, end + 4 * math.prod(shape)
            entries[name] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [starts[name], end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        self._offsets = {name: len(header) + start for name, start in starts.items()}
        return header, end

    def _reserve(self, size: int) -> None:
        """Reserve ``size`` bytes on the disk, zeros."""
        if not hasattr(os, "posix_fallocate"):
            os.ftruncate(self._file, size)
            return
        try:
            os.posix_fallocate(self._file, 0, size)
        except OSError as error:
            what = f"{error.strerror} ({size / 1e9:.2f} GB are needed)"
            raise OSError(error.errno, what, str(self.path)) from error

    def write(self, name: str, value: Tensor, row: int = 0) -> None:
        """Write whole rows of a tensor.

        Args:
            name: of the tensor.
            value: (rows, ...) float32; its other dimensions are the tensor's.
            row: where its first row goes.

        Raises:
            OSError: if the disk fails.
        """
        shape = self._shapes[name]
        assert value.dtype == torch.float32, f"{name} is {value.dtype}"
        assert value.shape[1:] == shape[1:], f"{name} is {tuple(value.shape)} for {shape}"
        assert row + value.shape[0] <= shape[0], f"{name} has {shape[0]} rows"
        data = value.detach().cpu().contiguous().numpy().data.cast("B")
        offset = self._offsets[name] + 4 * row * math.prod(shape[1:])
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written

    def flush(self) -> None:
        """Put everything written so far on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; writing ends here."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
