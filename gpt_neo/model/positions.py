"""Where a token stands: position tables added to the embedding, or a rotation of queries and keys."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.model.vocab_ops import embed
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import compiled


def token_numbers(mesh: Any, dims: Dims, context: Context) -> Any:
    """Position of each token: int32 [sequence] of whole sequences, [batch, sequence] of new tokens.

    Rows of a decoding step begin at slots of their own; the padding before them gets negative numbers.
    """
    numbers = mtf.range(mesh, dims.sequence, tf.int32)
    if context.decoding is None:
        return numbers
    offset = mtf.sub(context.decoding.slot, context.decoding.start, output_shape=mtf.Shape([dims.batch]))
    return mtf.add(numbers, offset, output_shape=dims.tokens)


def position_embedding(tokens: Any, dims: Dims, config: ModelConfig, context: Context) -> Optional[Any]:
    """What is added to the embeddings: [sequence, embd] or [batch, sequence, embd]; None without tables."""
    if config.positions in ("rotary", "none"):
        return None
    table = learned_rows if config.positions == "learned" else axial_rows
    if context.decoding is None:
        return table(tokens.mesh, None, dims, config)
    numbers = token_numbers(tokens.mesh, dims, context)
    numbers = mtf.maximum(mtf.minimum(numbers, config.n_ctx - 1), 0)  # of padding, or past the end: never read
    return table(tokens.mesh, numbers, dims, config)


def learned_rows(mesh: Any, numbers: Optional[Any], dims: Dims, config: ModelConfig) -> Any:
    """Rows of `wpe` for int32 [...] -> [..., embd]; the first [sequence, embd] without numbers."""
    wpe = variables.normal(mesh, "wpe", mtf.Shape([dims.embed_sequence, dims.embd]), 0.01, config)
    if numbers is not None:
        return embed(wpe, numbers, dims.embed_sequence)
    return first_rows(wpe, dims)


def axial_rows(mesh: Any, numbers: Optional[Any], dims: Dims, config: ModelConfig) -> Any:
    """The same from two tables: row a A2 + b is the mean of row a of the first and row b of the second."""
    assert config.axial_pos_emb is not None
    sizes = config.axial_pos_emb
    axes = [mtf.Dimension(f"axial_dim_{i}", size) for i, size in enumerate(sizes)]
    tables = [
        variables.normal(mesh, f"axial_wpe_{i + 1}", mtf.Shape([axis, dims.embd]), 0.01, config)
        for i, axis in enumerate(axes)
    ]
    if numbers is not None:
        first, second = mtf.floordiv(numbers, sizes[1]), mtf.mod(numbers, sizes[1])
        return (embed(tables[0], first, axes[0]) + embed(tables[1], second, axes[1])) * 0.5
    grid = mtf.add(*tables, output_shape=mtf.Shape([*axes, dims.embd])) * 0.5
    return first_rows(mtf.replace_dimensions(grid, axes, [dims.embed_sequence]), dims)


def first_rows(table: Any, dims: Dims) -> Any:
    """[embed_sequence, embd] -> [sequence, embd]."""
    if dims.sequence.size < dims.embed_sequence.size:
        table = mtf.slice(table, 0, dims.sequence.size, dims.embed_sequence.name)
    return mtf.rename_dimension(table, dims.embed_sequence.name, dims.sequence.name)


def rotate(x: Any, numbers: Any, config: ModelConfig) -> Any:
    """Rotary positions (Su et al. 2021, equation 34): pair i turns by number * base^(-2i / rotary features).

    Pairs are (i, i + half) of the rotating features, or neighbours with `rotary_interleaved`; features past
    `rotary_dim` stay. Angles and products are float32.

    Args:
      x: queries or keys [batch, sequence, heads, features_per_head].
      numbers: int32 [sequence] or [batch, sequence].

    Returns:
      a tensor of the shape and type of x.
    """
    turn = (config.rotary_features, config.rotary_interleaved, config.rotary_base)
    splittable = x.shape.dims[:-1]

    def kernel(x: Any, numbers: Any) -> Any:
        return rotate_kernel(x, numbers, *turn, 1.0)

    def back(dy: Any, numbers: Any) -> Any:
        return rotate_kernel(dy, numbers, *turn, -1.0)

    def gradient(operation: Any, dy: Any) -> list:
        turned = mtf.slicewise(back, [dy, operation.inputs[1]], x.shape, x.dtype, splittable, grad_function=0)
        return [turned, None]

    return mtf.slicewise(kernel, [x, numbers], x.shape, x.dtype, splittable, grad_function=gradient)


@compiled
def rotate_kernel(x: Any, numbers: Any, features: int, interleaved: bool, base: float, sign: float) -> Any:
    """See `rotate`; sign -1 turns back, which is the transposed map."""
    frequencies = (base ** (-np.arange(0, features, 2) / features)).astype(np.float32)
    angles = tf.cast(numbers, tf.float32)[..., tf.newaxis, tf.newaxis] * frequencies  # [..., sequence, 1, pairs]
    cos, sin = tf.cos(angles), sign * tf.sin(angles)
    wide = tf.cast(x[..., :features], tf.float32)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else tf.split(wide, 2, -1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        wide = tf.reshape(tf.stack(turned, -1), tf.shape(wide))
    else:
        wide = tf.concat(turned, -1)
    return tf.concat([tf.cast(wide, x.dtype), x[..., features:]], -1)
