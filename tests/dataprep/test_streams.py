"""Archives of strange tools, texts of many documents, and inputs made to take all memory or time."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import time
import zipfile

import pytest
import zstandard

from gpt_neo.dataprep import readers, streams, units
from gpt_neo.dataprep.documents import Document
from gpt_neo.dataprep.readers import Bad, find_inputs, is_marker
from gpt_neo.errors import DataError
from tests.dataprep.test_encodings import found_in, texts_in
from tests.dataprep.test_readers import lines_of, parquet_of

EXTRA = (
    "__MACOSX/t/._a.txt",
    "t/.DS_Store",
    "./._a.txt",
    "t/Thumbs.db",
    "t/desktop.ini",
    "_SUCCESS",
    ".git/config.txt",
    "@eaDir/a.txt/info.txt",  # of Synology's
    "$RECYCLE.BIN/a.txt",
    "System Volume Information/a.txt",
    "t/a.txt:Zone.Identifier",
    "__pycache__/a.cpython-311.pyc",
    "_temporary/0/part.json",  # of Spark's
    "_delta_log/00.json",
    "PaxHeaders.12/a.txt",
)
MARK = "<|endoftext|>"


def tar_with(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_with(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_what_other_tools_leave_is_left_out(tmp_path):
    members = [*((name, b"\x00\x05\x16\x07\xff") for name in EXTRA), ("./t/a.txt", b"text"), ("t/.../b.txt", b"no")]
    members.pop()
    (tmp_path / "a.zip").write_bytes(zip_with(members))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar_with(members)))
    (tmp_path / "c.tar.bz2").write_bytes(bz2.compress(tar_with(members)))
    for name in EXTRA:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"\xff")
    (tmp_path / "d" / "e.txt").write_text("text")
    assert texts_in(tmp_path) == ["text"] * 4
    assert not is_marker("a/_data.txt") and not is_marker("./a.txt") and not is_marker("../a/SUCCESS.txt")


@pytest.mark.parametrize("unit", [1 << 23, 9])
def test_compressed_data_that_is_not_named_so(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(units, "UNIT_BYTES", unit)
    packed = {
        "a.txt": gzip.compress(b"text"),
        "b.jsonl": zstandard.ZstdCompressor().compress(b'"text"\n'),
        "c.json": lzma.compress(b'["text"]'),
        "d.md": bz2.compress(b"text", 1),
        "e.txt": zip_with([("a.txt", b"text")]),
    }
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "f.txt").write_bytes(b"PK and BZh are text")
    (tmp_path / "g.tar").write_bytes(tar_with(packed.items()))
    found = found_in(tmp_path)
    assert "".join(one.text for one in found if isinstance(one, Document)) == "PK and BZh are text"
    reasons = [str(one).partition("compressed, and not named so: ")[2][:4] for one in found if isinstance(one, Bad)]
    assert reasons == [".gz ", ".zst", ".xz ", ".bz2", ".zip"] * 2


def test_one_broken_member_costs_itself(tmp_path):
    good = gzip.compress(b"good")
    members = [("a.txt.gz", good), ("b.txt.gz", good[:-9]), ("c.txt.xz", b"nonsense"), ("d.tar", b"x" * 600)]
    members += [("e.txt.gz", good), ("f.zip", b"PK"), ("g.txt", b"good")]
    (tmp_path / "a.tar").write_bytes(tar_with(members))
    (tmp_path / "b.zip").write_bytes(zip_with(members))
    found = found_in(tmp_path)
    assert [one.text for one in found if isinstance(one, Document)] == ["good"] * 6
    bad = [one.path.partition(".")[2] for one in found if isinstance(one, Bad)]
    assert bad == [f"{kind}/{name}" for kind in ("tar", "zip") for name in ("b.txt.gz", "c.txt.xz", "d.tar", "f.zip")]


@pytest.mark.parametrize("block", [1 << 20, 5])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_documents_between_marks(tmp_path, monkeypatch, pack, block):
    monkeypatch.setattr(streams, "BLOCK", block)
    name = "a.txt" if pack is bytes else "a.txt.gz"
    text = f"{MARK}one\n{MARK}\n\ntwo {MARK} {MARK}thr\u00e9e<|endoftext\n"
    (tmp_path / name).write_bytes(pack(text.encode()))
    for unit in (1 << 23, 9):
        monkeypatch.setattr(units, "UNIT_BYTES", unit)
        assert texts_in(tmp_path, split_on=MARK, split=True) == ["one", "two", "thr\u00e9e<|endoftext"]
    assert texts_in(tmp_path) == [text]
    (tmp_path / name).write_bytes(pack(b"one\nX\xff bad Xtwo X"))
    found = found_in(tmp_path, split_on="X")
    assert [getattr(one, "text", "bad") for one in found] == ["one", "bad", "two"] and found[1].number == 2
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": f"a{MARK}b{MARK}\n"}) + "\n")
    assert texts_in(tmp_path / "b.jsonl", split_on=MARK) == ["a", "b"]
    whole = ["", " a\n", "\n"]  # without a mark each is what it is without --split_on, an empty one too
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in whole))
    assert texts_in(tmp_path / "b.jsonl", split_on=MARK) == texts_in(tmp_path / "b.jsonl") == whole


SMALL = 1 << 16


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", SMALL)
    monkeypatch.setattr(streams, "BLOCK", 1 << 12)
    monkeypatch.setattr(streams, "ITEM", 1 << 13)


@pytest.mark.parametrize("pack", [bytes, zstandard.ZstdCompressor().compress, lzma.compress], ids=["", "zst", "xz"])
@pytest.mark.parametrize("unit", [1 << 23, 5000])
def test_a_line_without_end_costs_itself(tmp_path, monkeypatch, small_limit, pack, unit):
    monkeypatch.setattr(units, "UNIT_BYTES", unit)
    suffix = {bytes: "", lzma.compress: ".xz"}.get(pack, ".zst")
    long = json.dumps("x" * 3 * SMALL)
    lines = [*(json.dumps(f"before {i}") for i in range(9)), long, *(json.dumps(f"after {i}") for i in range(9)), long]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack("\n".join(lines).encode()))
    found = found_in(tmp_path)
    texts = [one.text for one in found if isinstance(one, Document)]
    assert texts == [f"{when} {i}" for when in ("before", "after") for i in range(9)]
    bad = [one for one in found if isinstance(one, Bad)]
    assert [one.reason for one in bad] == ["too long"] * 2 and "65,536 bytes" in bad[0].detail
    array = "[" + ",\n".join([json.dumps({"text": "a"}), json.dumps({"text": "x" * 3 * SMALL}), '{"text": "b"}']) + "]"
    (tmp_path / f"a.jsonl{suffix}").unlink()
    (tmp_path / f"b.json{suffix}").write_bytes(pack(array.encode()))
    found = found_in(tmp_path)
    assert [getattr(one, "text", "bad") for one in found] == ["a", "bad", "b"]


def test_texts_and_lengths_that_are_too_long(tmp_path, small_limit):
    (tmp_path / "a.txt").write_bytes(b"x" * 2 * SMALL)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"\0" * 2 * SMALL))
    (tmp_path / "c.dat").write_bytes(b"9999999999999999abcde")  # 21 bytes
    (tmp_path / "d.dat").write_bytes(b"%016d" % (2 * SMALL) + b"x" * 2 * SMALL + b"%016d" % 2 + b"ok")
    found = [getattr(one, "text", "") or one.reason for one in found_in(tmp_path)]
    assert found == ["too long", "too long", "broken archive", "too long", "ok"]


def test_a_zstandard_bomb_is_decompressed_in_small_pieces():
    data = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(data) < 1 << 15
    stream = readers.ZstandardStream(io.BytesIO(data))
    largest = seen = 0
    buffer = bytearray(1 << 16)
    while size := stream.readinto(buffer):
        largest = max(largest, len(stream.ready))
        seen += size
    assert seen == 1 << 28 and largest <= 1 << 27


def test_names_in_a_tar_file_are_bounded(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with gzip.open(tmp_path / "a.tar.gz", "wb") as handle:
        handle.write(header.tobuf(tarfile.GNU_FORMAT))
        handle.write(bytes(4 << 20))
    (found,) = found_in(tmp_path)
    assert found.reason == "broken archive" and "a header of 8,589,934,592 bytes" in found.detail


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no files there"):
        find_inputs(str(tmp_path / "a.jsonl"))
    (tmp_path / "b.txt").write_text("x")
    found = found_in(tmp_path)
    assert [getattr(one, "text", "") or str(one)[-40:] for one in found][0].endswith("a pipe or a device, not a file")
    assert [one.text for one in found if isinstance(one, Document)] == ["x"]


def test_names_never_reach_a_terminal_as_they_are(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_with([("a\x1b[2J\nb\udcff", b"\xff")]))
    (found,) = found_in(tmp_path)
    assert "a\\x1b[2J\\nb" in str(found) and str(found).isprintable()


SEEDS = {
    "a.jsonl": lines_of(["one", "two" * 99]),
    "a.json": b'[{"text": "a"}, "b", ["c", "d"]]',
    "a.dat": b"%016d" % 3 + b"abc" + b"%016d" % 2 + b"ab",
    "a.tar": tar_with([("a.txt", b"abc"), ("b.jsonl.gz", gzip.compress(b'"x"\n' * 9)), ("n" * 150, b"y")]),
    "a.zip": zip_with([("a.txt", b"abc" * 99), ("b.json", b'["x"]')]),
    "a.txt.gz": gzip.compress(b"text " * 99),
    "a.jsonl.xz": lzma.compress(b'"x"\n' * 99),
    "a.jsonl.zst": zstandard.ZstdCompressor().compress(b'"x"\n' * 99),
    "a.txt.bz2": bz2.compress(b"text " * 99),
    "a.parquet": None,
}


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_bytes_give_documents_or_places(tmp_path, name, count):
    whole = SEEDS[name] or parquet_of(["a", "b" * 99])
    draws, slowest = random.Random(name), 0.0
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(draws.randint(1, 6)):
            data[draws.randrange(len(data))] = draws.choice([0, 1, 0x7F, 0xFF, draws.randrange(256)])
        if draws.random() < 0.3:
            del data[draws.randrange(len(data)) :]
        (tmp_path / name).write_bytes(data)
        began = time.monotonic()
        assert all(isinstance(found, (Document, Bad)) for found in found_in(tmp_path))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 20  # no search of its own over and over; the rest is what runs beside
