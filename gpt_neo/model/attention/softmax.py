"""Softmax attention with its projections: every query against every key (global), or against a window (local)."""

from __future__ import annotations

import numpy as np

from gpt_neo.config.network import KINDS
from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.model.positions import encode
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.caches import cached_attention
from gpt_neo.ops.flash_attention import flash_attention
from gpt_neo.ops.matmul import matmul, matmul_each
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.quantized import reshaped
from gpt_neo.ops.row_sums import repeated
from gpt_neo.ops.softmax import masked_softmax


def softmax_attention(
    x: Tensor, p: Parameters, layer: int, dims: Dims, config: ModelConfig, context: Context
) -> Tensor:
    """Attention over all tokens, or over the window of the layer's kind: [batch, sequence, embd] -> the same.

    Scores are divided by sqrt(features) with `scale_attention`; else the start of q holds that. With
    `scale_attention_by_layer` also by the number of the layer.
    """
    q, k, v = project_qkv(x, p, dims)
    q, k = encode(q, k, dims, config, context)
    scale = config.attention_scale(layer)
    if scale != 1:
        q *= scale
    context.show(layer, q, k)
    kind = KINDS[config.attention_types[layer]]
    window = kind.window(config)
    # asked of the kind: with `share_parameters` the weights of others are there too
    memory = tuple(p[name] for name in ("attention/mem_k", "attention/mem_v") if name in kind.variables(config))
    if context.decoding:
        out = cached_attention(q, k, v, context.decoding, layer, window, memory)
    elif window is None:
        out = global_attention(q, k, v, dims.sequence, config.attn_dropout, context, config.causal, memory)
    else:
        out = local_attention(q, k, v, dims.sequence, window, config.attn_dropout, context, config.causal)
    return project_output(out, p, [dims.heads, dims.features])


def softmax_weights(shown: list, config: ModelConfig, kind: str) -> np.ndarray:
    """Softmax of q k over the tokens that a query sees; what goes to learned memory is missing from the sum of 1."""
    q, k = shown
    window = KINDS[kind].window(config) or len(q)
    distance = np.subtract.outer(np.arange(len(q)), np.arange(len(q)))
    scores = np.where((distance >= 0) & (distance < window), q @ k.T, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def project(x: Tensor, p: Parameters, names: str, apart: list) -> list:
    """Project [..., embd] to [..., heads, features], once for each name.

    The weights are stored as [embd, heads * features], heads major; their second dimension carries the name `heads`, so
    a layout that splits heads splits it too.

    Args:
      names: of the weights, in one string.
      apart: the dimensions heads and features.
    """
    merged = mtf.Dimension(apart[0].name, apart[0].size * apart[1].size)

    def split(t: Tensor) -> Tensor:  # the first part of an adapter does not have it
        return mtf.replace_dimensions(t, merged, apart) if merged in t.shape.dims else t

    weights = [reshaped(p[name], split) for name in names.split()]
    biases = [p.get(f"compute_qkv_bias/{name}_b") for name in names.split()]
    if biases[0] is None:
        return matmul_each(x, weights, x.shape.dims[-1:])
    return [matmul(x, weight, x.shape.dims[-1:], split(bias)) for weight, bias in zip(weights, biases)]


def project_qkv(x: Tensor, p: Parameters, dims: Dims) -> list:
    """Return q, k, v of [batch, sequence, heads, features_per_head]."""
    return project(x, p, "q k v", [dims.heads, dims.features])


def project_output(x: Tensor, p: Parameters, apart: list) -> Tensor:
    """Project [..., heads, features] back to [..., embd] and add the bias if there is one."""
    merged = mtf.Dimension(apart[0].name, apart[0].size * apart[1].size)
    # the scales of an int8 weight, and the second part of an adapter, are of its columns: they have no heads
    weight = reshaped(p["o"], lambda t: mtf.replace_dimensions(t, merged, apart) if merged in t.shape.dims else t)
    return matmul(x, weight, apart, p.get("compute_output_bias/o_b"))


def attend(
    q: Tensor, k: Tensor, v: Tensor, memory: Dimension, allowed: Tensor, rate: float, context: Context
) -> Tensor:
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
    weights = context.dropout(weights, rate)
    return mtf.einsum([weights, v], output_shape=q.shape)


def global_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequence: Dimension,
    rate: float,
    context: Context,
    causal: bool = True,
    extra: tuple = (),
) -> Tensor:
    """Attention over the whole sequence, or all of it that came before. Shapes as `attend`; the mask comes from iota.

    Dropout acts on the weights, so they have to be there as a tensor; without it, causal attention never holds them.

    Args:
      extra: keys and values that every query sees, each [mem_kv_sequence, heads, features_per_head]; or nothing.
    """
    if causal and not extra and not context.drops(rate):
        return flash_attention(q, k, v, radius=None)
    count = extra[0].shape.dims[0].size if extra else 0
    memory = mtf.Dimension("memory_length", count + sequence.size)
    if extra:
        k, v = (prepend(more, t, sequence) for more, t in zip(extra, (k, v)))
        k, v = (mtf.rename_dimension(t, "joined", memory.name) for t in (k, v))
    else:
        k, v = (mtf.rename_dimension(t, sequence.name, memory.name) for t in (k, v))
    # What is prepended lies before every query, and within the radius.
    allowed = window(q.mesh, sequence, memory, offset=count, radius=memory.size, causal=causal)
    return attend(q, k, v, memory, allowed, rate, context)


