"""What is in TFRecords: counts, lengths, ids, samples."""

from __future__ import annotations

import array
import dataclasses
import os
from collections.abc import Sequence
from typing import Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.dataprep.manifest import manifest_beside, manifests_of, refuse_several_tokenizers
from gpt_neo.dataprep.readers import natural_key
from gpt_neo.dataprep.records import counts_from_names, read_records, records_only
from gpt_neo.errors import DataError, counted, reason_of
from gpt_neo.plots import picture
from gpt_neo.tokenizer import load_tokenizer


@dataclasses.dataclass
class Figures:
    """What records hold.

    Attributes:
      lengths: tokens of each record.
      smallest, largest: id; 0 where there is none.
    """

    lengths: array.array = dataclasses.field(default_factory=lambda: array.array("q"))
    tokens: int = 0
    smallest: int = 0
    largest: int = 0

    def add(self, ids: np.ndarray) -> None:
        """Count a record, ids [tokens]."""
        if len(ids):
            low, high = int(ids.min()), int(ids.max())
            self.smallest, self.largest = min(low, self.smallest if self.tokens else low), max(high, self.largest)
        self.lengths.append(len(ids))
        self.tokens += len(ids)

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.lengths)


@dataclasses.dataclass
class Survey(Figures):
    """Figures of all records of some files.

    Attributes:
      documents: tokens of each document, separators not counted, int64 [documents].
      shuffled: whether the records of a set are, so that `documents` is of all of that, as its manifest says; or empty.
      samples: (place, text) of the first records.
      warnings: what does not fit.
    """

    tokenizer: str = ""
    n_vocab: int = 0
    files: int = 0
    documents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    shuffled: bool = False
    samples: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)

    @property
    def shortest(self) -> int:
        """Tokens of the shortest record."""
        return min(self.lengths, default=0)

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        return max(self.lengths, default=0)

    def quantiles(self, *shares: float) -> list[int]:
        """Lengths of documents below which these shares of them lie."""
        if not len(self.documents):
            return [0] * len(shares)
        return [int(length) for length in np.quantile(self.documents, shares, method="lower")]


class Lengths:
    """Lengths of documents that run on from record to record."""

    def __init__(self, separator: Optional[int]) -> None:
        self.separator = separator
        self.found: list[np.ndarray] = []
        self.open = 0  # tokens of the document that has not ended

    def add(self, ids: np.ndarray) -> None:
        """Take the next record."""
        if self.separator is None:
            self.found.append(np.array([len(ids)], np.int64))
            return
        ends = np.flatnonzero(ids == self.separator)
        if len(ends):
            self.found.append(np.diff(ends, prepend=-1 - self.open) - 1)
            self.open = 0
        self.open += len(ids) - 1 - (int(ends[-1]) if len(ends) else -1)

    def all(self) -> np.ndarray:
        """int64 [documents]; filling looks like documents of no tokens, which are left out."""
        rest = [np.array([self.open], np.int64)]
        lengths = np.concatenate([*self.found, *rest])
        return lengths[lengths > 0]


