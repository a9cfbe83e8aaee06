"""Inputs as items: runs of JSON lines, texts or pieces of them, out of plain files, compressed streams and archives."""

from __future__ import annotations

import codecs
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable, NamedTuple, Union

from gpt_neo.dataprep import words
from gpt_neo.dataprep.encodings import LONGEST_MARK, as_utf8, encoding_of, mark_of
from gpt_neo.dataprep.readers import (
    BROKEN_OFF,
    LONGEST_MAGIC,
    MISNAMED,
    Bad,
    InputFile,
    decompressed,
    is_marker,
    kind_of,
    open_source,
    packed_as,
)
from gpt_neo.dataprep.values import NOT_JSON, Cutter, is_lines
from gpt_neo.errors import DataError, reason_of
from gpt_neo.system import how_to_install

BLOCK = 1 << 20  # bytes read at once
ITEM = 8 << 20  # bytes of lines, or characters of a text that is cut, in one item
WINDOW = 1 << 16  # bytes searched at once for a place to cut
LONGEST = 1 << 28  # bytes of a line, or of a document that is not cut: it is in memory several times
LONGEST_NAME = 1 << 20  # bytes of a name in a tar file
RETRIES = 100  # elements of a JSON array that do not end, after which reading goes on
BROKEN_ARCHIVE = (
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    ValueError,
    tarfile.TarError,
    zipfile.BadZipFile,
    RuntimeError,
    NotImplementedError,
    # What the libraries raise over fields that contradict each other.
    struct.error,
    OverflowError,
    LookupError,
    TypeError,
    MemoryError,
)
NOT_UTF8, TOO_LONG = "not UTF-8", "too long"
AS_TEXT = ("text", "jsonl", "json")  # kinds that are text as a whole


class Rules(NamedTuple):
    """How inputs are read.

    Attributes:
      text_key: key of the text in JSON objects, column in parquet.
      split: long texts may be cut where it changes no ids.
      skip_bad: go on after what cannot be read.
      encoding: of text without a byte-order mark; empty for UTF-8.
      split_on: what stands between the documents of a text; empty for a text that is one.
    """

    text_key: str = "text"
    split: bool = False
    skip_bad: bool = False
    encoding: str = ""
    split_on: str = ""


class Item(NamedTuple):
    """Text as it was read.

    Attributes:
      data: str, a text or a piece of one; or bytes, whole JSON lines.
      number: of the first line, 1 on.
      noun: what the numbers count.
      counted_from: the byte of the file at which the first line begins, if the lines before it were not counted.
      opens, closes: whether a text begins and ends with this piece.
    """

    path: str
    data: Union[str, bytes]
    number: int = 0
    noun: str = ""
    counted_from: int = 0
    opens: bool = True
    closes: bool = True


Items = Iterator[Union[Item, Bad]]


def stream_items(source: InputFile, handle: BinaryIO, rules: Rules) -> Items:
    """Items of an input that is read from its beginning; what breaks off ends in a Bad."""
    try:
        yield from opened_items(source.path, source.kind, decompressed(handle, source.compression), rules)
    except BROKEN_ARCHIVE as error:
        yield Bad(source.path, "", 0, BROKEN_OFF, reason_of(error))


def opened_items(path: str, kind: str, stream: Any, rules: Rules) -> Items:
    """Items of decompressed data of a kind.

    Raises:
      ValueError: data of that kind is read from a file alone.
    """
    if kind not in STREAMED:
        raise ValueError(f"{kind} inside a stream cannot be read; unpack it first")
    if kind in AS_TEXT:
        packed = packed_as(stream.peek(LONGEST_MAGIC))
        if packed:
            yield Bad(path, "", 0, MISNAMED, f"{packed} data: give it that ending, or unpack it")
            return
        stream = as_utf8(stream, rules.encoding, kind != "text")
    yield from STREAMED[kind](path, stream, rules)


def too_long(path: str, noun: str, number: int, counted_from: int = 0) -> Bad:
    """A line or document that memory is not to be spent on."""
    return Bad(path, noun, number, TOO_LONG, f"more than {LONGEST:,} bytes that cannot be cut", counted_from)


