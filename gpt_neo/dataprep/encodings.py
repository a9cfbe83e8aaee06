"""Text of other encodings as UTF-8: what a byte-order mark says, else what --encoding says, else UTF-8 as it is."""

from __future__ import annotations

import codecs
import io
import json
from typing import Any, BinaryIO

from gpt_neo.errors import DataError

# The longer ones first: that of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LONGEST_MARK = 4
# (encoding, bytes of a character, which of them ASCII is in), for text whose other bytes are all zero
WIDE = (("utf-32-le", 4, 0), ("utf-32-be", 4, 3), ("utf-16-le", 2, 0), ("utf-16-be", 2, 1))
LEAST = 8  # characters from which on a text is told to be wide
BLOCK = 1 << 16  # bytes decoded at once


def named_encoding(name: str) -> str:
    """Python's name of an encoding; empty for UTF-8, which is the default.

    Raises:
      DataError: there is none of this name, or it is not one of text.
    """
    try:
        found = codecs.lookup(name)
        "".encode(found.name)  # refuses those that are not of text, such as base64
    except LookupError as error:
        raise DataError(
            f"--encoding is {name!r}; expected one that Python knows, such as utf-16-le, latin-1, cp1252, shift_jis"
        ) from error
    return "" if found.name in ("utf-8", "utf-8-sig") else found.name


def mark_of(head: bytes) -> tuple[bytes, str]:
    """The byte-order mark that data begins with, and its encoding; both empty if there is none."""
    return next((found for found in MARKS if head.startswith(found[0])), (b"", ""))


def encoding_of(head: bytes, is_json: bool) -> tuple[bytes, str]:
    """The byte-order mark that data begins with, and its encoding; both empty if it does not tell.

    JSON tells without a mark: it begins with two characters of ASCII (RFC 4627, section 3).
    """
    mark, encoding = mark_of(head)
    if not mark and is_json and b"\0" in head:
        encoding = json.detect_encoding(head)
    return mark, encoding


def wide_encoding(text: str) -> str:
    """The encoding of 16 or 32 bits that a text in ASCII was in, which was read as UTF-8; else empty."""
    head = text[:200]
    for name, width, place in WIDE:
        if len(head) >= LEAST and all(not head[i::width].strip("\0") for i in range(width) if i != place):
            return name
    return ""


def as_utf8(stream: Any, encoding: str = "", is_json: bool = False) -> Any:
    """A stream with `peek` as UTF-8 without a byte-order mark; bytes that the encoding has not become no UTF-8.

    Args:
      encoding: of data that does not tell; empty for UTF-8.
    """
    mark, told = encoding_of(stream.peek(LONGEST_MARK)[:LONGEST_MARK], is_json)
    stream.read(len(mark))
    encoding = told or encoding
    if encoding in ("", "utf-8"):
        return stream
    return io.BufferedReader(Transcoded(stream, encoding), 1 << 20)


class Transcoded(io.RawIOBase):
    """The text of a stream in UTF-8. What cannot be decoded becomes bytes that are no UTF-8 either, so that a reader
    of lines or documents finds the one that is wrong."""

    def __init__(self, handle: BinaryIO, encoding: str) -> None:
        wide = encoding.startswith(("utf-16", "utf-32"))
        self.decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if wide else "surrogateescape")
        self.handle: Any = handle
        self.ready, self.ended = memoryview(b""), False

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what there is; 0 at the end."""
        while not self.ready and not self.ended:
            data = self.handle.read1(BLOCK)
            self.ended = not data
            try:
                text = self.decoder.decode(data, final=self.ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self.decoder.reset()
                text = b"\xff"
            self.ready = memoryview(text)
        size = min(len(buffer), len(self.ready))
        buffer[:size] = self.ready[:size]
        self.ready = self.ready[size:]
        return size
