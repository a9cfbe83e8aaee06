"""Protobuf's wire format and the checksum of TensorFlow's files, for reading and writing them without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

NUMBER, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
LONGEST = 63  # bits that a number may be shifted by: it has at most 10 bytes
MASK_DELTA = 0xA282EAD8


def varint(value: int) -> bytes:
    """The variable-length form of a number of at least 0."""
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and the byte after it.

    Raises:
      ValueError: it breaks off, or is longer than 10 bytes.
    """
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > LONGEST:
            raise ValueError("a number is longer than 10 bytes")
    raise ValueError("a number breaks off")


def number_field(number: int, value: int) -> bytes:
    """A field with a number; left out when 0, as protobuf does."""
    return varint(number << 3) + varint(value) if value else b""


def bytes_field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | BYTES) + varint(len(payload)) + payload


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: variable-length values are numbers, all others bytes.

    Raises:
      ValueError: this is no protobuf message.
    """
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind = key & 7
        if kind == NUMBER:
            value, at = read_varint(data, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"unexpected wire type {kind}")
        if at + size > len(data):
            raise ValueError("a field breaks off")
        yield key >> 3, data[at : at + size]
        at += size


def byte_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, bytes) of a message that has no variable-length values of its own.

    Raises:
      ValueError: it has one, or this is no protobuf message.
    """
    for number, value in fields(data):
        if isinstance(value, int):
            raise ValueError(f"field {number} is a number")
        yield number, value


def checksum(data: Any, crc: int = 0) -> int:
    """CRC-32C of contiguous bytes, carried on from `crc`."""
    import google_crc32c

    return google_crc32c.extend(crc, data) if len(data) else crc


def masked(crc: int) -> int:
    """A checksum rotated and shifted, as records and checkpoints store it."""
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def masked_checksum(*parts: Any) -> int:
    """`masked` CRC-32C of parts of bytes one after the other."""
    return masked(functools.reduce(lambda crc, part: checksum(part, crc), parts, 0))
