"""Attention layers that decode from a state of constant size, as Mesh-TF operations.

A layer gives a kernel on TensorFlow tensors, `kernel(*tensors, real=..., state=...) -> (out, new state)`:
  tensors: [batch, sequence, heads, some features], the layer's projections.
  real: boolean [batch, sequence], false for padding, which has to leave the state alone; None where all tokens count.
  state: float32 [batch, heads, features_in, features], None at the start of a sequence.
Rows and heads are independent of each other, so shards of them are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

from gpt_neo.model.attention.cached import CACHES
from gpt_neo.model.context import Context, Decoding
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import mtf, tf

WHOLE = "whole_"  # put before the names of dimensions that a kernel needs in one piece


def attend(
    kernel: Callable[..., tuple], tensors: Sequence, like: Any, state: Sequence[int], dims: Dims, context: Context
) -> Any:
    """Run a kernel over whole sequences, or over new tokens from the state that earlier ones left.

    Args:
      tensors: [batch, sequence, heads, features] each, features of any name and size.
      like: the one of them that the result has the shape and type of.
      state: sizes of the state after [batch, heads].
    """
    # Sequence and features have to be whole in every shard: names that no layout knows gather them where they are not.
    whole = [rename_whole(x, dims) for x in tensors]
    out_shape, dtype = whole[tensors.index(like)].shape, like.dtype
    if context.decoding:
        operation = context.decoding.advance or StateOperation
        out = operation(kernel, whole, out_shape, dtype, state, context.decoding).outputs[0]
    else:
        out = recomputed(lambda *xs: kernel(*xs, real=None, state=None)[0], whole, out_shape, dtype)
    return mtf.reshape(out, like.shape)


def rename_whole(x: Any, dims: Dims) -> Any:
    """Give all dimensions but batch and heads names of their own."""
    kept = (dims.batch.name, "heads")
    return mtf.reshape(x, [d if d.name in kept else mtf.Dimension(WHOLE + d.name, d.size) for d in x.shape.dims])


def recomputed(kernel: Callable[..., Any], inputs: list, shape: Any, dtype: Any) -> Any:
    """A slicewise operation that keeps only its inputs for the backward pass, and runs the kernel again there.

    Every input has to have every dimension that is split, batch and heads, or its gradient would lack a sum.
    """
    splittable = [d for d in shape.dims if not d.name.startswith(WHOLE)]

    def gradient_kernel(*tensors: Any) -> tuple:
        *again, grad = tensors
        # The dependency keeps TensorFlow from merging this run of the kernel with the first one.
        with tf.control_dependencies([grad]):
            again = [tf.identity(x) for x in again]
        return tuple(tf.gradients(kernel(*again), again, grad))

    def gradient(operation: Any, grad: Any) -> list:
        xs = operation.inputs
        shapes, dtypes = [x.shape for x in xs], [x.dtype for x in xs]
        return list(mtf.slicewise(gradient_kernel, [*xs, grad], shapes, dtypes, splittable))

    return mtf.slicewise(kernel, inputs, shape, dtype, splittable, grad_function=gradient)


class StateOperation(mtf.Operation):
    """New tokens from a state that is a variable, one per shard. Rows start anew at slot 0."""

    def __init__(
        self, kernel: Callable[..., tuple], tensors: list, shape: Any, dtype: Any, state: Sequence[int], at: Decoding
    ) -> None:
        row = [] if at.row is None else [at.row]
        super().__init__([*tensors, at.slot, at.start, *row], name="stateful_attention")
        self.scope = tf.get_variable_scope()
        self.kernel, self.state, self.rows, self.count = kernel, state, at.rows, len(tensors)
        self._outputs = [mtf.Tensor(self, shape, dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Each shard has the state of its rows and heads."""
        mesh_impl = lowering.mesh_impl(self)
        shards = iter(range(mesh_impl.size))

        def run(*inputs: Any) -> Any:
            tensors, (slot, start, *row) = inputs[: self.count], inputs[self.count :]
            batch, length, heads, _ = tensors[0].shape.as_list()
            state, keep = self.held([self.rows or batch, heads, *self.state], row, next(shards))
            state = tf.where_v2(tf.reshape(tf.equal(slot, 0), [-1, 1, 1, 1]), tf.zeros_like(state), state)
            real = tf.reshape(slot, [-1, 1]) + tf.range(length) >= start[:, tf.newaxis]
            out, state = self.kernel(*tensors, real=real, state=state)
            with tf.control_dependencies(keep(state)):
                return tf.identity(out)

        out = mesh_impl.slicewise(run, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)

    def held(self, shape: list, row: list, shard: int) -> tuple[Any, Callable[[Any], list]]:
        """The state so far, of all rows or of one, and a function that keeps the next: operations to wait for."""
        with tf.variable_scope(self.scope, auxiliary_name_scope=False):
            variable = tf.get_variable(
                f"state_{shard}",
                shape,
                tf.float32,
                tf.zeros_initializer(),
                trainable=False,
                use_resource=True,
                collections=[CACHES],
            )

        def keep(state: Any) -> list:
            return [variable.scatter_update(tf.IndexedSlices(state, row)) if row else tf.assign(variable, state)]

        return tf.gather(variable, row) if row else variable.read_value(), keep


def only_real(x: Any, real: Any) -> Any:
    """x [batch, sequence, heads, features], with 0 for padding."""
    return x if real is None else tf.where_v2(real[:, :, tf.newaxis, tf.newaxis], x, 0.0)
