"""Products with weights, as plain matrix products.

Mesh-TF writes every product as an einsum, whose kernel is half as fast for a single row (a decoding step reads every
weight once, so nothing else counts there).
"""

from __future__ import annotations

import math
from typing import Any

from gpt_neo.model.quantized import stored_int8, widened
from gpt_neo.mtf_compat import mtf, tf


def contract(x: Any, weight: Any, reduced: list) -> Any:
    """Sum over `reduced`: last in x, and first or last in weight.

    Args:
      x: [rows..., reduced...].
      weight: [reduced..., columns...] or [columns..., reduced...].

    Returns:
      [rows..., columns...]
    """
    columns = [d for d in weight.shape.dims if d not in reduced]
    rows = [d for d in x.shape.dims if d not in reduced]
    if x.shape.dims != rows + reduced or weight.shape.dims not in (reduced + columns, columns + reduced):
        raise ValueError(f"cannot contract {reduced} of {x.shape} and {weight.shape}")
    return ContractOperation(x, weight, mtf.Shape(rows + columns), len(reduced)).outputs[0]


class ContractOperation(mtf.ops.EinsumOperation):
    """An einsum, gradients included, that is lowered as one matrix product."""

    def __init__(self, x: Any, weight: Any, shape: Any, reduced: int) -> None:
        super().__init__([x, weight], shape, name="contract")
        self.reduced = reduced
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Shards multiply what they hold; sums over split dimensions are added up across the mesh."""
        mesh_impl = lowering.mesh_impl(self)
        x, weight = self.inputs
        summed = x.shape.dims[-self.reduced :]
        leading = weight.shape.dims[: self.reduced] == summed
        reduced = self.reduced

        def product(x: Any, weight: Any) -> Any:
            rows, inner = x.shape.as_list()[:-reduced], math.prod(x.shape.as_list()[-reduced:])
            sizes = weight.shape.as_list()
            columns = sizes[reduced:] if leading else sizes[:-reduced]
            small = stored_int8(weight)
            if small:
                weight = widened(small[0], x.dtype, x)
            flat = tf.reshape(weight, [inner, -1] if leading else [-1, inner])
            out = tf.linalg.matmul(tf.reshape(x, [-1, inner]), flat, transpose_b=not leading)
            if small:
                out *= tf.cast(small[1], out.dtype)
            return tf.reshape(out, rows + columns)

        out = mesh_impl.slicewise(product, lowering.tensors[x], lowering.tensors[weight])
        axes = [mesh_impl.tensor_dimension_to_mesh_axis(d) for d in summed]
        split = [axis for axis in axes if axis is not None]
        if split:
            out = mtf.ops.LazyAllreduceSum(mesh_impl, out, split)
        lowering.set_tensor_lowering(self.outputs[0], out)
