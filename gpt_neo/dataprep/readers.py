"""Which files are read, what they hold, and their bytes, decompressed as a stream."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from gpt_neo import storage
from gpt_neo.errors import DataError, printable, reason_of

TEXT_SUFFIXES = (".txt", ".rst", ".md", ".py")
SUFFIXES = {
    "text": TEXT_SUFFIXES,  # one document
    "jsonl": (".jsonl", ".ndjson"),  # a document a line
    "json": (".json",),  # an array of documents, or lines
    "dat": (".dat",),  # lm_dataformat: a length of 16 digits before each document
    "tar": (".tar", ".tgz", ".txz", ".tbz2"),  # members as their names say, else text
    "zip": (".zip",),
    "parquet": (".parquet",),  # a document a row
}
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
PACKED = {".tgz": ".gz", ".txz": ".xz", ".tbz2": ".bz2"}
STDIN = "-"
DECOMPRESSED_BLOCK = 1 << 20
COMPRESSED_BLOCK = 1 << 12  # bytes of Zstandard decompressed at once: to 128 MiB at most
UNKNOWN = "unknown extension"
TABLE = "write it as JSON lines, as pandas' to_json(FILE, orient='records', lines=True) does, and name the column with "
MARKUP = "take the text out of it first, as trafilatura or pandoc do, and write .txt or .jsonl"
UNPACK = "unpack it first"
# What to do with files that are often among texts.
ADVICE = {
    **dict.fromkeys((".csv", ".tsv", ".xls", ".xlsx", ".arrow", ".feather", ".sqlite", ".db"), TABLE + "--text_key"),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xml", ".pdf", ".doc", ".docx", ".epub", ".rtf", ".tex"), MARKUP),
    **dict.fromkeys((".7z", ".rar", ".lz4", ".lzma", ".br", ".z"), f"{UNPACK}, or pack it as .gz, .xz, .bz2 or .zst"),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "these are records already: training reads them"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".bin", ".npy"), "write the texts as .jsonl with the program it is of"),
}
# What other tools leave beside texts, as they name it; hidden files and folders are left out in any case.
MARKERS = re.compile(
    r"_SUCCESS|_committed_\d+|_started_\d+|_metadata|_common_metadata|Thumbs\.db|desktop\.ini|Icon\r|~\$.*|"
    r".*:Zone\.Identifier",
    re.IGNORECASE,
)
FOLDERS = re.compile(
    r"__MACOSX|@eaDir|\$RECYCLE\.BIN|System Volume Information|__pycache__|_temporary|_delta_log|PaxHeaders(\.\d+)?"
)
# How compressed data begins, whatever its name. bzip2's mark alone could be text: its level and first block come too.
BEGINNINGS = re.compile(
    rb"(?P<gz>\x1f\x8b)|(?P<xz>\xfd7zXZ\0)|(?P<zst>\x28\xb5\x2f\xfd)|"
    rb"(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<zip>PK\x03\x04)"
)
LONGEST_MAGIC = 10
MISNAMED = "compressed, and not named so"
BROKEN_OFF = "broken archive"  # the reason given for data that is damaged or breaks off
UNREADABLE = "cannot be read"


class InputFile(NamedTuple):
    """An input file.

    Attributes:
      kind: a key of SUFFIXES.
      compression: one of COMPRESSIONS, or empty.
      version: changes with the content, so that a resumed run notices.
    """

    path: str
    kind: str
    compression: str
    size: int
    version: str


class Bad(NamedTuple):
    """A document that cannot be read: where, and why.

    Attributes:
      number: line, row or element from 1 on; 0 for the file as a whole.
      counted_from: the byte of the file that `number` counts from, where the lines before it are not known.
      reason: short, the same for all of its kind; `detail` says the rest.
    """

    path: str
    noun: str
    number: int
    reason: str
    detail: str = ""
    counted_from: int = 0

    def __str__(self) -> str:
        place = f":{self.number}" if self.noun == "line" else f", {self.noun} {self.number}"
        name = "standard input" if self.path == STDIN else self.path
        text = f"{name}{place if self.number else ''}: {self.reason}{': ' + self.detail if self.detail else ''}"
        return printable(text).replace("\n", "\\n").replace("\t", "\\t")  # names in archives may be anything


def natural_key(path: str) -> list:
    """Sort key in which `part_10` comes after `part_2`."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", path))]


def supported() -> str:
    """The extensions that are read, for messages."""
    plain = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    return f"{plain}; with {', '.join(COMPRESSIONS)} after them or not"


def kind_of(path: str) -> tuple[str, str]:
    """(kind, compression) by the name.

    Raises:
      DataError: it is none that is read.
    """
    stem, compression = path.lower(), ""
    for suffix in COMPRESSIONS:
        if stem.endswith(suffix):
            stem, compression = stem[: -len(suffix)], suffix
            break
    for kind, suffixes in SUFFIXES.items():
        for suffix in suffixes:
            if stem.endswith(suffix):
                packed = PACKED.get(suffix, "")
                if (compression and packed) or (compression and kind in ("zip", "parquet")):
                    break
                return kind, packed or compression
    if stem.endswith("_data") and compression == ".xz":  # OpenWebText's archives, as lm_dataformat reads them
        return "tar", compression
    raise DataError(f"{path}: {UNKNOWN}: {advice_on(path)}")


def advice_on(path: str) -> str:
    """What to do with a file that is not read."""
    name = path.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return ADVICE.get(os.path.splitext(name)[1], f"readable are {supported()}")


