"""Weights that are no plain tensors. Stored as int8: w ~ q * scale with q a whole number of -127 .. 127, one scale per
output of a map, one per row of a table; products (`matmul.py`) and look-ups (`vocabulary.py`) widen one matrix at a
time. With an adapter: w + scale * down up, whose products are made apart, so that a weight that is frozen needs no
gradient of its own size, and a small change is not rounded away in bfloat16."""

from __future__ import annotations

import dataclasses
from typing import Callable, Union

from gpt_neo.mtf_compat import Tensor, mtf, tf


@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """values: int8 mtf.Tensor of the weight's shape. scale: float32, without the dimension that shares it. dtype: of
    what is computed with it."""

    values: Tensor
    scale: Tensor
    dtype: tf.DType

    @property
    def shape(self) -> mtf.Shape:
        """mtf.Shape of the weight."""
        return self.values.shape


@dataclasses.dataclass(frozen=True)
class AdaptedWeight:
    """weight: [in..., out...]. down: [in..., lora_rank]. up: [lora_rank, out...]. scale: of the product of the two."""

    weight: Union[Tensor, Int8Weight]
    down: Tensor
    up: Tensor
    scale: float

    @property
    def shape(self) -> mtf.Shape:
        """mtf.Shape of the weight."""
        return self.weight.shape

    @property
    def rank(self) -> mtf.Dimension:
        """mtf.Dimension between the two."""
        return self.up.shape.dims[0]


Weight = Union[Tensor, Int8Weight, AdaptedWeight]


def reshaped(weight: Weight, change: Callable[[Tensor], Tensor]) -> Weight:
    """A change of dimensions, made on a weight however it is stored; it leaves alone what a tensor does not have."""
    if isinstance(weight, AdaptedWeight):
        inside, down, up = (reshaped(part, change) for part in (weight.weight, weight.down, weight.up))
        return AdaptedWeight(inside, down, up, weight.scale)
    if isinstance(weight, Int8Weight):
        return Int8Weight(change(weight.values), change(weight.scale), weight.dtype)
    return change(weight)


def parts_of(weight: Union[Tensor, Int8Weight]) -> list:
    """What an operation takes as inputs: the weight, or its values and scale."""
    return [weight.values, weight.scale] if isinstance(weight, Int8Weight) else [weight]


def widened(values: tf.Tensor, dtype: tf.DType, after: tf.Tensor) -> tf.Tensor:
    """The whole numbers in a float type, not made before `after` is there: else every matrix would be at once."""
    with tf.control_dependencies([after]):
        return tf.cast(tf.identity(values), dtype)
