"""Nothing is lost on the way from documents to records."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.dataprep.chunking import Packer
from gpt_neo.dataprep.prepare import PrepareOptions, detokenize_wikitext, prepare
from gpt_neo.dataprep.readers import find_inputs, read_documents
from gpt_neo.dataprep.records import (
    RecordWriter,
    count_from_name,
    count_records,
    encode_example,
    pack_varints,
    parse_example,
    read_records,
    unpack_varints,
)
from gpt_neo.errors import DataError
from gpt_neo.mtf_compat import tf
from gpt_neo.tokenizer import load_tokenizer

TOKENS = st.lists(st.integers(0, (1 << 28) - 1), max_size=200)


@given(TOKENS)
def test_varints_and_examples_equal_protobuf(tokens):
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=tokens))
    expected = tf.train.Example(features=tf.train.Features(feature={"text": feature})).SerializeToString()
    assert unpack_varints(pack_varints(np.array(tokens, np.int64))).tolist() == tokens
    if tokens:
        assert encode_example(tokens) == expected
        assert parse_example(expected).tolist() == tokens


def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    rows = [[1, 2, 300], [50_256] * 5, [0]]
    writer = RecordWriter(str(tmp_path), "x", 3)
    for row in rows:
        writer.write(row)
    path = writer.close()
    assert path.endswith("x_3_3.tfrecords") and count_from_name(path) == count_records(path) == 3
    got = [tf.train.Example.FromString(r).features.feature["text"].int64_list.value[:]
           for r in tf.io.tf_record_iterator(path)]  # fmt: skip
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


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=20), st.integers(2, 9), st.sampled_from([[], [7]]))
def test_packing_loses_nothing(documents, size, separator):
    packer = Packer(size, separator)
    chunks = [chunk for document in documents for chunk in packer.add(document)]
    assert all(len(chunk) == size for chunk in chunks)
    got = [int(i) for part in [*chunks, packer.rest()] for i in part]
    assert got == [i for document in documents for i in (*document, *separator)]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b_10.txt").write_text("Zehn \u00e4hnliche S\u00e4tze.\r\n" * 30, encoding="utf-8", newline="")
    (folder / "b_2.md").write_text("two " * 100)
    with gzip.open(folder / "c.jsonl.gz", "wt", encoding="utf-8") as handle:
        for i in range(5):
            handle.write(json.dumps({"text": f"line {i} <|endoftext|> " * 9}) + "\n")
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_records_give_the_documents_back(corpus, tmp_path, processes):
    options = PrepareOptions(str(corpus), str(tmp_path / "out"), "n", chunk_size=16, files_per=3, processes=processes)
    manifest = prepare(options, lambda size, tokens: None)
    account = manifest["account"]
    assert account["documents_in"] == account["documents_written"] == 7
    paths = [os.path.join(options.output_dir, name) for name in manifest["files"]]
    rows = [row for path in paths for row in read_records(path)]
    assert {len(row) for row in rows} == {16} and len(rows) == account["records_written"]
    tokenizer = load_tokenizer()
    stream = np.concatenate(rows).tolist()
    stream = stream[: len(stream) - account["fill_tokens"]]
    documents, current = [], []
    for i in stream:
        if i == tokenizer.eos_id:
            documents.append(tokenizer.decode(current))
            current = []
        else:
            current.append(i)
    expected = [text for path in find_inputs(str(corpus)) for text in read_documents(path)]
    assert documents == expected and not current
    assert account["bytes_in"] == sum(len(text.encode()) for text in expected)


def test_short_documents_are_counted(corpus, tmp_path):
    options = PrepareOptions(str(corpus), str(tmp_path / "out"), "n", chunk_size=16, minimum_size=90)
    account = prepare(options, lambda size, tokens: None)["account"]
    assert account["documents_dropped_short"] > 0
    gained = account["tokens_in"] + account["separator_tokens"] + account["fill_tokens"]
    assert gained == account["tokens_written"] + account["tokens_dropped_short"]


def test_mistakes(corpus, tmp_path):
    def fails(message, **changes):
        given_options = {"input_dir": str(corpus), "output_dir": str(tmp_path / "o"), **changes}
        with pytest.raises(DataError, match=message):
            prepare(PrepareOptions(**given_options), lambda size, tokens: None)

    fails("no files there", input_dir=str(tmp_path / "absent"))
    fails("has id 60000", separator=(60_000,))
    (corpus / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    fails(r"bad\.jsonl:2: expected an object with a string under 'text'")
    (corpus / "bad.jsonl").write_text('{"text": "fine"}\n{oops\n')
    fails(r"bad\.jsonl:2: not valid JSON", output_dir=str(tmp_path / "o2"))
    (corpus / "bad.jsonl").rename(corpus / "bad.docx")
    fails("unknown extension", output_dir=str(tmp_path / "o3"))
    (corpus / "bad.docx").unlink()
    (corpus / "latin.txt").write_bytes(b"caf\xe9")
    fails("latin.txt: not UTF-8", output_dir=str(tmp_path / "o4"))
    (corpus / "latin.txt").unlink()
    prepare(PrepareOptions(str(corpus), str(tmp_path / "o5")), lambda size, tokens: None)
    fails("already holds data_0_", output_dir=str(tmp_path / "o5"))


def test_wikitext_spacing():
    assert detokenize_wikitext("a @-@ b , c .").startswith("a-b, c")
