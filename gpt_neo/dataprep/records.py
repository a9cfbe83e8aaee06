"""The TFRecord schema: one `tf.train.Example` with one int64 list `text`, uncompressed; beside it may be a list `mask`
of as many numbers, 1 for tokens that count as labels.

Written and read without TensorFlow, which takes seconds to import; tests hold both against TensorFlow's own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Optional, Union

import numpy as np

from gpt_neo import storage
from gpt_neo.dataprep.readers import is_marker, packed_as
from gpt_neo.errors import DataError, reason_of
from gpt_neo.wire import byte_fields, bytes_field, masked_checksum, varint

FEATURE, MASK = "text", "mask"
APART = "give each a dataset of its own, with a weight"
UNREAD_MASK = f"a mask, and the first record of its dataset has none: {APART}"
NO_MASK = f"no mask, and the first record of its dataset has one: {APART}"
UNPACKERS = {".gz": "gzip -d", ".zst": "zstd -d", ".xz": "xz -d", ".bz2": "bzip2 -d", ".zip": "unzip"}
ZLIB = (b"x\x01", b"x\x9c", b"x\xda")  # TensorFlow writes records so too; two letters, too few to tell among texts
BLOCK = 1 << 22  # numbers packed at once


def pack_varints(values: np.ndarray) -> bytes:
    """Protobuf varints of non-negative numbers below 2**28, vectorised."""
    values = np.asarray(values).astype(np.uint32)
    width = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    columns, used = np.empty((len(values), width), np.uint8), np.ones((len(values), width), bool)
    for place in range(width):
        columns[:, place] = (values >> np.uint32(7 * place)) & np.uint32(0x7F)
        if place:
            used[:, place] = values >= 1 << 7 * place
            columns[:, place - 1] |= used[:, place].view(np.uint8) << np.uint8(7)  # more bytes follow
    return columns[used].tobytes()


def unpack_varints(data: bytes) -> np.ndarray:
    """int64 [tokens] of packed varints."""
    raw = np.frombuffer(data, np.uint8)
    last = raw < 0x80
    if len(raw) and not last[-1]:
        raise ValueError("a number breaks off")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    shifts = 7 * (np.arange(len(raw)) - np.repeat(starts, ends - starts + 1))
    if len(shifts) and shifts.max() > 63:
        raise ValueError("a number is longer than 10 bytes")
    parts = (raw & 0x7F).astype(np.int64) << shifts
    return np.add.reduceat(parts, starts) if len(ends) else np.zeros(0, np.int64)


def encode_example(tokens: Union[Sequence[int], np.ndarray], mask: Optional[Sequence[int]] = None) -> bytes:
    """Serialise one record. mask: 1 for tokens that count as labels, 0 for others; None leaves it out."""
    whole = example_of(pack_varints(np.asarray(tokens)))
    if mask is None:
        return whole
    numbers = bytes_field(1, pack_varints(np.asarray(mask)))
    entry = bytes_field(1, bytes_field(1, MASK.encode()) + bytes_field(2, bytes_field(3, numbers)))
    features = b"".join(data for _, data in byte_fields(whole))
    return bytes_field(1, features + entry)


def encode_rows(rows: np.ndarray) -> bytes:
    """Framed records of equal length, one for each row of ids [records, tokens]: the bytes of many `write`s at once."""
    packed, ends = pack_rows(rows.astype(np.uint32))
    framed = []
    start = 0
    for end in ends.tolist():
        framed.append(frame(example_of(packed[start:end])))
        start = end
    return b"".join(framed)


def pack_rows(rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Varints of all rows, joined, and the byte at which each row ends, int64 [records]."""
    sizes = np.full(len(rows), rows.shape[1], np.int64)
    for bits in (7, 14, 21):
        sizes += np.count_nonzero(rows >> bits, axis=1)
    return pack_varints(rows.reshape(-1)), np.cumsum(sizes)


def example_of(packed: bytes) -> bytes:
    """A serialised record of packed varints."""
    return example_head(len(packed)) + packed


