"""The fast encoder gives the ids of `tokenizers` on every input, and texts can be cut where it says."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.dataprep import encoder as module
from gpt_neo.dataprep import words
from gpt_neo.dataprep.encoder import Encoder, batched, knows_the_same_letters, splits_into_words
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import Tokenizer, load_tokenizer

# What the pre-tokenizer's rules turn on, and what they might be confused by.
FRAGMENTS = [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "'",
    "''",
    "s",
    "t",
    "re",
    "ve",
    "ll",
    "d",
    "m",
    "S",
    "a",
    "stuff",
    "1",
    "42",
    "!",
    "-",
    "\0",
    "\u00e9",
    "e\u0301",
    "\u00bd",
    "\u2167",
    "\u4e2d\u6587",
    "\u3000",
    "\x85",
    "\u00a0",
    "\u2028",
    "\u200b",
    "\x1c",
    "\U0001f600",
    "\U0001f1e9\U0001f1ea",
    "\u0378",
    "\U00010940",
    "\ue000",
    "<|endoftext|>",
    "\u0627\u0644",
    "\u0e01\u0e33",
]
MIXED = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)
ANY = st.text(max_size=40) | MIXED


@settings(max_examples=300, deadline=None)
@given(st.lists(ANY, max_size=6))
def test_ids_equal_those_of_tokenizers(encoder, gpt2, texts):
    assert encoder.fast
    ids, counts = encoder.encode_texts(texts) if texts else (np.zeros(0), np.zeros(0))
    expected = [gpt2.encode(text) for text in texts]
    assert counts.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [i for row in expected for i in row]


def edges():
    """Code points on both sides of every change of class, surrogates left out."""
    table = words.classes()
    change = np.flatnonzero(np.diff(table)) + 1
    points = {0, 0x10FFFF, *change.tolist(), *(change - 1).tolist()}
    return sorted(point for point in points if not 0xD800 <= point < 0xE000)


@pytest.mark.parametrize("around", ["{}x", "x{}", " {}", "{} 1", "'{}", "{}'s", "1{}\n", "!{}\n\n"])
def test_the_edges_of_all_classes_of_characters(encoder, gpt2, around):
    text = "".join(around.format(chr(point)) for point in edges())
    assert encoder.encode(text).tolist() == gpt2.encode(text)


@pytest.mark.slow
@pytest.mark.parametrize("around", ["{}x", "x{}", " {}", "{} ", "'{}", "1{}\n"])
def test_every_character_of_unicode(encoder, gpt2, around):
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 100_000):
        text = "".join(around.format(chr(point)) for point in points[start : start + 100_000])
        assert encoder.encode(text).tolist() == gpt2.encode(text)


@settings(max_examples=60, deadline=None)
@given(MIXED)
def test_cuts_change_no_ids(encoder, gpt2, text):
    whole = gpt2.encode(text)
    points, kinds = words.code_points(text)
    for place in words.certain_cuts(points, kinds).tolist():
        assert gpt2.encode(text[:place]) + gpt2.encode(text[place:]) == whole
    first = words.first_cut(text, 1)
    assert first == (next(iter(words.certain_cuts(points, kinds).tolist()), None))


@pytest.mark.parametrize(
    "run",
    [
        "a" * 100_000,
        " " * 100_000,
        "\n" * 99_999 + "x",
        "=" * 100_000,
        "\u4e2d" * 30_000,
        "ab " * 50_000,
        " 's" * 30_000,
        "'" * 50_000,
    ],
)
def test_long_runs(encoder, gpt2, run):
    assert encoder.encode(run).tolist() == gpt2.encode(run)


def test_a_text_in_pieces(encoder, gpt2, prose, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5000)
    text = prose[:60_000] + "\u0378" + prose[60_000:80_000] + "\u00e9" * 20_000 + prose[:5000]
    pieces = list(encoder.pieces(text))
    assert "".join(pieces) == text and len(pieces) > 10
    assert max(map(len, pieces)) < 26_000
    assert encoder.encode(text).tolist() == gpt2.encode(text)
    assert [sum(map(len, batch)) <= 5000 or len(batch) == 1 for batch in batched(iter(pieces))]


def test_a_full_memory_is_emptied(gpt2, monkeypatch, prose):
    monkeypatch.setattr(module, "WORD_LIMIT", 3000)
    monkeypatch.setattr(module, "LONG_LIMIT", 5)
    encoder = Encoder(gpt2, True)
    for start in range(0, 40_000, 4000):
        text = prose[start : start + 4000] + "x" * (20 + start)
        assert encoder.encode(text).tolist() == gpt2.encode(text)
    assert encoder.memory.entries < 3000


def test_what_cannot_be_encoded(encoder, monkeypatch):
    with pytest.raises(DataError, match="a lone surrogate"):
        encoder.encode("a \ud800 b")
    with pytest.raises(DataError, match="a lone surrogate"):
        encoder.encode_whole(["\udfff"])
    monkeypatch.setattr(module, "LONGEST_WORD", 100)
    with pytest.raises(DataError, match="102 bytes are one word; at most 100"):
        encoder.encode("fine " + "y" * 101)


def variant(path, **changes):
    """A tokenizer with other parts."""
    with open(path, encoding="utf-8") as handle:
        return tokenizers.Tokenizer.from_str(json.dumps({**json.load(handle), **changes}))


def test_other_tokenizers_go_through_tokenizers(small_tokenizer, tmp_path):
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    added = {
        "id": 400,
        "content": "  ",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    }
    assert splits_into_words(variant(small_tokenizer)) and knows_the_same_letters()
    for changes in ({"pre_tokenizer": byte_level}, {"normalizer": {"type": "NFKC"}}, {"added_tokens": [added]}):
        backend = variant(small_tokenizer, **changes)
        assert not splits_into_words(backend)
        path = str(tmp_path / "tokenizer.json")
        backend.save(path)
        tokenizer = load_tokenizer(path)
        encoder = Encoder(tokenizer)
        text = "Hello  world \ufb01 it's  <|endoftext|>"
        assert not encoder.fast and encoder.encode(text).tolist() == tokenizer.encode(text)
        assert list(encoder.pieces("a b" * 2_000_000)) == ["a b" * 2_000_000]


def test_truncation_and_padding_of_a_file_are_off(small_tokenizer):
    backend = variant(small_tokenizer)
    expected = backend.encode("one two three").ids
    backend.enable_truncation(2)
    backend.enable_padding(length=90)
    assert Tokenizer("x", backend).encode("one two three") == expected
