"""One interface to tokenizers: GPT-2's, offline, or any tokenizer.json."""

from __future__ import annotations

import codecs
import copy
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.errors import DataError, reason_of

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
# What stands for a byte, and for a space, in tokenizers that are not byte-level.
BYTE_TOKEN, SPACE = re.compile("<0x([0-9A-F]{2})>"), "\u2581"
# Case, accents in one character and in two, wide and joined letters, marks, digits, spaces and lines.
PROBE = (
    "  The quick brown fox DOESN'T jump, it's 12345.67!  \u201cNa\u00efve caf\u00e9\u201d cafe\u0301 "
    "\u00c5ngstr\u00f6m \uff21\uff22\uff23 \ufb01n \u00bd x\u00b2\tdef f(a_b):\n    return [a!=1]\r\n\n\n\u4e2d\u6587 "
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f600\u00a0.\u200b--- http://a.b/c?d=e "
)
MOST_PAIRS = 4096  # of tokens that stand one after another
GPT2_MERGES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "vocabulary", "gpt2.bpe"
)  # its licence beside it


class Tokenizer:
    """Text to ids and back.

    Strings that look like special tokens are ordinary text here; special ids are put in by whoever needs them.
    """

    def __init__(self, name: str, backend: Any, eos_id: Optional[int] = None) -> None:
        backend.encode_special_tokens = True
        backend.no_truncation()  # a tokenizer.json may ask for either; both would change or lose text
        backend.no_padding()
        self.name = name
        self.backend = backend
        self.n_vocab: int = backend.get_vocab_size(with_added_tokens=True)
        if self.n_vocab and backend.id_to_token(self.n_vocab - 1) is None:  # ids are left out: up to the largest
            self.n_vocab = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = backend.token_to_id(END_OF_TEXT) if eos_id is None else eos_id
        self.padding_id = backend.token_to_id(PADDING)
        self.byte_level = "ByteLevel" in type(backend.decoder).__name__

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
          DataError: it holds bytes that are no UTF-8, which Python lets in from the command line as lone surrogates.
        """
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise DataError(f"the text is no UTF-8, from its character {surrogate(text)} on") from error
        except BaseException as error:
            refuse_panic(error, self.name)
            raise

    def encode_special(self, text: str) -> list[int]:
        """Ids of a text in which the names of special tokens stand for these."""
        try:
            return self.with_special.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise DataError(f"the text is no UTF-8, from its character {surrogate(text)} on") from error

    @functools.cached_property
    def with_special(self) -> Any:
        """A copy of the backend that knows special tokens in texts; a switch in one would be seen by other threads."""
        backend = copy.deepcopy(self.backend)
        backend.encode_special_tokens = False
        known = backend.get_added_tokens_decoder()  # those keep their flags
        missing = [i for i in sorted(self.special_ids) if i < self.n_vocab and not (i in known and known[i].special)]
        backend.add_special_tokens([backend.id_to_token(i) for i in missing])
        return backend

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on all cores."""
        try:
            return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]
        except BaseException as error:
            refuse_panic(error, self.name)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; bytes that are no UTF-8 become the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of the ids, exact for byte-level tokenizers; the end-of-text and padding ids have none.

        Raises:
          DataError: an id is outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.n_vocab:
                raise DataError(f"tokenizer {self.name}: id {i} is outside its {self.n_vocab} ids")
        if not self.byte_level:
            try:
                return self.backend.decode(ids, skip_special_tokens=True).encode("utf-8")
            except BaseException as error:
                refuse_panic(error, self.name)
                raise
        return b"".join(self.bytes_of(i) for i in ids)

    @functools.cached_property
    def special_ids(self) -> set:
        """Ids that stand for no text. A token of texts that ends one, such as a newline, is none of them: it is left
        out where it ends a text, by whoever ends it there, and is text elsewhere."""
        found = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        found |= {self.backend.token_to_id(END_OF_TEXT), self.padding_id} - {None}
        if self.eos_id is not None and self.eos_id not in found and not self.is_text(self.eos_id):
            found.add(self.eos_id)
        return found

    def specials_named(self, texts: Iterable[str]) -> set[int]:
        """Ids of the special tokens that are called like one of the texts. Raises: DataError: one is no UTF-8."""
        try:
            return {self.backend.token_to_id(text) for text in texts} & self.special_ids
        except UnicodeEncodeError as error:
            raise DataError(f"the text {error.object!r} is no UTF-8, from its character {error.start} on") from error

    def is_text(self, token_id: int) -> bool:
        """Whether texts are encoded with an id: that of the token is."""
        return token_id in self.encode(self.spelt(token_id).decode("utf-8", errors="replace"))

    @functools.cache  # noqa: B019  (a tokenizer lives as long as the program)
    def bytes_of(self, token_id: int) -> bytes:
        """Bytes of one id by itself: what it adds inside of a text, a space before it included."""
        return b"" if token_id in self.special_ids else self.spelt(token_id)

    def spelt(self, token_id: int) -> bytes:
        """The bytes that a token is written for; none of an id that the vocabulary leaves out."""
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if self.byte_level:
            table = byte_table()
            return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode("utf-8")
        byte = BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode("utf-8")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary in order of ids: equal for equal tokenizers, whatever file they came from."""
        vocabulary = sorted(self.backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()

    @functools.cached_property
    def encoding_fingerprint(self) -> str:
        """SHA-256 of the ids of texts that tell tokenizers of one vocabulary apart, by other merges, splitting or
        normalization: of PROBE, and of tokens one after another. Equal where they are the same."""
        step = max(1, self.n_vocab // MOST_PAIRS)
        pairs = (self.spelt(i) + self.spelt(i + 1) for i in range(0, self.n_vocab - 1, step))
        texts = [PROBE, PROBE.strip(), *(pair.decode("utf-8", errors="replace") for pair in pairs)]
        return hashlib.sha256(json.dumps([self.tried(text) for text in texts]).encode()).hexdigest()

    def tried(self, text: str) -> Optional[list[int]]:
        """Ids of a text; None where the tokenizer has none for it, as one without an unknown token."""
        try:
            return self.encode(text)
        except Exception:  # the package raises bare Exception
            return None


class TextStream:
    """Text of tokens as they come; a character of several tokens comes with the last of them.

    Args:
      before: tokens that stand before them, whose text is known. Their last one may be half a character, and tokenizers
        that are not byte-level put spaces between tokens by what stands before them.
    """

    def __init__(self, tokenizer: Tokenizer, before: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.ids = [token for token in before if token < tokenizer.n_vocab]
        self.shown = 0
        if tokenizer.byte_level:
            self.decoder.decode(tokenizer.decode_bytes(self.ids))
        else:
            self.shown = len(tokenizer.decode(self.ids).rstrip("\ufffd"))

    def add(self, token: int) -> str:
        """What a token adds; nothing where the model has an id that the tokenizer lacks."""
        if token >= self.tokenizer.n_vocab:
            return ""
        if self.tokenizer.byte_level:
            return self.decoder.decode(self.tokenizer.decode_bytes([token]))
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        return self.rest(text) if not text.endswith("\ufffd") else ""

    def end(self) -> str:
        """What is left over: characters that were cut off."""
        if self.tokenizer.byte_level:
            return self.decoder.decode(b"", final=True)
        return self.rest(self.tokenizer.decode(self.ids))

    def rest(self, text: str) -> str:
        """What of the whole text was not given yet."""
        new = text[self.shown :]
        self.shown = max(self.shown, len(text))
        return new


def refuse_panic(error: BaseException, name: str) -> None:
    """The package panics over a file whose parts contradict each other, with an exception that is no Exception.

    Raises:
      DataError: that is what `error` is.
    """
    if type(error).__name__ == "PanicException":
        raise DataError(f"{name}: a tokenizer whose parts contradict each other: {error}") from error


def surrogate(text: str) -> int:
    """Place of the first character that is half of one."""
    return next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), len(text))


@functools.lru_cache(maxsize=1)
def byte_table() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabulary: printable Latin-1 as itself, others from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


def load_tokenizer(path_or_name: Optional[str] = None, eos_id: Optional[int] = None) -> Tokenizer:
    """Load `gpt2` (the default), or a tokenizer.json.

    Args:
      eos_id: id of the end of a document, where the file does not name `<|endoftext|>`.

    Raises:
      DataError: there is no such file, or it is no tokenizer.
    """
    name = storage.local(path_or_name or "gpt2")
    if name == "gpt2":
        return Tokenizer("gpt2", gpt2_backend(), 50256 if eos_id is None else eos_id)
    if os.path.isdir(name):
        name = os.path.join(name, "tokenizer.json")
    if not os.path.isfile(name):
        beside = os.path.join(os.path.dirname(name), "tokenizer.json")  # 2021: byte-level-bpe.tokenizer.json
        there = f"; there is {beside}" if os.path.isfile(beside) else ""
        raise DataError(f"no tokenizer {name!r}: expected gpt2 or the path of a tokenizer.json{there}")
    import tokenizers

    try:
        with open(name, "rb") as handle:
            backend = tokenizers.Tokenizer.from_buffer(handle.read().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {reason_of(error)}") from error
    except Exception as error:  # the package raises bare Exception
        raise DataError(f"{name}: not a tokenizer.json: {error}") from error
    except BaseException as error:
        refuse_panic(error, name)
        raise
    return Tokenizer(name, backend, eos_id)


def gpt2_backend() -> Any:
    """GPT-2's byte-level BPE. Its merges say its vocabulary: bytes, what each merge makes, the end of text."""
    with open(GPT2_MERGES, encoding="utf-8") as handle:
        merges = [tuple(line.split()) for line in handle if not line.startswith("#version")]
    tokens = [*byte_table(), *map("".join, merges), END_OF_TEXT]
    return byte_level_bpe({token: i for i, token in enumerate(tokens)}, merges)


def byte_level_bpe(vocabulary: dict[str, int], merges: list) -> Any:
    """A tokenizers.Tokenizer of GPT-2's kind: ids by token, and pairs of tokens to merge."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> Any:
    """Train a byte-level BPE of `n_vocab` ids: 0 end of text, 1 padding, then bytes and merges.

    Returns:
      tokenizers.Tokenizer; `save_tokenizer` writes tokenizer.json.
    """
    import tokenizers

    smallest = 256 + 2
    if n_vocab < smallest:
        raise DataError(f"--vocab_size is {n_vocab}; expected at least {smallest} (256 bytes and 2 special tokens)")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(byte_table()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def save_tokenizer(backend: Any, path: str) -> None:
    """Write a tokenizers.Tokenizer, whole or not at all; its own `save` cuts off what was there, and raises no OSError.

    Raises:
      OSError: it cannot be written.
    """
    storage.write_bytes(path, backend.to_str(pretty=True).encode())
