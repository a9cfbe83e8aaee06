"""Softmax attention: every query against every key (global), or against a window (local)."""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.model.attention.blockwise import blockwise_attention
from gpt_neo.model.dropout import dropout
from gpt_neo.model.fused_ops import masked_softmax
from gpt_neo.model.row_sums import repeated
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
        weights = dropout(weights, dropout_rate)
    return mtf.einsum([weights, v], output_shape=q.shape)


def global_attention(
    q: Any,
    k: Any,
    v: Any,
    sequence: Any,
    dropout_rate: float,
    is_training: bool,
    causal: bool = True,
    extra: Optional[tuple] = None,
) -> Any:
    """Attention over the whole sequence, or all of it that came before. Shapes as `attend`; the mask comes from iota.

    Dropout acts on the weights, so they have to be there as a tensor; without it, causal attention never holds them.

    Args:
      extra: keys and values that every query sees, each [mem_kv_sequence, heads, features_per_head].
    """
    if causal and not extra and not (dropout_rate > 0 and is_training):
        return blockwise_attention(q, k, v, radius=None)
    count = extra[0].shape.dims[0].size if extra else 0
    memory = mtf.Dimension("memory_length", count + sequence.size)
    if extra:
        k, v = (prepend(more, t, sequence) for more, t in zip(extra, (k, v)))
        k, v = (mtf.rename_dimension(t, "joined", memory.name) for t in (k, v))
    else:
        k, v = (mtf.rename_dimension(t, sequence.name, memory.name) for t in (k, v))
    # What is prepended lies before every query, and within the radius.
    allowed = window(q.mesh, sequence, memory, offset=count, radius=memory.size, causal=causal)
    return attend(q, k, v, memory, allowed, dropout_rate, is_training)


def prepend(extra: Any, x: Any, sequence: Any) -> Any:
    """[mem_kv_sequence, heads, features], [batch, sequence, heads, features] -> [batch, joined, heads, features].

    Joined under a name that no layout splits, which a concatenation could not follow.
    """
    batch = [d for d in x.shape.dims if d not in extra.shape.dims and d != sequence]
    name = extra.shape.dims[0].name
    extra = mtf.rename_dimension(repeated(extra, mtf.Shape(batch + extra.shape.dims)), name, "joined")
    return mtf.concat([extra, mtf.rename_dimension(x, sequence.name, "joined")], "joined")


def local_attention(
    q: Any, k: Any, v: Any, sequence: Any, radius: int, dropout_rate: float, is_training: bool, causal: bool = True
) -> Any:
    """Attention in which query i sees keys j with 0 <= i - j < radius, and if not causal -radius <= i - j < radius.

    Without dropout, causal attention never holds the weights. Else the sequence is cut into blocks of `radius`; each
    block sees itself and the one before (and the one after), so the scores take [sequence, 2 * radius] (or 3) instead
    of [sequence, sequence].
    """
    if causal and not (dropout_rate > 0 and is_training):
        return blockwise_attention(q, k, v, radius)
    if sequence.size <= radius:
        return global_attention(q, k, v, sequence, dropout_rate, is_training, causal)
    count = -(-sequence.size // radius)
    padding = count * radius - sequence.size
    blocks, block = mtf.Dimension("local_blocks", count), mtf.Dimension("local_sequence", radius)
    memory = mtf.Dimension("memory_length", (2 if causal else 3) * radius)

    def cut(x: Any) -> Any:
        padded = mtf.pad(x, [0, padding], sequence.name) if padding else x
        return mtf.replace_dimensions(padded, mtf.Dimension(sequence.name, count * radius), [blocks, block])

    def with_neighbours(x: Any) -> Any:
        # Joined under a name that no layout splits, which a concatenation could not follow.
        x = mtf.rename_dimension(cut(x), block.name, "local_memory")
        following = [] if causal else [mtf.shift(x, -1, blocks, wrap=False)]
        x = mtf.concat([mtf.shift(x, 1, blocks, wrap=False), x, *following], "local_memory")
        return mtf.rename_dimension(x, "local_memory", memory.name)

    allowed = window(q.mesh, block, memory, offset=radius, radius=radius, causal=causal)
    # Before the first block and after the last token there is only padding.
    shape = mtf.Shape([blocks, memory])
    key = mtf.add(mtf.range(q.mesh, blocks, tf.int32) * radius, mtf.range(q.mesh, memory, tf.int32), output_shape=shape)
    present = mtf.logical_and(mtf.greater_equal(key, radius), mtf.less(key, sequence.size + radius))
    allowed = mtf.logical_and(allowed, present, output_shape=mtf.Shape([blocks, block, memory]))
    out = attend(cut(q), with_neighbours(k), with_neighbours(v), memory, allowed, dropout_rate, is_training)
    out = mtf.replace_dimensions(out, [blocks, block], mtf.Dimension(sequence.name, count * radius))
    return mtf.slice(out, 0, sequence.size, sequence.name) if padding else out


def window(mesh: Any, query: Any, memory: Any, offset: int, radius: int, causal: bool) -> Any:
    """Boolean [query, memory]: 0 <= (query + offset) - memory < radius; if not causal, down to -radius."""
    shape = mtf.Shape([query, memory])
    position = mtf.range(mesh, query, tf.int32) + offset
    distance = mtf.sub(position, mtf.range(mesh, memory, tf.int32), output_shape=shape)
    nearest = 0 if causal else -radius
    return mtf.logical_and(mtf.greater_equal(distance, nearest), mtf.less(distance, radius))
