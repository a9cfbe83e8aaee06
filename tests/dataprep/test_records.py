"""TFRecords: the bytes of TensorFlow's writer, read back; damage is named."""

import bz2
import gzip
import lzma
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.dataprep.records import (
    RecordWriter,
    count_from_name,
    count_records,
    counts_from_names,
    encode_example,
    encode_rows,
    frame,
    framed_example,
    pack_varints,
    parse_example,
    read_records,
    records_only,
    unpack_varints,
)
from gpt_neo.errors import DataError
from gpt_neo.wire import bytes_field, masked_checksum, varint

TOKENS = st.lists(st.integers(0, (1 << 28) - 1), max_size=200)


@settings(deadline=None)
@given(TOKENS)
def test_varints_and_examples_equal_protobuf(tokens):
    from gpt_neo.mtf_compat import tf

    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=tokens))
    expected = tf.train.Example(features=tf.train.Features(feature={"text": feature})).SerializeToString()
    assert unpack_varints(pack_varints(np.array(tokens, np.int64))).tolist() == tokens
    if tokens:
        assert encode_example(tokens) == expected
        assert parse_example(expected).tolist() == tokens


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 28), st.sampled_from([np.uint16, np.uint32]), st.randoms())
def test_rows_at_once_equal_one_by_one(width, count, bits, kind, random):
    limit = min(1 << bits, int(np.iinfo(kind).max))
    rows = np.array([[random.randrange(limit) for _ in range(width)] for _ in range(count)], kind)
    assert encode_rows(rows) == b"".join(frame(encode_example(row)) for row in rows.tolist())
    assert encode_rows(rows) == b"".join(b"".join(framed_example(row)) for row in rows)


def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    from gpt_neo.mtf_compat import tf

    rows = [[1, 2, 300], [50_256] * 5, [0]]
    writer = RecordWriter(str(tmp_path), "x", 3)
    for row in rows:
        writer.write(row)
    path = writer.close()
    assert path.endswith("x_3_3.tfrecords") and count_from_name(path) == count_records(path) == 3
    got = [
        tf.train.Example.FromString(r).features.feature["text"].int64_list.value[:]
        for r in tf.io.tf_record_iterator(path)
    ]
    assert got == rows
    other = str(tmp_path / "tf.tfrecords")
    with tf.io.TFRecordWriter(other) as tf_writer:
        for row in rows:
            tf_writer.write(encode_example(row))
    assert [row.tolist() for row in read_records(other)] == rows
    assert open(other, "rb").read() == open(path, "rb").read()


@pytest.mark.parametrize("cut, message", [(3, "cut off"), (20, "cut off")])
def test_damage_is_named(tmp_path, cut, message):
    writer = RecordWriter(str(tmp_path), "x", 0)
    writer.write(list(range(40)))
    writer.write(list(range(40)))
    path = writer.close()
    data = open(path, "rb").read()
    open(path, "wb").write(data[:-cut])
    with pytest.raises(DataError, match=f"record at byte {len(data) // 2}.*{message}"):
        list(read_records(path))
    flipped = bytearray(data)
    flipped[30] ^= 1
    open(path, "wb").write(bytes(flipped))
    with pytest.raises(DataError, match="record at byte 0 is damaged: its checksum is wrong"):
        list(read_records(path))


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 60])
def test_a_record_that_is_cut_off_does_not_count(tmp_path, cut):
    data = frame(encode_example(list(range(40)))) * 3
    (tmp_path / "a").write_bytes(data[: len(data) - cut])
    assert count_records(str(tmp_path / "a")) == (2 if cut else 3)


@pytest.mark.parametrize("length", [1 << 40, (1 << 63) - 1])
def test_a_length_that_no_file_has_asks_for_no_memory(tmp_path, length):
    """Its checksum is right."""
    told = struct.pack("<Q", length)
    (tmp_path / "a").write_bytes(
        frame(encode_example([1])) + told + struct.pack("<I", masked_checksum(told)) + bytes(40)
    )
    with pytest.raises(DataError, match="record at byte 33 is cut off"):
        list(read_records(str(tmp_path / "a")))
    assert count_records(str(tmp_path / "a")) == 1


def test_a_list_that_is_not_packed_is_read_as_protobuf_does():
    from gpt_neo.mtf_compat import tf

    values = [0, 1, 127, 128, 300, 50_256, (1 << 40) + 5]
    numbers = b"".join(b"\x08" + varint(value) for value in values)
    entry = bytes_field(1, b"text") + bytes_field(2, bytes_field(3, numbers))
    data = bytes_field(1, bytes_field(1, entry))
    assert list(tf.train.Example.FromString(data).features.feature["text"].int64_list.value) == values
    assert parse_example(data).tolist() == values


