"""Read safetensors files with numpy alone: header length, JSON header, raw little-endian data."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.errors import AttarError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}


@dataclass(frozen=True)
class TensorFile:
    """The arrays of one safetensors file by name, and its text metadata."""

    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]

    def require(self, path: Path, name: str, *, width: int | None = None) -> NDArray[np.float32]:
        """Return an array [rows, width] or [rows] as float32; refuse a file that lacks it."""
        array = self.arrays.get(name)
        if array is None:
            raise AttarError(f"{path} holds no tensor {name!r} (it has: {', '.join(self.arrays)})")
        if width is not None and array.shape[1:] != (width,):
            raise AttarError(
                f"{path}: {name} has shape {tuple(array.shape)}, but this bundle's features are "
                f"{width} wide; use the text features of the teacher that made the bundle"
            )
        return array.astype(np.float32)


def read_tensors(path: Path) -> TensorFile:
    """Read every array of a safetensors file.

    Raises:
        AttarError: the file is cut short, not safetensors, or holds a type numpy lacks (BF16).
    """
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        body = memoryview(data)[8 + length :]
        arrays = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            raw = np.frombuffer(body[start:stop], dtype=_DTYPES[entry["dtype"]])
            arrays[name] = raw.reshape(entry["shape"])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttarError(f"{path} is not a whole safetensors file ({error})") from error
    return TensorFile(arrays, metadata)
