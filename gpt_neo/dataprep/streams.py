"""Inputs as items: runs of JSON lines, texts or pieces of them, out of plain files, compressed streams and archives."""

from __future__ import annotations

import codecs
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable, NamedTuple, Union

from gpt_neo.dataprep import words
from gpt_neo.dataprep.readers import BROKEN_OFF, Bad, InputFile, decompressed, kind_of, open_source
from gpt_neo.errors import DataError, reason_of
from gpt_neo.system import how_to_install

BLOCK = 1 << 20  # bytes read at once
ITEM = 8 << 20  # bytes of lines, or characters of a text that is cut, in one item
WINDOW = 1 << 16  # bytes searched at once for a place to cut
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
)
NOT_UTF8, NOT_JSON = "not UTF-8", "not valid JSON"


class Rules(NamedTuple):
    """How inputs are read.

    Attributes:
      text_key: key of the text in JSON objects, column in parquet.
      split: long texts may be cut where it changes no ids.
      skip_bad: go on after what cannot be read.
    """

    text_key: str = "text"
    split: bool = False
    skip_bad: bool = False


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


def opened_items(path: str, kind: str, stream: BinaryIO, rules: Rules) -> Items:
    """Items of decompressed data of a kind.

    Raises:
      ValueError: data of that kind is read from a file alone.
    """
    if kind not in STREAMED:
        raise ValueError(f"{kind} inside a stream cannot be read; unpack it first")
    yield from STREAMED[kind](path, stream, rules)


def line_items(path: str, stream: Any) -> Items:
    """Runs of whole lines. Where the stream breaks off, the lines before it are given first."""
    pending, number = bytearray(), 1
    while True:
        try:
            # read1: what comes before damage is handed over, not lost with the damage.
            block = stream.read1(BLOCK)
        except BROKEN_ARCHIVE as error:
            end = pending.rfind(b"\n") + 1
            if end:
                yield Item(path, bytes(pending[:end]), number, "line")
            yield Bad(path, "line", number + pending.count(b"\n"), BROKEN_OFF, reason_of(error))
            return
        pending += block
        end = pending.rfind(b"\n", len(pending) - len(block)) + 1 if block else len(pending)
        if (len(pending) >= ITEM or not block) and end:
            yield Item(path, bytes(pending[:end]), number, "line")
            number += pending.count(b"\n", 0, end)
            del pending[:end]
        if not block:
            return