def prepend(extra: Tensor, x: Tensor, sequence: Dimension) -> Tensor:
    """[mem_kv_sequence, heads, features], [batch, sequence, heads, features] -> [batch, joined, heads, features].

    Joined under a name that no layout splits, which a concatenation could not follow.
    """
    batch = [d for d in x.shape.dims if d not in extra.shape.dims and d != sequence]
    name = extra.shape.dims[0].name
    extra = mtf.rename_dimension(repeated(extra, mtf.Shape(batch + extra.shape.dims)), name, "joined")
    return mtf.concat([extra, mtf.rename_dimension(x, sequence.name, "joined")], "joined")


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequence: Dimension,
    radius: int,
    rate: float,
    context: Context,
    causal: bool = True,
) -> Tensor:
    """Attention in which query i sees keys j with 0 <= i - j < radius, and if not causal -radius <= i - j < radius.

    Without dropout, causal attention never holds the weights. Else the sequence is cut into blocks of `radius`; each
    block sees itself and the one before (and the one after), so the scores take [sequence, 2 * radius] (or 3) instead
    of [sequence, sequence].
    """
    if causal and not context.drops(rate):
        return flash_attention(q, k, v, radius)
    if sequence.size <= radius:
        return global_attention(q, k, v, sequence, rate, context, causal)
    count = -(-sequence.size // radius)
    padding = count * radius - sequence.size
    blocks, block = mtf.Dimension("local_blocks", count), mtf.Dimension("local_sequence", radius)
    memory = mtf.Dimension("memory_length", (2 if causal else 3) * radius)

    def cut(x: Tensor) -> Tensor:
        padded = mtf.pad(x, [0, padding], sequence.name) if padding else x
        return mtf.replace_dimensions(padded, mtf.Dimension(sequence.name, count * radius), [blocks, block])

    def with_neighbours(x: Tensor) -> Tensor:
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
    out = attend(cut(q), with_neighbours(k), with_neighbours(v), memory, allowed, rate, context)
    out = mtf.replace_dimensions(out, [blocks, block], mtf.Dimension(sequence.name, count * radius))
    return mtf.slice(out, 0, sequence.size, sequence.name) if padding else out


def window(mesh: mtf.Mesh, query: Dimension, memory: Dimension, offset: int, radius: int, causal: bool) -> Tensor:
    """Boolean [query, memory]: 0 <= (query + offset) - memory < radius; if not causal, down to -radius."""
    shape = mtf.Shape([query, memory])
    position = mtf.range(mesh, query, tf.int32) + offset
    distance = mtf.sub(position, mtf.range(mesh, memory, tf.int32), output_shape=shape)
    nearest = 0 if causal else -radius
    return mtf.logical_and(mtf.greater_equal(distance, nearest), mtf.less(distance, radius))
