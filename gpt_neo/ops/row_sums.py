"""What a parameter is multiplied by or added to, row after row; its gradient is a float32 sum over the rows.

Mesh-TF's own operations give sums in the type of the activations, and add those of several devices up in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from gpt_neo.mtf_compat import Tensor, mtf, summed_wide, tf
from gpt_neo.ops.fused import FusedOp
from gpt_neo.ops.matmul import lower_sum


def times(x: Tensor, parameter: Tensor) -> Tensor:
    """x [...] times a parameter that has some of its dimensions, in their order: the shape of x."""
    return TimesOperation([x, parameter], x.shape, name="times").outputs[0]


def plus(x: Tensor, parameter: Tensor) -> Tensor:
    """x [...] plus a parameter that has some of its dimensions, in their order: the shape of x."""
    return PlusOperation(x, parameter, x.shape, name="plus").outputs[0]


def repeated(parameter: Tensor, shape: mtf.Shape) -> Tensor:
    """A parameter for each row: the given shape, which has its dimensions among others, in their order."""
    return RepeatOperation(parameter, shape, name="repeat").outputs[0]


def widened(parameter: Tensor) -> Tensor:
    """A parameter in float32, and so its gradient: that of mtf.cast is rounded."""
    if parameter.dtype == tf.float32:
        return parameter
    shape = parameter.shape
    return mtf.slicewise(
        lambda x: tf.cast(x, tf.float32),
        [parameter],
        shape,
        tf.float32,
        shape.dims,
        grad_function=lambda _, dy: [dy],
        name="widen_parameter",
    )


def weighted(x: Tensor, weight: Tensor, shape: mtf.Shape) -> Tensor:
    """mtf.einsum of x and a weight, with a float32 gradient of the weight."""
    return WeightedOperation([x, weight], shape, name="weighted").outputs[0]


class WeightedOperation(mtf.ops.EinsumOperation):
    """See `weighted`."""

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """As an einsum's; that of the weight from widened factors, since an einsum has the type of these."""
        (x, weight), (dy,) = self.inputs, grad_ys
        wide = [mtf.cast(factor, tf.float32) for factor in (dy, x)]
        return [mtf.einsum([dy, weight], x.shape), mtf.einsum(wide, weight.shape)]


class TimesOperation(mtf.ops.EinsumOperation):
    """See `times`."""

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """dx = dy p; dp = sum of dy x over the rows."""
        x, parameter = self.inputs
        return [times(grad_ys[0], parameter), RowSumOperation([grad_ys[0], x], parameter.shape).outputs[0]]


class PlusOperation(mtf.ops.AddOperation):
    """See `plus`."""

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """dx = dy; dp = sum of dy over the rows."""
        return [grad_ys[0], RowSumOperation(list(grad_ys), self.inputs[1].shape).outputs[0]]


class RepeatOperation(mtf.ops.BroadcastOperation):
    """See `repeated`."""

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Sum of dy over the rows."""
        return [RowSumOperation(list(grad_ys), self.inputs[0].shape).outputs[0]]


class RowSumOperation(FusedOp):
    """Product of tensors of one shape, summed over the dimensions that are not in `shape`: float32 [shape]."""

    def __init__(self, factors: list, shape: mtf.Shape) -> None:
        super().__init__("row_sum", factors, [(shape, tf.float32)])
        dims = factors[0].shape.dims
        self.summed = [d for d in dims if d not in shape.dims]
        if any(x.shape.dims != dims for x in factors) or [d for d in dims if d in shape.dims] != shape.dims:
            raise ValueError(f"cannot sum {[x.shape for x in factors]} up to {shape}")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards add up the rows they hold; what other shards hold is added."""
        axes = [self.inputs[0].shape.dims.index(d) for d in self.summed]

        def row_sum(*factors: tf.Tensor) -> tf.Tensor:
            return summed_wide(
                lambda *wide: tf.reduce_sum(functools.reduce(tf.multiply, wide), axes), *factors, dtype=tf.float32
            )

        lower_sum(self, lowering, row_sum, self.summed)
