"""Scalars out of TensorBoard's event files, read without TensorFlow.

A file is a TFRecord of Event messages (tensorflow/core/util/event.proto): 2 step, 5 summary; summary 1 value; value
1 tag, 2 simple_value, 8 tensor; tensor 4 content, 5 float values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gpt_neo.wire import fields

HEADER = 12  # bytes before a record's data: its length and a checksum
FOOTER = 4


def split_records(data: bytes) -> tuple[list[bytes], int]:
    """Whole records at the start of `data`, and the number of bytes that they take; a rest is still being written."""
    records, place = [], 0
    while place + HEADER <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + HEADER + length + FOOTER
        if end > len(data):
            break
        records.append(data[place + HEADER : end - FOOTER])
        place = end
    return records, place


def scalars_of(event: bytes) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of every scalar of an Event.

    Raises:
      ValueError: this is no protobuf message.
    """
    parts = list(fields(event))
    step = next((value for number, value in parts if number == 2 and isinstance(value, int)), 0)
    for summary in messages(parts, 5):
        for value in messages(fields(summary), 1):
            inside = list(fields(value))
            tag = b"".join(messages(inside, 1)).decode("utf-8", "replace")
            numbers = [part for number, part in inside if number == 2 and isinstance(part, bytes)]
            for tensor in messages(inside, 8):
                numbers += [part for number, part in fields(tensor) if number in (4, 5) and isinstance(part, bytes)]
            if numbers and len(numbers[0]) == 4:
                yield tag, step, struct.unpack("<f", numbers[0])[0]


def messages(parts: object, wanted: int) -> Iterator[bytes]:
    """The parts of a field number that are bytes."""
    for number, value in parts:  # type: ignore[attr-defined]
        if number == wanted and isinstance(value, bytes):
            yield value
