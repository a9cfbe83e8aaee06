"""Products with weights, as plain matrix products.

Mesh-TF writes every product as an einsum, whose kernel transposes operands that a matrix product reads as they lie, and
is half as fast for a single row (a decoding step reads every weight once, so nothing else counts there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional, Union

from gpt_neo.mtf_compat import Tensor, mtf, summed_wide, tf
from gpt_neo.ops.fused import FusedOp
from gpt_neo.ops.kernels import row_product, rows_times_matrix
from gpt_neo.ops.quantized import AdaptedWeight, Int8Weight, Weight, parts_of, widened
from gpt_neo.ops.row_products import row_times_matrices, row_times_matrix


def matmul(x: Tensor, weight: Weight, reduced: list, bias: Optional[Tensor] = None) -> Tensor:
    """Sum over `reduced`, last in x and first or last in weight, plus a bias.

    Args:
      x: [rows..., reduced...].
      weight: [reduced..., columns...] or [columns..., reduced...], or an Int8Weight or AdaptedWeight of that shape.
      bias: [columns...].

    Returns:
      [rows..., columns...]

    Raises:
      ValueError: the dimensions do not fit each other.
    """
    if isinstance(weight, AdaptedWeight):
        low = matmul(x, weight.down, reduced)
        return matmul(x, weight.weight, reduced, bias) + weight.scale * matmul(low, weight.up, [weight.rank])
    columns = [d for d in weight.shape.dims if d not in reduced]
    rows = [d for d in x.shape.dims if d not in reduced]
    if x.shape.dims != rows + reduced or weight.shape.dims not in (reduced + columns, columns + reduced):
        raise ValueError(f"cannot multiply {x.shape} and {weight.shape} over {reduced}")
    if bias is not None and bias.shape.dims != columns:
        raise ValueError(f"the bias {bias.shape} has to have the dimensions {columns}")
    return MatmulOperation(x, weight, bias, mtf.Shape(rows + columns), len(reduced)).outputs[0]


def matmul_each(x: Tensor, weights: list, reduced: list) -> list:
    """`matmul` with each of several weights [reduced..., columns...], as one operation where x is a single row."""
    plain = not any(isinstance(weight, AdaptedWeight) for weight in weights)
    if x.shape.size == mtf.Shape(reduced).size and len(weights) > 1 and plain:
        return list(RowMatmulOperation(x, weights, reduced).outputs)
    return [matmul(x, weight, reduced) for weight in weights]


class MatmulOperation(FusedOp):
    """x W + b or x W^T + b, lowered as one matrix product; so are its gradients."""

    is_product = True

    def __init__(
        self, x: Tensor, weight: Union[Tensor, Int8Weight], bias: Optional[Tensor], shape: mtf.Shape, reduced: int
    ) -> None:
        self.biased, self.reduced, self.int8 = bias is not None, reduced, isinstance(weight, Int8Weight)
        super().__init__("matmul", [x, *parts_of(weight), *([] if bias is None else [bias])], [(shape, x.dtype)])

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """dx = dy W^T; dW = x^T dy; db = sum of dy over the rows."""
        x, weight, *bias = self.inputs
        rows = x.shape.dims[: -self.reduced]
        columns = self.outputs[0].shape.dims[len(rows) :]
        dy = grad_ys[0]
        grads = [matmul(dy, weight, columns), WeightGradOperation(x, dy, weight.shape, len(rows)).outputs[0]]
        return grads + [BiasGradOperation(dy, b.shape).outputs[0] for b in bias]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards multiply what they hold; sums over split dimensions are added up across the mesh."""
        summed = self.inputs[0].shape.dims[-self.reduced :]
        leading = self.inputs[1].shape.dims[: self.reduced] == summed
        reduced = self.reduced

        def product(x: tf.Tensor, weight: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            scale, bias = (others[:1], others[1:]) if self.int8 else ((), others)
            rows, inner = x.shape.as_list()[:-reduced], math.prod(x.shape.as_list()[-reduced:])
            sizes = weight.shape.as_list()
            columns = sizes[reduced:] if leading else sizes[:-reduced]
            if self.int8:
                weight = widened(weight, x.dtype, x)
            flat = tf.reshape(weight, [inner, -1] if leading else [-1, inner])
            after = [tf.reshape(b, [-1]) for b in bias]
            if math.prod(rows) == 1:
                out = row_times_matrix(x, flat, transposed=not leading)
            else:
                # A bias is added before the sum is rounded, unless a scale comes between.
                within = [] if scale else after
                out = rows_times_matrix(tf.reshape(x, [*rows, inner]), flat, *within, transposed=not leading)
                after = after[len(within) :]
            for factor in scale:
                out *= tf.cast(tf.reshape(factor, [-1]), out.dtype)
            for b in after:
                out = tf.nn.bias_add(out, b)
            return tf.reshape(out, rows + columns)

        # By its place: where a block is run again, the clone of an operation has other inputs.
        lower_sum(self, lowering, product, summed, addend=self.inputs[-1] if self.biased else None)


class RowMatmulOperation(FusedOp):
    """A single row [1..., reduced...] times several weights [reduced..., columns...].

    At this size the calls of kernels, one for each weight, take as long as reading the weights.
    """

    def __init__(self, x: Tensor, weights: list, reduced: list) -> None:
        self.reduced, self.int8 = reduced, [isinstance(weight, Int8Weight) for weight in weights]
        rows, depth = x.shape.dims[: -len(reduced)], len(reduced)
        if any(weight.shape.dims[:depth] != reduced for weight in weights) or x.shape.dims[-depth:] != reduced:
            raise ValueError(f"cannot multiply {x.shape} and {[weight.shape for weight in weights]} over {reduced}")
        outputs = [(mtf.Shape(rows + weight.shape.dims[depth:]), x.dtype) for weight in weights]
        super().__init__("row_matmul", [x, *(part for weight in weights for part in parts_of(weight))], outputs)

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """As of one product each; the gradients of x are added."""
        x, *weights = self.inputs
        rows = len(x.shape) - len(self.reduced)
        pairs = list(zip(grad_ys, weights))
        dx = sum(matmul(dy, weight, weight.shape.dims[len(self.reduced) :]) for dy, weight in pairs)
        return [dx, *(WeightGradOperation(x, dy, weight.shape, rows).outputs[0] for dy, weight in pairs)]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards multiply what they hold; sums over split dimensions are added up across the mesh."""
        depth = len(self.reduced)

        def products(x: tf.Tensor, *parts: tf.Tensor) -> tuple:
            rows, inner = x.shape.as_list()[:-depth], math.prod(x.shape.as_list()[-depth:])
            left, weights, scales = iter(parts), [], []
            for int8 in self.int8:
                weights.append(next(left))
                scales.append(next(left) if int8 else None)
            wide = [w if s is None else widened(w, x.dtype, x) for w, s in zip(weights, scales)]
            outs = row_times_matrices(x, [tf.reshape(weight, [inner, -1]) for weight in wide])
            outs = [
                out if scale is None else out * tf.cast(tf.reshape(scale, [-1]), out.dtype)
                for out, scale in zip(outs, scales)
            ]
            return tuple(tf.reshape(out, rows + w.shape.as_list()[depth:]) for out, w in zip(outs, weights))

        lower_sum(self, lowering, products, self.reduced)


class WeightGradOperation(FusedOp):
    """Gradient of a weight: x [rows..., reduced...], dy [rows..., columns...] summed over the rows, float32.

    The result has the shape of the weight, [reduced..., columns...] or [columns..., reduced...].
    """

    def __init__(self, x: Tensor, dy: Tensor, shape: mtf.Shape, rows: int) -> None:
        super().__init__("weight_grad", [x, dy], [(shape, tf.float32)])
        self.rows = rows

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards multiply the rows they hold; what other shards hold is added."""
        x, dy = self.inputs
        leading = self.outputs[0].shape.dims[: len(x.shape) - self.rows] == x.shape.dims[self.rows :]

        def product(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
            first, second = (x, dy) if leading else (dy, x)
            sizes = first.shape.as_list()[self.rows :] + second.shape.as_list()[self.rows :]
            rows = x.shape.as_list()[: self.rows]
            return tf.reshape(row_product(*(tf.reshape(t, [*rows, -1]) for t in (first, second))), sizes)

        lower_sum(self, lowering, product, x.shape.dims[: self.rows])


class BiasGradOperation(FusedOp):
    """Gradient of a bias: dy [rows..., columns...] summed over the rows to float32 [columns...]."""

    def __init__(self, dy: Tensor, shape: mtf.Shape) -> None:
        super().__init__("bias_grad", [dy], [(shape, tf.float32)])

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards add up the rows they hold; what other shards hold is added."""
        columns = len(self.outputs[0].shape)

        def row_sum(dy: tf.Tensor) -> tf.Tensor:
            sizes = dy.shape.as_list()[-columns:]
            rows = tf.reshape(dy, [-1, math.prod(sizes)])
            total = summed_wide(lambda wide: tf.raw_ops.BiasAddGrad(out_backprop=wide), rows, dtype=tf.float32)
            return tf.reshape(total, sizes)

        lower_sum(self, lowering, row_sum, self.inputs[0].shape.dims[:-columns])


def lower_sum(
    operation: mtf.Operation, lowering: mtf.Lowering, product: Tensor, summed: list, addend: Optional[Tensor] = None
) -> None:
    """Lower an operation that sums over the dimensions `summed`, split over the mesh or not.

    Args:
      product: from the slices of the inputs to the slice of the output, or a tuple of those of several outputs.
      addend: an input that `product` adds to the sum; where shards hold parts of the sum, it is added to their total.
    """
    mesh_impl = lowering.mesh_impl(operation)
    axes = [mesh_impl.tensor_dimension_to_mesh_axis(d) for d in summed]
    split = [axis for axis in axes if axis is not None]
    terms = [x for x in operation.inputs if not (split and x is addend)]
    outs = mesh_impl.slicewise(product, *[lowering.tensors[x] for x in terms])
    for tensor, out in zip(operation.outputs, outs if isinstance(outs, tuple) else (outs,)):
        if split:
            out = mtf.ops.LazyAllreduceSum(mesh_impl, out, split)
        if split and addend is not None:
            out = mesh_impl.slicewise(tf.add, out.to_laid_out_tensor(), lowering.tensors[addend])
        lowering.set_tensor_lowering(tensor, out)
