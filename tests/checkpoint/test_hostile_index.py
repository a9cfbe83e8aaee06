"""Indexes of TensorFlow checkpoints whose checksums are right, and their content is not."""

import math
import struct

import numpy as np
import pytest

from gpt_neo.checkpoint import bundle
from gpt_neo.checkpoint.bundle import FOOTER, MAGIC, Bundle, format_block, write_table
from gpt_neo.checkpoint.partitions import overlapping, slice_key
from gpt_neo.wire import bytes_field, masked_checksum, number_field, varint
from tests.checkpoint.hostile import check_refused

DATA = np.arange(12, dtype=np.float32).tobytes()  # two tensors
HEADER = number_field(1, 1)
HUGE = 1 << 62


def entry(at=0, dtype=1, shape=(2, 3), shard=b"", offset=None, size=None, crc=None):
    """A BundleEntryProto of the tensor that begins at a byte; shard and what follows are fields."""
    told = number_field(4, at) if offset is None else offset
    told += number_field(5, 24) if size is None else size
    told += varint(6 << 3 | 5) + struct.pack("<I", masked_checksum(DATA[at : at + 24])) if crc is None else crc
    return number_field(1, dtype) + shape_field(*shape) + shard + told


def shape_field(*shape):
    return bytes_field(2, b"".join(bytes_field(2, varint(8) + varint(n)) for n in shape))


def pair(key, value, shared=0, unshared=None, length=None):
    """An item of a block, whose sizes may lie."""
    sizes = (shared, len(key) if unshared is None else unshared, len(value) if length is None else length)
    return b"".join(map(varint, sizes)) + key + value


ITEMS = pair(b"", HEADER) + pair(b"a", entry()) + pair(b"b", entry(24))


def framed(block, kind=b"\0"):
    whole = block + kind
    return whole + struct.pack("<I", masked_checksum(whole))


def table(block, kind=b"\0", handles=None, footer=None):
    """A table of one block, its checksum right. handles: what the index block says of blocks."""
    out = framed(block, kind)
    handle = varint(0) + varint(len(block))
    index = format_block(handles or [(b"z", handle)])
    at = varint(len(out)) + varint(len(index))
    ends = (handle + at if footer is None else footer).ljust(FOOTER - 8, b"\0")
    return out + framed(index) + ends + struct.pack("<Q", MAGIC)


def block(items, restarts=(0,), count=None):
    return (
        items
        + struct.pack(f"<{len(restarts)}I", *restarts)
        + struct.pack("<I", len(restarts) if count is None else count)
    )


def with_b(**changes):
    """A table whose tensor b has something changed."""
    return write_table({b"": HEADER, b"a": entry(), b"b": entry(24, **changes)})


def with_header(header):
    return write_table({b"": header, b"a": entry()})


def named(name):
    return write_table({b"": HEADER, name: entry()})


def long_keys():
    """A key of 100,000 bytes that 10,000 others begin with."""
    items = pair(b"", HEADER) + pair(b"k" * 100_000, entry())
    for number in range(10_000):
        items += pair(struct.pack(">I", number), b"", 100_000)
    return table(block(items))


def same_block(count):
    data = block(ITEMS)
    return table(data, handles=[(b"z%07d" % n, varint(0) + varint(len(data))) for n in range(count)])


def extent(first, length):
    start = bytes_field(1, first) if isinstance(first, bytes) else number_field(1, first)
    return start + varint(2 << 3) + varint(length)


def sliced(*slices, times=1, inner=False):
    """A table whose tensor b is held in slices, all at the same place. inner: which have slices themselves."""
    told = b"".join(bytes_field(7, b"".join(bytes_field(1, extent(*span)) for span in spans)) for spans in slices)
    items = {b"": HEADER, b"b": entry(offset=b"", size=b"", crc=b"") + told * times}
    for spans in slices:
        sizes = tuple(length for _, length in spans)
        if all(isinstance(first, int) and length < 1 << 40 for first, length in spans):
            whole = entry(shape=sizes, size=number_field(5, 4 * math.prod(sizes)))
            items[slice_key("b", spans)] = whole + told if inner else whole
    return write_table(items)


