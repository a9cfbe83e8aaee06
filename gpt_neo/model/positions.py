"""Where a token stands: position tables added to the embedding, or a rotation of queries and keys."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.kernels import compiled
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.vocabulary import embed


def token_numbers(mesh: mtf.Mesh, dims: Dims, context: Context) -> Tensor:
    """Position of each token: int32 [sequence] of whole sequences, [batch, sequence] of new tokens.

    Rows of a decoding step begin at positions of their own; the padding before them gets negative numbers.
    """
    numbers = mtf.range(mesh, dims.sequence, tf.int32)
    if context.decoding is None:
        return numbers
    offset = mtf.sub(context.decoding.position, context.decoding.start, output_shape=mtf.Shape([dims.batch]))
    return mtf.add(numbers, offset, output_shape=dims.tokens)


def position_embedding(
    tokens: Tensor, p: Parameters, dims: Dims, config: ModelConfig, context: Context
) -> Optional[Tensor]:
    """What is added to the embeddings: [sequence, embd] or [batch, sequence, embd]; None without tables."""
    rows = ENCODINGS[config.positions].rows
    if rows is None:
        return None
    if context.decoding is None:
        return rows(None, p, dims, config)
    numbers = token_numbers(tokens.mesh, dims, context)
    numbers = mtf.maximum(mtf.minimum(numbers, config.n_ctx - 1), 0)  # of padding, or past the end: never read
    return rows(numbers, p, dims, config)


def encode(q: Tensor, k: Tensor, dims: Dims, config: ModelConfig, context: Context) -> tuple[Tensor, Tensor]:
    """Queries and keys [batch, sequence, heads, features_per_head] of softmax attention, with what they are to know of
    positions. Keys go into a cache so: their positions never change."""
    turn = ENCODINGS[config.positions].turn
    if turn is None:
        return q, k
    numbers = token_numbers(q.mesh, dims, context)
    return turn(q, numbers, config), turn(k, numbers, config)


def learned_rows(numbers: Optional[Tensor], p: Parameters, dims: Dims, config: ModelConfig) -> Tensor:
    """Rows of `wpe` for int32 [...] -> [..., embd]; the first [sequence, embd] without numbers."""
    wpe = p["wpe"]
    return first_rows(wpe, dims) if numbers is None else embed(wpe, numbers, dims.embed_sequence)


def axial_rows(numbers: Optional[Tensor], p: Parameters, dims: Dims, config: ModelConfig) -> Tensor:
    """The same from two tables: row a A2 + b is the mean of row a of the first and row b of the second."""
    tables = [p["axial_wpe_1"], p["axial_wpe_2"]]
    axes = [table.shape.dims[0] for table in tables]
    if numbers is not None:
        first, second = mtf.floordiv(numbers, axes[1].size), mtf.mod(numbers, axes[1].size)
        return (embed(tables[0], first, axes[0]) + embed(tables[1], second, axes[1])) * 0.5
    grid = mtf.add(*tables, output_shape=mtf.Shape([*axes, dims.embd])) * 0.5
    return first_rows(mtf.replace_dimensions(grid, axes, [dims.embed_sequence]), dims)


def first_rows(table: Tensor, dims: Dims) -> Tensor:
    """[embed_sequence, embd] -> [sequence, embd]."""
    if dims.sequence.size < dims.embed_sequence.size:
        table = mtf.slice(table, 0, dims.sequence.size, dims.embed_sequence.name)
    return mtf.rename_dimension(table, dims.embed_sequence.name, dims.sequence.name)


def rotate(x: Tensor, numbers: Tensor, config: ModelConfig) -> Tensor:
    """Rotary positions (Su et al. 2021, equation 34): pair i turns by number / scaling * base^(-2i / rotary features).

    Pairs are (i, i + half) of the rotating features, or neighbours with `rotary_interleaved`; features past
    `rotary_dim` stay. Angles and products are float32.

    Args:
      x: queries or keys [batch, sequence, heads, features_per_head].
      numbers: int32 [sequence] or [batch, sequence].

    Returns:
      a tensor of the shape and type of x.
    """
    turn = (config.rotary_features, config.rotary_interleaved, config.rotary_base, config.rotary_scaling)
    splittable = x.shape.dims[:-1]

    def kernel(x: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return rotate_kernel(x, numbers, *turn, 1.0)

    def back(dy: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return rotate_kernel(dy, numbers, *turn, -1.0)

    def gradient(operation: mtf.Operation, dy: Tensor) -> list:
        turned = mtf.slicewise(back, [dy, operation.inputs[1]], x.shape, x.dtype, splittable, grad_function=0)
        return [turned, None]

    return mtf.slicewise(kernel, [x, numbers], x.shape, x.dtype, splittable, grad_function=gradient)


@compiled
def rotate_kernel(
    x: tf.Tensor, numbers: tf.Tensor, features: int, interleaved: bool, base: float, scaling: float, sign: float
) -> tf.Tensor:
    """See `rotate`; sign -1 turns back, which is the transposed map."""
    frequencies = (base ** (-np.arange(0, features, 2) / features) / scaling).astype(np.float32)
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


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What an encoding of positions computes; its tables stand in `config.network.POSITIONS`, by the same name.

    rows: (int32 numbers [...] or None for the first [sequence], p, dims, config) to what is added to embeddings.
    turn: (queries or keys of softmax attention, their numbers, config) to the same with their positions.
    """

    rows: Optional[Callable[[Optional[Any], Parameters, Dims, ModelConfig], Any]] = None
    turn: Optional[Callable[[Any, Any, ModelConfig], Any]] = None


ENCODINGS: dict[str, Encoding] = {
    "learned": Encoding(rows=learned_rows),
    "axial": Encoding(rows=axial_rows),
    "rotary": Encoding(turn=rotate),
    "none": Encoding(),
}
