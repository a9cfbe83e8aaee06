"""Every kind of input gives its documents; what is damaged is named with its place."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import pytest
import zstandard

from gpt_neo.dataprep import readers, streams, units
from gpt_neo.dataprep.documents import Document, documents_of, read_documents, with_lines
from gpt_neo.dataprep.readers import Bad, InputFile, find_inputs, find_sources, kind_of, natural_key
from gpt_neo.dataprep.streams import Rules
from gpt_neo.dataprep.units import groups_of, units_of
from gpt_neo.errors import DataError

TEXTS = ["one\r\ntwo", "", "caf\u00e9 \u4e2d\u6587 \U0001f600\0", "line\nline\n", " "]
COMPRESS = {
    "": bytes,
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def tar_of(texts, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        folder = tarfile.TarInfo("texts")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for i, text in enumerate(texts):
            member = tarfile.TarInfo(f"texts/{i}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def zip_of(texts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("texts") if hasattr(archive, "mkdir") else None
        for i, text in enumerate(texts):
            archive.writestr(f"texts/{i}.txt", text)
    return buffer.getvalue()


def parquet_of(texts):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    from pyarrow import parquet

    buffer = io.BytesIO()
    metas = [{"pile_set_name": "Set"}] * len(texts)
    parquet.write_table(pyarrow.table({"text": texts, "meta": metas}), buffer, row_group_size=2)
    return buffer.getvalue()


def lines_of(texts):
    rows = [{"text": text, "meta": {"pile_set_name": "Set"}} for text in texts]
    return b"\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows)


def all_found(folder, **rules):
    sources, bad = find_sources([str(folder)])
    rules = Rules(**rules)
    found = [d for unit in units_of(groups_of(sources), rules) for d in documents_of(unit, rules)]
    return [*bad, *found]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    "suffix, make",
    [
        (".jsonl", lines_of),
        (".json", lambda texts: json.dumps(texts, indent=1).encode()),
        (".json", lines_of),
        (".dat", lambda texts: b"".join(b"%016d" % len(t.encode()) + t.encode() for t in texts)),
        (".tar", tar_of),
    ],
)
def test_streams(tmp_path, suffix, make, compression):
    path = tmp_path / f"x{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](make(TEXTS)))
    assert list(read_documents([str(path)])) == TEXTS


@pytest.mark.parametrize("name, make", [("x.zip", zip_of), ("x.parquet", parquet_of)])
def test_archives_that_workers_read_parts_of(tmp_path, monkeypatch, name, make):
    (tmp_path / name).write_bytes(make(TEXTS))
    assert [found.text for found in all_found(tmp_path)] == TEXTS
    monkeypatch.setattr(units, "UNIT_BYTES", 8)
    sources, _ = find_sources([str(tmp_path)])
    made = list(units_of(groups_of(sources), Rules()))
    assert len(made) > 2 and [unit.last for unit in made] == [False] * (len(made) - 1) + [True]
    assert 0 <= sources[0].size - sum(unit.stored for unit in made) < len(made)  # each a whole number
    assert [found.text for found in all_found(tmp_path)] == TEXTS


def test_other_names_and_nested_archives(tmp_path):
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar_of(["in tgz"])))
    (tmp_path / "urlsf_subset01-1_data.xz").write_bytes(lzma.compress(tar_of(["in owt"])))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        data = zstandard.ZstdCompressor().compress(lines_of(["deep", "deeper"]))
        member = tarfile.TarInfo("data_0.jsonl.zst")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    (tmp_path / "b.jsonl.zst.tar").write_bytes(packed.getvalue())
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf"a string"\n{"text": ["two", "paragraphs"]}\n')
    (tmp_path / "d.txt.zst").write_bytes(COMPRESS[".zst"](b"first ") + COMPRESS[".zst"](b"frame"))
    (tmp_path / ".hidden.txt").write_text("no")
    expected = ["in tgz", "deep", "deeper", "a string", "two\n\nparagraphs", "first frame", "in owt"]
    assert list(read_documents([str(tmp_path)])) == expected
    assert kind_of("x.TXT.gz") == ("text", ".gz") and kind_of("x.txz") == ("tar", ".xz")
    for name in ("x.docx", "x.gz", "x.zip.gz", "x.parquet.xz", "x.tgz.gz", "x_data.gz", "x_data", "x"):
        with pytest.raises(DataError, match="unknown extension"):
            kind_of(name)


def test_windows_of_zstd_long_are_read(tmp_path):
    """Which its library refuses unless it is told."""
    wide = zstandard.ZstdCompressionParameters(window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = stream.compress(lines_of(["far", "back"])) + stream.flush()
    with pytest.raises(zstandard.ZstdError, match="memory"):
        zstandard.ZstdDecompressor().decompressobj().decompress(data)
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert list(read_documents([str(tmp_path)])) == ["far", "back"]


def test_the_pile_set_is_kept(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(["x"]))
    (tmp_path / "b.parquet").write_bytes(parquet_of(["y"]))
    assert [(d.text, d.set_name) for d in all_found(tmp_path)] == [("x", "Set"), ("y", "Set")]


def test_files_in_natural_order_and_mistakes(tmp_path):
    for name in ("part_10.txt", "part_9.txt", "sub/part_1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [os.path.relpath(path, tmp_path) for path in find_inputs(str(tmp_path))]
    assert names == ["part_9.txt", "part_10.txt", "sub/part_1.txt"]
    assert find_inputs(str(tmp_path / "*.txt"), str(tmp_path / "part_9.txt")) == [
        str(tmp_path / "part_9.txt"),
        str(tmp_path / "part_10.txt"),
    ]
    assert [os.path.relpath(path, tmp_path) for path in find_inputs(str(tmp_path / "**"))] == names
    (tmp_path / "odd[1].txt").write_text("x")
    assert find_inputs(str(tmp_path / "odd[1].txt")) == [str(tmp_path / "odd[1].txt")]
    assert sorted(["b10", "b9", "a"], key=natural_key) == ["a", "b9", "b10"]
    with pytest.raises(DataError, match="no files there"):
        find_inputs(str(tmp_path / "absent"))


def test_a_bucket_that_gives_nothing_is_no_bad_document(monkeypatch):
    """What has gone since it was listed is one."""

    def fails(path):
        raise error

    monkeypatch.setattr(readers, "find_inputs", lambda *inputs, where: ["gs://bucket/a.txt"])
    monkeypatch.setattr(readers.storage, "size", fails)
    error = PermissionError(13, "no access")
    with pytest.raises(DataError, match="gs://bucket/a.txt: cannot be read: no access"):
        find_sources(["gs://bucket"])
    error = FileNotFoundError(2, "no such object")
    assert find_sources(["gs://bucket"]) == ([], [Bad("gs://bucket/a.txt", "", 0, "cannot be read", "no such object")])


def test_a_file_named_in_several_spellings_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    assert find_inputs("in", "./in/a.txt", str(tmp_path / "in"), "in/../in/*.txt") == ["in/a.txt", "in/b.txt"]


@pytest.mark.parametrize("size", [1, 7, 64, 300, 10_000])
def test_ranges_of_lines_and_of_text_cover_every_byte_once(tmp_path, monkeypatch, size, prose):
    monkeypatch.setattr(units, "UNIT_BYTES", size)
    monkeypatch.setattr(streams, "WINDOW", 50)
    text = prose[3000:4200] + "\u4e2d\u6587\u3002" * 40 + "x" * 150 + " \U0001f600 end"
    (tmp_path / "a.jsonl").write_bytes(lines_of([text[i : i + 40] for i in range(0, 900, 40)] + [text]) + b"\n\n")
    (tmp_path / "b.txt").write_text(text, encoding="utf-8", newline="")
    found = all_found(tmp_path, split=True)
    lines = [d for d in found if d.path.endswith("a.jsonl")]
    assert [d.text for d in lines] == [text[i : i + 40] for i in range(0, 900, 40)] + [text]
    pieces = [d for d in found if d.path.endswith("b.txt")]
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.opens for piece in pieces) == sum(piece.closes for piece in pieces) == 1
    assert pieces[0].opens and pieces[-1].closes and (len(pieces) > 1) == (size < 2000)
    whole = [d for d in all_found(tmp_path) if d.path.endswith("b.txt")]
    assert [piece.text for piece in whole] == [text]


def test_a_stream_is_cut_and_taken_up_again(tmp_path, monkeypatch, prose):
    monkeypatch.setattr(units, "UNIT_BYTES", 400)
    monkeypatch.setattr(streams, "ITEM", 300)
    monkeypatch.setattr(streams, "BLOCK", 64)
    texts = [prose[i : i + 50] for i in range(3000, 5000, 50)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines_of(texts)))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(prose[:5000].encode()))
    sources, _ = find_sources([str(tmp_path)])
    rules = Rules(split=True)
    made = list(units_of(groups_of(sources), rules))
    assert len([u for u in made if u.group == 0]) > 4 and len([u for u in made if u.group == 1]) > 4
    assert sum(unit.stored for unit in made) == sum(source.size for source in sources)
    found = [d for unit in made for d in documents_of(unit, rules)]
    assert [d.text for d in found if d.path.endswith("a.jsonl.gz")] == texts
    assert "".join(d.text for d in found if d.path.endswith("b.txt.gz")) == prose[:5000]
    for place in range(len(made)):
        assert list(units_of(groups_of(sources), rules, (made[place].group, made[place].part))) == made[place:]


def places(found):
    return [str(bad) for bad in with_lines([b for b in found if isinstance(b, Bad)])]


def test_bad_lines_are_named_and_the_others_read(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n{oops\n"caf\xe9"\n{"txt": 1}\n[1]\n{"text": null}\n"also fine"\n')
    expected = [
        f"{path}:3: not valid JSON: Expecting property name enclosed in double quotes",
        f"{path}:4: not UTF-8: invalid continuation byte at byte 4 of the line",
        f"{path}:5: expected an object with a string under 'text': its keys are 'txt'",
        f"{path}:6: expected an object with a string under 'text'",
        f"{path}:7: expected an object with a string under 'text': it is null",
    ]
    for size in (1 << 20, 40, 1):
        monkeypatch.setattr(units, "UNIT_BYTES", size)
        found = all_found(tmp_path)
        assert places(found) == expected
        assert [d.text for d in found if isinstance(d, Document)] == ["fine", "also fine"]
    with pytest.raises(DataError, match=r"a\.jsonl:3: not valid JSON"):
        list(read_documents([str(path)]))
    monkeypatch.undo()
    path.write_bytes(b"[" * 20_000)
    assert "not valid JSON" in places(all_found(tmp_path))[0]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_archives_that_break_off(tmp_path, compression, prose):
    texts = [prose[i : i + 1000] for i in range(0, 600_000, 1000)]
    data = COMPRESS[compression](lines_of(texts))
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(data[: len(data) // 2])
    found = all_found(tmp_path)
    read = [d.text for d in found if isinstance(d, Document)]
    assert read == texts[: len(read)] and (len(read) > 20 or compression == ".xz")
    line = 2 * len(read) + 1
    assert len(places(found)) == 1 and places(found)[0].startswith((f"{path}:{line}: broken", f"{path}:{line + 1}: br"))
    path.write_bytes(b"nonsense, not compressed")
    assert "broken archive" in places(all_found(tmp_path))[0]


@pytest.mark.parametrize(
    "name, make",
    [
        ("a.tar", tar_of),
        ("a.zip", zip_of),
        ("a.parquet", parquet_of),
        ("a.tar.gz", lambda texts: gzip.compress(tar_of(texts))),
    ],
)
@pytest.mark.parametrize("keep", [0.7, 0.5, 0.001])
def test_archives_of_members_that_break_off(tmp_path, name, make, keep):
    texts = [f"document {i} " * 40 for i in range(30)]
    data = make(texts)
    (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
    found = all_found(tmp_path)
    assert isinstance(found[-1], Bad) and found[-1].reason == "broken archive"
    read = [d.text for d in found if isinstance(d, Document)]
    assert read == texts[: len(read)]


def test_a_tar_that_ends_between_two_members(tmp_path):
    data = tar_of(["x" * 512, "y" * 512])
    (tmp_path / "a.tar").write_bytes(data[: 512 + 2 * 512])
    found = all_found(tmp_path)
    assert [type(one) for one in found] == [Document, Bad] and "no end mark" in found[1].detail


def test_other_damage(tmp_path):
    (tmp_path / "a.dat").write_bytes(b"%016d" % 3 + b"abc" + b"%016d" % 9 + b"ab")
    (tmp_path / "b.dat").write_bytes(b"nonsense nonsense nonsense")
    (tmp_path / "c.json").write_bytes(b'["a", "b", {"text": "c"')
    (tmp_path / "d.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "e.docx").write_bytes(b"")
    (tmp_path / "f.txt.gz").write_bytes(gzip.compress(b"caf\xe9 au lait"))
    (tmp_path / "h.txt.lz4").write_bytes(b"x")
    messages = [message.replace(f"{tmp_path}/", "") for message in places(all_found(tmp_path))]
    assert messages[:2] == [m for m in messages if "unknown extension" in m] and len(messages) == 7
    assert "take the text out of it first" in messages[0] and "unpack it first" in messages[1]
    assert messages[2:] == [
        "a.dat, document 2: broken archive: it breaks off",
        "b.dat, document 1: broken archive: no length of 16 digits before it",
        "c.json, element 3: not valid JSON: it breaks off",
        "d.txt: not UTF-8: invalid continuation byte at byte 3",
        "f.txt.gz: not UTF-8: invalid continuation byte at byte 3",
    ]
    gone = InputFile(str(tmp_path / "gone.jsonl.gz"), "jsonl", ".gz", 5, "")
    [unit] = units_of(groups_of([gone]), Rules())
    assert str(unit.items[0]).endswith("gone.jsonl.gz: cannot be read: No such file or directory")


def test_a_parquet_file_without_the_column(tmp_path):
    (tmp_path / "g.parquet").write_bytes(parquet_of(["x", None]))
    said = "no column 'tixt': there are 'text', 'meta'; --text_key 'text' takes its longest text"
    assert places(all_found(tmp_path, text_key="tixt"))[0].endswith(said)
    assert places(all_found(tmp_path)) == [
        f"{tmp_path}/g.parquet, row 2: expected a string in column 'text': it is null"
    ]


@pytest.mark.parametrize(
    "table, key",
    [
        ({"id": ["a long one"], "content": ["x"]}, "content"),
        ({"messages": [[{"role": "user", "content": "x"}]]}, "messages.content"),
        ({"data": [{"body": "x"}], "n": [1]}, "data.body"),
        ({"body": [b"x"], "title": ["x"]}, "body"),  # strings that are stored as bytes
    ],
)
def test_tables_of_other_columns(tmp_path, table, key):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    (told,) = places(all_found(tmp_path))
    assert "no column 'text': there are " in told and told.endswith(f"--text_key {key!r} takes its longest text")
    assert [one.text for one in all_found(tmp_path, text_key=key)] == ["x"]


def test_small_files_share_a_unit_and_large_ones_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 100)
    sizes = [40, 40, 40, 0, 250, 30]
    sources = [InputFile(f"{i}.jsonl", "jsonl", "", size, "") for i, size in enumerate(sizes)]
    groups = groups_of(sources)
    assert [[s.size for s in group] for group in groups] == [[40, 40], [40, 0], [250], [30]]
    made = list(units_of(groups, Rules()))
    assert [(u.group, u.part, u.last, u.stored) for u in made] == [
        (0, 0, True, 80),
        (1, 0, True, 40),
        (2, 0, False, 100),
        (2, 1, False, 100),
        (2, 2, True, 50),
        (3, 0, True, 30),
    ]
