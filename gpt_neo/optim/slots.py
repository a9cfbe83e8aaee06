"""What optimizers are made of: slots, whole on every device or split over replicas; scalars; order.

Data-parallel replicas hold the same weights, and would hold the same slots. A layout rule `slots:x` splits them over
mesh dimension x (Rajbhandari et al. 2020, ZeRO stage 2): each device keeps and updates its part, from its part of the
gradient, and the new weights are gathered. In Mesh-TF's terms one dimension of the variable is called `slots` within
the optimizer, so the layout splits it. Names and shapes in checkpoints are those of whole slots.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from gpt_neo.mtf_compat import mtf, tf, zeros_initializer

SLOTS = "slots"


@dataclasses.dataclass(frozen=True)
class SlotLayout:
    """Which dimension of a variable is split.

    mesh_shape, layout: pairs as in the config; empty on one device. in_place: whether there are variables that
    TensorFlow's kernels can update, or else inputs and outputs of a pure function.
    """

    mesh_shape: tuple = ()
    layout: tuple = ()
    in_place: bool = True

    def split_dimension(self, shape: Any) -> Optional[Any]:
        """The first dimension that divides and is not split yet; None without one, or without a rule for `slots`.

        A variable that the layout splits over the same mesh dimension already stays as it is: no device holds what
        another one does.
        """
        rules = dict(self.layout)
        if SLOTS not in rules or any(rules.get(dim.name) == rules[SLOTS] for dim in shape.dims):
            return None
        parts = dict(self.mesh_shape)[rules[SLOTS]]
        return next((dim for dim in shape.dims if dim.name not in rules and dim.size % parts == 0), None)

    def shape(self, shape: Any) -> Any:
        """The shape of slots of a variable of that shape."""
        dim = self.split_dimension(shape)
        return shape.rename_dimension(dim.name, SLOTS) if dim else shape

    def scatter(self, x: Any) -> Any:
        """A device's part of a tensor of a variable's shape."""
        return mtf.reshape(x, self.shape(x.shape))

    def part(self, grad: Any) -> Any:
        """Of a gradient whose variable's slots are split: a device's part of the sum over devices, float32.

        Taken from every microbatch (ZeRO stage 2), so that between them no device holds a whole gradient and the parts
        add up in float32. Other gradients stay as they are, their sum over devices left for later.
        """
        return self.scatter(WidenOperation(grad).outputs[0]) if self.split_dimension(grad.shape) else grad

    def gather(self, x: Any, shape: Any) -> Any:
        """The whole tensor, in the variable's own shape."""
        return mtf.reshape(x, shape)


def slot(variable: Any, suffix: str, shape: Any) -> Any:
    """A float32 optimizer slot called as its variable and a suffix, starting at 0; a tensor."""
    return mtf.get_variable(
        variable.mesh,
        variable.name + suffix,
        shape,
        dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32),
        initializer=zeros_initializer,
        trainable=False,
    )


def scalar(mesh: Any, value: Any) -> Any:
    """A float32 mtf scalar of a number or a TensorFlow scalar."""
    return mtf.import_tf_tensor(mesh, tf.convert_to_tensor(value, tf.float32), mtf.Shape([]))


def wait(x: Any, waits: list) -> Any:
    """x, once all of `waits` (mtf tensors or operations) are there."""
    return WaitOperation(x, waits).outputs[0]


class WidenOperation(mtf.Operation):
    """x in float32; of a sum over devices that is still to be made, its terms."""

    def __init__(self, x: Any) -> None:
        super().__init__([x], name="widen")
        self._outputs = [mtf.Tensor(self, x.shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Slices are independent of one another."""
        (x,) = self.inputs
        wide = lowering.mesh_impl(self).slicewise_delay_allreduce(
            lambda part: tf.cast(part, tf.float32), lowering.tensors[x]
        )
        lowering.set_tensor_lowering(self.outputs[0], wide)


class WaitOperation(mtf.Operation):
    """Puts a tensor behind others, so that what follows from it starts later."""

    def __init__(self, x: Any, waits: list) -> None:
        super().__init__([x], name="wait")
        self.waits = waits
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype)]

    def lower(self, lowering: Any) -> None:
        """Control dependencies, which a compiled TPU program takes for what they are: hints."""
        with tf.control_dependencies(lowered(lowering, self.waits)):
            out = lowering.mesh_impl(self).slicewise(tf.identity, lowering.tensors[self.inputs[0]])
        lowering.set_tensor_lowering(self.outputs[0], out)


def lowered(lowering: Any, waits: list) -> list:
    """TensorFlow tensors and operations of lowered mtf tensors and operations."""
    found: list = []
    for item in waits:
        if isinstance(item, mtf.Tensor):
            found += lowering.tensors[item].to_laid_out_tensor().all_slices
        else:
            found.append(lowering.operations[item])
    return found
