"""The rules of `filters.py` as TensorFlow operations, for models that draw their tokens themselves."""

from __future__ import annotations

from typing import Any

from gpt_neo.mtf_compat import tf


def choose(logits: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any, count: Any) -> Any:
    """int32 [batch]: the likeliest token at temperature 0, else one drawn.

    Args:
      logits: float32 [batch, vocab].
      temperature, top_k, top_p: scalars, see `filters.SampleOptions`.
      seed, count: int32 scalars that the random numbers depend on.
    """
    kept = kept_logits(logits / tf.maximum(temperature, 1e-6), top_k, top_p)
    drawn = tf.random.stateless_categorical(kept, 1, tf.stack([seed, count]), tf.int32)[:, 0]
    return tf.where_v2(temperature > 0, drawn, tf.argmax(logits, -1, output_type=tf.int32))


def kept_logits(logits: Any, top_k: Any, top_p: Any) -> Any:
    """Logits [batch, vocab], -inf for tokens that top-k and then top-p leave out; nothing is sorted if neither does."""
    none = tf.logical_and(tf.less_equal(top_k, 0), tf.greater_equal(top_p, 1.0))
    return tf.cond(none, lambda: logits, lambda: sorted_out(logits, top_k, top_p))


def sorted_out(logits: Any, top_k: Any, top_p: Any) -> Any:
    """Of equally likely tokens at the edge of top-k all stay; top-p keeps the fewest whose mass reaches it."""
    size = tf.shape(logits)[-1]
    order = tf.argsort(logits, -1, "DESCENDING", stable=True)
    ranked = tf.gather(logits, order, batch_dims=1)
    edge = ranked[:, tf.where_v2(top_k > 0, tf.minimum(top_k, size), size) - 1][:, tf.newaxis]
    ranked = tf.where_v2(ranked >= edge, ranked, -float("inf"))
    mass = tf.cumsum(tf.nn.softmax(ranked), -1, exclusive=True)
    ranked = tf.where_v2(tf.logical_or(mass < top_p, top_p >= 1.0), ranked, -float("inf"))
    return tf.gather(ranked, tf.argsort(order, -1), batch_dims=1)
