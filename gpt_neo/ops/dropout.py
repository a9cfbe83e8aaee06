"""Dropout masks and uniform numbers: functions of seed, step, place in the model and place in the tensor alone.

TensorFlow's random operations keep a stream that starts over with the process, so that a resumed run would see other
masks than an uninterrupted one. Here every element hashes its own coordinates in the whole, unsplit batch: the masks
are the same after a restart, in the backward pass, when a block is recomputed, for any number of microbatches and on
any mesh. No mask is kept for the backward pass.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.fused import FusedOp
from gpt_neo.ops.kernels import always_compiled

# Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.2).
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
ROUNDS = 20
ROW_BITS = 20  # of the first counter word hold the row, the 12 above them the number of the dropout in the model


class RandomSource:
    """Where the dropouts of one forward pass take their randomness from; they are numbered as they are built.

    Attributes:
      seed: of the run.
      step: int32 scalar tensor.
      rows: int32 [batch], the places of these sequences in the whole batch of the step.
    """

    def __init__(self, seed: int, step: tf.Tensor, rows: tf.Tensor) -> None:
        digest = hashlib.sha256(f"dropout {seed}".encode()).digest()
        self.seed_word = int.from_bytes(digest[:4], "little")
        self.step, self.rows = step, rows
        self.numbers = itertools.count()


def dropout(x: Tensor, rate: float, source: RandomSource) -> Tensor:
    """Set a share `rate` of the elements to 0 and scale the others by 1 / (1 - rate).

    Args:
      x: a floating tensor of any shape; at most the part of its batch that `source` names.

    Returns:
      a tensor of the shape and type of x; x itself for rate 0.
    """
    return DropoutOperation(x, places_of(x, source), rate).outputs[0] if rate else x


def uniform_like(x: Tensor, source: RandomSource) -> Tensor:
    """float32 numbers in [0, 1), one for each element of x, drawn as the masks of `dropout` are."""
    return UniformOperation(x, places_of(x, source)).outputs[0]


class Places(NamedTuple):
    """Where an operation takes its randomness from: step and rows as of RandomSource, its number in the model."""

    step: tf.Tensor
    rows: tf.Tensor
    seed_word: int
    number: int


def places_of(x: Tensor, source: RandomSource) -> Places:
    """The places of the next operation, which is on x."""
    rows = source.rows
    if rows.shape.dims[0] not in x.shape.dims:
        # Row i of microbatch m is row i * splits + m of the batch: the smallest one tells the microbatches apart.
        rows = mtf.reduce_min(rows)
    return Places(source.step, rows, source.seed_word, next(source.numbers))


class PlacedOperation(FusedOp):
    """An operation on x and a random number for each place. It depends on attributes, which a clone shares."""

    def __init__(self, x: Tensor, places: Places, dtype: tf.DType, name: str) -> None:
        super().__init__(name, [x, places.step, places.rows], [(x.shape, dtype)])
        if places.number >= 1 << (32 - ROW_BITS):
            raise ValueError(f"the model has more than {places.number} dropouts")
        self.seed_word, self.number = places.seed_word, places.number

    def kernel(self, x: tf.Tensor, key: tf.Tensor, high: tf.Tensor, base: tf.Tensor, strides: tf.Tensor) -> tf.Tensor:
        """From a shard and the places of its elements (see `random_bits`) to the shard of the output."""
        raise NotImplementedError

    def lower(self, lowering: mtf.Lowering) -> None:
        """Each shard hashes the coordinates of the elements it holds."""
        mesh_impl = lowering.mesh_impl(self)
        x, step, rows = self.inputs
        dims = x.shape.dims
        batch = dims.index(rows.shape.dims[0]) if rows.shape.dims else None
        # The batch is counted by `rows`; the strides of the other dimensions are those of the unsplit tensor.
        sizes = [1 if i == batch else d.size for i, d in enumerate(dims)]
        strides = [0 if i == batch else math.prod(sizes[i + 1 :]) for i in range(len(dims))]
        base: Any = tf.constant(0, tf.uint32)
        for dim, stride in zip(dims, strides):
            axis = mesh_impl.tensor_dimension_to_mesh_axis(dim)
            if axis is not None and stride:
                first = stride * (dim.size // mesh_impl.shape[axis].size)
                base = mesh_impl.slicewise(
                    lambda total, place, first=first: total + tf.cast(place, tf.uint32) * word(first),
                    base,
                    mesh_impl.laid_out_pcoord(axis),
                )
        row_shape = [-1 if i == batch else 1 for i in range(len(dims))]

        def apply(x: tf.Tensor, step: tf.Tensor, rows: tf.Tensor, base: tf.Tensor) -> tf.Tensor:
            key = tf.stack([word(self.seed_word), tf.cast(step, tf.uint32)])
            high = tf.cast(rows, tf.uint32) + word(self.number << ROW_BITS)
            return self.kernel(x, key, tf.reshape(high, row_shape), base, tf.stack([word(s) for s in strides]))

        out = mesh_impl.slicewise(apply, *[lowering.tensors[t] for t in self.inputs], base)
        lowering.set_tensor_lowering(self.outputs[0], out)


class DropoutOperation(PlacedOperation):
    """See `dropout`."""

    def __init__(self, x: Tensor, places: Places, rate: float) -> None:
        super().__init__(x, places, x.dtype, "dropout")
        self.rate = rate

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """The same mask and scale, on the gradient."""
        _, step, rows = self.inputs
        grad = DropoutOperation(grad_ys[0], Places(step, rows, self.seed_word, self.number), self.rate)
        return [grad.outputs[0], None, None]

    def kernel(self, x: tf.Tensor, *places: tf.Tensor) -> tf.Tensor:
        """The shard with its mask."""
        threshold = min(round(self.rate * 2**32), 2**32 - 1)
        scale = 1 / (1 - self.rate) if self.rate < 1 else 0.0
        return drop_kernel(x, *places, word(threshold), tf.constant(scale, tf.float32))


class UniformOperation(PlacedOperation):
    """See `uniform_like`; only the shape of x matters."""

    def __init__(self, x: Tensor, places: Places) -> None:
        super().__init__(x, places, tf.float32, "uniform")

    def kernel(self, x: tf.Tensor, *places: tf.Tensor) -> tf.Tensor:
        """The shard's numbers."""
        return uniform_kernel(x, *places)