@functools.lru_cache(maxsize=1 << 14)
def example_head(size: int) -> bytes:
    """What stands before `size` bytes of packed varints in a record: Example, Features, entry, name, list."""
    head, name = b"", bytes_field(1, FEATURE.encode())
    for number, before in ((1, b""), (3, b""), (2, name), (1, b""), (1, b"")):
        head = before + bytes([number << 3 | 2]) + varint(len(head) + size) + head
    return head


def frame(*parts: bytes) -> bytes:
    """Length and checksums around a record, which is given in parts."""
    return b"".join(frame_parts(*parts))


def frame_parts(*parts: bytes) -> tuple[bytes, ...]:
    """As `frame`, without a copy of the record."""
    length = struct.pack("<Q", sum(map(len, parts)))
    return length, struct.pack("<I", masked_checksum(length)), *parts, struct.pack("<I", masked_checksum(*parts))


def framed_example(ids: np.ndarray) -> tuple[bytes, ...]:
    """A framed record of any length in parts: never twice in memory."""
    blocks = [pack_varints(ids[start : start + BLOCK]) for start in range(0, len(ids), BLOCK)]
    return frame_parts(example_head(sum(map(len, blocks))), *blocks)


def parse_example(data: bytes, feature: str = FEATURE) -> np.ndarray:
    """int64 [tokens] of a serialised record.

    Raises:
      ValueError: it is no Example with an int64 list of that name.
    """
    features = dict(byte_fields(data)).get(1, b"")
    found = list(byte_fields(features))
    for _, entry in found:
        parts = dict(byte_fields(entry))
        if parts.get(1) == feature.encode():
            values = dict(byte_fields(parts.get(2, b""))).get(3)
            if values is None:
                raise ValueError(f"feature {feature!r} is no int64 list")
            # An old writer may have left the list unpacked: every value then has a tag of its own.
            if values[:1] == b"\x08":
                return unpack_varints(values)[1::2]
            return unpack_varints(dict(byte_fields(values)).get(1, b""))
    held = ", ".join(
        sorted(repr(dict(byte_fields(entry)).get(1, b"").decode("utf-8", "replace")) for _, entry in found)
    )
    raise ValueError(f"no feature {feature!r}: it has {held or 'none'}")


def has_mask(data: bytes) -> bool:
    """Whether a serialised record says which tokens count."""
    features = dict(byte_fields(data)).get(1, b"")
    return any(dict(byte_fields(entry)).get(1) == MASK.encode() for _, entry in byte_fields(features))


