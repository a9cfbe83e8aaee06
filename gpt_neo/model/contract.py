"""Products with weights, as plain matrix products.

Mesh-TF writes every product as an einsum, whose kernel transposes operands that a matrix product reads as they lie, and
is half as fast for a single row (a decoding step reads every weight once, so nothing else counts there).
"""

from __future__ import annotations

import math
from typing import Any, Optional

from gpt_neo.model.quantized import stored_int8, widened
from gpt_neo.mtf_compat import mtf, summed_wide, tf
from gpt_neo.ops.kernels import matrix_product, row_product
from gpt_neo.ops.row_products import row_times_matrices, row_times_matrix


def contract(x: Any, weight: Any, reduced: list, bias: Optional[Any] = None) -> Any:
    """Sum over `reduced`, last in x and first or last in weight, plus a bias.

    Args:
      x: [rows..., reduced...].
      weight: [reduced..., columns...] or [columns..., reduced...].
      bias: [columns...].

    Returns:
      [rows..., columns...]
    """
    columns = [d for d in weight.shape.dims if d not in reduced]
    rows = [d for d in x.shape.dims if d not in reduced]
    if x.shape.dims != rows + reduced or weight.shape.dims not in (reduced + columns, columns + reduced):
        raise ValueError(f"cannot contract {reduced} of {x.shape} and {weight.shape}")
    if bias is not None and bias.shape.dims != columns:
        raise ValueError(f"the bias {bias.shape} has to have the dimensions {columns}")
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return ContractOperation(inputs, mtf.Shape(rows + columns), len(reduced)).outputs[0]


def contract_each(x: Any, weights: list, reduced: list) -> list:
    """`contract` with each of several weights [reduced..., columns...], as one operation where x is a single row."""
    if x.shape.size == mtf.Shape(reduced).size and len(weights) > 1:
        return list(RowContractOperation(x, weights, reduced).outputs)
    return [contract(x, weight, reduced) for weight in weights]


class ContractOperation(mtf.ops.EinsumOperation):
    """x W + b or x W^T + b, lowered as one matrix product; so are its gradients."""

    def __init__(self, inputs: list, shape: Any, reduced: int) -> None:
        super().__init__(inputs, shape, name="contract")
        self.reduced = reduced
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: Any) -> list:
        """dx = dy W^T; dW = x^T dy; db = sum of dy over the rows."""
        x, weight, *bias = self.inputs
        rows = x.shape.dims[: -self.reduced]
        columns = self.outputs[0].shape.dims[len(rows) :]
        dy = grad_ys[0]
        grads = [contract(dy, weight, columns), WeightGradOperation(x, dy, weight.shape, len(rows)).outputs[0]]
        return grads + [BiasGradOperation(dy, b.shape).outputs[0] for b in bias]

    def lower(self, lowering: Any) -> None:
        """Shards multiply what they hold; sums over split dimensions are added up across the mesh."""
        summed = self.inputs[0].shape.dims[-self.reduced :]
        leading = self.inputs[1].shape.dims[: self.reduced] == summed
        reduced = self.reduced

        def product(x: Any, weight: Any, *bias: Any) -> Any:
            rows, inner = x.shape.as_list()[:-reduced], math.prod(x.shape.as_list()[-reduced:])
            sizes = weight.shape.as_list()
            columns = sizes[reduced:] if leading else sizes[:-reduced]
            small = stored_int8(weight)
            if small:
                weight = widened(small[0], x.dtype, x)
            flat = tf.reshape(weight, [inner, -1] if leading else [-1, inner])
            after = [tf.reshape(b, [-1]) for b in bias]
            if math.prod(rows) == 1:
                out = row_times_matrix(x, flat, transposed=not leading)
            elif small:
                out = matrix_product(tf.reshape(x, [-1, inner]), flat, transpose_b=not leading)
            else:
                out = matrix_product(tf.reshape(x, [-1, inner]), flat, *after, transpose_b=not leading)
                after = []
            if small:
                out *= tf.cast(small[1], out.dtype)
            for b in after:
                out = tf.nn.bias_add(out, b)
            return tf.reshape(out, rows + columns)

        lower_sum(self, lowering, product, summed, addend=self.inputs[2] if len(self.inputs) > 2 else None)


