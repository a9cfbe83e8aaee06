"""The global norm of gradients without tensors of squares."""

from __future__ import annotations

from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.fused import FusedOp, split_axes


class SquareSumOperation(FusedOp):
    """Sum of squares, float32, without a tensor of squares: that of an embedding table is as large as the table."""

    def __init__(self, x: Tensor) -> None:
        super().__init__("square_sum", [x], [(mtf.Shape([]), tf.float32)])

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards that hold different parts add up."""
        mesh_impl = lowering.mesh_impl(self)
        (x,) = self.inputs
        total = mesh_impl.slicewise(lambda t: 2 * tf.nn.l2_loss(tf.cast(t, tf.float32)), lowering.tensors[x])
        axes = split_axes(mesh_impl, x.shape)
        if axes:
            total = mtf.ops.LazyAllreduceSum(mesh_impl, total, axes)
        lowering.set_tensor_lowering(self.outputs[0], total)
