"""Byte-order marks and other encodings: the text comes out as it was meant, and one wrong line costs that line."""

import codecs
import gzip
import json

import pytest

from gpt_neo.config.loader import load_config
from gpt_neo.dataprep import streams, units
from gpt_neo.dataprep.documents import Document, documents_of
from gpt_neo.dataprep.encodings import named_encoding, wide_encoding
from gpt_neo.dataprep.readers import Bad, find_sources
from gpt_neo.dataprep.streams import Rules
from gpt_neo.dataprep.units import groups_of, units_of
from gpt_neo.errors import DataError

TEXTS = ["caf\u00e9 au lait", "\u4e2d\u6587 \U0001f600", "plain"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in TEXTS)
ARRAY = json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False, indent=1)
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
}


def found_in(folder, **rules):
    sources, bad = find_sources([str(folder)])
    rules = Rules(**rules)
    return [*bad, *(found for unit in units_of(groups_of(sources), rules) for found in documents_of(unit, rules))]


def texts_in(folder, **rules):
    return [found.text for found in found_in(folder, **rules)]


@pytest.mark.parametrize("unit", [1 << 23, 30])
@pytest.mark.parametrize("encoding", MARKED)
def test_a_mark_tells_the_encoding_and_is_no_text(tmp_path, monkeypatch, encoding, unit):
    monkeypatch.setattr(units, "UNIT_BYTES", unit)
    for name, text in (("a.jsonl", LINES), ("b.json", ARRAY), ("c.txt", TEXTS[0]), ("d.json", LINES)):
        data = MARKED[encoding] + text.encode(encoding)
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    expected = [*TEXTS * 4, TEXTS[0], TEXTS[0], *TEXTS * 2]
    assert texts_in(tmp_path, split=True) == expected
    assert texts_in(tmp_path, encoding="cp1252") == expected  # the mark wins


def test_marks_in_the_middle_of_lines_that_were_joined(tmp_path):
    (tmp_path / "a.jsonl").write_bytes((codecs.BOM_UTF8 + b'{"text": "x"}\n') * 3 + codecs.BOM_UTF8 + b"\n")
    assert texts_in(tmp_path) == ["x"] * 3


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "cp1252", "latin-1", "shift_jis", "gb18030"])
def test_an_encoding_that_is_named(tmp_path, monkeypatch, encoding):
    text = {"shift_jis": "\u65e5\u672c\u8a9e", "gb18030": "\u4e2d\u6587"}.get(encoding, "d\u00e9j\u00e0 vu")
    monkeypatch.setattr(streams, "BLOCK", 7)
    (tmp_path / "a.txt").write_bytes((text * 9).encode(encoding))
    (tmp_path / "b.jsonl").write_bytes((json.dumps([text], ensure_ascii=False) + "\n" * 9).encode(encoding) * 3)
    (tmp_path / "c.dat").write_bytes(b"%016d" % len(text.encode(encoding)) + text.encode(encoding))
    for unit in (1 << 23, 20):
        monkeypatch.setattr(units, "UNIT_BYTES", unit)
        assert texts_in(tmp_path, encoding=encoding) == [text * 9, text, text, text, text]


@pytest.mark.parametrize("unit", [1 << 23, 30])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_json_tells_its_encoding_without_a_mark(tmp_path, monkeypatch, encoding, unit):
    monkeypatch.setattr(units, "UNIT_BYTES", unit)
    for name, text in (("a.jsonl", LINES), ("b.json", ARRAY), ("c.json", LINES), ("d.ndjson", '"\u4e2d"\n')):
        (tmp_path / name).write_bytes(text.encode(encoding))
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode(encoding)))
    assert texts_in(tmp_path) == [*TEXTS * 6, "\u4e2d", "\u4e2d"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_text_in_ascii_shows_its_width(encoding):
    assert wide_encoding("First Citizen:\nBefore we".encode(encoding).decode("utf-8")) == encoding
    assert wide_encoding("a\0b") == wide_encoding("\0" * 3 + "plain text") == wide_encoding("plain text, no NUL") == ""


def test_what_an_encoding_has_not_costs_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'"caf\xe9"\n"\x81"\n"na\xefve"\n')
    found = found_in(tmp_path, encoding="cp1252")
    assert [one.text for one in found if isinstance(one, Document)] == ["caf\u00e9", "na\u00efve"]
    assert [str(one).partition("a.jsonl")[2] for one in found if isinstance(one, Bad)][0].startswith(":2: not UTF-8")
    wide = '"a"\n"\ud800"\n"b"\n'.encode("utf-16-le", "surrogatepass")
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF16_LE + wide + b"\n")  # half a character at its end
    found = found_in(tmp_path)
    assert [one.text for one in found if isinstance(one, Document)] == ["a", "b"]
    assert [one.number for one in found if isinstance(one, Bad)] == [2, 4]


def test_names_of_encodings():
    assert [named_encoding(name) for name in ("UTF8", "utf_8_sig", "Latin-1")] == ["", "", "iso8859-1"]
    for name in ("utf-99", "base64", ""):
        with pytest.raises(DataError, match="--encoding is"):
            named_encoding(name)


@pytest.mark.parametrize("encoding", MARKED)
def test_a_config_with_a_mark(tmp_path, encoding):
    config = {"n_head": 1, "n_vocab": 8, "n_embd": 4, "n_ctx": 4, "n_layer": 1, "datasets": []}
    config.update(train_batch_size=1, train_steps=1, lr=0.1, model_path=str(tmp_path))
    (tmp_path / "m.json").write_bytes(MARKED[encoding] + json.dumps(config).encode(encoding))
    assert load_config(str(tmp_path / "m.json")).model.n_vocab == 8
