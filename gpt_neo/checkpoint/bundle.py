"""TensorFlow's V2 checkpoint format: `<prefix>.index` and `<prefix>.data-00000-of-00001`, without TensorFlow.

TensorFlow's own reader copies every tensor and its writer takes them all at once. Here tensors are mapped from the
data file, and written one after another in blocks, so that neither needs the memory of a whole model. The index is a
sorted table (the LevelDB format) of serialised BundleEntryProto messages; tests hold both ways against TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.partitions import KEY, cut, inside, overlapping, parse_slice, slice_key, spans_of_slice
from gpt_neo.checkpoint.tensors import BFLOAT16, BLOCK, check_name, check_numbers, check_shape, forget_pages, map_array
from gpt_neo.errors import CheckpointError, brief, reason_of
from gpt_neo.storage import tensorflow as files
from gpt_neo.wire import bytes_field, checksum, fields, masked, masked_checksum, number_field, read_varint, varint

# Values of TensorFlow's DataType enumeration.
TYPES: dict[int, np.dtype] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: BFLOAT16,
    17: np.dtype(np.uint16),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
CODES = {dtype: code for code, dtype in TYPES.items()}
MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two block handles padded to 40, and the magic number
TRAILER = 5  # bytes after a block: compression, checksum
KEYS = 8  # bytes of keys, which share beginnings, for one of their index; real ones have less than 2
ENTRIES, SHARDS = 1 << 20, 100_000  # more than any checkpoint has, in slices too
LARGEST_INDEX = 1 << 26  # bytes; real ones have 100 KB, and 10 MB in slices of many devices
ALIGNMENT = 64  # bytes; TensorFlow uses a mapped tensor in place only at such an address


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies. size: bytes. crc: masked CRC-32C of its bytes. slices: (spans, entry) of each, where it is
    held in several, and none of the other places says anything."""

    dtype: np.dtype
    shape: tuple
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple = ()


