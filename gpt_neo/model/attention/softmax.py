"""Softmax attention: every query against every key (global), or against a window (local)."""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.model.fused_ops import masked_softmax
from gpt_neo.mtf_compat import mtf, tf


def attend(q: Any, k: Any, v: Any, memory: Any, allowed: Any, dropout_rate: float, is_training: bool) -> Any:
    """Softmax attention with scores and softmax in float32; scores are not divided by sqrt(features).

    Args:
      q: [batch, ..., sequence, heads, features_per_head].
      k, v: the same with `memory` in place of `sequence`.
      allowed: boolean [some dimensions of q, memory]: which keys a query may see.

    Returns:
      a tensor of the shape of q.
    """
    rows = [d for d in q.shape.dims if d in allowed.shape.dims]
    outer = [d for d in q.shape.dims if d not in rows and d.name != "features_per_head"]
    # The mask's dimensions come last, so that one compiled pass can apply it.
    shape = mtf.Shape(outer + rows + [memory])
    scores = mtf.einsum([mtf.cast(q, tf.float32), mtf.cast(k, tf.float32)], output_shape=shape)
    weights = mtf.cast(masked_softmax(scores, allowed, memory), v.dtype)
    if dropout_rate > 0 and is_training:
        weights = mtf.dropout(weights, is_training, rate=dropout_rate)
    return mtf.einsum([weights, v], output_shape=q.shape)


def global_attention(
    q: Any, k: Any, v: Any, sequence: Any, dropout_rate: float, is_training: bool, causal: bool = True,
    extra: Optional[tuple] = None,
) -> Any:  # fmt: skip
    """Attention over the whole sequence, or all of it that came before. Shapes as `attend`.

    Args:
      extra: keys and values that every query sees, each [mem_kv_sequence, heads, features_per_head].
    """
    count = extra[0].shape.dims[0].size if extra else 0
    memory = mtf.Dimension("memory_length", count + sequence.size)
    if extra:
        k, v = (prepend(more, t, sequence) for more, t in zip(extra, (k, v)))
        k, v = (mtf.rename_dimension(t, "joined", memory.name) for t in (k, v))
    else:
        k, v = (mtf.rename_dimension(t, sequence.name, memory.name) for t in (k, v))
    if causal:  # what is prepended lies before every query
        allowed = causal_window(q.mesh, sequence, memory, offset=count, radius=None)
    else:
        allowed = mtf.greater_equal(mtf.range(q.mesh, memory, tf.int32), 0)
    return attend(q, k, v, memory, allowed, dropout_rate, is_training)


def prepend(extra: Any, x: Any, sequence: Any) -> Any:
    """[mem_kv_sequence, heads, features], [batch, sequence, heads, features] -> [batch, joined, heads, features].

    Joined under a name that no layout splits, which a concatenation could not follow.
    """
    batch = [d for d in x.shape.dims if d not in extra.shape.dims and d != sequence]
    name = extra.shape.dims[0].name
    extra = mtf.rename_dimension(mtf.broadcast(extra, mtf.Shape(batch + extra.shape.dims)), name, "joined")
    return mtf.concat([extra, mtf.rename_dimension(x, sequence.name, "joined")], "joined")


def local_attention(
    q: Any, k: Any, v: Any, sequence: Any, radius: int, dropout_rate: float, is_training: bool
) -> Any:
    """Causal attention in which query i sees keys j with 0 <= i - j < radius.

    The sequence is cut into blocks of `radius`; each block sees itself and the one before, so the scores take
    [sequence, 2 * radius] instead of [sequence, sequence].
    """
    if sequence.size <= radius:
        return global_attention(q, k, v, sequence, dropout_rate, is_training)
    count = -(-sequence.size // radius)
    padding = count * radius - sequence.size
    blocks, block = mtf.Dimension("local_blocks", count), mtf.Dimension("local_sequence", radius)
    memory = mtf.Dimension("memory_length", 2 * radius)

    def cut(x: Any) -> Any:
        padded = mtf.pad(x, [0, padding], sequence.name) if padding else x
        return mtf.replace_dimensions(padded, mtf.Dimension(sequence.name, count * radius), [blocks, block])

    def with_previous(x: Any) -> Any:
        # Joined under a name that no layout splits, which a concatenation could not follow.
        x = mtf.rename_dimension(cut(x), block.name, "local_memory")
        x = mtf.concat([mtf.shift(x, 1, blocks, wrap=False), x], "local_memory")
        return mtf.rename_dimension(x, "local_memory", memory.name)

    allowed = causal_window(q.mesh, block, memory, offset=radius, radius=radius)
    # The first block has none before it: its left half is padding.
    first = mtf.equal(mtf.range(q.mesh, blocks, tf.int32), 0)
    left = mtf.less(mtf.range(q.mesh, memory, tf.int32), radius)
    absent = mtf.logical_and(first, left, output_shape=mtf.Shape([blocks, memory]))
    shape = mtf.Shape([blocks, block, memory])
    allowed = mtf.logical_and(allowed, mtf.logical_not(absent), output_shape=shape)
    out = attend(cut(q), with_previous(k), with_previous(v), memory, allowed, dropout_rate, is_training)
    out = mtf.replace_dimensions(out, [blocks, block], mtf.Dimension(sequence.name, count * radius))
    return mtf.slice(out, 0, sequence.size, sequence.name) if padding else out


def causal_window(mesh: Any, query: Any, memory: Any, offset: int, radius: Optional[int]) -> Any:
    """Boolean [query, memory]: 0 <= (query + offset) - memory, and < radius where one is given."""
    shape = mtf.Shape([query, memory])
    position = mtf.range(mesh, query, tf.int32) + offset
    distance = mtf.sub(position, mtf.range(mesh, memory, tf.int32), output_shape=shape)
    allowed = mtf.greater_equal(distance, 0)
    if radius is not None:
        allowed = mtf.logical_and(allowed, mtf.less(distance, radius))
    return allowed