FILES = {  # what they are: (the index, what is said)
    "2^40 data files": (with_header(number_field(1, 1 << 40)), "data files"),
    "2^60 data files": (with_header(number_field(1, 1 << 60)), "impossible sizes"),
    "a text of data files": (with_header(bytes_field(1, b"1")), "impossible sizes"),
    "a big-endian machine": (with_header(HEADER + number_field(2, 1)), "big-endian"),
    "no header": (write_table({b"a": entry()}), "damaged"),
    "data file 7 of 1": (with_b(shard=number_field(3, 7)), "data file 7 of 1"),
    "data file 2^62": (with_b(shard=number_field(3, HUGE)), "impossible sizes"),
    "a data file named by a text": (with_b(shard=bytes_field(3, b"0")), "impossible sizes"),
    "a negative offset": (with_b(offset=number_field(4, (1 << 64) - 24)), "impossible sizes"),
    "an offset in fixed bytes": (with_b(offset=varint(4 << 3 | 1) + bytes(8)), "impossible sizes"),
    "an offset past the file": (with_b(offset=number_field(4, 28)), "cut off"),
    "a size of 2^62": (with_b(size=number_field(5, HUGE)), "impossible sizes"),
    "a size that is another": (with_b(size=number_field(5, 20)), "tells of 20 bytes"),
    "a side of 2^62": (with_b(shape=(HUGE, 1)), "impossible sizes"),
    "a side of -1": (with_b(shape=((1 << 64) - 1, 1)), "impossible sizes"),
    "a product of 2^64": (with_b(shape=(1 << 32, 1 << 32), size=b""), "impossible sizes"),
    "a product of 0 and 2^94": (with_b(shape=(0, 1 << 47, 1 << 47), size=b""), "impossible sizes"),
    "10,000 dimensions": (with_b(shape=(1,) * 10_000), "impossible sizes"),
    "a checksum that is a number": (with_b(crc=number_field(6, 5)), "damaged"),
    "a wrong checksum": (with_b(crc=varint(6 << 3 | 5) + bytes(4)), "tensor b is damaged"),
    "a group": (with_b(crc=varint(6 << 3 | 3)), "wire type"),
    "a field that breaks off": (with_b(crc=varint(6 << 3 | 2) + varint(HUGE)), "breaks off"),
    "a number of 11 bytes": (with_b(crc=varint(7 << 3) + b"\xff" * 10 + b"\1"), "10 bytes"),
    "overlapping tensors": (write_table({b"": HEADER, b"a": entry(), b"b": entry(20)}), "overlap at byte 20"),
    "an overlap of a byte": (write_table({b"": HEADER, b"a": entry(), b"b": entry(23)}), "overlap at byte 23"),
    "the same bytes twice": (write_table({b"": HEADER, b"a": entry(), b"b": entry()}), "overlap at byte 0"),
    "a name of two lines": (named(b"a\nerror: none"), "impossible name"),
    "a name that clears the screen": (named(b"\x1b[2Ja"), "impossible name"),
    "a name of a megabyte": (named(b"a" * (1 << 20)), "impossible name"),
    "a name that is no text": (named(b"a\xff"), "cannot be read as a checkpoint"),
    "a key twice": (table(block(ITEMS + pair(b"b", entry(24)))), "stands twice"),
    "keys out of order": (table(block(pair(b"", HEADER) + pair(b"b", entry(24)) + pair(b"a", entry()))), "in order"),
    "a key that begins as a shorter one": (table(block(ITEMS + pair(b"c", b"", shared=9))), "that is shorter"),
    "a key past its block": (table(block(ITEMS + pair(b"c", b"", unshared=HUGE))), "longer than its block"),
    "a value past its block": (table(block(ITEMS + pair(b"c", b"", length=HUGE))), "longer than its block"),
    "2^32 restarts": (table(block(ITEMS, count=(1 << 32) - 1)), "more restarts than bytes"),
    "restarts that hide a tensor": (
        table(block(pair(b"", HEADER) + pair(b"a", entry()) + pair(b"b", entry(24)).ljust(48, b"\0"), (), 12)),
        "no entry's beginning",
    ),
    "a restart within an entry": (table(block(ITEMS, (0, 3))), "no entry's beginning"),
    "a compressed block": (table(block(ITEMS), kind=b"\1"), "compressed"),
    "an empty block": (table(b""), "damaged"),
    "a block past the file": (table(block(ITEMS), handles=[(b"z", varint(0) + varint(HUGE))]), "cut off"),
    "one block 100,000 times": (same_block(100_000), "blocks overlap"),
    "a table of itself": (table(block(ITEMS), footer=varint(0) + varint(8) + varint(0) + varint(HUGE)), "cut off"),
    "a footer of ones": (table(block(ITEMS), footer=b"\xff" * 40), "10 bytes"),
    "keys longer than the file": (long_keys(), "longer than its block|more keys"),
    "one slice 10,000 times": (sliced(((0, 2), (0, 3)), times=10_000), "no grid|make the whole"),
    "a slice and 10,000 of nothing": (
        sliced(((0, 2), (0, 3)), *(((0, 2), (n % 4, 0)) for n in range(10_000))),
        "no grid|make the whole",
    ),
    "a slice of 2^62": (sliced(((0, 2), (0, HUGE))), "reaches out"),
    "a slice of -1": (sliced(((0, 2), (0, (1 << 64) - 1))), "reaches out"),
    "a slice from a text": (sliced(((0, 2), (b"a", 3))), "damaged"),
    "a slice of three dimensions": (sliced(((0, 2), (0, 3), (0, 1))), "not as many dimensions"),
    "two slices in the same bytes": (sliced(((0, 1), (0, 3)), ((1, 1), (0, 3))), "overlap at byte 0"),
    "slices that overlap": (sliced(((0, 1), (0, 3)), ((0, 1), (0, 3))), "make the whole"),
    "a slice that has slices": (sliced(((0, 2), (0, 3)), inner=True), "a slice of b is missing"),
}


