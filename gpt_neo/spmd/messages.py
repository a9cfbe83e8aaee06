"""Messages between this program and its worker: a JSON header and named arrays. NumPy alone, of either version."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np


def send(stream: BinaryIO, header: Mapping, arrays: Mapping[str, Any]) -> None:
    """Write one message."""
    parts = {name: np.asarray(array) for name, array in arrays.items()}
    about = [{"name": name, "dtype": part.dtype.name, "shape": list(part.shape)} for name, part in parts.items()]
    text = json.dumps({**header, "arrays": about}).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for part in parts.values():
        stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict, dict]:
    """Read one message.

    Raises:
      EOFError: the other side is gone.
    """
    header = json.loads(exactly(stream, struct.unpack("<Q", exactly(stream, 8))[0]))
    arrays = {}
    for about in header.pop("arrays"):
        dtype = np_dtype(about["dtype"])
        count = int(np.prod(about["shape"], dtype=np.int64))
        data = exactly(stream, count * dtype.itemsize)
        arrays[about["name"]] = np.frombuffer(data, dtype).reshape(about["shape"])
    return header, arrays


def np_dtype(name: str) -> np.dtype:
    """NumPy's type for a name that may be bfloat16."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def exactly(stream: BinaryIO, size: int) -> bytearray:
    """That many bytes."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other side closed the connection")
        done += count
    return data
