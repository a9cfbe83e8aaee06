"""The global norm of gradients without tensors of squares."""

from __future__ import annotations

from typing import Any

from gpt_neo.mtf_compat import mtf, tf


class SquareSumOperation(mtf.Operation):
    """Sum of squares, float32, without a tensor of squares: that of an embedding table is as large as the table."""

    def __init__(self, x: Any) -> None:
        super().__init__([x], name="square_sum")
        self._outputs = [mtf.Tensor(self, mtf.Shape([]), tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Shards that hold different parts add up."""
        mesh_impl = lowering.mesh_impl(self)
        (x,) = self.inputs
        total = mesh_impl.slicewise(lambda t: 2 * tf.nn.l2_loss(tf.cast(t, tf.float32)), lowering.tensors[x])
        axes = [a for a in mesh_impl.tensor_layout(x.shape).tensor_axis_to_mesh_axis if a is not None]
        if axes:
            total = mtf.ops.LazyAllreduceSum(mesh_impl, total, axes)
        lowering.set_tensor_lowering(self.outputs[0], total)