def line_items(path: str, stream: Any) -> Items:
    """Runs of whole lines. Where the stream breaks off, the lines before it are given first."""
    pending, whole, number, passing = bytearray(), 0, 1, False  # whole: bytes of whole lines
    while True:
        try:
            # read1: what comes before damage is handed over, not lost with the damage.
            block = stream.read1(BLOCK)
        except BROKEN_ARCHIVE as error:
            if whole:
                yield Item(path, bytes(pending[:whole]), number, "line")
            yield Bad(path, "line", number + pending.count(b"\n"), BROKEN_OFF, reason_of(error))
            return
        ended = not block
        if passing and not ended:  # the rest of a line that was too long
            place = block.find(b"\n") + 1
            if not place:
                continue
            block, passing, number = block[place:], False, number + 1
        pending += block
        last = pending.rfind(b"\n", len(pending) - len(block)) + 1
        whole = len(pending) if ended else last or whole
        if (len(pending) >= ITEM or ended) and whole:
            yield Item(path, bytes(pending[:whole]), number, "line")
            number += pending.count(b"\n", 0, whole)
            del pending[:whole]
            whole = 0
        if len(pending) > LONGEST:
            yield too_long(path, "line", number)
            pending, passing = bytearray(), True
        if ended:
            return


def text_items(path: str, stream: BinaryIO, rules: Rules) -> Items:
    """A text: whole, or in pieces cut where it changes no ids."""
    split = rules.split and not rules.skip_bad
    decoder = codecs.getincrementaldecoder("utf-8")()
    parts: list[str] = []
    size, read, opens, searched = 0, 0, True, False
    while True:
        block = stream.read(BLOCK)
        try:
            parts.append(decoder.decode(block, final=not block))
        except UnicodeDecodeError as error:
            kept = len(decoder.getstate()[0])
            detail = f"{error.reason} at byte {read - kept + error.start}"
            yield Bad(path, "", 0, f"not {rules.encoding}" if rules.encoding else NOT_UTF8, detail)
            return
        read += len(block)
        size += len(parts[-1])
        if not block:
            yield Item(path, "".join(parts), opens=opens)
            return
        if split and size > 2 * ITEM:
            if not searched:
                parts, searched = ["".join(parts)], True
                place = words.first_cut(parts[0], ITEM)
            else:  # only what is new, and the character before it
                place = words.first_cut(parts[-2][-1:] + parts[-1], 1) if parts[-2] else None
                place = place and size - len(parts[-1]) - 1 + place
            if place is not None:
                text = "".join(parts)
                yield Item(path, text[:place], opens=opens, closes=False)
                opens, searched, parts = False, False, [text[place:]]
                size = len(parts[0])
        if size > LONGEST:
            yield too_long(path, "", 0)
            return


def marked_texts(path: str, stream: BinaryIO, rules: Rules) -> Items:
    """The documents of a text that stand between marks, white space around them left out; blank ones are none."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    reach = len(rules.split_on) - 1  # characters of a mark that may stand at the end of what was read
    waiting: list[str] = []  # of the document that has not ended
    seam, size, number, passing = "", 0, 1, False
    while True:
        block = stream.read(BLOCK)
        new = decoder.decode(block, final=not block)
        near = seam + new
        seam = near[max(0, len(near) - reach) :]
        if block and rules.split_on not in near:
            waiting, size = ([], 0) if passing else ([*waiting, new], size + len(new))
            if size > LONGEST:
                yield too_long(path, "document", number)
                waiting, size, passing = [], 0, True
            continue
        *texts, rest = (near if passing else "".join([*waiting, new])).split(rules.split_on)
        ended = [*texts, *([] if block else [rest])]
        if passing:
            ended, number, passing = ended[1:], number + 1, False
        for text in ended:
            if text.strip():
                yield text_between(path, text, number)
                number += 1
        if not block:
            return
        waiting, size = [rest], len(rest)
        seam = rest[max(0, len(rest) - reach) :]


def text_between(path: str, text: str, number: int) -> Union[Item, Bad]:
    """A document of a text with marks between them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Bad(path, "document", number, NOT_UTF8, f"at its character {error.start}")
    return Item(path, text.strip(), number, "document")


def json_items(path: str, stream: Any) -> Items:
    """JSON: an array, element by element; objects over several lines; or a value a line."""
    head = stream.peek(BLOCK).lstrip()
    yield from line_items(path, stream) if is_lines(head) and head[:1] != b"[" else value_items(path, stream)