def word(value: int) -> tf.Tensor:
    """A uint32 constant, modulo 2**32."""
    return tf.constant(value % 2**32, tf.uint32)


@always_compiled
def drop_kernel(
    x: tf.Tensor,
    key: tf.Tensor,
    high: tf.Tensor,
    base: tf.Tensor,
    strides: tf.Tensor,
    threshold: tf.Tensor,
    scale: tf.Tensor,
) -> tf.Tensor:
    """Keep and scale the elements whose bits reach the threshold, rate * 2**32 (uint32 scalar); see `random_bits`.

    The scale is float32: 1 / 0.9 is 1.1094 in bfloat16, which would make every sum 0.16 % less than in evaluation.
    """
    scaled = tf.cast(tf.cast(x, tf.float32) * scale, x.dtype)
    return tf.where_v2(random_bits(x, key, high, base, strides) >= threshold, scaled, tf.zeros_like(x))


@always_compiled
def uniform_kernel(x: tf.Tensor, key: tf.Tensor, high: tf.Tensor, base: tf.Tensor, strides: tf.Tensor) -> tf.Tensor:
    """float32 in [0, 1) from the highest 24 bits, which it holds exactly; see `random_bits`."""
    bits = tf.bitwise.right_shift(random_bits(x, key, high, base, strides), word(8))
    return tf.cast(bits, tf.float32) * 2.0**-24


def random_bits(x: tf.Tensor, key: tf.Tensor, high: tf.Tensor, base: tf.Tensor, strides: tf.Tensor) -> tf.Tensor:
    """32 random bits for each element.

    Args:
      x: [...], a shard.
      key: uint32 [2].
      high: uint32, of a shape that broadcasts to x: first word of the counter.
      base: uint32 scalar; with uint32 [rank] `strides` it gives the second word, the place within the row.

    Returns:
      uint32 of a shape that broadcasts to that of x.
    """
    rank = len(x.shape)
    low = base
    for axis in range(rank):
        place = tf.cast(tf.range(x.shape[axis]), tf.uint32) * strides[axis]
        low = low + tf.reshape(place, [-1] + [1] * (rank - 1 - axis))
    bits, _ = threefry(key[0], key[1], high, low)
    return bits


def threefry(key_0: tf.Tensor, key_1: tf.Tensor, word_0: tf.Tensor, word_1: tf.Tensor) -> tuple:
    """Two random uint32 words from a key and a counter of two words each; shapes broadcast."""
    xor, left, right = tf.bitwise.bitwise_xor, tf.bitwise.left_shift, tf.bitwise.right_shift
    keys = (key_0, key_1, xor(xor(key_0, key_1), word(PARITY)))
    word_0, word_1 = word_0 + keys[0], word_1 + keys[1]
    for i in range(ROUNDS):
        word_0 = word_0 + word_1
        turn = ROTATIONS[i % len(ROTATIONS)]
        word_1 = xor(tf.bitwise.bitwise_or(left(word_1, word(turn)), right(word_1, word(32 - turn))), word_0)
        if i % 4 == 3:
            injection = i // 4 + 1
            word_0 = word_0 + keys[injection % 3]
            word_1 = word_1 + keys[(injection + 1) % 3] + word(injection)
    return word_0, word_1
