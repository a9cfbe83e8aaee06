"""Documents to TFRecords: workers tokenize in order, one writer packs, an account says where every token went."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional

from gpt_neo.dataprep.chunking import Packer
from gpt_neo.dataprep.readers import find_inputs, read_documents
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 20  # text handed to a worker at once: large enough to hide the hand-over


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What `data/create_tfrecords.py` was asked for."""

    input_dir: str
    output_dir: str
    name: str = "data"
    encoder_path: Optional[str] = None
    chunk_size: int = 2049
    files_per: int = 100_000
    minimum_size: int = 0
    separator: Optional[tuple] = None
    ftfy: bool = False
    wikitext_detokenize: bool = False
    text_key: str = "text"
    processes: int = 1


@dataclasses.dataclass
class Account:
    """Where documents and tokens went. `balance` holds for every finished run."""

    documents_in: int = 0
    documents_written: int = 0
    documents_dropped_short: int = 0
    bytes_in: int = 0
    tokens_in: int = 0
    tokens_dropped_short: int = 0
    separator_tokens: int = 0
    fill_tokens: int = 0
    tokens_written: int = 0
    records_written: int = 0

    def balance(self) -> bool:
        """Tokens in, with separators and filling, equal tokens written and dropped."""
        gained = self.tokens_in + self.separator_tokens + self.fill_tokens
        documents = self.documents_in == self.documents_written + self.documents_dropped_short
        return documents and gained == self.tokens_written + self.tokens_dropped_short


def prepare(options: PrepareOptions, progress: Callable[[int, int], None]) -> dict:
    """Write the records and `manifest.json`; return the manifest.

    Args:
      progress: called with (bytes of text, tokens) as documents are done.

    Raises:
      DataError: no input, unreadable input, no record, or output that cannot be written.
    """
    tokenizer = load_tokenizer(options.encoder_path)
    separator = options.separator
    if separator is None:
        if tokenizer.eos_id is None:
            raise DataError(f"tokenizer {tokenizer.name} names no <|endoftext|>: give its id with --separator")
        separator = (tokenizer.eos_id,)
    wrong = [i for i in separator if not 0 <= i < tokenizer.n_vocab]
    if wrong:
        raise DataError(f"--separator has id {wrong[0]}; {tokenizer.name} has ids 0 to {tokenizer.n_vocab - 1}")
    paths = find_inputs(options.input_dir)
    account, files = Account(), Files(options)
    packer = Packer(options.chunk_size, separator)
    for size, tokens in tokenized(paths, options):
        account.documents_in += 1
        account.bytes_in += size
        account.tokens_in += len(tokens)
        if len(tokens) < options.minimum_size:
            account.documents_dropped_short += 1
            account.tokens_dropped_short += len(tokens)
        else:
            account.documents_written += 1
            account.separator_tokens += len(separator)
            files.write(packer.add(tokens))
        progress(size, len(tokens))
    rest = packer.rest()
    if len(rest):
        # The last chunk is filled with the separator: the text in it is not lost.
        account.fill_tokens = options.chunk_size - len(rest)
        fill = [separator[-1] if separator else 0] * account.fill_tokens
        files.write([[*rest.tolist(), *fill]], count=0)
    account.records_written = files.close()
    account.tokens_written = account.records_written * options.chunk_size
    if not account.records_written:
        raise DataError(f"{options.input_dir}: {account.documents_in} documents gave no record")
    if not account.balance():
        raise AssertionError(f"the account does not balance: {account}")
    return write_manifest(options, tokenizer, separator, files.paths, account)


class Files:
    """Output files of `files_per` documents each."""

    def __init__(self, options: PrepareOptions) -> None:
        self.options = options
        self.documents = self.shard = self.records = 0
        self.paths: list[str] = []
        self.writer: Optional[RecordWriter] = None
        try:
            os.makedirs(options.output_dir, exist_ok=True)
            stale = [n for n in os.listdir(options.output_dir) if is_ours(n, options.name)]
        except OSError as error:
            raise DataError(f"--output_dir {options.output_dir!r}: cannot be written: {error.strerror}") from error
        if stale:
            raise DataError(
                f"--output_dir {options.output_dir!r} already holds {stale[0]} and {len(stale) - 1} more of "
                f"--name {options.name}; choose another name or folder, or remove them"
            )

    def write(self, chunks: Iterable[Any], count: int = 1) -> None:
        """Write the chunks that a document filled."""
        for chunk in chunks:
            if self.writer is None:
                self.writer = RecordWriter(self.options.output_dir, self.options.name, self.shard)
            self.writer.write(chunk)
        self.documents += count
        if self.documents >= self.options.files_per:
            self.finish_file()

    def finish_file(self) -> None:
        """Close the present file and go on to the next."""
        if self.writer is not None:
            path = self.writer.close()
            if path:
                self.paths.append(path)
                self.records += self.writer.count
            self.shard += 1
        self.writer, self.documents = None, 0

    def close(self) -> int:
        """Close the last file; return the number of records."""
        self.finish_file()
        return self.records


