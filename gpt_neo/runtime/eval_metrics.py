"""Sums over held-out records, gathered batch by batch, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

from gpt_neo.errors import DataError, counted
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.intervals import Interval, Moments, exp, ratio

# What is known of each record; products of any two of them are summed over the records.
ONE, NATS, TOKENS, BYTES, CHARACTERS = range(5)


class NothingCountsError(DataError):
    """No label of the held-out records counts, so that there is no loss."""


def record_sums(
    losses: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor, real: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    """ONE, NATS, TOKENS, BYTES and CHARACTERS of each record: float32 [batch, 5].

    Args:
      losses: float32 [batch, sequence] nats per label.
      weights: float32 [batch, sequence], 1 for the labels that count.
      labels: int32 [batch, sequence].
      real: float32 [batch], 0 for rows that only fill up the batch.
      lengths: float32 [n_vocab, 2], bytes and characters that an id stands for.
    """
    weights = weights * real[:, tf.newaxis]
    sizes = tf.reduce_sum(tf.gather(lengths, labels) * weights[..., tf.newaxis], 1)
    own = tf.stack([real, tf.reduce_sum(losses * weights, 1), tf.reduce_sum(weights, 1)], 1)
    return tf.concat([own, sizes], 1)


def batch_sums(batch: Mapping, losses: tf.Tensor, n_vocab: int, lengths: Optional[np.ndarray]) -> tf.Tensor:
    """`record_sums` of a batch of held-out records.

    Args:
      losses: float32 [batch, n_ctx].
      lengths: `estimator.text_lengths(run)`; None where no tokenizer is known.
    """
    weights = batch.get("weights", tf.ones_like(losses))
    table = tf.zeros([n_vocab, 2]) if lengths is None else tf.constant(lengths, tf.float32)
    return record_sums(losses, weights, batch["labels"], batch["weight"], table)


def streaming(records: tf.Tensor, source: tf.Tensor, sources: int) -> dict:
    """Metrics of an Estimator, each (value, update).

    `sums` is float64 [sources, 5, 5], the products of what `record_sums` gives; the others are for TensorBoard.

    Args:
      records: float32 [batch, 5].
      source: int32 [batch], the dataset that a record is of.
      sources: number of datasets.
    """
    rows = tf.cast(records, tf.float64)
    products = tf.einsum("bs,bi,bj->sij", tf.one_hot(source, sources, dtype=tf.float64), rows, rows)
    kept = tf.get_variable(
        "sums",
        [sources, 5, 5],
        tf.float64,
        tf.zeros_initializer(),
        trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.METRIC_VARIABLES],
    )
    update = tf.assign_add(kept, products)
    value = tf.identity(kept)
    _, nats, tokens, size, _ = tf.unstack(tf.reduce_sum(value, 0)[ONE])
    return {
        "sums": (value, update),
        "loss_per_token": (nats / tokens, update),
        "bytes_per_token": (size / tokens, update),
        "tokens": (tokens, update),
    }


def summarize(metrics: dict, names: Sequence[str], in_nats: bool = True) -> dict:
    """Loss, perplexity, bits per byte and per character from the sums, with 95 % confidence intervals.

    perplexity = exp(total nats / tokens); bits per byte = total nats / (ln 2 * bytes of the text scored). Records are
    taken as independent, the tokens of one are not. All but the loss are None where it is not `in_nats`: entmax gives
    tokens the probability 0, so they are infinite or undefined.

    Args:
      names: of the datasets; of several, each in which labels count has an entry of its own in `by_dataset`.

    Raises:
      NothingCountsError: in none of them does one.
    """
    sums = np.asarray(metrics["sums"], np.float64)
    if not sums[:, ONE, TOKENS].sum():
        samples = counted(int(sums[:, ONE, ONE].sum()), "held-out sample")
        raise NothingCountsError(
            f"there is no loss: no label counts in {samples} of dataset {', '.join(names)}; a document needs two "
            "tokens, a record with a mask a 1 in it"
        )
    result = {"step": int(metrics["global_step"]), **summary(sums.sum(0), in_nats), "datasets": list(names)}
    if len(names) > 1:
        result["by_dataset"] = {name: summary(part, in_nats) for name, part in zip(names, sums) if part[ONE, TOKENS]}
    return result


def summary(sums: np.ndarray, in_nats: bool) -> dict:
    """The numbers of [5, 5] sums, and under `intervals` the ends of the interval of each."""
    loss = nats_per(sums, TOKENS)
    found: dict = {"loss": loss}
    if in_nats:
        found["perplexity"] = loss.through(exp)
        for name, unit in (("bits_per_byte", BYTES), ("bits_per_character", CHARACTERS)):
            if sums[ONE, unit]:
                found[name] = nats_per(sums, unit).through(lambda nats: nats / math.log(2))
    names = ("loss", "perplexity", "bits_per_byte", "bits_per_character")
    return {
        **{name: found[name].value if name in found else None for name in names},
        "tokens": int(sums[ONE, TOKENS]),
        "records": int(sums[ONE, ONE]),
        "intervals": {name: [found[name].low, found[name].high] for name in names if name in found},
    }


def nats_per(sums: np.ndarray, unit: int) -> Interval:
    """Nats per unit: the ratio of two sums over records."""
    return ratio(
        Moments(sums[ONE, ONE], sums[ONE, NATS], sums[ONE, unit], sums[NATS, NATS], sums[NATS, unit], sums[unit, unit])
    )