def write(folder, index):
    path = str(folder / "model.ckpt-1")
    open(path + ".index", "wb").write(index)
    open(path + ".data-00000-of-00001", "wb").write(DATA)
    return path


@pytest.mark.parametrize("name", FILES)
def test_ends_in_one_line(tmp_path, name):
    index, match = FILES[name]
    check_refused(Bundle, write(tmp_path, index), match)


def test_more_entries_than_any_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "ENTRIES", 1 << 14)
    entries = b"".join(pair(b"c%07d" % n, b"") for n in range(1 << 15))
    check_refused(Bundle, write(tmp_path, table(block(ITEMS + entries))), "more keys")


def test_slices_that_are_read(tmp_path):
    """In a grid, and otherwise."""
    assert not overlapping([((n, n + 1), (m, m + 1)) for n in range(300) for m in range(300)])
    path = write(tmp_path, sliced(((0, 2), (0, 3))))
    np.testing.assert_array_equal(Bundle(path).read("b"), [[0, 1, 2], [3, 4, 5]])


def test_an_index_that_takes_no_disk(tmp_path):
    path = write(tmp_path, b"")
    with open(path + ".index", "wb") as handle:
        handle.truncate(1 << 33)
    check_refused(Bundle, path, "larger than any index")


def test_the_table_that_they_are_made_of(tmp_path):
    for index in (table(block(ITEMS)), with_b()):
        np.testing.assert_array_equal(Bundle(write(tmp_path, index)).read("b"), [[6, 7, 8], [9, 10, 11]])