def is_marker(path: str) -> bool:
    """Whether a path inside a folder or an archive is hidden, or what a tool leaves beside its files."""
    *folders, name = path.replace("\\", "/").split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in (*folders, name))
    return hidden or any(map(FOLDERS.fullmatch, folders)) or bool(MARKERS.fullmatch(name))


def packed_as(head: bytes) -> str:
    """The ending of the names of data that begins like this; empty if it is not compressed."""
    found = BEGINNINGS.match(head)
    return f".{found.lastgroup}" if found else ""


def find_inputs(*inputs: str, where: str = "--input_dir") -> list[str]:
    """Files of folders (searched to their bottom), globs and paths, local or gs://, each group in natural order.

    A file that several of them name, in whatever spelling, is there once.

    Args:
      where: what the inputs were given by, for errors.

    Raises:
      DataError: one of them gives no file, or cannot be listed.
    """
    paths: dict[str, str] = {}  # by what tells a file from another
    for given in inputs:
        if given == STDIN:
            paths[given] = given
            continue
        try:
            found = files_in(given) if storage.is_folder(given) else storage.glob(given)
            if not found and storage.exists(given):  # a name with characters of a pattern in it
                found = [given]
        except OSError as error:
            raise DataError(f"{where} {given!r}: cannot be listed: {reason_of(error)}") from error
        if not found:
            raise DataError(f"{where} {given!r}: no files there")
        for path in sorted(found, key=natural_key):
            paths.setdefault(storage.absolute(path), path)
    return [*paths.values()]


def files_in(folder: str) -> list[str]:
    """The files below a folder that may be inputs."""
    before = len(storage.local(folder).rstrip("/")) + 1
    return [path for path in storage.list_files(folder) if not is_marker(path[before:])]


def find_sources(
    inputs: Sequence[str], stdin_format: str = "jsonl", where: str = "--input_dir"
) -> tuple[list[InputFile], list[Bad]]:
    """Input files in the order they are read, and those whose extension is unknown.

    Args:
      where: what the inputs were given by, for errors.

    Raises:
      DataError: there are none, or their bucket fails.
    """
    sources, bad = [], []
    for path in find_inputs(*inputs, where=where):
        if path == STDIN:
            # Nothing can tell whether a later run is given the same again: it is not resumed.
            sources.append(InputFile(path, stdin_format, "", 0, os.urandom(8).hex()))
            continue
        try:
            kind, compression = kind_of(path)
            sources.append(InputFile(path, kind, compression, storage.size(path), storage.version(path)))
        except DataError as error:
            bad.append(Bad(path, "", 0, UNKNOWN, str(error).partition(f"{UNKNOWN}: ")[2]))
        except OSError as error:
            if storage.is_remote(path) and not isinstance(error, FileNotFoundError):
                raise DataError(f"{path}: {UNREADABLE}: {reason_of(error)}") from error
            bad.append(Bad(path, "", 0, UNREADABLE, reason_of(error)))
    return sources, bad


def open_source(path: str) -> BinaryIO:
    """The bytes of an input as they are stored. Raises: DataError: it lies in a bucket, which fails."""
    return sys.stdin.buffer if path == STDIN else storage.open_read(path, bucket_failures)


@contextlib.contextmanager
def bucket_failures(path: str) -> Iterator[None]:
    """Context in which a failure of the place is a DataError, none of streams.BROKEN_ARCHIVE: it is no damage of a
    document, which could be left out for it; what else follows would be left out, too."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {UNREADABLE}: {reason_of(error)}") from error


def decompressed(handle: Any, compression: str) -> BinaryIO:
    """The bytes behind a compression, as a buffered stream.

    Reading it raises one of streams.BROKEN_ARCHIVE where the data is damaged or breaks off.
    """
    if not compression:
        return handle if hasattr(handle, "peek") else io.BufferedReader(handle)
    if compression == ".zst":
        return io.BufferedReader(ZstandardStream(handle), DECOMPRESSED_BLOCK)
    return {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}[compression](handle)  # type: ignore[operator]


class ZstandardStream(io.RawIOBase):
    """Zstandard frames, decompressed; unlike the package's own reader it notices a frame that breaks off."""

    def __init__(self, handle: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise DataError(".zst files need the package zstandard: pip install zstandard") from error
        self.error = zstandard.ZstdError
        # Long windows (zstd --long) need as much memory: 2 GiB is the format's largest.
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self.handle = handle
        self.frame: Any = None
        self.waiting, self.at = b"", 0  # compressed data, and how much of it is done
        self.ready: memoryview = memoryview(b"")

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what there is; 0 at the end."""
        while not self.ready:
            if self.at == len(self.waiting):
                self.waiting, self.at = self.handle.read(1 << 18), 0
            data = self.waiting[self.at : self.at + COMPRESSED_BLOCK]
            if not data:
                if self.frame is not None:
                    raise EOFError("the compressed data breaks off before its end")
                return 0
            self.at += len(data)
            if self.frame is None:
                self.frame = self.decompressor.decompressobj()
            try:
                self.ready = memoryview(self.frame.decompress(data))
            except self.error as error:
                raise ValueError(f"not Zstandard data, or damaged: {error}") from error
            if self.frame.eof:
                self.at -= len(self.frame.unused_data)
                self.frame = None
        size = min(len(buffer), len(self.ready))
        buffer[:size] = self.ready[:size]
        self.ready = self.ready[size:]
        return size
