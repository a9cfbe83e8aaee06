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

from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf

SLOTS = "slots"


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which dimension of a weight and its slots is split over replicas.

    mesh_shape, layout: pairs as in the config; empty on one device. in_place: whether there are variables that
    TensorFlow's kernels can update, or else inputs and outputs of a pure function.
    """

    mesh_shape: tuple = ()
    layout: tuple = ()
    in_place: bool = True

    def dimension(self, shape: mtf.Shape) -> Optional[Dimension]:
        """The first dimension that divides and is not split yet; None without one, or without a rule for `slots`.

        A variable that the layout splits over the same mesh dimension already stays as it is: no device holds what
        another one does.
        """
        rules = dict(self.layout)
        if SLOTS not in rules or any(rules.get(dim.name) == rules[SLOTS] for dim in shape.dims):
            return None
        parts = dict(self.mesh_shape)[rules[SLOTS]]
        return next((dim for dim in shape.dims if dim.name not in rules and dim.size % parts == 0), None)

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
        self._outputs.append(mtf.Tensor(self, shape, dtype, index=1))
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    @property
    def whole(self) -> Tensor:
        """The weight in its own shape and the type of the activations."""
        return self.outputs[1]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Each device casts its part, then gathers the others': bfloat16 costs half of the traffic."""
        super().lower(lowering)
        mesh_impl, dtype = lowering.mesh_impl(self), self.whole.dtype
        out = mesh_impl.slicewise(lambda part: tf.cast(part, dtype), lowering.variables[self].laid_out_tensor)
        if self.shape != self.whole.shape:
            place = self.shape.dims.index(self.shape.get_dim_by_name(SLOTS))
            out = mesh_impl.allconcat(out, mesh_impl.tensor_dimension_to_mesh_axis(self.shape.dims[place]), place)
        lowering.set_tensor_lowering(self.whole, out)


def trained_variable(
    mesh: mtf.Mesh,
    name: str,
    shape: mtf.Shape,
    dtype: tf.DType,
    initializer: Callable[..., tf.Tensor],
    partition: Partition,
    frozen: bool = False,
) -> mtf.Variable:
    """What layers read of a weight, in `dtype`; of the one of that name if the graph has it already."""
    names = mesh.graph.name_to_variable
    if name not in names:
        names[name] = TrainedVariable(mesh, name, shape, dtype, initializer, partition, frozen)
    return names[name].whole
