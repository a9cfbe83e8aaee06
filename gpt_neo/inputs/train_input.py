"""Batches of records for training and evaluation, as tf.data pipelines."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, Optional

from gpt_neo.config.schema import DatasetConfig, RunConfig
from gpt_neo.dataprep.readers import natural_key
from gpt_neo.dataprep.records import FEATURE, count_from_name, count_records
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.inputs.position import locate
from gpt_neo.mtf_compat import tf


def only_dataset(run: RunConfig) -> tuple[str, DatasetConfig]:
    """Name and config of the run's dataset.

    Raises:
      ConfigError: there is none, several, or one in document mode.
    """
    if len(run.datasets) != 1:
        raise ConfigError(f"{run.source}: datasets names {len(run.datasets)} datasets; this version reads exactly one")
    ref, config = run.datasets[0]
    if ref.datatype not in (None, "chunks"):
        raise ConfigError(
            f"{run.source}: dataset {ref.name!r} is read as {ref.datatype!r}; this version reads 'chunks'"
        )
    if run.training.mlm_training:
        raise ConfigError(f"{run.source}: key 'mlm_training' is true; this version trains causal models")
    return ref.name, config


def find_records(pattern: str, where: str) -> list[str]:
    """Files of a glob, local or gs://, in natural order.

    Raises:
      DataError: there are none.
    """
    try:
        paths = tf.io.gfile.glob(pattern)
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"{where}: {pattern!r} cannot be listed: {error}") from error
    if not paths:
        raise DataError(f"{where}: no records match {pattern!r}; make some with data/create_tfrecords.py")
    return sorted(paths, key=natural_key)


def record_counts(paths: Sequence[str]) -> list[int]:
    """Records per file, by name where the name says it, else by reading the lengths.

    Raises:
      DataError: all files are empty.
    """
    counts = []
    for path in paths:
        named = count_from_name(path)
        counts.append(count_records(path) if named is None and os.path.exists(path) else named or 0)
    if not sum(counts):
        raise DataError(f"no records in {len(paths)} file(s), the first of them {paths[0]}")
    return counts


def training_records(run: RunConfig) -> tuple[list[str], list[int]]:
    """Training files in the order they are read, and their record counts."""
    name, dataset = only_dataset(run)
    paths = find_records(dataset.path, f"dataset {name!r}, key 'path'")
    if run.training.shuffle_input_filenames:
        random.Random(run.training.seed or 1).shuffle(paths)
    return paths, record_counts(paths)


def training_batches(run: RunConfig, batch_size: int, start_step: int) -> Any:
    """An endless tf.data.Dataset of int32 [batch, n_ctx + 1], from the records of `start_step` on."""
    paths, counts = training_records(run)
    first, skip = locate(start_step * batch_size, counts)
    rest = tf.data.TFRecordDataset(paths[first:]).skip(skip)
    records = rest.concatenate(tf.data.TFRecordDataset(paths).repeat())
    parse = record_parser(run)
    return records.batch(batch_size, drop_remainder=True).map(parse).prefetch(4)


def evaluation_records(run: RunConfig) -> tuple[list[str], list[int]]:
    """Held-out files and their record counts.

    Raises:
      ConfigError: the dataset names none.
    """
    name, dataset = only_dataset(run)
    if not dataset.eval_path:
        raise ConfigError(f"dataset {name!r} has no 'eval_path': evaluation needs held-out records")
    paths = find_records(dataset.eval_path, f"dataset {name!r}, key 'eval_path'")
    return paths, record_counts(paths)


def evaluation_batches(run: RunConfig, batch_size: int, limit: Optional[int] = None) -> Any:
    """Every held-out record once, or those of the first `limit` batches.

    Returns:
      tf.data.Dataset of {"tokens": int32 [batch, n_ctx + 1], "weight": float32 [batch]}; the last batch is filled
      with rows of weight 0.
    """
    paths, counts = evaluation_records(run)
    count = sum(counts) if limit is None else min(sum(counts), limit * batch_size)
    filling = -count % batch_size
    parse = record_parser(run)
    tokens = tf.data.TFRecordDataset(paths).take(count).batch(1).map(parse).unbatch()
    weighted = tokens.map(lambda row: {"tokens": row, "weight": tf.ones([])})
    blank = {"tokens": tf.zeros([run.model.n_ctx + 1], tf.int32), "weight": tf.zeros([])}
    if filling:
        weighted = weighted.concatenate(tf.data.Dataset.from_tensors(blank).repeat(filling))
    return weighted.batch(batch_size, drop_remainder=True).prefetch(4)


def record_parser(run: RunConfig) -> Any:
    """A function from serialised records [batch] to int32 [batch, n_ctx + 1], ids checked against n_vocab."""
    length, n_vocab = run.model.n_ctx + 1, run.model.n_vocab

    def parse(serialised: Any) -> Any:
        sparse = tf.io.parse_example(serialised, {FEATURE: tf.io.VarLenFeature(tf.int64)})[FEATURE]
        tokens = tf.sparse.to_dense(sparse, default_value=-1)
        long_enough = tf.debugging.assert_greater_equal(
            tf.shape(tokens)[1], length, message=f"a record is shorter than n_ctx + 1 = {length} tokens"
        )
        with tf.control_dependencies([long_enough]):
            tokens = tokens[:, :length]
        checks = [
            tf.debugging.assert_less(tokens, tf.constant(n_vocab, tf.int64), message=f"a token id reaches {n_vocab}"),
            tf.debugging.assert_non_negative(tokens, message=f"a record is shorter than n_ctx + 1 = {length} tokens"),
        ]
        with tf.control_dependencies(checks):
            tokens = tf.cast(tokens, tf.int32)
        tokens.set_shape([serialised.shape[0], length])
        return tokens

    return parse
