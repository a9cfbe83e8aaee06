"""The rules of `filters.py` as TensorFlow operations, in float64 as there, for programs that draw their tokens
themselves."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Optional

from gpt_neo.mtf_compat import tf


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """How tokens are drawn, see `SampleOptions`.

    temperature, top_p: float64 scalars. top_k: int32 scalar. entmax_alpha: fixed when the graph is built.
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor
    entmax_alpha: Optional[float] = None


def choose(
    logits: tf.Tensor, temperature: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor, seed: tf.Tensor, count: tf.Tensor
) -> tf.Tensor:
    """One token of each row, drawn with random numbers that depend on two int32 scalars: int32 [batch].

    Args:
      temperature, top_p: float32 scalars.
    """
    options = GraphOptions(tf.cast(temperature, tf.float64), top_k, tf.cast(top_p, tf.float64))
    uniform = tf.random.stateless_uniform([int(logits.shape[0])], tf.stack([seed, count]), dtype=tf.float64)
    return draw_tokens(logits, uniform, options)


def draw_tokens(logits: tf.Tensor, uniform: tf.Tensor, options: GraphOptions) -> tf.Tensor:
    """One token of each row, as `filters.draw` draws it: int32 [batch].

    Args:
      logits: float32 [batch, vocab].
      uniform: float64 [batch], from 0 to 1; not looked at when the temperature is 0.
    """

    def drawn() -> tf.Tensor:
        return place_of(distribution(logits, options), lambda mass, total: mass <= uniform[:, tf.newaxis] * total)

    likeliest = tf.argmax(logits, -1, output_type=tf.int32)
    return tf.cond(options.temperature > 0, drawn, lambda: likeliest)


def distribution(logits: tf.Tensor, options: GraphOptions) -> tf.Tensor:
    """What tokens are drawn from: float64 [batch, vocab], each row times some number. Sorted only if it has to be."""
    count = int(logits.shape[-1])
    filters = tf.logical_or(tf.logical_and(options.top_k > 0, options.top_k < count), options.top_p < 1)
    return tf.cond(filters, lambda: kept_probabilities(logits, options), lambda: probabilities(logits, options))


def kept_probabilities(logits: tf.Tensor, options: GraphOptions) -> tf.Tensor:
    """`probabilities`, with 0 for what top-k and top-p leave out.

    Logits are sorted once, as probabilities have the same order; of equal ones the lower ids come first, as they do in
    `filters.probabilities`.
    """
    count = int(logits.shape[-1])
    ordered, ids = tf.math.top_k(logits, count)
    k = tf.where_v2(options.top_k > 0, tf.minimum(options.top_k, count), count)
    edge = tf.slice(ordered, tf.stack([0, k - 1]), [int(logits.shape[0]), 1])  # equally likely ones at it all stay
    nucleus = place_of(probabilities(ordered, options, edge), lambda mass, _: mass < options.top_p)
    last = tf.where_v2(options.top_p < 1, nucleus, tf.fill(nucleus.shape, count - 1))[:, tf.newaxis]
    final, final_id = (tf.gather(x, last, batch_dims=1) for x in (ordered, ids))
    level = tf.logical_and(tf.equal(logits, final), tf.range(count) <= final_id)
    weights = probabilities(logits, options, edge)
    return tf.where_v2(tf.logical_or(logits > final, level), weights, tf.zeros_like(weights))


def place_of(weights: tf.Tensor, passes: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The first place whose running sum a search does not pass, the last if it passes all: int32 [batch].

    By blocks of about the root of their number, since a running sum of a whole vocabulary in float64 takes the TPU
    compiler minutes: first the block, then the place in it.

    Args:
      weights: float64 [batch, vocab].
      passes: of running sums [batch, n] and the whole sum [batch, 1], whether the search goes on.
    """
    batch, count = weights.shape.as_list()
    side = math.isqrt(count - 1) + 1
    blocks = tf.reshape(tf.pad(weights, [[0, 0], [0, side * side - count]]), [batch, side, side])
    ends = running_sum(tf.reduce_sum(blocks, -1))
    block = tf.minimum(counted(passes(ends, ends[:, -1:])), side - 1)[:, tf.newaxis]
    before = tf.where_v2(block > 0, tf.gather(ends, tf.maximum(block - 1, 0), batch_dims=1), 0.0)
    inside = running_sum(tf.gather(blocks, block, batch_dims=1)[:, 0]) + before
    return tf.minimum(block[:, 0] * side + counted(passes(inside, ends[:, -1:])), count - 1)


def running_sum(x: tf.Tensor) -> tf.Tensor:
    """Sums of x [batch, n] up to each place."""
    places = tf.range(x.shape[-1])
    upto = places <= places[:, tf.newaxis]
    return tf.reduce_sum(tf.where_v2(upto, x[:, tf.newaxis], tf.zeros_like(x)[:, tf.newaxis]), -1)


def counted(x: tf.Tensor) -> tf.Tensor:
    """How many of boolean [batch, n] hold: int32 [batch]."""
    return tf.reduce_sum(tf.cast(x, tf.int32), -1)


def probabilities(logits: tf.Tensor, options: GraphOptions, edge: Optional[tf.Tensor] = None) -> tf.Tensor:
    """The whole distribution: float64 [batch, vocab].

    Args:
      edge: float32 [batch, 1], what is below it has no part in the distribution.
    """
    wide = tf.cast(logits, tf.float64)
    scaled = (wide - tf.reduce_max(wide, -1, keepdims=True)) / tf.maximum(options.temperature, 1e-300)
    if edge is not None:
        scaled = tf.where_v2(logits >= edge, scaled, tf.constant(float("-inf"), tf.float64))
    weights = tf.exp(scaled) if options.entmax_alpha is None else entmax_weights(scaled, options.entmax_alpha)
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


def entmax_weights(logits: tf.Tensor, alpha: float) -> tf.Tensor:
    """`filters.entmax` of each row: float64 [batch, vocab], whose largest is 0."""
    scaled, exponent = (alpha - 1.0) * logits, 1.0 / (alpha - 1.0)
    rows = int(logits.shape[0])

    def rises(tau: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(tau > before)

    def rise(tau: tf.Tensor, before: tf.Tensor) -> tuple:
        above = tf.maximum(scaled - tau, 0.0)
        inside = above > 0
        slope = tf.where_v2(inside, tf.where_v2(inside, above, 1.0) ** (exponent - 1.0), 0.0)
        following = tau + (tf.reduce_sum(above**exponent, -1, keepdims=True) - 1.0) / (
            exponent * tf.reduce_sum(slope, -1, keepdims=True)
        )
        going = tau > before
        return tf.where_v2(going, following, tau), tf.where_v2(going, tau, before)

    first = (
        tf.fill([rows, 1], tf.constant(-1.0, tf.float64)),
        tf.fill([rows, 1], tf.constant(float("-inf"), tf.float64)),
    )
    _, threshold = tf.while_loop(rises, rise, first, parallel_iterations=1)
    return tf.maximum(scaled - threshold, 0.0) ** exponent
