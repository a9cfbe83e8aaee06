"""Splitting text into the words of GPT-2's pre-tokenizer, a million characters at a time with NumPy. Pure.

The rule is the regular expression of the byte-level pre-tokenizer,

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

Read as boundaries: a word is a run of letters, of numbers or of other characters, together with one space before it; of
white space before anything else the last character stands alone (or, a space, goes to the word after it) and the rest
is a word; the contractions are words of their own where nothing but their apostrophe has begun a word.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Optional

import numpy as np

OTHER, LETTER, NUMBER, SPACE, END, UNKNOWN = range(6)
WHITE_SPACE = (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
PLANES_WITH_LETTERS = (*range(0x40000), *range(0xE0000, 0xF0000))
SURROGATES = range(0xD800, 0xE000)
# Letters after an apostrophe: one of the first four, or one of the three pairs.
SHORT_CONTRACTIONS = [ord(c) for c in "stmd"]
LONG_CONTRACTIONS = [(ord(a), ord(b)) for a, b in ("re", "ve", "ll")]


@functools.lru_cache(maxsize=1)
def classes() -> np.ndarray:
    """uint8 [0x110000]: the class of every code point; UNKNOWN where this Python's Unicode version assigns nothing."""
    table = np.full(0x110000, OTHER, np.uint8)
    # Planes 4 to 13 hold nothing, 15 and 16 private use, which is never a letter.
    points = np.array(PLANES_WITH_LETTERS)
    categories = "".join(map(unicodedata.category, map(chr, PLANES_WITH_LETTERS))).encode("ascii")
    named = np.frombuffer(categories, np.uint8).reshape(-1, 2)
    for letter, kind in ((b"L", LETTER), (b"N", NUMBER)):
        table[points[named[:, 0] == ord(letter)]] = kind
    table[points[(named == list(b"Cn")).all(axis=1)]] = UNKNOWN
    table[list(WHITE_SPACE)] = SPACE
    table[list(SURROGATES)] = UNKNOWN
    return table


def runs_of_classes() -> list[str]:
    """Every maximal run of neighbouring code points of one known class, for holding the table against a pre-tokenizer:
    each is one word when a line end follows it."""
    table = classes()[: PLANES_WITH_LETTERS[-1] + 1]
    edges = np.flatnonzero(np.diff(table)) + 1
    runs = []
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(table)]):
        if table[start] in (LETTER, NUMBER):
            runs.append("".join(map(chr, range(start, stop))))
    return runs


def word_starts(points: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Where words start.

    Args:
      points: code points, [characters].
      kinds: their classes, uint8 [characters]; END between texts, which is a word of its own and joins no other.

    Returns:
      int64 [words]
    """
    white, end = kinds == SPACE, kinds == END
    begins = np.empty(len(points), bool)  # of a run of one class
    begins[0] = True
    np.not_equal(kinds[1:], kinds[:-1], out=begins[1:])
    begins |= end
    starts = begins.copy()
    solid = ~(white | end)
    # A space goes to the run after it ...
    starts[1:] &= ~(begins[1:] & solid[1:] & (points[:-1] == 32))
    # ... and every last character of white space before a run stands apart from those before it.
    starts[:-1] |= white[:-1] & solid[1:]
    split_contractions(points, starts, begins)
    return np.flatnonzero(starts)


def split_contractions(points: np.ndarray, starts: np.ndarray, begins: np.ndarray) -> None:
    """Join an apostrophe that starts a word to the letters of a contraction, and start a word after them. In place."""
    at = np.flatnonzero(starts & begins & (points == ord("'")))
    at = at[at + 1 < len(points)]
    if not len(at):
        return
    first = points[at + 1]
    second = np.zeros(len(at), points.dtype)
    inside = at + 2 < len(points)
    second[inside] = points[at[inside] + 2]
    short = np.isin(first, SHORT_CONTRACTIONS)
    long = np.zeros(len(at), bool)
    for a, b in LONG_CONTRACTIONS:
        long |= (first == a) & (second == b)
    for chosen, length in ((short, 2), (long, 3)):
        joined = at[chosen]
        starts[joined + 1] = False
        after = joined + length
        starts[after[after < len(points)]] = True


def certain_cuts(points: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Places p, 0 < p < characters, where a word starts whatever stands further left or right.

    The word with character p - 1 ends there (a run of letters or numbers, or anything before white space), and the
    regular expression looks at nothing to the left of where it begins to match.
    """
    before, after = kinds[:-1], kinds[1:]
    ended = ((before == LETTER) | (before == NUMBER)) & (after != before)
    ended |= (before == OTHER) & (after == SPACE)
    return np.flatnonzero(ended & (after != UNKNOWN)) + 1


def code_points(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Code points (uint8 for ASCII, else uint32) and classes uint8, [characters] each."""
    if text.isascii():
        points = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4")
    return points, classes()[points]


def first_cut(text: str, start: int, window: int = 1 << 16) -> Optional[int]:
    """The first certain cut of a text from `start` > 0 on, or None."""
    while start < len(text):
        places = certain_cuts(*code_points(text[start - 1 : start + window]))
        if len(places):
            return start - 1 + int(places[0])
        start += window
    return None
