"""Documents out of files: text, JSON lines, compressed or not. Streamed line by line."""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import os
import re
from collections.abc import Iterator
from typing import Any, Callable

from gpt_neo.errors import DataError

TEXT_SUFFIXES = (".txt", ".rst", ".md", ".py")
JSON_SUFFIXES = (".jsonl", ".json.l")
COMPRESSIONS = (".gz", ".xz", ".zst")


def natural_key(path: str) -> list:
    """Sort key in which `part_10` comes after `part_2`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def supported() -> str:
    """The extensions that are read, for messages."""
    jsonl = " or ".join(f".jsonl{c}" for c in ("", *COMPRESSIONS))
    return f"{', '.join(TEXT_SUFFIXES)} (one document each), {jsonl}"


def find_inputs(source: str) -> list[str]:
    """Files of a folder (searched to its bottom), a glob or a path, in natural order.

    Raises:
      DataError: there is none, or one has an extension that is not read.
    """
    if os.path.isdir(source):
        names = [os.path.join(top, name) for top, _, files in os.walk(source) for name in files]
        names = [name for name in names if not os.path.basename(name).startswith(".")]
    else:
        names = [name for name in glob.glob(source, recursive=True) if os.path.isfile(name)]
    if not names:
        raise DataError(f"--input_dir {source!r}: no files there")
    for name in names:
        kind_of(name)
    return sorted(names, key=natural_key)


def kind_of(path: str) -> str:
    """`text` or `jsonl`.

    Raises:
      DataError: the extension is neither's.
    """
    stem = path
    for suffix in COMPRESSIONS:
        stem = stem[: -len(suffix)] if stem.endswith(suffix) else stem
    if stem.endswith(TEXT_SUFFIXES):
        return "text"
    if stem.endswith(JSON_SUFFIXES):
        return "jsonl"
    raise DataError(f"{path}: unknown extension; readable are {supported()}")


def open_bytes(path: str) -> Any:
    """Open a file for reading, decompressed."""
    if path.endswith(".zst"):
        import zstandard

        return zstandard.open(path, "rb")
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    return openers.get(os.path.splitext(path)[1], open)(path, "rb")


def read_documents(path: str, text_key: str = "text") -> Iterator[str]:
    """Yield the documents of one file.

    Raises:
      DataError: bad UTF-8, bad JSON or a missing key, with the line; a broken archive.
    """
    try:
        with open_bytes(path) as handle:
            if kind_of(path) == "text":
                yield decode(handle.read(), path)
                return
            for number, line in enumerate(io.BufferedReader(handle), 1):
                if line.strip():
                    yield document_of(line, f"{path}:{number}", text_key)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def decode(data: bytes, where: str) -> str:
    """Text of UTF-8 bytes, line ends kept."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error


def document_of(line: bytes, where: str, text_key: str) -> str:
    """The text of one JSON line."""
    try:
        record = json.loads(decode(line, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg}") from error
    if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
        raise DataError(f"{where}: expected an object with a string under {text_key!r}")
    return record[text_key]