class Bundle:
    """A checkpoint to read from; a `TensorSource`.

    Raises:
      CheckpointError: the index is missing or damaged, or a data file is missing or too short.
    """

    def __init__(self, prefix: str) -> None:
        self.path = prefix
        self.entries: dict[str, Entry] = {}
        self.others: list[str] = []  # strings and the like, which no weight is
        try:
            table = read_table(read_bytes(prefix + ".index"))
            self.shards = parse_header(table.pop(b""))
            for key, value in table.items():
                entry = None if key.startswith(KEY) else parse_entry(value, key.decode("utf-8"), table)
                if entry is not None:
                    check_name(key.decode("utf-8"))
                    self.entries[key.decode("utf-8")] = entry
                elif not key.startswith(KEY):
                    self.others.append(key.decode("utf-8", "replace"))
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            reason = error if isinstance(error, ValueError) else "its table is damaged"
            raise CheckpointError(f"{prefix}.index: cannot be read as a checkpoint: {brief(reason, 300)}") from error
        self.check_shards()

    def shard_path(self, shard: int) -> str:
        """File of a shard."""
        return f"{self.path}.data-{shard:05d}-of-{self.shards:05d}"

    def check_shards(self) -> None:
        """Every data file has to be there, as long as the index says, and no byte is two tensors'."""
        spans: dict[int, list] = {}
        for name, e in self.stored():
            spans.setdefault(e.shard, []).append((e.offset, e.offset + e.size, name))
        for shard, held in sorted(spans.items()):
            if shard >= self.shards:
                raise CheckpointError(
                    f"{self.path}.index: tensor {held[0][2]} is in data file {shard} of {self.shards}"
                )
            path, end = self.shard_path(shard), max(last for _, last, _ in held)
            size = file_size(path)
            if size is None:
                raise CheckpointError(f"{self.path}: data file {os.path.basename(path)} is missing")
            if size < end:
                raise CheckpointError(f"{path}: has {size} bytes, the index tells of {end}: it is cut off")
            filled = sorted(span for span in held if span[0] < span[1])
            for (_, last, one), (first, _, other) in zip(filled, filled[1:]):
                if first < last:
                    raise CheckpointError(f"{path}: tensors {one} and {other} overlap at byte {first}")

    def stored(self) -> Iterator[tuple[str, Entry]]:
        """What lies in the data files: (name, entry) of whole tensors and of slices."""
        for name, entry in self.entries.items():
            for _, part in entry.slices or (((), entry),):
                yield name, part

    def names(self) -> list[str]:
        """Every tensor, sorted."""
        return sorted(self.entries)

    def shape(self, name: str) -> tuple:
        """Sizes of a tensor."""
        return self.entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self.entries[name].dtype

    def verify(self) -> None:
        """Hold every tensor of a local checkpoint against its checksum, read in the order of the files in blocks.

        Not mapped: a disk that fails under a mapped page ends the process.

        Raises:
          CheckpointError: one is wrong, or cannot be read.
        """
        for shard in sorted({entry.shard for _, entry in self.stored()}):
            inside = [(name, entry) for name, entry in self.stored() if entry.shard == shard]
            try:
                with storage.open_read(self.shard_path(shard)) as handle:
                    for name, entry in sorted(inside, key=lambda pair: pair[1].offset):
                        handle.seek(entry.offset)
                        self.verify_one(name, entry, handle)
            except OSError as error:
                raise CheckpointError(f"{self.shard_path(shard)}: cannot be read: {reason_of(error)}") from error

    def verify_one(self, name: str, entry: Entry, handle: BinaryIO) -> None:
        """Hold what begins where a file stands against its checksum. Raises: CheckpointError."""
        crc = 0
        for first in range(0, entry.size, BLOCK):
            crc = checksum(handle.read(min(BLOCK, entry.size - first)), crc)
        if masked(crc) != entry.crc:
            raise CheckpointError(f"{self.path}: tensor {name} is damaged: its checksum is wrong")

    def read(self, name: str) -> np.ndarray:
        """The tensor, mapped from its file; put together where it is held in slices.

        Raises:
          CheckpointError: a checksum is wrong.
        """
        entry = self.entries[name]
        if entry.slices:
            return self.read_part(name, [(0, size) for size in entry.shape])
        return self.read_entry(name, entry)

    def read_part(self, name: str, spans: Sequence[tuple]) -> np.ndarray:
        """A slice of a tensor, and as little else as can be: of one that is held in slices those that it touches, with
        their checksums; of a whole one what is mapped and looked at, without.

        Args:
          spans: (first, end) of every dimension.

        Raises:
          CheckpointError: a checksum is wrong.
        """
        entry = self.entries[name]
        if not entry.slices:
            return cut(map_array(self.shard_path(entry.shard), entry.dtype, entry.shape, entry.offset), spans)
        found = np.empty([end - first for first, end in spans], entry.dtype)
        for held, part in entry.slices:
            common = [(max(a, first), min(b, end)) for (a, b), (first, end) in zip(held, spans)]
            if all(first < end for first, end in common):
                cut(found, inside(common, spans))[...] = cut(self.read_entry(name, part), inside(common, held))
        return found

    def read_entry(self, name: str, entry: Entry) -> np.ndarray:
        """What lies in one piece, mapped. Raises: CheckpointError: its checksum is wrong."""
        array = map_array(self.shard_path(entry.shard), entry.dtype, entry.shape, entry.offset)
        if masked_checksum(array.reshape(-1).view(np.uint8)) != entry.crc:
            raise CheckpointError(f"{self.path}: tensor {name} is damaged: its checksum is wrong")
        forget_pages(array)
        return array