def is_ours(file_name: str, name: str) -> bool:
    """Whether a file in the output folder was written under this name."""
    return file_name.startswith(f"{name}_") and file_name.endswith(".tfrecords")


def tokenized(paths: Sequence[str], options: PrepareOptions) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield (bytes, ids) of every document, in order, whatever the number of workers."""
    batches = batched(document for path in paths for document in read_documents(path, options.text_key))
    if options.processes <= 1:
        start_worker(options)
        for batch in batches:
            yield from encode_texts(batch)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, start_worker, (options,)) as pool:
        for result in pool.imap(encode_texts, batches):
            yield from result


def batched(documents: Iterable[str]) -> Iterator[list[str]]:
    """Group documents to about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


WORKER: dict[str, Any] = {}  # what a worker process keeps between batches


def start_worker(options: PrepareOptions) -> None:
    """Load the tokenizer once per process, one thread each: the processes share the cores."""
    if options.processes > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    WORKER["tokenizer"] = load_tokenizer(options.encoder_path)
    WORKER["options"] = options


def encode_texts(texts: Sequence[str]) -> list[tuple[int, Sequence[int]]]:
    """(bytes, ids) of each text, cleaned first where asked for."""
    options, tokenizer = WORKER["options"], WORKER["tokenizer"]
    if options.ftfy:
        texts = [repair(text) for text in texts]
    if options.wikitext_detokenize:
        texts = [detokenize_wikitext(text) for text in texts]
    sizes = [len(text.encode("utf-8", errors="surrogatepass")) for text in texts]
    return list(zip(sizes, tokenizer.encode_batch(texts)))


def repair(text: str) -> str:
    """Mend wrongly decoded text with ftfy."""
    try:
        import ftfy
    except ImportError as error:
        raise DataError("--ftfy needs the extra text: pip install 'gpt_neo[text]'") from error
    return ftfy.fix_text(text, normalization="NFKC")


def detokenize_wikitext(text: str) -> str:
    """Undo the spacing of the WikiText sets: ` @-@ ` is a hyphen, spaces before punctuation go."""
    for spaced, plain in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" ; ", "; "), (" : ", ": "), (" , ", ", "),
                          (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" 's", "'s"), (" n't", "n't")):  # fmt: skip
        text = text.replace(spaced, plain)
    return text


def write_manifest(
    options: PrepareOptions, tokenizer: Tokenizer, separator: Sequence[int], paths: Sequence[str], account: Account
) -> dict:
    """Write `manifest.json` beside the records."""
    manifest = {
        "name": options.name,
        "chunk_size": options.chunk_size,
        "tokenizer": {
            "path": tokenizer.name, "fingerprint": tokenizer.fingerprint, "n_vocab": tokenizer.n_vocab,
            "eos_id": tokenizer.eos_id, "padding_id": tokenizer.padding_id,
        },
        "separator": list(separator),
        "files": [os.path.basename(path) for path in paths],
        "account": dataclasses.asdict(account),
    }  # fmt: skip
    write_json(os.path.join(options.output_dir, f"{options.name}_manifest.json"), manifest)
    return manifest


def dataset_config(manifest: dict, folder: str, eval_path: Optional[str] = None) -> dict:
    """The dataset config (`configs/dataset_configs/*.json`) of prepared records."""
    tokenizer = manifest["tokenizer"]
    pretrained = tokenizer["path"] == "gpt2"
    return {
        "n_vocab": tokenizer["n_vocab"],
        "path": os.path.join(os.path.abspath(folder), f"{manifest['name']}_*.tfrecords"),
        "eval_path": eval_path,
        "tokenizer_path": "gpt2" if pretrained else os.path.abspath(tokenizer["path"]),
        "tokenizer_is_pretrained": pretrained,
        "eos_id": manifest["separator"][-1] if manifest["separator"] else tokenizer["eos_id"],
        "padding_id": tokenizer["padding_id"] if tokenizer["padding_id"] is not None else tokenizer["eos_id"],
    }


def write_json(path: str, value: dict) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".writing", "w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2)
        handle.write("\n")
    os.replace(path + ".writing", path)
