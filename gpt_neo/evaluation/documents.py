"""Whole documents of evaluation files, with The Pile's name of their set where the data says one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from gpt_neo import storage
from gpt_neo.dataprep.documents import Document, documents_of, with_lines
from gpt_neo.dataprep.encoder import LONE_SURROGATE
from gpt_neo.dataprep.encodings import mark_of
from gpt_neo.dataprep.readers import Bad, find_inputs, find_sources
from gpt_neo.dataprep.streams import Rules
from gpt_neo.dataprep.units import groups_of, units_of
from gpt_neo.errors import DataError, reason_of
from gpt_neo.tokenizer import Tokenizer, surrogate

PLAIN = (".raw", ".tokens")  # how WikiText names its text files
TOKEN_LISTS = ".json"  # the 2021 program's file of LAMBADA's ids: an array of arrays


def files_of(task: str, inputs: Sequence[str]) -> list[str]:
    """Files of a task's documents, in natural order.

    Raises:
      DataError: an input gives none.
    """
    return find_inputs(*inputs, where=f"eval task {task!r}, documents")


def documents_in(paths: Sequence[str], text_key: str, tokenizer: Tokenizer) -> Iterator[Document]:
    """Every document of files, local or gs://.

    Args:
      tokenizer: decodes files that hold ids, which is what the 2021 program kept of LAMBADA.

    Raises:
      DataError: one cannot be read; names file and line.
    """
    for path in paths:
        if path.lower().endswith(PLAIN):
            yield Document(decoded(path), path)
        elif path.lower().endswith(TOKEN_LISTS) and (lists := token_lists(path)) is not None:
            yield from (Document(tokenizer.decode(ids), path, "element", i) for i, ids in enumerate(lists, 1))
        else:
            yield from documents_of_file(path, text_key)


def documents_of_file(path: str, text_key: str) -> Iterator[Document]:
    """The documents of a file in a format that data preparation reads, none of them cut."""
    sources, bad = find_sources([path])
    rules = Rules(text_key)  # which leave every text whole
    units = units_of(groups_of(sources), rules)
    for found in itertools.chain(bad, *(documents_of(unit, rules) for unit in units)):
        if isinstance(found, Document) and surrogate(found.text) < len(found.text):
            found = found.bad(LONE_SURROGATE)
        if isinstance(found, Bad):
            raise DataError(str(with_lines([found])[0]))
        yield found


def decoded(path: str) -> str:
    """A file as UTF-8 text, or in the encoding that its byte-order mark names.

    Raises:
      DataError: it cannot be read, or is something else.
    """
    try:
        with storage.open_read(path) as handle:
            data = handle.read()
        mark, encoding = mark_of(data)
        return data[len(mark) :].decode(encoding or "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {reason_of(error)}") from error


def token_lists(path: str) -> list | None:
    """The ids of a JSON array of arrays of whole numbers; None where the file is anything else."""
    try:
        value = json.loads(decoded(path))
    except (ValueError, RecursionError):  # no JSON, or nested or with numbers beyond all bounds
        return None
    rows = value if isinstance(value, list) and value else [None]
    return rows if all(isinstance(row, list) and all(type(i) is int for i in row) for row in rows) else None
