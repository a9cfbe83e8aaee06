"""Tensors on disk: their types, where they come from, and reading them in blocks of bounded size."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from gpt_neo.errors import CheckpointError, brief
from gpt_neo.storage import tensorflow as files

BFLOAT16: np.dtype = np.dtype(ml_dtypes.bfloat16)
FLOATS: tuple[np.dtype, ...] = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))
DIMENSIONS = 32  # of an array at most, in NumPy 1
LONGEST_NAME = 1 << 10  # characters
LARGEST = 1 << 48  # numbers in a tensor, bytes in a file: more than anyone has
BLOCK = 1 << 24  # bytes; what a conversion holds besides the pages of the tensor it reads


class TensorSource(Protocol):
    """Named tensors of a file or folder, read one at a time."""

    path: str

    def names(self) -> list[str]:
        """Every tensor, sorted."""

    def shape(self, name: str) -> tuple:
        """Sizes of a tensor."""

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""

    def read(self, name: str) -> np.ndarray:
        """The tensor: read-only, mapped from the file where that can be.

        Raises:
          CheckpointError: its bytes are damaged, or the file ends before them.
        """


def check_shape(shape: tuple) -> None:
    """Refuse sizes that no array has, before anything is computed of them: a file may say what it likes.

    Raises:
      ValueError: one is no whole number of at least 0, there are too many of them, or their product is absurd.
    """
    if len(shape) > DIMENSIONS:
        raise ValueError(f"impossible sizes: {len(shape)} of them, where at most {DIMENSIONS} are expected")
    check_numbers(*shape)
    if math.prod(size or 1 for size in shape) >= LARGEST:
        raise ValueError("impossible sizes: their product is larger than any tensor")


def check_numbers(*numbers: Any) -> None:
    """Refuse counts and offsets that no file has.

    Raises:
      ValueError: one is no whole number of at least 0, or absurd.
    """
    if not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise ValueError("impossible sizes: expected whole numbers from 0 to 2^48")


def check_name(name: str) -> None:
    """Refuse a name that no tensor has, before a message or a file is made of it.

    Raises:
      ValueError: it is very long, or holds line ends or other commands of a terminal.
    """
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"impossible name of a tensor: {brief(name)}")


def is_float(dtype: np.dtype) -> bool:
    """Whether a type is one of the floats that weights come in (NumPy does not count bfloat16 as one)."""
    return np.dtype(dtype) in FLOATS


def map_array(path: str, dtype: np.dtype, shape: tuple, offset: int) -> np.ndarray:
    """An array in a file, without a copy for a local one.

    Raises:
      CheckpointError: the file is shorter, or cannot be read.
    """
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    try:
        if files.is_remote(path):
            data = files.read_bytes(path, offset, size)
            if len(data) < size:
                raise CheckpointError(f"{path}: ends before byte {offset + size}")
            return read_only(np.frombuffer(bytearray(data), np.uint8), dtype, shape)
        if offset < 0 or offset + size > os.path.getsize(path):
            raise CheckpointError(f"{path}: ends at byte {os.path.getsize(path)}, before byte {offset + size}")
        if not size:
            return np.zeros(shape, dtype)
        # Copy on write: TensorFlow may take the pages as a variable's own and update them; the file never changes.
        first = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with open(path, "rb") as handle:
            pages = mmap.mmap(handle.fileno(), offset - first + size, access=mmap.ACCESS_COPY, offset=first)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return read_only(np.frombuffer(pages, np.uint8, size, offset - first), dtype, shape)


def read_only(raw: np.ndarray, dtype: np.dtype, shape: tuple) -> np.ndarray:
    """An array of bytes that nobody is to write to; the memory could be, which OpenVINO asks for (`fast.weights`)."""
    raw.flags.writeable = False
    return raw.view(dtype).reshape(shape)


def forget_pages(array: np.ndarray) -> None:
    """Let the system take the memory of a mapped array's pages: they come back from the file when they are read."""
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.obj if isinstance(base, memoryview) else base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def blocks(array: np.ndarray, dtype: Any = None) -> Iterator[np.ndarray]:
    """Cut an array into contiguous pieces of at most about BLOCK bytes, in C order, cast to `dtype`.

    A view (transposed, say) of a mapped file is never copied as a whole.
    """
    target = np.dtype(dtype or array.dtype)
    if array.ndim == 0:
        yield np.ascontiguousarray(array.astype(target, copy=False))
        return
    row = int(np.prod(array.shape[1:], dtype=np.int64)) * max(target.itemsize, array.dtype.itemsize)
    if array.ndim > 1 and row > BLOCK:
        for part in array:
            yield from blocks(part, target)
        return
    step = max(1, BLOCK // max(1, row))
    for first in range(0, len(array), step):
        yield np.ascontiguousarray(array[first : first + step]).astype(target, copy=False)


def check_finite(block: np.ndarray, name: str, path: str) -> np.ndarray:
    """Return a block of weights if every number is finite.

    Raises:
      CheckpointError: names tensor and file.
    """
    if is_float(block.dtype) and not np.isfinite(block).all():
        raise CheckpointError(f"{path}: tensor {name} holds NaN or infinite numbers; nothing was converted")
    return block
