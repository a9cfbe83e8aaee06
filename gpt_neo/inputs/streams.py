"""Endless streams of records as tf.data pipelines, from any position, in an order that is a function of the seed.

An element is (path, number of the record in the file, serialised record), so that a message can say which record it
is about. Only TensorFlow's own operations are used: on a TPU the pipeline runs on the TPU's host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_neo.inputs.sources import Source
from gpt_neo.mtf_compat import tf

SHUFFLED_SAMPLES = 1000  # documents are shuffled in blocks of as many as 1000 samples need, as the legacy buffer held
ENDLESS = np.iinfo(np.int64).max
PARALLEL = tf.data.experimental.AUTOTUNE


def endless_records(source: Source, position: Any) -> Any:
    """The records from the `position`-th of an endless repetition of the files, each once per epoch.

    Args:
      position: int64 scalar, a tensor where it is known only when the pipeline starts.

    Returns:
      tf.data.Dataset of (path, number, record)
    """
    epoch, rest = position // source.records, position % source.records
    begun = one_epoch(source, epoch, rest)
    following = tf.data.Dataset.range(epoch + 1, ENDLESS).flat_map(lambda e: one_epoch(source, e, 0))
    return begun.concatenate(following)


def one_epoch(source: Source, epoch: Any, skipped: Any) -> Any:
    """The records of an epoch after the first `skipped`.

    Shuffled documents come in blocks of consecutive ones, each block in an order drawn from seed, epoch and block: any
    position is reached by reading one block.
    """
    if not (source.shuffled and source.kind != "chunks"):
        return file_records(source, skipped)
    size = SHUFFLED_SAMPLES * source.stitch
    block = skipped // size
    number = epoch * -(-source.records // size) + block  # among the blocks of all epochs

    def shuffle(number: Any, elements: Any) -> Any:
        order = tf.range(tf.shape(elements[0])[0])
        order = tf.random.experimental.stateless_shuffle(order, seed=[source.draws("shuffle"), number])
        return tuple(tf.gather(part, order) for part in elements)

    blocks = file_records(source, block * size).batch(size).enumerate(tf.cast(number, tf.int64))
    # The next block is read while this one is used, so that nobody waits at its end.
    return blocks.map(shuffle).prefetch(1).unbatch().skip(skipped - block * size)


def file_records(source: Source, skipped: Any) -> Any:
    """The records of all files in their order, after the first `skipped`; whole files are passed over unread.

    A file that holds more or fewer records than its name promises is an error: positions would be wrong.
    """
    ends = np.cumsum(source.counts)
    first = tf.searchsorted(tf.constant(ends), [tf.cast(skipped, tf.int64)], side="right")[0]
    before = tf.gather(tf.constant(np.concatenate([[0], ends])), first)
    files = tf.data.Dataset.from_tensor_slices((list(source.paths), np.array(source.counts, np.int64)))

    def read(path: Any, count: Any) -> Any:
        records = tf.data.TFRecordDataset(path).apply(tf.data.experimental.assert_cardinality(count))
        return records.enumerate().map(lambda number, record: (path, number, record))

    return files.skip(tf.cast(first, tf.int64)).flat_map(read).skip(skipped - before)


def endless_groups(source: Source, sample: Any) -> Any:
    """The records of samples `sample`, `sample` + 1, ...: dictionaries of `sample` (its number), and of `paths`,
    `numbers` and `records` [stitch]."""
    records = endless_records(source, sample // source.pieces * source.stitch)
    groups = records.batch(source.stitch, drop_remainder=True)
    return named_groups(repeated(groups, source).skip(sample % source.pieces), sample)


def one_pass_groups(source: Source) -> Any:
    """The same for every record once; the last sample may have fewer."""
    return named_groups(repeated(file_records(source, 0).batch(source.stitch), source), 0)


def repeated(groups: Any, source: Source) -> Any:
    """Each group once for every piece that its record is cut into (samples.py cuts)."""
    if source.pieces == 1:
        return groups
    return groups.flat_map(lambda *parts: tf.data.Dataset.from_tensors(parts).repeat(source.pieces))


def named_groups(batches: Any, sample: Any) -> Any:
    """Number the groups and name their parts."""
    return batches.enumerate(tf.cast(sample, tf.int64)).map(
        lambda number, parts: {"sample": number, "paths": parts[0], "numbers": parts[1], "records": parts[2]}
    )