def value_items(path: str, stream: Any) -> Items:
    """The elements of JSON arrays, or values that stand one after another, each as a line of its own."""
    cutter, number, retries = Cutter(), 1, RETRIES
    while True:
        while (value := cutter.take()) is not None:
            yield Item(path, value, number, "element")
            number += 1
        try:
            block = stream.read1(BLOCK)
        except BROKEN_ARCHIVE as error:
            yield Bad(path, "element", number, BROKEN_OFF, reason_of(error))
            return
        cutter.buffer += block
        if block and len(cutter.buffer) <= LONGEST:
            continue
        if not block and cutter.start is None and (cutter.lost or not cutter.inside):
            return
        yield too_long(path, "element", number) if block else Bad(path, "element", number, NOT_JSON, "it breaks off")
        number, retries = number + 1, retries - 1
        if (not block and cutter.start is None) or not retries or not (cutter.find_next() or block):
            return


def dat_items(path: str, stream: BinaryIO, rules: Rules) -> Items:
    """Documents that each follow their length in bytes, 16 digits."""
    number = 1
    while head := stream.read(16):
        if len(head) < 16 or not head.isdigit():
            yield Bad(path, "document", number, BROKEN_OFF, "no length of 16 digits before it")
            return
        size = int(head)
        blocks: list[bytes] = []
        while size and (block := stream.read(min(size, BLOCK))):  # a length may be any number
            size -= len(block)
            blocks.append(block if len(blocks) * BLOCK <= LONGEST else b"")
        if size:
            yield Bad(path, "document", number, BROKEN_OFF, "it breaks off")
            return
        long = int(head) > LONGEST
        yield too_long(path, "document", number) if long else whole_text(path, b"".join(blocks), rules, number)
        number += 1


def whole_text(path: str, data: bytes, rules: Rules, number: int = 0) -> Union[Item, Bad]:
    """An item of the bytes of one text."""
    noun = "document" if number else ""
    try:
        return Item(path, data.decode(rules.encoding or "utf-8"), number, noun)
    except UnicodeDecodeError as error:
        reason = f"not {rules.encoding}" if rules.encoding else NOT_UTF8
        return Bad(path, noun, number, reason, f"{error.reason} at byte {error.start}")


class TarMember(tarfile.TarInfo):
    """A member of a tar file; unlike the library's it notices a file that breaks off between two members."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> TarMember:
        """Read the next header."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise EOFError("the archive has no end mark: it breaks off") from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read what follows a header; the library would take any length of a name."""
        if self.type not in tarfile.REGULAR_TYPES and self.size > LONGEST_NAME and not self.issparse():
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def tar_items(path: str, stream: BinaryIO, rules: Rules) -> Items:
    """Items of the regular files in a tar stream."""
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=TarMember) as archive:
        for member in archive:
            if not member.isfile() or is_marker(member.name):
                continue
            handle: Any = archive.extractfile(member)
            name = f"{path}/{member.name}"
            try:
                yield from member_items(name, handle, rules)
            except BROKEN_ARCHIVE as error:
                kind, compression = member_kind(name)
                if kind in (*AS_TEXT, "dat") and not compression:  # nothing of its own to break: the archive does
                    raise
                yield Bad(name, "", 0, BROKEN_OFF, reason_of(error))


def member_items(path: str, handle: Any, rules: Rules) -> Items:
    """Items of a member of an archive."""
    kind, compression = member_kind(path)
    yield from opened_items(path, kind, decompressed(handle, compression), rules)


def member_kind(path: str) -> tuple[str, str]:
    """(kind, compression) of a member of an archive: as its name says, text if the name says nothing."""
    try:
        return kind_of(path)
    except DataError:
        return "text", ""


def zip_sizes(source: InputFile) -> list[int]:
    """Unpacked bytes of the members of a zip file."""
    with open_source(source.path) as handle, zipfile.ZipFile(handle) as archive:
        return [member.file_size for member in archive.infolist()]


def zip_items(source: InputFile, start: int, stop: int, rules: Rules) -> Items:
    """Items of the `start`-th to `stop`-th members of a zip file."""
    with open_source(source.path) as handle, zipfile.ZipFile(handle) as archive:
        for member in archive.infolist()[start:stop]:
            if member.is_dir() or is_marker(member.filename):
                continue
            path = f"{source.path}/{member.filename}"
            try:
                with archive.open(member) as opened:
                    yield from member_items(path, opened, rules)
            except BROKEN_ARCHIVE as error:
                yield Bad(path, "", 0, BROKEN_OFF, reason_of(error))


def parquet_file(handle: Any) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises: DataError if pyarrow is missing."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f".parquet files need the extra parquet, {how_to_install('parquet')}: {error}") from error
    return parquet.ParquetFile(handle)