class BundleWriter:
    """Writes a checkpoint tensor by tensor. Nothing can read it before `finish` has written the index."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.entries: dict[str, Entry] = {}
        self.data = open(prefix + ".data-00000-of-00001", "wb")

    def add(self, name: str, shape: Iterable[int], dtype: np.dtype, pieces: Iterable[np.ndarray]) -> None:
        """Append a tensor given as contiguous pieces in C order."""
        offset = self.align()
        crc = size = 0
        for piece in pieces:
            raw = piece.reshape(-1).view(np.uint8)
            crc = checksum(raw, crc)
            size += raw.nbytes
            self.data.write(raw.data)
        self.enter(name, shape, dtype, offset, size, crc)

    def add_zeros(self, name: str, shape: Iterable[int], dtype: np.dtype) -> None:
        """Append zeros, as a hole in the file that takes no disk."""
        offset, crc = self.align(), 0
        size = int(np.prod(tuple(shape), dtype=np.int64)) * dtype.itemsize
        zeros = np.zeros(min(size, BLOCK), np.uint8)
        for first in range(0, size, BLOCK):
            crc = checksum(zeros[: size - first], crc)
        self.data.truncate(offset + size)
        self.data.seek(offset + size)
        self.enter(name, shape, dtype, offset, size, crc)

    def align(self) -> int:
        """Go to the next aligned byte and return it."""
        offset = -(-self.data.tell() // ALIGNMENT) * ALIGNMENT
        self.data.seek(offset)
        return offset

    def enter(self, name: str, shape: Iterable[int], dtype: np.dtype, offset: int, size: int, crc: int) -> None:
        """Remember a tensor for the index."""
        if name in self.entries:
            raise ValueError(f"tensor {name} was written already")
        shape = tuple(int(n) for n in shape)
        if size != int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize:
            raise ValueError(f"tensor {name}: {size} bytes do not make {shape} of {dtype}")
        self.entries[name] = Entry(np.dtype(dtype), shape, 0, offset, size, masked(crc))

    def finish(self) -> None:
        """Put the data on disk, then write the index."""
        self.data.close()
        storage.sync(self.data.name)
        header = number_field(1, 1) + bytes_field(3, number_field(1, 1))
        items = {b"": header, **{name.encode(): format_entry(e) for name, e in self.entries.items()}}
        storage.write_bytes(self.prefix + ".index", write_table(items))


def read_bytes(path: str) -> bytes:
    """A whole index, local or remote.

    Raises:
      CheckpointError: it cannot be read, or is too large.
    """
    try:
        if files.size(path) > LARGEST_INDEX:
            raise CheckpointError(f"{path}: cannot be read as a checkpoint: it is larger than any index")
        return files.read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {reason_of(error)}") from error


def file_size(path: str) -> Optional[int]:
    """Bytes of a file, None where there is none."""
    try:
        return files.size(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_header(data: bytes) -> int:
    """How many data files a serialised BundleHeaderProto tells of.

    Raises:
      ValueError: no checkpoint has so many, or it was written on a big-endian machine.
    """
    found = dict(fields(data))
    shards = found.get(1, 1)
    check_numbers(shards)
    if not 0 < shards < SHARDS:
        raise ValueError(f"it tells of {shards} data files")
    if found.get(2, 0):
        raise ValueError("written on a big-endian machine, which is not read here")
    return shards


def parse_entry(data: bytes, name: str = "", table: Mapping[bytes, bytes] = MappingProxyType({})) -> Any:
    """Entry of a serialised BundleEntryProto; None for a type that no weight has.

    Args:
      name: of its tensor. table: where the entries of slices are.
    """
    found: dict[int, Any] = {1: 0, 2: b"", 3: 0, 4: 0, 5: 0, 6: b""}
    slices = []
    for number, value in fields(data):
        if number == 7:
            slices.append(parse_slice(value))
        found[number] = value
    if found[1] not in TYPES:
        return None
    shape = tuple(dict(fields(dim)).get(1, 0) for number, dim in fields(found[2]) if number == 2)
    dtype = TYPES[found[1]]
    check_shape(shape)
    if slices:
        parts = parse_slices(name, shape, dtype, slices, table)
        return Entry(dtype, shape, 0, 0, math.prod(shape) * dtype.itemsize, 0, parts)
    check_numbers(found[3], found[4], found[5])
    if found[5] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it tells of {found[5]} bytes for {shape} of {dtype}")
    return Entry(dtype, shape, found[3], found[4], found[5], int.from_bytes(found[6], "little"))


def parse_slices(name: str, shape: tuple, dtype: np.dtype, slices: list, table: Mapping[bytes, bytes]) -> tuple:
    """(spans, Entry) of every slice of a tensor.

    Raises:
      ValueError: one is missing, is no slice of it, or they do not cover it.
    """
    parts = []
    for extents in slices:
        spans = spans_of_slice(extents, shape)
        data = table.get(slice_key(name, extents))
        part = parse_entry(data, name) if data is not None else None
        if part is None or part.slices or part.dtype != dtype or part.shape != tuple(b - a for a, b in spans):
            raise ValueError(f"a slice of {name} is missing, or is not what the tensor says")
        parts.append((spans, part))
    # No two of a saver overlap, so as many numbers as there are cover all.
    if sum(math.prod(part.shape) for _, part in parts) != math.prod(shape) or overlapping([s for s, _ in parts]):
        raise ValueError(f"the slices of {name} do not make the whole of it")
    return tuple(parts)


def format_entry(entry: Entry) -> bytes:
    """Serialised BundleEntryProto."""
    shape = b"".join(bytes_field(2, number_field(1, n)) for n in entry.shape)
    crc = varint(6 << 3 | 5) + struct.pack("<I", entry.crc)
    return (
        number_field(1, CODES[entry.dtype])
        + bytes_field(2, shape)
        + number_field(3, entry.shard)
        + number_field(4, entry.offset)
        + number_field(5, entry.size)
        + crc
    )


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Keys and values of a sorted table.

    Raises:
      ValueError: it is damaged.
    """
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("its end is missing")
    _, at = read_varint(data[-FOOTER:], 0)
    _, at = read_varint(data[-FOOTER:], at)
    offset, at = read_varint(data[-FOOTER:], at)
    size, _ = read_varint(data[-FOOTER:], at)
    table: dict[bytes, bytes] = {}
    last: Optional[bytes] = None
    end, room = 0, KEYS * len(data)
    for _, handle in block_items(data, offset, size):
        start, at = read_varint(handle, 0)
        length, _ = read_varint(handle, at)
        if start < end:
            raise ValueError("its blocks overlap")  # else a short index could name one block as often as it likes
        end = start + length
        for key, value in block_items(data, start, length):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order, or one stands twice")
            last, room = key, room - len(key)
            if room < 0 or len(table) > ENTRIES:
                raise ValueError("it has more keys than any checkpoint")
            table[key] = value
    return table


