"""What optimizers are made of: gradients in float32, slots beside their weights, scalars; order."""

from __future__ import annotations

from typing import Any

from gpt_neo.model.trained import Partition
from gpt_neo.mtf_compat import mtf, tf, zeros_initializer


def stored_part(grad: Any, partition: Partition) -> Any:
    """A gradient in float32; a device's part of the sum over devices, where its weight is stored in parts.

    Taken from every microbatch (ZeRO stage 2), so that between them no device holds a whole gradient, and whatever adds
    up adds up in float32. Of other gradients the sum over devices is left for later.
    """
    wide = grad if grad.dtype == tf.float32 else WidenOperation(grad).outputs[0]
    return mtf.reshape(wide, partition.shape(grad.shape)) if partition.dimension(grad.shape) else wide


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