class RowContractOperation(mtf.Operation):
    """A single row [1..., reduced...] times several weights [reduced..., columns...].

    At this size the calls of kernels, one for each weight, take as long as reading the weights.
    """

    def __init__(self, x: Any, weights: list, reduced: list) -> None:
        super().__init__([x, *weights], name="row_contract")
        self.reduced = reduced
        rows, depth = x.shape.dims[: -len(reduced)], len(reduced)
        if any(weight.shape.dims[:depth] != reduced for weight in weights) or x.shape.dims[-depth:] != reduced:
            raise ValueError(f"cannot contract {reduced} of {x.shape} and {[weight.shape for weight in weights]}")
        self._outputs = [mtf.Tensor(self, mtf.Shape(rows + w.shape.dims[depth:]), x.dtype) for w in weights]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: Any) -> list:
        """As of one product each; the gradients of x are added."""
        x, *weights = self.inputs
        rows = len(x.shape) - len(self.reduced)
        pairs = list(zip(grad_ys, weights))
        dx = sum(contract(dy, weight, weight.shape.dims[len(self.reduced) :]) for dy, weight in pairs)
        return [dx, *(WeightGradOperation(x, dy, weight.shape, rows).outputs[0] for dy, weight in pairs)]

    def lower(self, lowering: Any) -> None:
        """Shards multiply what they hold; sums over split dimensions are added up across the mesh."""
        depth = len(self.reduced)

        def products(x: Any, *weights: Any) -> tuple:
            rows, inner = x.shape.as_list()[:-depth], math.prod(x.shape.as_list()[-depth:])
            small = [stored_int8(weight) for weight in weights]
            wide = [widened(s[0], x.dtype, x) if s else weight for s, weight in zip(small, weights)]
            outs = row_times_matrices(x, [tf.reshape(weight, [inner, -1]) for weight in wide])
            outs = [out * tf.cast(s[1], out.dtype) if s else out for s, out in zip(small, outs)]
            return tuple(tf.reshape(out, rows + w.shape.as_list()[depth:]) for out, w in zip(outs, weights))

        lower_sum(self, lowering, products, self.reduced)


class WeightGradOperation(mtf.ops.EinsumOperation):
    """Gradient of a weight: x [rows..., reduced...], dy [rows..., columns...] summed over the rows, float32.

    The result has the shape of the weight, [reduced..., columns...] or [columns..., reduced...].
    """

    def __init__(self, x: Any, dy: Any, shape: Any, rows: int) -> None:
        super().__init__([x, dy], shape, name="weight_grad")
        self.rows = rows
        self._outputs = [mtf.Tensor(self, shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Shards multiply the rows they hold; what other shards hold is added."""
        x, dy = self.inputs
        leading = self.outputs[0].shape.dims[: len(x.shape) - self.rows] == x.shape.dims[self.rows :]

        def product(x: Any, dy: Any) -> Any:
            first, second = (x, dy) if leading else (dy, x)
            sizes = first.shape.as_list()[self.rows :] + second.shape.as_list()[self.rows :]
            count = math.prod(x.shape.as_list()[: self.rows])
            return tf.reshape(row_product(tf.reshape(first, [count, -1]), tf.reshape(second, [count, -1])), sizes)

        lower_sum(self, lowering, product, x.shape.dims[: self.rows])


class BiasGradOperation(mtf.Operation):
    """Gradient of a bias: dy [rows..., columns...] summed over the rows to float32 [columns...]."""

    def __init__(self, dy: Any, shape: Any) -> None:
        super().__init__([dy], name="bias_grad")
        self._outputs = [mtf.Tensor(self, shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Shards add up the rows they hold; what other shards hold is added."""
        columns = len(self.outputs[0].shape)

        def row_sum(dy: Any) -> Any:
            sizes = dy.shape.as_list()[-columns:]
            rows = tf.reshape(dy, [-1, math.prod(sizes)])
            total = summed_wide(lambda wide: tf.raw_ops.BiasAddGrad(out_backprop=wide), rows, dtype=tf.float32)
            return tf.reshape(total, sizes)

        lower_sum(self, lowering, row_sum, self.inputs[0].shape.dims[:-columns])


def lower_sum(operation: Any, lowering: Any, product: Any, summed: list, addend: Optional[Any] = None) -> None:
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
