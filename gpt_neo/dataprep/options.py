"""What a preparation was asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Optional, Union

from gpt_neo import storage
from gpt_neo.dataprep.encodings import named_encoding
from gpt_neo.dataprep.streams import Rules
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import Tokenizer

MODES = ("chunks", "documents")
BAD = ("stop", "skip", "report")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What `data/create_tfrecords.py` was asked for.

    Attributes:
      input_dir: a file, folder, glob or `-`, or several.
      chunk_size: tokens of a record in mode `chunks`: n_ctx + 1.
      files_per: records of an output file.
      minimum_size: documents of fewer tokens are dropped.
      separator: ids after each document in mode `chunks`; by default the tokenizer's end of text.
      bad: what cannot be read: stop there; skip it, which is counted; or report all of it, and write nothing.
      encoding: of text without a byte-order mark; empty for UTF-8.
      split_on: what stands between the documents of a text; empty for a text that is one.
      work_dir: folder that unfinished work is kept in; by default the output's.
      processes: workers; 0 or 1 is this process alone. Changes no byte of the output.
      mask_filling: in mode `chunks`, records have masks, by which what fills up the last one is no label.
    """

    input_dir: Union[str, tuple]
    output_dir: str
    name: str = "data"
    encoder_path: Optional[str] = None
    mode: str = "chunks"
    chunk_size: int = 2049
    files_per: int = 100_000
    minimum_size: int = 0
    separator: Optional[tuple] = None
    ftfy: bool = False
    wikitext_detokenize: bool = False
    deduplicate: bool = False
    shuffle: bool = False
    seed: int = 0
    text_key: str = "text"
    stdin_format: str = "jsonl"
    bad: str = "stop"
    encoding: str = ""
    split_on: str = ""
    work_dir: Optional[str] = None
    processes: int = 1
    mask_filling: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense, and find the home folder.

        Raises:
          DataError: names the flag, what was given and what is allowed.
        """
        object.__setattr__(self, "output_dir", storage.local(self.output_dir))
        object.__setattr__(self, "work_dir", self.work_dir and storage.local(self.work_dir))
        object.__setattr__(self, "encoding", named_encoding(self.encoding) if self.encoding else "")
        for flag, value, allowed in (("mode", self.mode, MODES), ("bad", self.bad, BAD)):
            if value not in allowed:
                raise DataError(f"--{flag} is {value!r}; expected one of {', '.join(allowed)}")
        for flag, low in (("chunk_size", 2), ("files_per", 1), ("minimum_size", 0), ("processes", 0), ("seed", 0)):
            if getattr(self, flag) < low:
                raise DataError(f"--{flag} is {getattr(self, flag)}; expected at least {low}")
        if self.mask_filling and self.shuffle:
            raise DataError("mask_filling is for records in the order of the documents; shuffle moves the last one")
        if not self.name or "/" in self.name or self.name.startswith("."):  # hidden files are no records to any reader
            raise DataError(f"--name is {self.name!r}; expected the first part of a file name, that is not hidden")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs as a tuple."""
        return (self.input_dir,) if isinstance(self.input_dir, str) else tuple(self.input_dir)

    @property
    def skip_bad(self) -> bool:
        """Whether to go on after what cannot be read."""
        return self.bad != "stop"

    @property
    def cleaned(self) -> bool:
        """Whether texts are changed."""
        return self.ftfy or self.wikitext_detokenize

    @property
    def whole_set(self) -> bool:
        """Whether nothing can be written before all documents are known."""
        return self.shuffle or self.deduplicate

    @property
    def record(self) -> int:
        """Extent of a record: tokens of a chunk, or one document."""
        return self.chunk_size if self.mode == "chunks" else 1

    def fingerprint(self) -> str:
        """Equal for options that give the same bytes.

        `bad` is not among them: what it leaves out, a run that stops at it has not finished.
        """
        values = dataclasses.asdict(self)
        for free in ("processes", "work_dir", "output_dir", "bad"):
            values.pop(free)
        if not self.mask_filling:  # as of work that was begun before there was such an option
            values.pop("mask_filling")
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Job:
    """Options with what was found out about the tokenizer: all that a worker needs.

    Attributes:
      fast: see Encoder.
      wide: ids need 32 bits on their way from the tokenizing worker to the writing one.
      work: folder of unfinished work.
    """

    options: PrepareOptions
    separator: tuple[int, ...]
    fast: bool
    wide: bool
    work: str

    @property
    def rules(self) -> Rules:
        """How inputs are read.

        A long text is cut, so that all workers share it, where nothing needs the document as a whole.
        """
        options = self.options
        whole = options.cleaned or options.whole_set or options.mode == "documents"
        # A piece has millions of characters, so that no document of several pieces can be too short.
        split = self.fast and not whole and options.minimum_size <= 10_000
        return Rules(options.text_key, split, options.skip_bad, options.encoding, options.split_on)


def separator_of(options: PrepareOptions, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids after each document.

    Raises:
      DataError: they are not the tokenizer's, or none is known.
    """
    separator = options.separator
    if separator is None:
        if tokenizer.eos_id is None:
            raise DataError(f"tokenizer {tokenizer.name} names no <|endoftext|>: give its id with --separator")
        separator = (tokenizer.eos_id,)
    wrong = [i for i in separator if not 0 <= i < tokenizer.n_vocab]
    if wrong:
        raise DataError(f"--separator has id {wrong[0]}; {tokenizer.name} has ids 0 to {tokenizer.n_vocab - 1}")
    return tuple(separator)
