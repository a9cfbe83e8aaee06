"""Text to ids at full speed, equal to `tokenizers` on every input.

A byte-level BPE maps each word of the pre-tokenizer to ids on its own, and a text has few different words. So words
are found with NumPy (`words.py`), and a table remembers the ids of those seen before; `tokenizers` itself is asked
about each new one. Tokenizers of another build, and texts around characters that this Python's Unicode version does
not know, go through `tokenizers`.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.dataprep import words
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import Tokenizer, byte_table

BLOCK = 1 << 20  # characters encoded at once
SHORT = 16  # bytes of the longest word the vectorised table holds; longer ones are rare and have a dictionary
TABLE_BITS = 21
WORD_LIMIT = 1 << 20  # words remembered: half the table, so that a search is short; about 100 MB
LONG_LIMIT, LONG_KEPT = 1 << 17, 1 << 10  # words of more than SHORT bytes remembered, and bytes of the longest of them
LONGEST_WORD = 8 << 20  # bytes; `tokenizers` needs 100 bytes of memory for each byte of a word
END_CHARACTER = "\0"  # stands between the texts of a block; told from a NUL in a text by its place
MOST_DOUBTFUL = 64  # places in a text with unknown characters; with more, the text goes to `tokenizers` as a whole
LONE_SURROGATE = "a lone surrogate, which no UTF-8 text holds"
LOW_BYTES = np.array([(1 << 8 * i) - 1 for i in range(9)], np.uint64)


def splits_into_words(backend: Any) -> bool:
    """Whether a `tokenizers.Tokenizer` is a plain byte-level BPE with GPT-2's words: one that this module can speed up.

    Not so with a normalizer, a space put before the text, dropout, or tokens that are looked for in the text before it
    is split (added tokens that are not special).
    """
    spec = json.loads(backend.to_str())
    split = spec["pre_tokenizer"] or {}
    if split.get("type") == "Sequence" and len(split["pretokenizers"]) == 1:
        split = split["pretokenizers"][0]
    model = spec["model"]
    return (
        spec["normalizer"] is None
        and split.get("type") == "ByteLevel"
        and not split["add_prefix_space"]
        and split.get("use_regex", True)
        and model["type"] == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and all(token["special"] for token in spec["added_tokens"])
    )


@functools.lru_cache(maxsize=1)
def knows_the_same_letters() -> bool:
    """Whether `tokenizers` takes every character for a letter or number that this Python takes for one.

    It carries a Unicode version of its own; a newer Python than the package could know letters that it does not.
    """
    from tokenizers import pre_tokenizers

    runs = words.runs_of_classes()
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\n".join(runs))
    return len(pieces) == 2 * len(runs) - 1


class Encoder:
    """Ids of texts, and where a text can be cut.

    Attributes:
      fast: words are looked up; otherwise `tokenizers` encodes whole texts.
    """

    def __init__(self, tokenizer: Tokenizer, fast: Optional[bool] = None) -> None:
        """
        Args:
          fast: the result of an earlier check of the same tokenizer, to save the time.
        """
        self.tokenizer = tokenizer
        if fast is None:
            fast = splits_into_words(tokenizer.backend) and knows_the_same_letters()
        self.fast = fast
        self.memory = WordCache(tokenizer) if fast else None

    def encode(self, text: str) -> np.ndarray:
        """Ids of one text, uint32 [tokens].

        Raises:
          DataError: it has lone surrogates, or a word too long to encode in bounded memory.
        """
        return np.concatenate(list(self.blocks(text)))

    def blocks(self, text: str) -> Iterator[np.ndarray]:
        """As `encode`, in blocks, so that a long text needs no second copy of its ids."""
        for batch in batched(self.pieces(text)):
            yield self.encode_texts(batch)[0]

    def encode_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of several texts of together about BLOCK characters.

        Returns:
          ids uint32 [tokens], texts joined; tokens of each text int64 [texts]
        """
        if self.memory is None:
            return self.encode_whole(texts)
        try:
            found = self.memory.encode(texts)
        except UnicodeEncodeError as error:
            raise DataError(LONE_SURROGATE) from error
        if found is not None:
            return found
        # Some text has an unknown character, which is not ASCII: the ASCII ones still go together.
        plain = [text for text in texts if text.isascii()]
        ids, counts = self.encode_texts(plain) if plain else (np.zeros(0, np.uint32), np.zeros(0, np.int64))
        known = iter(np.split(ids, np.cumsum(counts)[:-1]))
        each = [next(known) if text.isascii() else self.encode_around_unknown(text) for text in texts]
        return np.concatenate(each), np.array([len(ids) for ids in each], np.int64)

    def encode_whole(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As encode_texts, by `tokenizers`."""
        try:
            lists = [e.ids for e in self.tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(LONE_SURROGATE) from error
        counts = np.array([len(ids) for ids in lists], np.int64)
        return np.fromiter(itertools.chain.from_iterable(lists), np.uint32, int(counts.sum())), counts

    def encode_around_unknown(self, text: str) -> np.ndarray:
        """Ids of a text that may have characters of no known class: `tokenizers` gets what is around them."""
        points, kinds = words.code_points(text)
        unknown = np.flatnonzero(kinds == words.UNKNOWN)
        cuts = np.concatenate([[0], words.certain_cuts(points, kinds), [len(text)]])
        doubtful = np.unique(np.searchsorted(cuts, unknown, side="right"))  # cuts[i - 1] to cuts[i]
        if len(doubtful) > MOST_DOUBTFUL:
            return self.encode_whole([text])[0]
        parts, done = [np.zeros(0, np.uint32)], 0
        for place in doubtful.tolist():
            start, stop = int(cuts[place - 1]), int(cuts[place])
            parts += [self.encode_known(text[done:start]), self.encode_whole([text[start:stop]])[0]]
            done = stop
        return np.concatenate([*parts, self.encode_known(text[done:])])

    def encode_known(self, text: str) -> np.ndarray:
        """Ids of a text without unknown characters."""
        assert self.memory is not None
        found = self.memory.encode([text])
        assert found is not None
        return found[0]

    def pieces(self, text: str) -> Iterator[str]:
        """A text in pieces whose ids, joined, are the ids of the text; one piece where it cannot be cut."""
        done = 0
        while self.fast and len(text) - done > 2 * BLOCK:
            place = words.first_cut(text, done + BLOCK)
            if place is None:
                break
            yield text[done:place]
            done = place
        yield text[done:]


def batched(texts: Iterator[str]) -> Iterator[list[str]]:
    """Group texts to about BLOCK characters; a longer one stays alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BLOCK:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


class WordCache:
    """The ids of words seen before, in a hash table that is searched for a whole block of words at once.

    A word of at most SHORT bytes is two 64-bit numbers and a length, compared in full: equal entries are equal words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.lock = threading.Lock()  # Beam runs several threads in a process
        self.model = tokenizer.backend.model
        table = byte_table()
        self.characters = "".join(sorted(table, key=table.__getitem__))  # the model's character for each byte
        self.forget()

    def forget(self) -> None:
        """Start with an empty table."""
        slots = 1 << TABLE_BITS
        self.low, self.high = np.zeros(slots, np.uint64), np.zeros(slots, np.uint64)
        self.length, self.entry = np.zeros(slots, np.uint8), np.zeros(slots, np.int32)
        self.long_words: dict[str, int] = {}
        self.first, self.count = np.zeros(1 << 12, np.int64), np.zeros(1 << 12, np.int64)
        self.ids = np.zeros(1 << 14, np.uint32)
        self.entries = self.tokens = 0

    def encode(self, texts: Sequence[str]) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """As Encoder.encode_texts; None if a character is of no known class."""
        joined = END_CHARACTER.join(texts) + END_CHARACTER
        data = joined.encode("utf-8")
        points, kinds = words.code_points(joined)
        ends = np.cumsum([len(text) + 1 for text in texts]) - 1
        kinds[ends] = words.END
        if len(points) != len(data) and (kinds == words.UNKNOWN).any():
            return None
        starts = words.word_starts(points, kinds)
        last = np.searchsorted(starts, ends)  # the words that end texts
        if len(points) != len(data):
            width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
            starts = (np.cumsum(width) - width)[starts]
        with self.lock:
            entries = self.look_up(data, starts)
            counts = self.count[entries]
            counts[last] = 0
            after = np.cumsum(counts)
            places = np.arange(after[-1]) + np.repeat(self.first[entries] - (after - counts), counts)
            return self.ids[places], np.diff(after[last], prepend=0)

    def look_up(self, data: bytes, starts: np.ndarray) -> np.ndarray:
        """Entries of the words of `data` that begin at `starts`, int64 [words]; unknown words are learned."""
        if self.entries + len(starts) > WORD_LIMIT:
            self.forget()
        if len(self.long_words) > LONG_LIMIT:
            self.long_words = {}
        padded = np.zeros(len(data) + SHORT, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        eight: np.ndarray = np.ndarray((len(data) + 9,), "<u8", padded, strides=(1,))  # 8 bytes from every place on
        sizes = np.diff(starts, append=len(data))
        low = eight[starts] & LOW_BYTES[np.minimum(sizes, 8)]
        high = eight[np.minimum(starts + 8, len(data) + 8)] & LOW_BYTES[np.clip(sizes - 8, 0, 8)]
        length = np.minimum(sizes, SHORT + 1).astype(np.uint8)
        entries, slots = self.search(low, high, length)
        rest = np.flatnonzero(entries < 0)
        if len(rest):
            entries[rest], new = self.learn(data, starts[rest], sizes[rest])
            new = rest[new[sizes[rest[new]] <= SHORT]]
            self.insert(entries[new], slots[new], low[new], high[new], length[new])
        return entries

    def search(self, low: np.ndarray, high: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entry of each word or -1, and the slot where it is or would be; int64 [words] each."""
        mixed = (low * np.uint64(0x9E3779B97F4A7C15)) ^ ((high + length) * np.uint64(0xC2B2AE3D27D4EB4F))
        mixed *= np.uint64(0xFF51AFD7ED558CCD)
        slots = (mixed >> np.uint64(64 - TABLE_BITS)).astype(np.int64)
        found = np.full(len(slots), -1, np.int64)
        rest = np.arange(len(slots))
        while len(rest):
            at = slots[rest]
            kept = self.length[at]
            hit = (self.low[at] == low[rest]) & (self.high[at] == high[rest]) & (kept == length[rest])
            found[rest[hit]] = self.entry[at[hit]]
            rest = rest[~hit & (kept != 0)]
            slots[rest] = (slots[rest] + 1) & ((1 << TABLE_BITS) - 1)
        return found, slots

    def insert(
        self, entries: np.ndarray, slots: np.ndarray, low: np.ndarray, high: np.ndarray, length: np.ndarray
    ) -> None:
        """Put words that are not there into the table, each into the first free slot from its own on."""
        rest = np.arange(len(entries))
        while len(rest):
            at, chosen = np.unique(slots[rest], return_index=True)  # one word a slot
            free = self.length[at] == 0
            at, chosen = at[free], rest[chosen[free]]
            self.low[at], self.high[at] = low[chosen], high[chosen]
            self.length[at], self.entry[at] = length[chosen], entries[chosen]
            rest = np.setdiff1d(rest, chosen, assume_unique=True)
            slots[rest] = (slots[rest] + 1) & ((1 << TABLE_BITS) - 1)

    def learn(self, data: bytes, starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask the model for the ids of words that the table lacks, and store them.

        Returns:
          entries int64 [words]; the indices of one word of each kind that is new, int64 [new]
        """
        shown = codecs.charmap_decode(data, "strict", self.characters)[0]
        seen: dict[str, int] = {}
        entries: list[int] = []
        new: list[int] = []
        lists: list[list[int]] = []
        for index, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist())):
            word = shown[start : start + size]
            entry = seen.get(word)
            if entry is None and size > SHORT:
                entry = self.long_words.get(word)
            if entry is None:
                if size > LONGEST_WORD:
                    raise DataError(f"{size:,} bytes are one word; at most {LONGEST_WORD:,} can be encoded")
                entry = seen[word] = self.entries + len(lists)
                lists.append([token.id for token in self.model.tokenize(word)])
                new.append(index)
                if SHORT < size <= LONG_KEPT:
                    self.long_words[word] = entry
            entries.append(entry)
        self.store(lists)
        return np.array(entries, np.int64), np.array(new, np.int64)

    def store(self, lists: Sequence[Sequence[int]]) -> None:
        """Add entries."""
        counts = np.array([len(ids) for ids in lists], np.int64)
        joined = np.fromiter(itertools.chain.from_iterable(lists), np.uint32, int(counts.sum()))
        end, tokens = self.entries + len(lists), self.tokens + len(joined)
        self.first, self.count, self.ids = grown(self.first, end), grown(self.count, end), grown(self.ids, tokens)
        self.count[self.entries : end] = counts
        self.first[self.entries : end] = self.tokens + np.cumsum(counts) - counts
        self.ids[self.tokens : tokens] = joined
        self.entries, self.tokens = end, tokens


def grown(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a longer copy of at least `size` elements."""
    if size <= len(array):
        return array
    longer = np.zeros(max(2 * len(array), size), array.dtype)
    longer[: len(array)] = array
    return longer