def text_items(path: str, stream: BinaryIO, split: bool) -> Items:
    """A text: whole, or in pieces cut where it changes no ids."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    parts: list[str] = []
    size, read, opens = 0, 0, True
    while True:
        block = stream.read(BLOCK)
        try:
            parts.append(decoder.decode(block, final=not block))
        except UnicodeDecodeError as error:
            kept = len(decoder.getstate()[0])
            yield Bad(path, "", 0, NOT_UTF8, f"{error.reason} at byte {read - kept + error.start}")
            return
        read += len(block)
        size += len(parts[-1])
        if not block:
            yield Item(path, "".join(parts), opens=opens)
            return
        if split and size > 2 * ITEM:
            text = "".join(parts)
            place = words.first_cut(text, ITEM)
            if place is not None:
                yield Item(path, text[:place], opens=opens, closes=False)
                opens, text = False, text[place:]
            parts, size = [text], len(text)


def json_items(path: str, stream: Any) -> Items:
    """A JSON array, element by element; or lines, if it begins otherwise."""
    if not stream.peek(BLOCK).lstrip().startswith(b"["):
        yield from line_items(path, stream)
        return
    reader = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    try:
        yield from element_items(path, reader)
    finally:
        reader.detach()  # or it would close what it was given


def element_items(path: str, reader: io.TextIOWrapper) -> Items:
    """The elements of a JSON array, each as a line of its own."""
    decode = json.JSONDecoder().raw_decode
    buffer, number, size = reader.read(BLOCK).lstrip()[1:].lstrip(), 1, BLOCK
    while not buffer.startswith("]"):
        problem = "the array breaks off"
        try:
            value, end = decode(buffer)
            following = buffer[end:].lstrip()
        except json.JSONDecodeError as error:
            problem, following = error.msg, ""
        if not following:  # the element may go on in what is not read yet
            more = reader.read(size)
            if not more:
                yield Bad(path, "element", number, NOT_JSON, problem)
                return
            buffer, size = (buffer + more).lstrip(), 2 * size
            continue
        yield Item(path, json.dumps(value).encode(), number, "element")
        buffer, number, size = following.removeprefix(",").lstrip(), number + 1, BLOCK


def dat_items(path: str, stream: BinaryIO) -> Items:
    """Documents that each follow their length in bytes, 16 digits."""
    number = 1
    while head := stream.read(16):
        try:
            size = int(head)
        except ValueError:
            yield Bad(path, "document", number, BROKEN_OFF, "no length of 16 digits before it")
            return
        data = stream.read(size)
        if len(head) < 16 or len(data) < size:
            yield Bad(path, "document", number, BROKEN_OFF, "it breaks off")
            return
        yield whole_text(path, data, "document", number)
        number += 1


def whole_text(path: str, data: bytes, noun: str = "", number: int = 0) -> Union[Item, Bad]:
    """An item of the bytes of one text."""
    try:
        return Item(path, data.decode("utf-8"), number, noun)
    except UnicodeDecodeError as error:
        return Bad(path, noun, number, NOT_UTF8, f"{error.reason} at byte {error.start}")


class TarMember(tarfile.TarInfo):
    """A member of a tar file; unlike the library's it notices a file that breaks off between two members."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> TarMember:
        """Read the next header."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise EOFError("the archive has no end mark: it breaks off") from error


def tar_items(path: str, stream: BinaryIO, rules: Rules) -> Items:
    """Items of the regular files in a tar stream."""
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=TarMember) as archive:
        for member in archive:
            if member.isfile():
                handle: Any = archive.extractfile(member)
                yield from member_items(f"{path}/{member.name}", handle, rules)


def member_items(path: str, handle: Any, rules: Rules) -> Items:
    """Items of a member of an archive: as its name says, text if the name says nothing."""
    try:
        kind, compression = kind_of(path)
    except DataError:
        kind, compression = "text", ""
    yield from opened_items(path, kind, decompressed(handle, compression), rules)


def zip_sizes(source: InputFile) -> list[int]:
    """Unpacked bytes of the members of a zip file."""
    with open_source(source.path) as handle, zipfile.ZipFile(handle) as archive:
        return [member.file_size for member in archive.infolist()]


def zip_items(source: InputFile, start: int, stop: int, rules: Rules) -> Items:
    """Items of the `start`-th to `stop`-th members of a zip file."""
    with open_source(source.path) as handle, zipfile.ZipFile(handle) as archive:
        for member in archive.infolist()[start:stop]:
            if member.is_dir():
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


def is_utf8(source: InputFile) -> bool:
    """Whether a whole file is UTF-8; reads it once."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_source(source.path) as handle:
        try:
            while block := handle.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def range_of_lines(source: InputFile, start: int, stop: int) -> Item:
    """The lines of a plain file that begin in a range of bytes."""
    with open_source(source.path) as handle:
        if start:
            handle.seek(start - 1)
            handle.readline()  # the rest of a line that began before
        begin = handle.tell()
        data = handle.read(max(0, stop - begin))
        if data and not data.endswith(b"\n"):
            data += handle.readline()
    return Item(source.path, data, 1, "line", counted_from=begin)


def range_of_text(source: InputFile, start: int, stop: int) -> Union[Item, Bad]:
    """The piece of a text file that belongs to a range of bytes: from the first cut in it to the next after it."""
    with open_source(source.path) as handle:
        begin = byte_cut(handle, start, source.size) if start else 0
        end = byte_cut(handle, stop, source.size) if stop < source.size else source.size
        handle.seek(begin)
        found = whole_text(source.path, handle.read(end - begin))
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
    "dat": lambda path, stream, rules: dat_items(path, stream),
    "tar": tar_items,
    "text": lambda path, stream, rules: text_items(path, stream, rules.split and not rules.skip_bad),
}
