"""Where samples come from: the datasets of a run, their files and how many records each file holds."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.config.records import require_records
from gpt_neo.config.schema import DatasetConfig, DatasetRef, RunConfig
from gpt_neo.dataprep.readers import natural_key
from gpt_neo.dataprep.records import (
    count_records,
    counts_from_names,
    has_mask,
    parse_example,
    read_frames,
    records_only,
)
from gpt_neo.errors import ConfigError, DataError, counted, reason_of
from gpt_neo.inputs.seeds import salt
from gpt_neo.storage import tensorflow

RECORD = 16  # bytes that a record takes at least
CHUNKS, FIXED, RANDOM = "chunks", "documents_fixed", "documents_random"


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset, or several read as one.

    kind: `chunks`, a record is a sample; `documents_fixed` and `documents_random`, `stitch` records joined by eos_id
      are one, from their beginning or from a place drawn at random.
    weight: share of the samples, relative to the other sources'.
    paths, counts: files in the order they are read, and the records in each.
    n_vocab: ids that the records may hold.
    eos_id, padding_id: what stands between joined documents, and what fills up those that are too short.
    seed: of every draw that this source needs.
    shuffled: documents are read in a random order, within reach of where they stand.
    length: tokens of every record, for chunks; 0 where that is not known.
    pieces: samples that a record is cut into, for chunks: see `pieces_of`.
    masked: records say which tokens count as labels.
    """

    name: str
    kind: str
    stitch: int
    weight: float
    paths: tuple
    counts: tuple
    n_vocab: int
    eos_id: Optional[int]
    padding_id: int
    seed: int
    shuffled: bool
    length: int = 0
    pieces: int = 1
    masked: bool = False

    def draws(self, purpose: str) -> int:
        """The first half of the seed of a stateless draw; the second half says which sample it is for."""
        return salt(self.seed, purpose)

    @property
    def records(self) -> int:
        """Records of one epoch."""
        return sum(self.counts)

    @property
    def samples(self) -> int:
        """Samples of one pass; the last one may be joined of fewer documents."""
        return -(-self.records // self.stitch) * self.pieces


def tokens_needed(run: RunConfig) -> int:
    """Tokens of text in a sample: n_ctx, and one more as the last label; MLM has none, and may put one in front."""
    if not run.training.mlm_training:
        return run.model.n_ctx + 1
    return run.model.n_ctx - (run.training.mlm_cls_token_id is not None)


def needed_text(run: RunConfig) -> str:
    """`tokens_needed` in the user's terms."""
    if not run.training.mlm_training:
        return f"n_ctx + 1 = {tokens_needed(run)}"
    return f"n_ctx{' - 1' if run.training.mlm_cls_token_id is not None else ''} = {tokens_needed(run)}"


def labels_of_sample(run: RunConfig) -> int:
    """Tokens by which the pieces of a record advance: what a sample has labels of."""
    return tokens_needed(run) - (not run.training.mlm_training)


def pieces_of(run: RunConfig, length: int) -> int:
    """Samples of a record, so that every token is read: one of n_ctx + 1 tokens is one sample. Where the last piece
    would be shorter it begins earlier, and labels that an earlier piece has do not count. Masked models lack the last
    token of such a record, as in the legacy program, and of no longer one."""
    if length <= run.model.n_ctx + 1:
        return 1
    first = tokens_needed(run) - labels_of_sample(run)  # the token that is never a label
    return -(-(length - first) // labels_of_sample(run))


def reads_in_turn(run: RunConfig) -> bool:
    """Whether the files of all datasets are read in turn, as the legacy `sequential_input` did.

    Without `input_fn` that holds where no entry of `datasets` says more than an id.

    Raises:
      ConfigError: `sequential_input` is asked for, and weights that it cannot obey.
    """
    refs = [ref for ref, _ in run.datasets]
    if run.training.input_fn is None:
        return all(ref.weight is None and ref.datatype in (None, CHUNKS) for ref in refs)
    if run.training.input_fn != "sequential_input":
        return False
    if len({ref.weight for ref in refs}) > 1:
        raise ConfigError(
            f"{run.source}: input_fn 'sequential_input' reads the files of all datasets in turn and cannot weigh them; "
            "set input_fn to generic_text, or every weight to null"
        )
    return True


def training_sources(run: RunConfig, files: Any = tensorflow) -> list[Source]:
    """The sources of a run's training samples.

    Args:
      files: what lists and reads them; `storage` where TensorFlow is not to be imported.

    Raises:
      ConfigError: `datasets` names none.
      DataError: files are missing or hold no record.
    """
    return make_sources(run, "path", run.datasets, files)


def evaluation_sources(run: RunConfig) -> list[Source]:
    """The sources of a run's held-out samples: the datasets that have some.

    Raises:
      ConfigError: `datasets` names none, or none that has held-out records.
    """
    held_out = [(ref, config) for ref, config in run.datasets if config.eval_path]
    return make_sources(run, "eval_path", held_out)


def make_sources(
    run: RunConfig, key: str, datasets: Sequence[tuple[DatasetRef, DatasetConfig]], files: Any = tensorflow
) -> list[Source]:
    """One source per dataset, or one for all of them where they are read in turn."""
    require_records(run, key)
    found = [
        find_records(getattr(config, key), f"dataset {ref.name!r}, key {key!r}", files) for ref, config in datasets
    ]
    if reads_in_turn(run):
        name = " + ".join(ref.name for ref, _ in datasets)
        every = sorted((path for paths in found for path in paths), key=natural_key)
        return [make_source(run, key, DatasetRef(name), datasets[0][1], every, files)]
    return [make_source(run, key, ref, config, paths, files) for (ref, config), paths in zip(datasets, found)]


def make_source(
    run: RunConfig, key: str, ref: DatasetRef, config: DatasetConfig, paths: Sequence[str], files: Any = tensorflow
) -> Source:
    """A source of files in natural order; those for training are shuffled unless the run says otherwise."""
    seed, shuffled = run.training.seed or 1, key == "path" and run.training.shuffle_input_filenames
    kind = ref.datatype or CHUNKS
    ordered = list(paths)
    if shuffled:
        random.Random(seed).shuffle(ordered)
    for what, token in (("eos_id", config.eos_id), ("padding_id", config.padding_id)):
        if kind != CHUNKS and token is not None and token >= run.model.n_vocab:
            raise ConfigError(f"dataset {ref.name!r}: key {what!r} is {token}, n_vocab is {run.model.n_vocab}")
    if kind != CHUNKS and (ref.stitch or 1) > 1 and config.eos_id is None:
        raise ConfigError(
            f"dataset {ref.name!r}: stitch is {ref.stitch} and key 'eos_id' is null; expected an id to join by"
        )
    counts = record_counts(ordered)
    first = first_record(ordered, counts, files)
    length = len(parse_example(first)) if kind == CHUNKS else 0
    masked = has_mask(first)
    if masked and (kind != CHUNKS or run.training.mlm_training):
        raise ConfigError(
            f"dataset {ref.name!r}: its records have masks (answers to prompts), so they are read in chunks, by models "
            "that predict the next token"
        )
    return Source(
        name=ref.name,
        kind=kind,
        stitch=(ref.stitch or 1) if kind != CHUNKS else 1,
        weight=ref.weight or 1.0,
        paths=tuple(ordered),
        counts=tuple(counts),
        n_vocab=min(config.n_vocab or run.model.n_vocab, run.model.n_vocab),
        eos_id=config.eos_id,
        padding_id=config.padding_id,
        seed=salt(seed, key, ref.name, kind, ref.stitch),
        shuffled=shuffled,
        length=length,
        pieces=pieces_of(run, length),
        masked=masked,
    )


def find_records(pattern: str, where: str, files: Any = tensorflow) -> list[str]:
    """Files of a glob, local or gs://, in natural order.

    Raises:
      DataError: there are none.
    """
    try:
        paths = records_only(files.glob(pattern))
    except OSError as error:
        raise DataError(f"{where}: {pattern!r} cannot be listed: {reason_of(error)}") from error
    if not paths and files.is_folder(pattern):
        raise DataError(
            f"{where}: {pattern!r} is a folder; expected a pattern, such as {storage.join(pattern, '*.tfrecords')!r}"
        )
    if not paths:
        raise DataError(f"{where}: no records match {pattern!r}; make some with gpt-neo prepare")
    return sorted(paths, key=natural_key)


def record_counts(paths: Sequence[str]) -> list[int]:
    """Records per file, by name where the name says it, else counted: from the lengths, or by reading remote files.

    Raises:
      DataError: all files are empty.
    """
    named = counts_from_names(paths)
    remote = [path for path, count in zip(paths, named) if count is None and not os.path.exists(path)]
    found = dict(zip(remote, count_remote(remote)))
    for path, count in zip(paths, named):
        if count is not None and os.path.exists(path) and count * RECORD > os.path.getsize(path):
            raise DataError(f"{path}: its name promises {counted(count, 'record')}, more than a file of its size holds")
    counts = [
        found[path] if path in found else count_records(path) if count is None else count
        for path, count in zip(paths, named)
    ]
    if not sum(counts):
        raise DataError(f"no records in {counted(len(paths), 'file')}, the first of them {paths[0]}")
    return counts


def first_record(paths: Sequence[str], counts: Sequence[int], files: Any = tensorflow) -> bytes:
    """The first record, serialised; those of a dataset read in chunks are all as long.

    Raises:
      DataError: it cannot be read.
    """
    path = next(path for path, count in zip(paths, counts) if count)
    found = next((data for _, data in read_frames(path, files)), b"")
    try:
        parse_example(found)
    except ValueError as error:
        raise DataError(f"{path}: record at byte 0: {error}") from error
    return found


def count_remote(paths: Sequence[str]) -> Iterator[int]:
    """Yield the records of each file, read through TensorFlow's file systems.

    Raises:
      DataError: a file cannot be read to its end.
    """
    if not paths:
        return
    from gpt_neo.mtf_compat import tf

    with tf.Graph().as_default(), tf.Session() as session:
        path = tf.placeholder(tf.string, [])
        count = tf.data.TFRecordDataset(path).reduce(tf.constant(0, tf.int64), lambda total, _: total + 1)
        for name in paths:
            try:
                yield int(session.run(count, {path: name}))
            except tf.errors.OpError as error:
                raise DataError(f"{name}: its records cannot be counted: {error.message.splitlines()[0]}") from error
