"""Variables of TPU cores, many of one shape in one: a pod's graph then has some thousand of them, not millions.

Mesh-TF makes a TensorFlow variable of every variable and core, each with half a dozen operations around it: on 128
cores 40,000 a layer. It can stack variables itself (`rewrite_stack_variables`), as the legacy program had it do, but
only those with one output, set by one common assignment; ours have two (ops/trained.py), and are set one by one. So
stacking happens below, where variables become TensorFlow's. Masters, and so checkpoints, stay as they are.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from gpt_neo.mtf_compat import SimdMeshImpl, mtf, tf

WHOLE, SLICE = 2**29, 2**27  # most elements of a stack, and of a core's part of it: Mesh-TF's limits for its own


class SliceInput:
    """A core's slice of a variable as a value, which stands where Mesh-TF has a TensorFlow variable.

    fresh: what is assigned to it, in the end.
    """

    def __init__(self, value: tf.Tensor) -> None:
        self.value, self.dtype, self.fresh = value, value.dtype, None

    def assign(self, value: tf.Tensor, **_: Any) -> tf.Tensor:
        """Take note of the new value; reads stay those of the old one."""
        self.fresh = value
        return value

    def __add__(self, other: tf.Tensor) -> tf.Tensor:
        """The old value plus something."""
        return self.value + other

    def __sub__(self, other: tf.Tensor) -> tf.Tensor:
        """The old value minus something."""
        return self.value - other


class Stack:
    """Variables of one shape, as one TensorFlow variable of every core.

    Args:
      joined: mtf.StackedVariable of them.
      count: of them.
      lay: joined -> Mesh-TF's LaidOutVariable of it; called at the first use, where Mesh-TF would.
    """

    def __init__(self, joined: Any, count: int, lay: Callable[[Any], Any]) -> None:
        self.joined, self.count, self.lay = joined, count, lay
        self.laid: Any = None
        self.parts: list[SliceInput] = []

    def slices(self) -> Any:
        """Mesh-TF's variables of the cores."""
        self.laid = self.laid or self.lay(self.joined)
        return self.laid

    def read(self, place: int) -> SliceInput:
        """A core's slice of one of the variables; all are read together."""
        if not self.parts:
            value = tf.convert_to_tensor(self.slices().laid_out_tensor.one_slice)
            self.parts = [SliceInput(part) for part in tf.unstack(value)]
        return self.parts[place]

    def written(self) -> tf.Operation:
        """The update of all of them, once each has its new value; nothing before."""
        if any(part.fresh is None for part in self.parts):
            return tf.no_op()
        value = tf.stack([part.fresh for part in self.parts])
        return self.slices().assign_to_slices(mtf.ops.assign_slice, [value])


class StackedSlices:
    """One variable of a stack; as Mesh-TF's LaidOutVariable."""

    def __init__(self, stack: Stack, place: int, mesh_impl: SimdMeshImpl) -> None:
        self.stack, self.place, self.mesh_impl = stack, place, mesh_impl
        slices = stack.slices()
        # of the first one, those of all
        self.copy_master_to_slices = tf.no_op() if place else slices.copy_master_to_slices
        self.copy_slices_to_master = tf.no_op() if place else slices.copy_slices_to_master

    @property
    def laid_out_tensor(self) -> Any:
        """Its value; asked for where the cores' program is built."""
        return self.mesh_impl.LaidOutTensor([self.stack.read(self.place).value])

    def assign_to_slices(
        self, assign_fn: Callable[..., tf.Tensor], values: list, assign_to_tensor_list: Optional[list] = None
    ) -> tf.Operation:
        """Take the new value; the last one of a stack writes all."""
        assign_fn(self.stack.joined, self.stack.read(self.place), values[0])
        return self.stack.written()


def make_stacks(graph: mtf.Graph, mesh_impl: SimdMeshImpl, lay: Callable[[Any], Any]) -> dict[str, tuple[Stack, int]]:
    """The stack and the place in it of every variable of a finished graph that shares one, by name.

    Those of a stack have one shape, layout and type, and all of them are assigned to, or none.
    """
    assigned = {v for op in graph.operations if isinstance(op, mtf.ops.Assign) for v in op.variables}
    alike: dict = {}
    for variable in graph.all_variables:
        types = (variable.master_dtype, variable.slice_dtype, variable.trainable)
        alike.setdefault((*variable.shape.dims, *types, variable in assigned), []).append(variable)
    found = {}
    operations, everything, trainable = (
        list(graph.operations),
        list(graph.all_variables),
        list(graph.trainable_variables),
    )
    for variables in alike.values():
        shape = variables[0].shape
        most = max(1, min(WHOLE // shape.size, SLICE // mesh_impl.slice_size(shape)))
        for at in range(0, len(variables), most):
            members = variables[at : at + most]
            if len(members) > 1:
                stack = Stack(mtf.ops.StackedVariable(members), len(members), lay)
                found.update({variable.name: (stack, place) for place, variable in enumerate(members)})
    # A new variable enters the graph, where nothing but these stacks uses it.
    graph.operations[:], graph.all_variables[:], graph.trainable_variables[:] = operations, everything, trainable
    return found
