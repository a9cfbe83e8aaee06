"""The safetensors format, read mapped and written as a stream: 8 bytes of length, a JSON header, then the tensors."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping

import numpy as np

from gpt_neo.checkpoint.tensors import BFLOAT16, check_name, check_numbers, check_shape, map_array
from gpt_neo.errors import CheckpointError, brief, reason_of
from gpt_neo.storage import parse_json, sync

TYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
# Headers of more tensors than any file has; what is read of one takes more memory than its text.
LARGEST_HEADER = 1 << 24  # bytes
PARTS = 1 << 19  # lists, objects and what follows commas; a tensor has about nine


class SafetensorsFile:
    """One file; a `TensorSource`.

    Raises:
      CheckpointError: header or sizes do not make sense, or the file is cut off.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            size = os.path.getsize(path)
            with open(path, "rb") as handle:
                start = handle.read(8)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                    raise CheckpointError(f"{path}: not a safetensors file, or cut off in its header")
                header = parse_header(handle.read(length))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: its header is damaged: {brief(error, 300)}") from error
        self.start = 8 + length
        self.entries = {}
        try:
            for name, entry in header.items():
                self.entries[name] = check_entry(path, name, entry, size - self.start)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: its header is damaged: {brief(error, 300)}") from error
        check_cover(path, self.entries, size - self.start)

    def names(self) -> list[str]:
        """Every tensor, sorted."""
        return sorted(self.entries)

    def shape(self, name: str) -> tuple:
        """Sizes of a tensor."""
        return self.entries[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self.entries[name][0]

    def read(self, name: str) -> np.ndarray:
        """The tensor, mapped from the file."""
        dtype, shape, offset = self.entries[name]
        return map_array(self.path, dtype, shape, self.start + offset)


def parse_header(text: bytes) -> dict:
    """The entries of a header, by the name of their tensor.

    Raises:
      ValueError: it is no JSON object in UTF-8, or its notes are more than texts by name.
    """
    if text[:1] != b"{" or b"\0" in text[:4]:
        raise ValueError("expected a JSON object")
    if sum(map(text.count, (b"[", b"{", b","))) > PARTS:
        raise ValueError("it has more parts than that of any model")
    header = parse_json(text)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("its __metadata__ holds something else than texts")
    return header


def check_entry(path: str, name: str, entry: dict, room: int) -> tuple:
    """(type, shape, offset) of a header's entry, held against the size of the file."""
    check_name(name)
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} has no dtype, shape or data_offsets")
    if entry["dtype"] not in TYPES:
        raise CheckpointError(f"{path}: tensor {name} has type {brief(entry['dtype'])}; known: {', '.join(TYPES)}")
    if not isinstance(entry["shape"], list):
        raise ValueError(f"tensor {name} has sizes that are no list")
    dtype, shape = TYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    check_shape(shape)
    check_numbers(begin, end)
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path}: tensor {name}: {end - begin} bytes do not make {list(shape)} of {dtype}")
    if end > room:
        raise CheckpointError(f"{path}: tensor {name} ends at byte {end} of {room}: the file is cut off")
    return dtype, shape, begin


def check_cover(path: str, entries: Mapping[str, tuple], room: int) -> None:
    """The format's own rule: tensors lie one after the other, without holes, to the end of the file.

    Raises:
      CheckpointError: they do not.
    """
    at, last = 0, "the header"
    for begin, size, name in sorted((b, math.prod(shape) * d.itemsize, n) for n, (d, shape, b) in entries.items()):
        if begin != at:
            what = "overlaps" if begin < at else "leaves a hole after"
            raise CheckpointError(f"{path}: tensor {name}, at byte {begin}, {what} {last}, which ends at byte {at}")
        at, last = begin + size, name
    if at != room:
        raise CheckpointError(f"{path}: {room - at} bytes at its end are no tensor's")


def write_safetensors(
    path: str, tensors: Mapping[str, tuple[np.dtype, tuple]], pieces: Mapping[str, Iterable[np.ndarray]]
) -> None:
    """Write a file.

    Args:
      tensors: type and shape by name, in the order of the file.
      pieces: for each name its contiguous pieces in C order, made as they are written.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            begin = handle.tell()
            for piece in pieces[name]:
                handle.write(piece.reshape(-1).view(np.uint8).data)
            first, last = header[name]["data_offsets"]
            if handle.tell() - begin != last - first:
                raise ValueError(f"tensor {name}: {handle.tell() - begin} bytes written, {last - first} promised")
    sync(path)