@pytest.mark.parametrize(
    "mask, masked, told",
    [
        (None, False, None),
        (None, True, "it has no mask, and the first record of its dataset has one"),
        ([1, 0, 1], True, None),
        ([1, 0, 1], False, "it has a mask, and the first record of its dataset has none"),
        ([1, 0], True, "it has a mask of 2 numbers; a token has one each"),
        ([1, 0, 1, 1], True, "it has a mask of 4 numbers; a token has one each"),
    ],
)
def test_masks_are_those_of_the_dataset_and_a_number_for_each_token(tmp_path, mask, masked, told):
    (tmp_path / "a").write_bytes(frame(encode_example([7, 8, 9], mask)))
    assert [row.tolist() for row in read_records(str(tmp_path / "a"))] == [[7, 8, 9]]
    if told is None:
        assert len(list(read_records(str(tmp_path / "a"), masked=masked))) == 1
    else:
        with pytest.raises(DataError, match=f"a: record at byte 0: {told}"):
            list(read_records(str(tmp_path / "a"), masked=masked))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, lzma.compress, bz2.compress])
def test_compressed_records_are_called_so(tmp_path, pack):
    path = tmp_path / "a_0_9.tfrecords"
    path.write_bytes(pack(frame(encode_example([1, 2, 3])) * 9))
    for read in (lambda: list(read_records(str(path))), lambda: count_records(str(path))):
        with pytest.raises(DataError, match="it is compressed; records are read as they are: unpack it first"):
            read()


def test_patterns_leave_out_what_is_beside_records():
    names = ["a_0_1.tfrecords", "a_manifest.json", "b.records", "x/_SUCCESS", ".hidden", "notes.json"]
    assert records_only(names) == ["a_0_1.tfrecords", "b.records", "notes.json"]


def test_names_that_promise_a_number_of_records():
    assert counts_from_names(["a_0_3.tfrecords", "b/x_1_20.tfrecord", "x.tfrecords"]) == [3, 20, None]
    # as the README of 2021 has it: a number is that of the file
    assert counts_from_names(["name_0.tfrecords", "name_3.tfrecords"]) == [None, None]
    assert counts_from_names(["wiki_2020_0.tfrecords", "wiki_2020_1.tfrecords"]) == [None, None]
    assert counts_from_names(["a/wiki_2020_3.tfrecords", "a/wiki_2020_4.tfrecords"]) == [None, None]
    assert counts_from_names(["a/x_0_3.tfrecords", "b/x_0_4.tfrecords", "x_00.tfrecords"]) == [3, 4, None]
    assert counts_from_names(["wiki_2020_0.tfrecords"]) == [None]
    assert counts_from_names(["wiki_2020_0.tfrecords", "x_0_7.tfrecords"]) == [None, None]
    for name in (
        "train-00000-of-00010.tfrecord",
        "c4.tfrecord-00000-of-01024",
        "2021_04.tfrecords",
        "web_001.tfrecords",
    ):
        assert count_from_name(name) is None


@pytest.mark.parametrize(
    "feature, value, message",
    [
        ("input_ids", {"int64_list": {"value": [1]}}, "record at byte 0: no feature 'text': it has 'input_ids'"),
        ("text", {"bytes_list": {"value": [b"hello"]}}, "record at byte 0: feature 'text' is no int64 list"),
        ("text", {"float_list": {"value": [1.0]}}, "record at byte 0: feature 'text' is no int64 list"),
    ],
)
def test_records_of_other_programs(tmp_path, feature, value, message):
    from gpt_neo.mtf_compat import tf

    made = tf.train.Example(features=tf.train.Features(feature={feature: tf.train.Feature(**value)}))
    (tmp_path / "a.tfrecords").write_bytes(frame(made.SerializeToString()))
    with pytest.raises(DataError, match=message):
        list(read_records(str(tmp_path / "a.tfrecords")))


@pytest.mark.parametrize(
    "data", [b"version https://git-lfs.github.com/spec/v1", b"<!DOCTYPE html><html>", b"plain text, 12"]
)
def test_files_that_are_no_records(tmp_path, data):
    (tmp_path / "a.tfrecords").write_bytes(data)
    for read in (lambda path: list(read_records(path)), count_records):
        with pytest.raises(DataError, match="checksum of its length is wrong; it may be something else than TFRecords"):
            read(str(tmp_path / "a.tfrecords"))
