"""Part of a network that is run again in the backward pass, so that what lies inside of it need not be kept.

From its inputs alone it costs a second forward pass (Chen et al. 2016). Where the results of its products are kept too,
the second run is left with what lies between them: norms, activations, dropout, sums. Weights that are gathered where
they are read are gathered again in any case.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Callable

from gpt_neo.mtf_compat import Tensor, mtf
from gpt_neo.ops.fused import FusedOp
from gpt_neo.ops.kernels import late
from gpt_neo.ops.trained import GatherOperation


def recomputed(run: Callable[[Tensor], tuple], x: Tensor, kept: str) -> tuple:
    """run(x), whose backward pass runs it again.

    Args:
      run: gives tensors, and may read others beside x: weights.
      kept: what is not made again: a key of KEPT.
    """
    return mtf.ops.custom_gradient(run, functools.partial(gradient, is_kept=KEPT[kept]), [x])


def gradient(
    explicit_inputs: Sequence[Tensor],
    all_inputs: Sequence[Tensor],
    forward_operations: Sequence[mtf.Operation],
    outputs: Sequence[Tensor],
    output_grads: Sequence[Tensor],
    is_kept: Callable[[mtf.Operation], bool],
) -> list:
    """Gradients of all_inputs. Arguments as `mtf.custom_gradient` gives them.

    A compiler that finds the same computation twice does it once and keeps the result, which would undo all this. So
    what the second run reads is `late`: the second run begins once the gradient is there.
    """
    later = output_grads[0]
    parts = [op.inputs[0] for op in forward_operations if isinstance(op, GatherOperation)]
    again = {x: x for x in all_inputs}
    again.update({x: Late(x, later).outputs[0] for x in dict.fromkeys([*explicit_inputs, *parts])})
    inputs = [again[x] for x in all_inputs]
    operations, again = explicit_inputs[0].graph.clone_operations(forward_operations, again)
    weights = made_of_weights(forward_operations)
    for operation in forward_operations:
        if operation not in weights and is_kept(operation):
            keep(operation, again[operation.outputs[0]].operation, later)
    return mtf.gradients([again[y] for y in outputs], inputs, output_grads, operations)


def made_of_weights(operations: Sequence[mtf.Operation]) -> set:
    """Operations that gather a weight, and those that turn nothing but such weights into another form."""
    found: set = set()
    for operation in operations:  # each stands behind what it reads
        sources = [x.operation for x in operation.inputs]
        if isinstance(operation, GatherOperation) or (sources and found.issuperset(sources)):
            found.add(operation)
    return found


def is_product(operation: mtf.Operation) -> bool:
    """Whether an operation multiplies matrices, or is worth as much: its results are kept."""
    if isinstance(operation, mtf.ops.EinsumOperation):  # those without a sum multiply number by number
        dims = {d for x in operation.inputs for d in x.shape.dims}
        return len(dims) > len(operation.outputs[0].shape.dims)
    return getattr(operation, "is_product", False)


# What of a block is kept for its backward pass, beside its inputs -> whether that is what an operation gives that does
# not depend on weights alone.
KEPT: dict[str, Callable[[mtf.Operation], bool]] = {
    "inputs": lambda operation: False,
    "products": is_product,
    "all": lambda operation: operation.outputs[0].dtype.is_floating,  # masks are made again
}


class Late(FusedOp):
    """x, once another tensor is there, see `kernels.late`: on each core by what it has of that one."""

    def __init__(self, x: Tensor, later: Tensor) -> None:
        super().__init__("late", [x, later], [(x.shape, x.dtype)])

    def lower(self, lowering: mtf.Lowering) -> None:
        """On every core by itself."""
        x, later = self.inputs
        lower_late(lowering, self, x, later, self.outputs[0])


def lower_late(lowering: mtf.Lowering, operation: mtf.Operation, x: Tensor, later: Tensor, output: Tensor) -> None:
    """Have an output of an operation be x, once `later` is there."""
    given = [lowering.tensors[tensor].to_laid_out_tensor() for tensor in (x, later)]
    lowering.set_tensor_lowering(output, lowering.mesh_impl(operation).slicewise(late, *given))


def keep(first: mtf.Operation, again: mtf.Operation, later: Tensor) -> None:
    """Have the second of two equal operations give what the first has made; its gradient stays its own."""

    def lower(lowering: mtf.Lowering) -> None:
        for made, output in zip(first.outputs, again.outputs):
            lower_late(lowering, again, made, later, output)

    again.lower = lower