def survey(
    patterns: Sequence[str], encoder_path: Optional[str] = None, separator: Optional[int] = None, samples: int = 3
) -> Survey:
    """Read all records of files and globs.

    Args:
      encoder_path, separator: by default those of the manifests beside the files.

    Raises:
      DataError: there are no files, they are of several tokenizers, or a record is damaged; names file and byte.
    """
    paths = find_records(patterns)
    manifests = manifests_of(paths)
    refuse_several_tokenizers({} if encoder_path else manifests, "these records")
    made_with: dict = next((manifest["tokenizer"] for manifest in manifests.values()), {})
    try:
        tokenizer = load_tokenizer(encoder_path or made_with.get("path"))
    except DataError as error:
        here = "" if encoder_path else "; so the records' manifest has it, of where they were made: say --encoder_path"
        raise DataError(f"{error}{here}") from error
    found = Survey(tokenizer=tokenizer.name, n_vocab=tokenizer.n_vocab)
    sets: dict[str, Lengths] = {}  # by manifest; "" of records that have none
    for path, promised in zip(paths, counts_from_names(paths)):
        before = found.records
        beside = manifest_beside(path, manifests)
        if beside not in sets:
            sets[beside] = Lengths(separator_of(manifests.get(beside, {}), separator, tokenizer.eos_id))
        for ids in read_records(path):
            if len(found.samples) < samples:
                text = tokenizer.decode(i for i in ids.tolist() if 0 <= i < tokenizer.n_vocab)
                found.samples.append((f"record {found.records - before} of {path}, {counted(len(ids), 'token')}", text))
            found.add(ids)
            sets[beside].add(ids)
        there = found.records - before
        if promised not in (None, there):
            found.warnings.append(f"{path}: its name promises {counted(promised, 'record')}, it holds {there:,}")
    found.files = len(paths)
    found.shuffled = any(map(is_shuffled, manifests.values()))
    if all(manifest.get("document_tokens") for manifest in manifests.values() if is_shuffled(manifest)):
        lengths = [lengths_of(manifests.get(beside, {}), read) for beside, read in sets.items()]
        found.documents = np.concatenate(lengths)
    if found.smallest < 0:
        found.warnings.append(f"id {found.smallest} is below 0")
    if found.largest >= tokenizer.n_vocab:
        found.warnings.append(f"id {found.largest} reaches the {tokenizer.n_vocab} ids of tokenizer {tokenizer.name}")
    return found


def separator_of(manifest: dict, given: Optional[int], end: Optional[int]) -> Optional[int]:
    """The id between the documents of a set: as given, as its manifest says, or the end of text; None for none."""
    if given is None and manifest.get("mode") != "documents":
        return (manifest.get("separator") or [end])[-1]
    return given


def is_shuffled(manifest: dict) -> bool:
    """Whether a document goes on in a record that stands elsewhere."""
    return manifest.get("shuffle") is True and manifest.get("mode") == "chunks"


def lengths_of(manifest: dict, read: Lengths) -> np.ndarray:
    """int64 [documents]: tokens of each document of a set, as its manifest says where the records are shuffled."""
    if not is_shuffled(manifest):
        return read.all()
    known = {int(tokens): int(count) for tokens, count in manifest["document_tokens"].items()}
    return np.repeat(np.array([*known], np.int64), [*known.values()])


def find_records(patterns: Sequence[str]) -> list[str]:
    """Files of patterns, folders and paths, in natural order.

    Raises:
      DataError: one of them gives no file.
    """
    paths: list[str] = []
    for pattern in patterns:
        try:
            if storage.exists(pattern):
                found = [pattern]
            elif storage.is_folder(pattern):
                found = [path for path in storage.list_files(pattern) if ".tfrecord" in os.path.basename(path)]
            else:
                found = records_only(storage.glob(pattern))
        except OSError as error:
            raise DataError(f"{pattern}: cannot be listed: {reason_of(error)}") from error
        if not found:
            where = (
                "no .tfrecords in this folder" if storage.is_folder(pattern) else "no such file, and no file matches it"
            )
            raise DataError(f"{pattern}: {where}")
        paths += sorted(found, key=natural_key)
    return list(dict.fromkeys(paths))


def draw_lengths(found: Survey, path: str) -> None:
    """Draw a histogram of the lengths of documents, PNG.

    Raises:
      DataError: matplotlib is not installed, there is nothing to draw, or the file cannot be written.
    """
    if not len(found.documents):
        raise DataError("--histogram: there are no documents to draw")
    lengths = found.documents
    median, mean = float(np.median(lengths)), float(lengths.mean())
    edges = np.unique(np.round(np.geomspace(1, lengths.max() + 1, 60))).tolist()
    with picture(path, "--histogram") as grid:
        axes = grid[0][0]
        axes.hist(lengths, bins=edges, color="tab:blue", edgecolor="white", linewidth=0.3)
        axes.axvline(median, color="tab:orange", label=f"median {median:,.0f}")
        axes.axvline(mean, color="tab:green", linestyle="--", label=f"mean {mean:,.0f}")
        title = f"{counted(len(lengths), 'document')}, {counted(int(lengths.sum()), 'token')}"
        axes.set(xscale="log", xlabel="tokens of a document", ylabel="documents", title=title)
        axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
