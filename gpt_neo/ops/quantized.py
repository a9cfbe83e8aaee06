"""Weights stored as int8: w ~ q * scale with q a whole number of -127 .. 127, one scale per output of a map, one per
row of a table. Products (`matmul.py`) and look-ups (`vocabulary.py`) widen one matrix at a time."""

from __future__ import annotations

import dataclasses
from typing import Callable

from gpt_neo.mtf_compat import Tensor, tf


@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """values: int8 mtf.Tensor of the weight's shape. scale: float32, without the dimension that shares it. dtype: of
    what is computed with it."""

    values: Tensor
    scale: Tensor
    dtype: tf.DType

    @property
    def shape(self) -> Tensor:
        """mtf.Shape of the weight."""
        return self.values.shape


def reshaped(weight: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A change of dimensions, made on a weight however it is stored; it leaves alone what a tensor does not have."""
    if isinstance(weight, Int8Weight):
        return Int8Weight(change(weight.values), change(weight.scale), weight.dtype)
    return change(weight)


def parts_of(weight: Tensor) -> list:
    """What an operation takes as inputs: the weight, or its values and scale."""
    return [weight.values, weight.scale] if isinstance(weight, Int8Weight) else [weight]


def widened(values: Tensor, dtype: tf.DType, after: Tensor) -> Tensor:
    """The whole numbers in a float type, not made before `after` is there: else every matrix would be at once."""
    with tf.control_dependencies([after]):
        return tf.cast(tf.identity(values), dtype)
