"""What optimizers are made of: slots beside their weights, scalars; order."""

from __future__ import annotations

from typing import Union

from gpt_neo.mtf_compat import Tensor, mtf, tf, zeros_initializer
from gpt_neo.ops.fused import FusedOp


def slot(variable: mtf.Variable, suffix: str, shape: mtf.Shape) -> mtf.Variable:
    """A float32 optimizer slot called as its variable and a suffix, starting at 0; a tensor."""
    return mtf.get_variable(
        variable.mesh,
        variable.name + suffix,
        shape,
        dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32),
        initializer=zeros_initializer,
        trainable=False,
    )


def scalar(mesh: mtf.Mesh, value: Union[float, tf.Tensor]) -> Tensor:
    """A float32 mtf scalar of a number or a TensorFlow scalar."""
    return mtf.import_tf_tensor(mesh, tf.convert_to_tensor(value, tf.float32), mtf.Shape([]))


def wait(x: Tensor, waits: list) -> Tensor:
    """x, once all of `waits` (mtf tensors or operations) are there."""
    return WaitOperation(x, waits).outputs[0]


class WaitOperation(FusedOp):
    """Puts a tensor behind others, so that what follows from it starts later."""

    def __init__(self, x: Tensor, waits: list) -> None:
        super().__init__("wait", [x], [(x.shape, x.dtype)])
        self.waits = waits

    def lower(self, lowering: mtf.Lowering) -> None:
        """Control dependencies, which a compiled TPU program takes for what they are: hints."""
        with tf.control_dependencies(lowered(lowering, self.waits)):
            out = lowering.mesh_impl(self).slicewise(tf.identity, lowering.tensors[self.inputs[0]])
        lowering.set_tensor_lowering(self.outputs[0], out)


def lowered(lowering: mtf.Lowering, waits: list) -> list:
    """TensorFlow tensors and operations of lowered mtf tensors and operations."""
    found: list = []
    for item in waits:
        if isinstance(item, mtf.Tensor):
            found += lowering.tensors[item].to_laid_out_tensor().all_slices
        else:
            found.append(lowering.operations[item])
    return found