@contextlib.contextmanager
def unreadable(path: str) -> Iterator[None]:
    """Context in which a failing disk is one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error


def read_records(path: str, files: Any = storage, masked: Optional[bool] = None) -> Iterator[np.ndarray]:
    """Yield the records of a file, int64 [tokens] each.

    Args:
      files: what reads it: `storage`, or `storage.tensorflow` where a job reads its own.
      masked: whether they have masks, of as many numbers as there are tokens; None where that does not matter.

    Raises:
      DataError: a record is cut off, damaged or of another schema; names file and byte offset.
    """
    for offset, data in read_frames(path, files):
        try:
            tokens = parse_example(data)
            if masked is not None:
                check_mask(data, len(tokens), masked)
            yield tokens
        except ValueError as error:
            raise DataError(f"{path}: record at byte {offset}: {error}") from error


def check_mask(data: bytes, size: int, masked: bool) -> None:
    """Check whether a serialised record has a mask, of `size` numbers, or has none.

    Raises:
      ValueError: it is otherwise.
    """
    numbers = len(parse_example(data, MASK)) if has_mask(data) else 0
    if numbers and not masked:
        raise ValueError(f"it has {UNREAD_MASK}")
    if masked and size and not numbers:
        raise ValueError(f"it has {NO_MASK}")
    if masked and numbers != size:
        raise ValueError(f"it has a mask of {numbers} numbers; a token has one each")


def records_only(paths: Sequence[str]) -> list[str]:
    """Files that a pattern found, without what is beside records: manifests, hidden files, marks of other tools."""
    return [path for path in paths if not path.endswith("_manifest.json") and not is_marker(path.rsplit("/", 1)[-1])]


def check_head(path: str, offset: int, head: bytes) -> None:
    """Check the length of a record, its first 12 bytes.

    Raises:
      DataError: its checksum is wrong, or the file is compressed.
    """
    if struct.unpack("<I", head[8:])[0] == masked_checksum(head[:8]):
        return
    undone = UNPACKERS.get(packed_as(head), "zlib" if head.startswith(ZLIB) else "")
    if undone and not offset:
        raise DataError(f"{path}: it is compressed; records are read as they are: unpack it first ({undone})")
    other = "" if offset else "; it may be something else than TFRecords"
    raise DataError(f"{path}: record at byte {offset} is damaged: the checksum of its length is wrong{other}")


def read_frames(path: str, files: Any = storage) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, serialised record), both checksums verified. files: as `read_records` has it."""
    with unreadable(path), files.open_read(path) as handle:
        whole = files.size(path)
        offset = 0
        while True:
            head = handle.read(12)
            if not head:
                return
            if len(head) < 12:
                raise DataError(f"{path}: record at byte {offset} is cut off")
            check_head(path, offset, head)
            size = struct.unpack("<Q", head[:8])[0]
            # A length may be right by its checksum and wrong all the same: no memory is asked for what is not there.
            body = handle.read(size + 4) if offset + 16 + size <= whole else b""
            if len(body) < size + 4:
                raise DataError(f"{path}: record at byte {offset} is cut off")
            if struct.unpack("<I", body[size:])[0] != masked_checksum(body[:size]):
                raise DataError(f"{path}: record at byte {offset} is damaged: its checksum is wrong")
            yield offset, body[:size]
            offset += 16 + size


COUNTED = re.compile(r"(.*_\d+)_(\d+)\.tfrecords?", re.DOTALL)


def count_from_name(path: str) -> Optional[int]:
    """The record count in `<name>_<shard>_<records>.tfrecords`, or None; a single number is that of the file."""
    match = COUNTED.fullmatch(path)
    return int(match[2]) if match else None


def counts_from_names(paths: Sequence[str]) -> list[Optional[int]]:
    """The same of several files, of which no two are the same shard.

    Where one says 0, or several differ in their last number alone (`wiki_2020_3.tfrecords`, `wiki_2020_4.tfrecords`),
    that number is the file's own.
    """
    found = [count_from_name(path) for path in paths]
    shards = [match[1] for match in map(COUNTED.fullmatch, paths) if match]
    return [None] * len(found) if 0 in found or len(set(shards)) < len(shards) else found


def count_records(path: str) -> int:
    """The number of records of a file, from the lengths alone; a record that is cut off does not count.

    Raises:
      DataError: it cannot be read, is damaged or compressed.
    """
    count = offset = 0
    with unreadable(path), storage.open_read(path) as handle:
        size = storage.size(path)
        while True:
            head = handle.read(12)
            if len(head) < 12:
                return count
            check_head(path, offset, head)
            offset += 16 + struct.unpack("<Q", head[:8])[0]
            if offset > size:
                return count
            count += 1
            handle.seek(offset)


class RecordWriter:
    """Writes `<name>_<shard>_<records>.tfrecords`, under a temporary name until the count is known."""

    def __init__(self, folder: str, name: str, shard: int) -> None:
        self.folder, self.name, self.shard = folder, name, shard
        self.count = 0
        self.temporary = os.path.join(folder, f".{name}_{shard}.writing")
        self.handle: Any = open(self.temporary, "wb")

    def write(self, tokens: Sequence[int], mask: Optional[Sequence[int]] = None) -> None:
        """Append one record."""
        self.handle.write(frame(encode_example(tokens, mask)))
        self.count += 1

    def close(self) -> Optional[str]:
        """Give the file its name; an empty one is removed. Returns its path."""
        self.handle.close()
        if not self.count:
            os.remove(self.temporary)
            return None
        path = os.path.join(self.folder, f"{self.name}_{self.shard}_{self.count}.tfrecords")
        storage.install(self.temporary, path)
        return path
