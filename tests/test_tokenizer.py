"""Tokenizers: every text comes back byte for byte, and specials in text are text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.checkpoint.hf_folder import copy_tokenizer_files
from gpt_neo.dataprep.templates import template_of
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import TextStream, Tokenizer, gpt2_backend, load_tokenizer, train_tokenizer
from tests.made_tokenizers import byte_fallback, metaspace


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


def test_gpt2_ids(gpt2):
    assert gpt2.n_vocab == 50257 and gpt2.eos_id == 50256
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995, 50256]) == "Hello world"


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_round_trip(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_special_strings_in_text_are_text(gpt2):
    ids = gpt2.encode("a<|endoftext|>b")
    assert gpt2.eos_id not in ids and gpt2.decode(ids) == "a<|endoftext|>b"


def test_a_token_of_texts_that_ends_one_is_text():
    newline = load_tokenizer("gpt2", eos_id=198)
    assert newline.decode([64, 198, 65, 50256]) == "a\nb"
    assert newline.bytes_of(198) == b"\n" and newline.special_ids == {50256}
    stream = TextStream(newline, [64])
    assert "".join(map(stream.add, [198, 65])) == "\nb"
    # Of a tokenizer of words and bytes, too; of one that texts are not encoded with, and of an id that it lacks, not.
    fallback = Tokenizer("words", byte_fallback(), 4 + ord("\n"))
    assert fallback.bytes_of(4 + ord("\n")) == b"\n" and fallback.special_ids == set()
    assert Tokenizer("words", metaspace(), 0).special_ids == {0}
    assert load_tokenizer("gpt2", eos_id=50300).special_ids == {50256, 50300}


def test_ids_outside_the_vocabulary(gpt2):
    with pytest.raises(DataError, match="id 50257 is outside its 50257 ids"):
        gpt2.decode([50257])


def test_trained_tokenizer(tmp_path):
    backend = train_tokenizer(["the cat sat on the mat\n" * 20], 270)
    path = str(tmp_path / "tokenizer.json")
    backend.save(path)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.n_vocab, tokenizer.eos_id, tokenizer.padding_id) == (270, 0, 1)
    text = "the cat \u2603 \U0001f600\n\tx"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.fingerprint == load_tokenizer(path).fingerprint != load_tokenizer("gpt2").fingerprint
    with pytest.raises(DataError, match="expected at least 258"):
        train_tokenizer(["x"], 100)
    with pytest.raises(DataError, match="no tokenizer .*; there is .*/tokenizer.json"):
        load_tokenizer(str(tmp_path / "byte-level-bpe.tokenizer.json"))


def test_the_mark_of_editors_before_utf8_is_no_part_of_a_file(tmp_path):
    """Of a tokenizer.json; and copies are without it, for transformers."""
    from transformers import PreTrainedTokenizerFast

    plain, marked, copied = (tmp_path / name for name in ("plain", "marked", "copied"))
    for folder in (plain, marked, copied):
        folder.mkdir()
    train_tokenizer(["the cat sat on the mat\n" * 20], 270).save(str(plain / "tokenizer.json"))
    (plain / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for path in plain.iterdir():
        (marked / path.name).write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    tokenizer = load_tokenizer(str(marked))
    assert tokenizer.fingerprint == load_tokenizer(str(plain)).fingerprint
    message = [{"role": "user", "content": "the cat"}]
    assert template_of(str(marked), tokenizer).render(message, True) == "the cat"
    copy_tokenizer_files(str(marked), str(copied))
    theirs = PreTrainedTokenizerFast.from_pretrained(str(copied))
    assert theirs("the cat").input_ids == tokenizer.encode("the cat")
    assert theirs.apply_chat_template(message, tokenize=False) == "the cat"


def test_a_file_that_may_not_be_read_is_no_other_file(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")

    def refused(path, mode):
        raise PermissionError(13, "Permission denied", path)

    with pytest.raises(DataError, match="tokenizer.json: not a tokenizer.json: "):
        load_tokenizer(str(tmp_path))
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(DataError, match="tokenizer.json: cannot be read: Permission denied$"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_that_leaves_ids_out(tmp_path):
    backend = train_tokenizer(["the cat sat on the mat\n" * 20], 262)
    spec = json.loads(backend.to_str())
    last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    spec["model"]["vocab"][last] = 270
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.n_vocab == 271 and tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"
    assert tokenizer.decode([270, 265, 270]) == 2 * backend.decode([261])


@pytest.mark.parametrize("backend", [metaspace(), byte_fallback()], ids=["metaspace", "byte fallback"])
def test_pieces_by_themselves_are_those_of_the_text(backend):
    """A space before a word and the bytes of a character are told, which a decoder of one id leaves out."""
    tokenizer = Tokenizer("x", backend)
    text = " the reindeer" if tokenizer.n_vocab < 100 else " a bé c🎉"
    ids = tokenizer.encode(text.replace(" ", "▁") if tokenizer.n_vocab > 100 else text.strip())
    assert b"".join(map(tokenizer.bytes_of, ids)) == text.encode()


def test_added_tokens_are_plain_text_where_a_character_stands_for_no_byte():
    backend = gpt2_backend()
    backend.add_tokens(["café noir", "日本"])
    tokenizer = Tokenizer("x", backend)
    for text in ("café noir", "日本", " naïve"):
        assert tokenizer.decode(tokenizer.encode(text)) == text == backend.decode(tokenizer.encode(text))
    assert tokenizer.decode([50257]) == "café noir"


@pytest.mark.parametrize("backend", [metaspace(), byte_fallback()], ids=["metaspace", "byte fallback"])
def test_streamed_text_is_that_of_the_whole(backend):
    tokenizer = Tokenizer("words", backend, 0)
    random = np.random.default_rng(3)
    heart = [4 + byte for byte in "♥".encode()]
    for _ in range(20):
        ids = random.integers(1, min(60, tokenizer.n_vocab), 12).tolist()
        ids += [*heart, 2, 1] if tokenizer.n_vocab > 256 else []
        for cut in range(len(ids)):  # also within the heart
            stream = TextStream(tokenizer, ids[:cut])
            text = "".join(map(stream.add, ids[cut:])) + stream.end()
            assert text == backend.decode(ids)[len(backend.decode(ids[:cut]).rstrip("\ufffd")) :]


def test_a_text_that_is_no_utf8_names_no_special_token():
    with pytest.raises(DataError, match=r"the text 'a\\udce9' is no UTF-8, from its character 1 on"):
        load_tokenizer("gpt2").specials_named(["<|endoftext|>", "a\udce9"])


def test_tokenizers_of_one_vocabulary_are_told_apart_by_their_ids(tmp_path):
    """And files that say the same in other words are not, as those of other programs do."""
    import tokenizers

    plain = train_tokenizer(["the cat sat on the mat, the hat that the rat had\n" * 20], 280)
    said = json.loads(plain.to_str())
    variants = {"plain": plain, "again": tokenizers.Tokenizer.from_str(plain.to_str())}
    variants["again"].post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    said["model"]["merges"] = said["model"]["merges"][::-1]
    variants["merges"] = tokenizers.Tokenizer.from_str(json.dumps(said))
    for name, normalizer in (("lower", tokenizers.normalizers.Lowercase()), ("nfkc", tokenizers.normalizers.NFKC())):
        variants[name] = tokenizers.Tokenizer.from_str(plain.to_str())
        variants[name].normalizer = normalizer
    parts = tokenizers.pre_tokenizers
    byte_level = parts.ByteLevel(add_prefix_space=False)
    for name, splitting in (
        ("space", parts.ByteLevel(add_prefix_space=True)),
        ("split", parts.Sequence([parts.Split("a", "isolated"), byte_level])),
    ):
        variants[name] = tokenizers.Tokenizer.from_str(plain.to_str())
        variants[name].pre_tokenizer = splitting
    found = {name: Tokenizer(name, backend) for name, backend in variants.items()}
    assert len({one.fingerprint for one in found.values()}) == 1
    assert found["plain"].encoding_fingerprint == found["again"].encoding_fingerprint
    assert len({one.encoding_fingerprint for one in found.values()}) == len(found) - 1
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="none"))
    assert len(Tokenizer("words", words).encoding_fingerprint) == 64  # it has no ids for most texts
