"""Tensors that a V2 checkpoint holds in parts, as a sharded saver writes them: what their entries and keys look like.

The entry of such a tensor lists its slices; the bytes of each have an entry of their own, under a key in TensorFlow's
ordered code (tensorflow/core/util/saved_tensor_slice_util.h, core/lib/strings/ordered_code.h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpt_neo.wire import fields

WHOLE = -1  # the length of a dimension that is not cut
ANYHOW = 256  # slices that may lie otherwise than in a grid: each is held against each
KEY = b"\0"  # with which the keys of slices begin, and those of tensors do not


def parse_slice(data: bytes) -> tuple:
    """(first, length) of every dimension of a serialised TensorSliceProto."""
    extents = []
    for number, value in fields(data):
        if number == 1:
            extent = dict(fields(value))
            extents.append((extent.get(1, 0), extent[2]) if 2 in extent else (0, WHOLE))
    return tuple(extents)


def slice_key(name: str, extents: Sequence[tuple]) -> bytes:
    """The key of a slice's entry."""
    text = name.encode().replace(b"\xff", b"\xff\0").replace(b"\0", b"\0\xff") + b"\0\1"
    key = number_code(0) + text + number_code(len(extents))
    for first, length in extents:
        key += signed_code(first) + signed_code(length)
    return key


def number_code(value: int) -> bytes:
    """A number of at least 0: how many bytes it has, and these, the largest first."""
    size = -(-value.bit_length() // 8)
    return bytes([size]) + value.to_bytes(size, "big")


def signed_code(value: int) -> bytes:
    """A number: as many ones as it has bytes, its sign, and seven bits a byte."""
    size = (~value if value < 0 else value).bit_length() // 7 + 1
    head = ((1 << size) - 1) << (8 * size - size)
    return (head ^ (value & ((1 << (8 * size)) - 1))).to_bytes(size, "big") if size < 9 else long_code(value, size)


def long_code(value: int, size: int) -> bytes:
    """Of nine bytes or ten, whose ones go on in the second byte."""
    data = bytearray((value & ((1 << (8 * size)) - 1)).to_bytes(size, "big"))
    data[0] ^= 0xFF
    data[1] ^= 0x80 if size == 9 else 0xC0
    return bytes(data)


def spans_of_slice(extents: Sequence[tuple], shape: Sequence[int]) -> tuple:
    """(first, end) of every dimension of a slice.

    Raises:
      ValueError: it reaches out of its tensor.
    """
    if len(extents) != len(shape):
        raise ValueError("a slice has not as many dimensions as its tensor")
    spans = tuple((first, size if length == WHOLE else first + length) for (first, length), size in zip(extents, shape))
    if any(not 0 <= first <= end <= size for (first, end), size in zip(spans, shape)):
        raise ValueError("a slice reaches out of its tensor")
    return spans


def cut(array: np.ndarray, spans: Sequence[tuple]) -> np.ndarray:
    """A slice of a whole array; `spmd.slices`, which has no package to ask, has it too."""
    return array[tuple(slice(first, end) for first, end in spans)]


def inside(spans: Sequence[tuple], outer: Sequence[tuple]) -> list[tuple]:
    """Where a slice lies in a larger one that has it."""
    return [(first - begin, end - begin) for (first, end), (begin, _) in zip(spans, outer)]


def in_grid(spans: Sequence[tuple]) -> bool:
    """Whether slices are all of the cells that cuts through whole dimensions make, as savers write them."""
    axes = [sorted(set(axis)) for axis in zip(*spans)]
    apart = all(one[1] <= other[0] for axis in axes for one, other in zip(axis, axis[1:]))
    return apart and len(set(spans)) == len(spans) == math.prod(map(len, axes))


def overlapping(spans: Sequence[tuple]) -> bool:
    """Whether two slices, each (first, end) of every dimension, have something in common.

    Raises:
      ValueError: they are many, and make no grid.
    """
    if in_grid(spans):
        return False
    if len(spans) > ANYHOW:
        raise ValueError(f"{len(spans)} slices that are no grid")
    ordered = sorted(spans)
    for place, one in enumerate(ordered):
        for other in ordered[place + 1 :]:
            if one and other[0][0] >= one[0][1]:
                break
            if all(a < d and c < b for (a, b), (c, d) in zip(one, other)):
                return True
    return False
