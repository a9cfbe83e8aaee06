"""What is in TFRecords: counts, lengths, ids, samples."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.dataprep.readers import natural_key, reason_of
from gpt_neo.dataprep.records import count_from_name, read_records
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import load_tokenizer


@dataclasses.dataclass
class Survey:
    """Figures of all records.

    Attributes:
      separator: id between documents; None if each record is one.
      documents: tokens of each document, separators not counted, int64 [documents].
      samples: (place, text) of the first records.
      warnings: what does not fit.
    """

    tokenizer: str
    n_vocab: int
    separator: Optional[int]
    files: int = 0
    records: int = 0
    tokens: int = 0
    shortest: int = 0
    longest: int = 0
    smallest: int = 0
    largest: int = 0
    documents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    samples: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)

    def quantiles(self, *shares: float) -> list[int]:
        """Lengths of documents below which these shares of them lie."""
        if not len(self.documents):
            return [0] * len(shares)
        return [int(length) for length in np.quantile(self.documents, shares, method="lower")]

    def add(self, ids: np.ndarray) -> None:
        """Count a record, ids [tokens]."""
        low, high = (int(ids.min()), int(ids.max())) if len(ids) else (self.smallest, self.largest)
        first = not self.records
        self.records, self.tokens = self.records + 1, self.tokens + len(ids)
        self.shortest, self.longest = min(len(ids), len(ids) if first else self.shortest), max(len(ids), self.longest)
        self.smallest, self.largest = low if first else min(low, self.smallest), max(high, self.largest)


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
      encoder_path, separator: by default those of the manifest beside the first file.

    Raises:
      DataError: there are no files, or a record is damaged; names file and byte.
    """
    paths = find_records(patterns)
    manifest = manifest_of(paths[0])
    tokenizer = load_tokenizer(encoder_path or manifest.get("tokenizer", {}).get("path"))
    if separator is None and manifest.get("mode") != "documents":
        separator = (manifest.get("separator") or [tokenizer.eos_id])[-1]
    found, lengths = Survey(tokenizer.name, tokenizer.n_vocab, separator), Lengths(separator)
    for path in paths:
        before = found.records
        for ids in read_records(path):
            if len(found.samples) < samples:
                text = tokenizer.decode(i for i in ids.tolist() if 0 <= i < tokenizer.n_vocab)
                found.samples.append((f"record {found.records - before} of {path}, {len(ids):,} tokens", text))
            found.add(ids)
            lengths.add(ids)
        promised, there = count_from_name(path), found.records - before
        if promised not in (None, there):
            found.warnings.append(f"{path}: its name promises {promised:,} records, it holds {there:,}")
    found.files, found.documents = len(paths), lengths.all()
    if found.largest >= tokenizer.n_vocab:
        found.warnings.append(f"id {found.largest} reaches the {tokenizer.n_vocab} ids of tokenizer {tokenizer.name}")
    return found


def find_records(patterns: Sequence[str]) -> list[str]:
    """Files of patterns and paths, in natural order.

    Raises:
      DataError: one of them gives no file.
    """
    paths: list[str] = []
    for pattern in patterns:
        try:
            found = [pattern] if storage.exists(pattern) else storage.glob(pattern)
        except OSError as error:
            raise DataError(f"{pattern}: cannot be listed: {reason_of(error)}") from error
        if not found:
            raise DataError(f"{pattern}: no such file, and no file matches it")
        paths += sorted(found, key=natural_key)
    return list(dict.fromkeys(paths))


def manifest_of(path: str) -> dict:
    """The manifest of a file of records: `<name>_manifest.json` for `<name>_<shard>_<records>.tfrecords`; or empty."""
    stem = re.sub(r"(_\d+)+\.tfrecords?$", "", path)
    try:
        return json.loads(storage.read_bytes(f"{stem}_manifest.json"))
    except (OSError, ValueError):
        return {}  # records from elsewhere: everything is known from the records themselves


def draw_lengths(found: Survey, path: str) -> None:
    """Draw a histogram of the lengths of documents, PNG.

    Raises:
      DataError: matplotlib is not installed, there is nothing to draw, or the file cannot be written.
    """
    if not len(found.documents):
        raise DataError("--histogram: there are no documents to draw")
    try:
        import matplotlib
    except ImportError as error:
        raise DataError("--histogram needs the extra plot: pip install 'gpt_neo[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = found.documents
    median, mean = float(np.median(lengths)), float(lengths.mean())
    edges = np.unique(np.round(np.geomspace(1, lengths.max() + 1, 60))).tolist()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.hist(lengths, bins=edges, color="tab:blue", edgecolor="white", linewidth=0.3)
    axes.axvline(median, color="tab:orange", label=f"median {median:,.0f}")
    axes.axvline(mean, color="tab:green", linestyle="--", label=f"mean {mean:,.0f}")
    axes.set(
        xscale="log",
        xlabel="tokens of a document",
        ylabel="documents",
        title=f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DataError(f"--histogram {path}: cannot be written: {error.strerror}") from error
    finally:
        pyplot.close(figure)