def parquet_sizes(source: InputFile) -> list[int]:
    """Unpacked bytes of the row groups of a parquet file."""
    with open_source(source.path) as handle:
        metadata = parquet_file(handle).metadata
        return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def is_marked(source: InputFile) -> bool:
    """Whether a plain file begins as one of another encoding than UTF-8, or a compressed one, does."""
    with open_source(source.path) as handle:
        head = handle.read(LONGEST_MAGIC)
    told = encoding_of(head[:LONGEST_MARK], source.kind != "text")[1]
    return told not in ("", "utf-8") or bool(packed_as(head))


def can_be_cut(source: InputFile) -> bool:
    """Whether a whole plain file is UTF-8 without a word of more than about a block; reads it once.

    Nothing of a text may be written before it is known that all of it can be.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_source(source.path) as handle:
        try:
            while block := handle.read(BLOCK):
                decoder.decode(block)
                if len(block) == BLOCK and (block.isspace() or not (b" " in block or b"\n" in block)):
                    return False
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def plain_items(source: InputFile, start: int, stop: int, rules: Rules) -> Items:
    """Items of a range of bytes of a plain file."""
    with open_source(source.path) as handle:
        if (start, stop) == (0, source.size):
            yield from stream_items(source, handle, rules)
        elif source.kind == "jsonl":
            yield from range_of_lines(source.path, handle, start, stop)
        else:
            yield range_of_text(source, handle, start, stop, rules)


def range_of_lines(path: str, handle: BinaryIO, start: int, stop: int) -> Items:
    """The lines that begin in a range of bytes."""
    begin = start
    if start:
        begin = start - 1
        handle.seek(begin)
        while begin < stop:  # the rest of a line that began before
            piece = handle.readline(min(BLOCK, stop - begin))
            begin += len(piece)
            if piece.endswith(b"\n") or not piece:
                break
        else:
            return
    data = handle.read(max(0, stop - begin))
    if data and not data.endswith(b"\n"):
        rest = handle.readline(LONGEST)
        if len(rest) == LONGEST and not rest.endswith(b"\n"):
            whole = data.rfind(b"\n") + 1
            yield Item(path, data[:whole], 1, "line", counted_from=begin)
            yield too_long(path, "line", 1 + data.count(b"\n"), begin)
            return
        data += rest
    yield Item(path, data, 1, "line", counted_from=begin)


def range_of_text(source: InputFile, handle: BinaryIO, start: int, stop: int, rules: Rules) -> Union[Item, Bad]:
    """The piece of a text file that belongs to a range of bytes: from the first cut in it to the next after it."""
    begin = byte_cut(handle, start, source.size) if start else 0
    end = byte_cut(handle, stop, source.size) if stop < source.size else source.size
    if end - begin > LONGEST:
        return too_long(source.path, "", 0)
    handle.seek(begin)
    data = handle.read(end - begin)
    found = whole_text(source.path, data[len(mark_of(data)[0]) :] if not begin else data, rules)
    if isinstance(found, Bad):
        return found._replace(detail=found.detail + (f" after byte {begin}" if begin else ""))
    return found._replace(opens=start == 0, closes=stop >= source.size)


def byte_cut(handle: BinaryIO, offset: int, size: int) -> int:
    """The first place from byte `offset` > 0 on where a text can be cut; `size` if there is none."""
    while offset < size:
        begin = max(0, offset - 4)  # at least one whole character before
        handle.seek(begin)
        # Half characters at the ends become surrogates, which no cut is next to; the next window overlaps.
        text = handle.read(WINDOW).decode("utf-8", errors="surrogateescape")
        place = words.first_cut(text, 1)
        while place is not None:
            found = begin + len(text[:place].encode("utf-8", errors="surrogateescape"))
            if found >= offset:
                return found
            place = words.first_cut(text, place + 1)
        offset += WINDOW - 8
    return size


# Kind (a key of `readers.SUFFIXES`) -> the items of a decompressed stream of it. zip and parquet need a whole file.
STREAMED: dict[str, Callable[[str, Any, Rules], Items]] = {
    "jsonl": lambda path, stream, rules: line_items(path, stream),
    "json": lambda path, stream, rules: json_items(path, stream),
    "dat": dat_items,
    "tar": tar_items,
    "text": lambda path, stream, rules: (marked_texts if rules.split_on else text_items)(path, stream, rules),
}
