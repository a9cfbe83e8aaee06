"""From logits to tokens as a graph: what `filters.draw` does, in float64 as there, for all rows of a batch at once."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from gpt_neo.mtf_compat import tf


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """How tokens are drawn, see `SampleOptions`.

    temperature, top_p: float64 scalars. top_k: int32 scalar. entmax_alpha, n_ids: fixed when the graph is built.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    entmax_alpha: Optional[float] = None
    n_ids: Optional[int] = None


def draw_tokens(logits: Any, uniform: Any, options: GraphOptions) -> Any:
    """One token of each row: int32 [batch].

    Args:
      logits: float32 [batch, vocab].
      uniform: float64 [batch], from 0 to 1; not looked at when the temperature is 0.
    """
    logits = logits[:, : options.n_ids]
    return tf.cond(
        options.temperature > 0, lambda: drawn(logits, uniform, options),
        lambda: tf.argmax(logits, -1, output_type=tf.int32),
    )  # fmt: skip


def drawn(logits: Any, uniform: Any, options: GraphOptions) -> Any:
    """`draw_tokens` above temperature 0."""
    count = int(logits.shape[-1])
    filters = tf.logical_or(tf.logical_and(options.top_k > 0, options.top_k < count), options.top_p < 1)
    weights = tf.cond(filters, lambda: kept_probabilities(logits, options), lambda: probabilities(logits, options))
    mass = tf.cumsum(weights, -1)
    below = tf.cast(mass <= uniform[:, tf.newaxis] * mass[:, -1:], tf.int32)
    return tf.minimum(tf.reduce_sum(below, -1), count - 1)


def kept_probabilities(logits: Any, options: GraphOptions) -> Any:
    """`probabilities`, with 0 for what top-k and top-p leave out.

    Logits are sorted once, as probabilities have the same order; of equal ones the lower ids come first, as they do in
    `filters.probabilities`.
    """
    count = int(logits.shape[-1])
    ordered, ids = tf.math.top_k(logits, count)
    k = tf.where_v2(options.top_k > 0, tf.minimum(options.top_k, count), count)
    edge = tf.slice(ordered, tf.stack([0, k - 1]), [int(logits.shape[0]), 1])  # equally likely ones at it all stay
    mass = tf.cumsum(probabilities(ordered, options, edge), -1)
    before = tf.reduce_sum(tf.cast(mass < options.top_p, tf.int32), -1, keepdims=True)
    last = tf.where_v2(options.top_p < 1, tf.minimum(before, count - 1), tf.fill(tf.shape(before), count - 1))
    final, final_id = (tf.gather(x, last, batch_dims=1) for x in (ordered, ids))
    level = tf.logical_and(tf.equal(logits, final), tf.range(count) <= final_id)
    weights = probabilities(logits, options, edge)
    return tf.where_v2(tf.logical_or(logits > final, level), weights, tf.zeros_like(weights))


def probabilities(logits: Any, options: GraphOptions, edge: Optional[Any] = None) -> Any:
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


def entmax_weights(logits: Any, alpha: float) -> Any:
    """`filters.entmax` of each row: float64 [batch, vocab], whose largest is 0."""
    scaled, exponent = (alpha - 1.0) * logits, 1.0 / (alpha - 1.0)
    rows = int(logits.shape[0])

    def rises(tau: Any, before: Any) -> Any:
        return tf.reduce_any(tau > before)

    def rise(tau: Any, before: Any) -> tuple:
        above = tf.maximum(scaled - tau, 0.0)
        inside = above > 0
        slope = tf.where_v2(inside, tf.where_v2(inside, above, 1.0) ** (exponent - 1.0), 0.0)
        following = tau + (tf.reduce_sum(above**exponent, -1, keepdims=True) - 1.0) / (
            exponent * tf.reduce_sum(slope, -1, keepdims=True)
        )
        going = tau > before
        return tf.where_v2(going, following, tau), tf.where_v2(going, tau, before)

    first = (tf.fill([rows, 1], tf.constant(-1.0, tf.float64)),
             tf.fill([rows, 1], tf.constant(float("-inf"), tf.float64)))  # fmt: skip
    _, threshold = tf.while_loop(rises, rise, first, parallel_iterations=1)
    return tf.maximum(scaled - threshold, 0.0) ** exponent
