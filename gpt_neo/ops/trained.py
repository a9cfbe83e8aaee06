"""Weights in training: float32 on the devices whatever the activations are, whole or in parts over replicas.

An update is often smaller than the last bit of a bfloat16 weight, and would be lost. So what is trained is float32, as
in the legacy program, whose slices were; the network reads it in the precision of the config.

Data-parallel replicas would all hold the same weights and optimizer slots. A layout rule `slots:x` splits both over
mesh dimension x (Rajbhandari et al. 2020, ZeRO): each device keeps and updates its part, from its part of the gradient,
and the whole weight is gathered once a step, in the precision that the network reads. In Mesh-TF's terms one dimension
of the variable is called `slots` where it is stored, so the layout splits it. Checkpoints hold whole weights and slots.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Optional

from gpt_neo.config.layouts import SLOTS, spread_dimension
from gpt_neo.mtf_compat import Dimension, LaidOut, Tensor, mtf, tf
from gpt_neo.ops.fused import FusedOp


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which dimension of a weight and its slots is split over replicas.

    mesh_shape, layout: pairs as in the config; empty on one device. in_place: whether there are variables that
    TensorFlow's kernels can update, or else inputs and outputs of a pure function. sums: type that gradients are sent
    in when the replicas' are added up.
    """

    mesh_shape: tuple = ()
    layout: tuple = ()
    in_place: bool = True
    sums: tf.DType = tf.float32

    def dimension(self, shape: mtf.Shape) -> Optional[Dimension]:
        """The one that is split, see `config.layouts.spread_dimension`."""
        dims = [(dim.name, dim.size) for dim in shape.dims]
        name = spread_dimension(dict(self.mesh_shape), dict(self.layout), dims)
        return None if name is None else shape.get_dim_by_name(name)

    def shape(self, shape: mtf.Shape) -> mtf.Shape:
        """The shape in which a weight of that shape is stored, and its slots are."""
        dim = self.dimension(shape)
        return shape.rename_dimension(dim.name, SLOTS) if dim else shape


class TrainedVariable(mtf.Variable):
    """A weight with two outputs: what is stored, float32, perhaps in parts; and the whole of it, which layers read.

    `value` and `shape` are those of what is stored, as optimizers want them. Gradients are taken of `whole`. One that
    is frozen is stored alike, and is none of the graph's trainable variables.
    """

    def __init__(
        self,
        mesh: mtf.Mesh,
        name: str,
        shape: mtf.Shape,
        dtype: tf.DType,
        initializer: Callable[..., tf.Tensor],
        partition: Partition,
        frozen: bool = False,
    ) -> None:
        stored = mtf.VariableDType(tf.float32, tf.float32, tf.float32)
        super().__init__(mesh, name, partition.shape(shape), stored, initializer, trainable=not frozen)
        self.partition = partition
        self._outputs.append(mtf.Tensor(self, shape, dtype, index=1))
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    @property
    def whole(self) -> Tensor:
        """The weight in its own shape and the type of the activations."""
        return self.outputs[1]

    def lower(self, lowering: mtf.Lowering) -> None:
        """The whole is gathered as the variable is there: once a step."""
        super().lower(lowering)
        part = lowering.variables[self].laid_out_tensor
        lowering.set_tensor_lowering(self.whole, gathered(lowering.mesh_impl(self), part, self.shape, self.whole))


class GatherOperation(FusedOp):
    """The whole of a weight, gathered where it stands: each time that a block reads it, in place of once a step.

    Its gradient is a device's part of the sum over devices, as the weight is stored.
    """

    def __init__(self, variable: TrainedVariable) -> None:
        super().__init__("gather_weight", [variable.value], [(variable.whole.shape, variable.whole.dtype)])
        self.partition = variable.partition

    def lower(self, lowering: mtf.Lowering) -> None:
        """On all devices at once."""
        (part,), (whole,) = self.inputs, self.outputs
        laid_out = lowering.tensors[part].to_laid_out_tensor()
        lowering.set_tensor_lowering(whole, gathered(lowering.mesh_impl(self), laid_out, part.shape, whole))

    def gradient(self, grad_ys: list) -> list:
        """As for a weight that is gathered once, but here and now."""
        return [stored_part(grad_ys[0], self.partition)]


def gathered(mesh_impl: mtf.MeshImpl, part: LaidOut, stored: mtf.Shape, whole: Tensor) -> LaidOut:
    """Each device casts its part, then gathers the others': bfloat16 costs half of the traffic."""
    out = mesh_impl.slicewise(lambda x: tf.cast(x, whole.dtype), part)
    if stored != whole.shape:
        place = stored.dims.index(stored.get_dim_by_name(SLOTS))
        out = mesh_impl.allconcat(out, mesh_impl.tensor_dimension_to_mesh_axis(stored.dims[place]), place)
    return out


def trained_variable(
    mesh: mtf.Mesh,
    name: str,
    shape: mtf.Shape,
    dtype: tf.DType,
    initializer: Callable[..., tf.Tensor],
    partition: Partition,
    frozen: bool = False,
    at_use: bool = False,
) -> Tensor:
    """What layers read of a weight, in `dtype`; of the one of that name if the graph has it already.

    Args:
      at_use: gather it anew, in place of once a step.
    """
    names = mesh.graph.name_to_variable
    if name not in names:
        names[name] = TrainedVariable(mesh, name, shape, dtype, initializer, partition, frozen)
    return GatherOperation(names[name]).outputs[0] if at_use else names[name].whole


def stored_part(grad: Tensor, partition: Partition) -> Tensor:
    """A gradient in float32; a device's part of the sum over devices, where its weight is stored in parts.

    Taken from every microbatch (ZeRO stage 2), so that between them no device holds a whole gradient, and whatever adds
    up adds up in float32. Of other gradients the sum over devices is left for later. A part is left as it is.
    """
    if not partition.dimension(grad.shape):
        return widened(grad)
    return widened(mtf.reshape(terms_in(grad, partition.sums), partition.shape(grad.shape)))


def widened(grad: Tensor) -> Tensor:
    """A gradient in float32."""
    return terms_in(grad, tf.float32)


def terms_in(x: Tensor, dtype: tf.DType) -> Tensor:
    """x in another type, or as it is."""
    return x if x.dtype == dtype else TermsOperation(x, dtype).outputs[0]


class TermsOperation(FusedOp):
    """x in another type; of a sum over devices that is still to be made, its terms."""

    def __init__(self, x: Tensor, dtype: tf.DType) -> None:
        super().__init__("terms", [x], [(x.shape, dtype)])

    def lower(self, lowering: mtf.Lowering) -> None:
        """Slices are independent of one another."""
        (x,), (out,) = self.inputs, self.outputs
        cast = lowering.mesh_impl(self).slicewise_delay_allreduce(
            lambda part: tf.cast(part, out.dtype), lowering.tensors[x]
        )
        lowering.set_tensor_lowering(out, cast)