def block_items(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block, its checksum verified."""
    end = offset + size
    if end + TRAILER > len(data):
        raise ValueError("it is cut off")
    if data[end] != 0:
        raise ValueError("it is compressed, which TensorFlow's checkpoints are not")
    if masked_checksum(data[offset : end + 1]) != struct.unpack_from("<I", data, end + 1)[0]:
        raise ValueError("a checksum is wrong")
    block = data[offset:end]
    restarts = struct.unpack("<I", block[-4:])[0]
    at, limit, key, room = 0, len(block) - 4 - 4 * restarts, b"", KEYS * len(data)
    if limit < 0:
        raise ValueError("a block has more restarts than bytes")
    begins = {0}  # of entries whose key is whole, as it is at each restart
    while at < limit:
        begin = at
        shared, at = read_varint(block, at)
        if shared > len(key):
            raise ValueError("a key begins as one that is shorter")
        if not shared:
            begins.add(begin)
        unshared, at = read_varint(block, at)
        length, at = read_varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        room -= len(key)
        if room < 0 or at + length > limit:
            raise ValueError("a key or a value is longer than its block")
        yield key, block[at : at + length]
        at += length
    if not begins.issuperset(struct.unpack_from(f"<{restarts}I", block, limit)):
        raise ValueError("a restart is no entry's beginning")


def write_table(items: dict[bytes, bytes]) -> bytes:
    """Serialise a sorted table: one block of entries, an empty block of metadata, a block that points at the first."""
    out = bytearray()

    def append(block: bytes) -> bytes:
        handle = varint(len(out)) + varint(len(block))
        whole = block + b"\0"
        out.extend(whole + struct.pack("<I", masked_checksum(whole)))
        return handle

    data = append(format_block(sorted(items.items())))
    meta = append(format_block([]))
    index = append(format_block([(max(items), data)]))
    return bytes(out) + (meta + index).ljust(FOOTER - 8, b"\0") + struct.pack("<Q", MAGIC)


def format_block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Entries whose keys are whole (a restart at each), and the table of restarts."""
    out, restarts = bytearray(), []
    for key, value in pairs:
        restarts.append(len(out))
        out += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
