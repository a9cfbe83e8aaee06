"""A byte-level BPE tokenizer of the texts that are there."""

from __future__ import annotations

import os

from gpt_neo.cli.tool_options import TrainTokenizer
from gpt_neo.dataprep.documents import read_documents
from gpt_neo.dataprep.encodings import named_encoding
from gpt_neo.dataprep.readers import find_inputs
from gpt_neo.errors import DataError, counted
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
    backend = train(read_documents(paths, options.text_key, encoding), options.vocab_size)
    path = os.path.join(options.output_dir, "tokenizer.json")
    try:
        os.makedirs(options.output_dir, exist_ok=True)
        save_tokenizer(backend, path)
    except OSError as error:
        raise DataError(f"--output_dir {options.output_dir!r}: cannot be written: {error.strerror}") from error
    print(f"wrote {path}: {backend.get_vocab_size():,} ids from {counted(len(paths), 'file')}")
    return 0
