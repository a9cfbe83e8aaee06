"""The records of the 2021 program, byte for byte.

What it did, and this does on purpose: every document is cut into chunks by itself; of what is left over, only the end
of the last document of a file goes on, to the first document of the next file, and only if it has `minimum_size`
tokens; all other ends are lost. Files are read in the order in which the folder lists them. `<|endoftext|>` in a text
is the special token. The last, smaller file of each process is named without the number of the process, so that one
process may have written over the file of another; here they run one after another, and the later one wins. The account
says what was lost on the way.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_neo import storage
from gpt_neo.dataprep.account import Totals
from gpt_neo.dataprep.cleaning import detokenize_wikitext, repair
from gpt_neo.dataprep.documents import BYTE_ORDER_MARK, documents_of_item
from gpt_neo.dataprep.encoder import Encoder
from gpt_neo.dataprep.manifest import build_manifest, refuse_mixing, write_manifest
from gpt_neo.dataprep.options import PrepareOptions, separator_of
from gpt_neo.dataprep.readers import Bad, InputFile, kind_of, open_source
from gpt_neo.dataprep.records import encode_rows
from gpt_neo.dataprep.streams import Rules, stream_items
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import END_OF_TEXT, load_tokenizer

ENDINGS = ("jsonl.zst", ".txt", ".xz", ".tar.gz")  # in this order
ROWS = 1024  # records encoded at once


def prepare_legacy(options: PrepareOptions) -> dict:
    """Write the records and the manifest; return the manifest.

    Args:
      options: chunk_size is n_ctx + 1; `processes` decides how files are grouped and named, as it did.

    Raises:
      DataError: the old program would have found nothing or crashed, or the output cannot be written.
    """
    check(options)
    tokenizer = load_tokenizer()
    separator = separator_of(options, tokenizer)
    if len(separator) != 1:
        raise DataError(f"--legacy takes one --separator, not {len(separator)}")
    paths = legacy_files(options)
    share = max(1, len(paths) // max(1, options.processes))  # the old program crashed on fewer files than processes
    groups = [paths[i : i + share] for i in range(0, len(paths), share)] if options.processes > 1 else [paths]
    totals = Totals()
    files: dict[str, dict] = {}
    encoder = Encoder(tokenizer)
    for process, group in enumerate(groups):
        run = Process(options, process, separator[0], encoder, totals, files)
        for path in group:
            run.take_file(path)
        run.finish()
    manifest = {**build_manifest(options, tokenizer, separator, list(files.values()), totals), "legacy": True}
    write_manifest(options, manifest)
    return manifest


def check(options: PrepareOptions) -> None:
    """Refuse what the old program had not, and an output folder with files of this name."""
    new = {"mode": "chunks", "deduplicate": False, "shuffle": False, "text_key": "text", "work_dir": None}
    for key, value in new.items():
        if getattr(options, key) != value:
            raise DataError(f"--legacy does what the old program did, which had no --{key} {getattr(options, key)}")
    if options.encoder_path:
        raise DataError("--legacy: the old program crashed with --encoder_path; it worked with GPT-2's tokenizer only")
    if len(options.inputs) != 1 or not os.path.isdir(options.inputs[0]):
        raise DataError(f"--legacy reads one local folder, not {', '.join(options.inputs)}")
    refuse_mixing(options)


def legacy_files(options: PrepareOptions) -> list[str]:
    """The files that the old program read, in its order: by ending, then as the folder lists them, unsorted."""
    with os.scandir(options.inputs[0]) as entries:
        names = [entry.name for entry in entries]
    paths = [os.path.join(options.inputs[0], name) for ending in ENDINGS for name in names if name.endswith(ending)]
    if not paths:
        raise DataError(f"--input_dir {options.inputs[0]!r}: no file ends in {', '.join(ENDINGS)}")
    return paths


def legacy_documents(path: str) -> Iterator[Any]:
    """The texts of a file as the old program's reader gave them; a Bad for a file that it passed over.

    Raises:
      DataError: it would have crashed: bad JSON or UTF-8, an archive that breaks off, or a kind it could not read.
    """
    if path.endswith(".xz"):
        if not path.endswith("_data.xz"):
            raise DataError(f"{path}: the old program crashed on .xz files other than OpenWebText's")
        if "urlsf_subset" not in path:
            yield Bad(path, "", 0, "passed over by the old program")
            return
    if not path.endswith((".jsonl.zst", ".txt", ".xz", ".tar.gz")):
        raise DataError(f"{path}: the old program crashed on it; it read .jsonl.zst")
    source = InputFile(path, *kind_of(path), 0, "")
    try:
        with open_source(path) as handle:
            # It took a byte-order mark for text.
            mark = "\ufeff" if path.endswith(".txt") and handle.read(3) == BYTE_ORDER_MARK else ""
            handle.seek(0)
            for item in stream_items(source, handle, Rules()):
                for found in documents_of_item(item, Rules()):
                    if isinstance(found, Bad):
                        raise DataError(str(found))
                    text = mark + found.text
                    # It opened text files in Python's text mode, which translates line ends.
                    yield text.replace("\r\n", "\n").replace("\r", "\n") if path.endswith(".txt") else text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


@dataclasses.dataclass
class Process:
    """What one process of the old program did with its files.

    Attributes:
      files: entries of the output files by name, of all processes.
      rows: chunks that are in no file yet, ids [chunk_size] each.
      rest: what the document before left over, ids [tokens], and the number of documents that are wholly in it.
    """

    options: PrepareOptions
    number: int
    separator: int
    encoder: Encoder
    totals: Totals
    files: dict
    shard: int = 0
    rows: list = dataclasses.field(default_factory=list)
    rest: tuple = (np.zeros(0, np.uint32), 0)

    def take_file(self, path: str) -> None:
        """Take the documents of a file."""
        first = True
        for text in legacy_documents(path):
            if isinstance(text, Bad):
                self.totals.add_bad([text])
                continue
            if not first:
                self.lose()
            self.take_document(text)
            first = False

    def take_document(self, text: str) -> None:
        """Cut a document into chunks, after what is left of the document before."""
        text = repair(text) if self.options.ftfy else text
        text = detokenize_wikitext(text, legacy=True) if self.options.wikitext_detokenize else text
        ids = self.encode(text)
        self.totals.account.add(
            {"documents_in": 1, "bytes_in": len(text.encode("utf-8")), "tokens_in": len(ids), "separator_tokens": 1}
        )
        before, documents = self.rest
        joined = np.concatenate([before, ids, [self.separator]]).astype(np.uint32)
        whole = len(joined) // self.options.chunk_size * self.options.chunk_size
        self.rows += list(joined[:whole].reshape(-1, self.options.chunk_size))
        if whole:
            self.totals.account.documents_written += documents + 1
        self.rest = joined[whole:], 0 if whole else documents + 1
        if len(self.rest[0]) < self.options.minimum_size:
            self.lose()
        while len(self.rows) >= self.options.files_per:
            name = f"{self.options.name}_{self.shard}_{self.number}_{self.options.files_per}.tfrecords"
            self.write(name, self.options.files_per)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text in which the name of the end-of-text token is the token."""
        parts: list[Any] = []
        for part in text.split(END_OF_TEXT):
            parts += [self.encoder.encode(part), [self.encoder.tokenizer.eos_id]]
        return np.concatenate(parts[:-1]).astype(np.uint32)

    def lose(self) -> None:
        """Lose what is left over."""
        rest, documents = self.rest
        self.totals.account.add({"tokens_dropped_tail": len(rest), "documents_dropped_tail": documents})
        self.rest = rest[:0], 0

    def finish(self) -> None:
        """Write the last file, which has no number of a process in its name."""
        self.lose()
        if self.rows:
            self.write(f"{self.options.name}_{self.shard}_{len(self.rows)}.tfrecords", len(self.rows))

    def write(self, name: str, count: int) -> None:
        """Write the first `count` chunks; over the file of an earlier process, if that had the same name."""
        rows, self.rows = self.rows[:count], self.rows[count:]
        with storage.writing(storage.join(self.options.output_dir, name)) as handle:
            for start in range(0, count, ROWS):
                handle.write(encode_rows(np.stack(rows[start : start + ROWS])))
        if name in self.files:
            self.totals.account.tokens_dropped_overwritten += self.files[name]["tokens"]
        self.files[name] = {"file": name, "records": count, "tokens": count * self.options.chunk_size}
        self.shard += 1
