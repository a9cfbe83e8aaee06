"""A byte-level BPE tokenizer of the texts that are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpt_neo import storage
from gpt_neo.cli.tool_options import TrainTokenizer
from gpt_neo.dataprep.documents import read_documents
from gpt_neo.dataprep.encodings import named_encoding
from gpt_neo.dataprep.readers import find_inputs
from gpt_neo.errors import DataError, counted, reason_of
from gpt_neo.tokenizer import save_tokenizer
from gpt_neo.tokenizer import train_tokenizer as train


def train_tokenizer(options: TrainTokenizer) -> int:
    """Train and save.

    Raises:
      DataError: there is nothing to train on, or no place to write to.
    """
    paths = find_inputs(*options.base_dir, where="--base_dir")
    if options.file_type:
        paths = [p for p in paths if p.endswith("." + options.file_type.lstrip("."))]
        if not paths:
            raise DataError(f"--base_dir {' '.join(options.base_dir)}: no files of --file_type {options.file_type}")
    encoding = named_encoding(options.encoding) if options.encoding else ""
    path = storage.join(options.output_dir, "tokenizer.json")
    with writing_to(options.output_dir):  # found out first: training may take long
        storage.check_place(path)
    backend = train(read_documents(paths, options.text_key, encoding), options.vocab_size)
    with writing_to(options.output_dir):
        save_tokenizer(backend, path)
    print(f"wrote {path}: {backend.get_vocab_size():,} ids from {counted(len(paths), 'file')}")
    return 0


@contextlib.contextmanager
def writing_to(folder: str) -> Iterator[None]:
    """Context in which a failing disk is one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"--output_dir {folder!r}: cannot be written: {reason_of(error)}") from error
