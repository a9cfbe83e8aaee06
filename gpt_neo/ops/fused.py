"""The base of operations that Mesh-TF would compose from many: one lowering and one gradient each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from gpt_neo.mtf_compat import Dimension, LaidOut, Tensor, mtf, tf


class FusedOp(mtf.Operation):
    """An operation that says what it gives; subclasses say how it is lowered, and what its gradient is.

    Args:
      name: of the operation.
      inputs: mtf tensors.
      outputs: (mtf.Shape, type) of each.
    """

    def __init__(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[tuple]) -> None:
        super().__init__(list(inputs), name=name)
        self._outputs = [mtf.Tensor(self, shape, dtype, index=i) for i, (shape, dtype) in enumerate(outputs)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()


class Reducing(FusedOp):
    """Base of operations of the shape of their first input that reduce over its last dimension, split or not."""

    def __init__(self, name: str, inputs: Sequence[Tensor], dim: Dimension) -> None:
        super().__init__(name, inputs, [(inputs[0].shape, inputs[0].dtype)])
        if inputs[0].shape.dims[-1] != dim:
            raise ValueError(f"{name}: {dim} has to be the last dimension of {inputs[0].shape}")
        self.dim = dim

    def lower(self, lowering: mtf.Lowering) -> None:
        """One compiled kernel where `dim` is whole, reductions across shards where it is split."""
        mesh_impl = lowering.mesh_impl(self)
        tensors = [lowering.tensors[x] for x in self.inputs]
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.dim)
        if axis is None:
            out = mesh_impl.slicewise(self.kernel, *tensors)
        else:
            out = self.lower_split(mesh_impl, Total(mesh_impl, axis), *tensors)
        lowering.set_tensor_lowering(self.outputs[0], out)

    def kernel(self, *tensors: tf.Tensor) -> tf.Tensor:
        """The operation on whole TensorFlow tensors."""
        raise NotImplementedError

    def lower_split(self, mesh_impl: mtf.MeshImpl, total: Total, *tensors: LaidOut) -> LaidOut:
        """The operation on laid-out tensors."""
        raise NotImplementedError


class Total:
    """Reduces a slicewise function over the shards along one mesh axis."""

    def __init__(self, mesh_impl: mtf.MeshImpl, axis: int) -> None:
        self.mesh_impl, self.axis = mesh_impl, axis

    def __call__(self, fn: Callable[..., tf.Tensor], *xs: LaidOut, kind: str = "SUM") -> LaidOut:
        """The sum, or what `kind` says, of fn(*slices)."""
        return self.mesh_impl.allreduce(self.mesh_impl.slicewise(fn, *xs), [self.axis], kind)


def split_axes(mesh_impl: mtf.MeshImpl, shape: mtf.Shape) -> list:
    """Mesh axes over which a tensor of that shape is split."""
    return [axis for axis in mesh_impl.tensor_layout(shape).tensor_axis_to_mesh_axis if axis is not None]


def last_sum(x: tf.Tensor) -> tf.Tensor:
    """Sum over the last axis, which stays as 1."""
    return tf.reduce_sum(x, -1, keepdims=True)
