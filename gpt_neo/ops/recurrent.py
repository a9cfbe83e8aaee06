"""Layers that read whole sequences by a recurrence, and decode from a state of constant size, as one operation.

A layer gives a kernel on TensorFlow tensors, `kernel(*tensors, real=..., state=...) -> (out, new state)`:
  tensors: [batch, sequence, heads, some features], the layer's projections.
  real: boolean [batch, sequence], false for padding, which has to leave the state alone; None where all tokens count.
  state: float32 [batch, heads, features_in, features], None at the start of a sequence.
Rows and heads are independent of each other, so shards of them are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.caches import CacheShard, Decoding
from gpt_neo.ops.fused import FusedOp

WHOLE = "whole_"  # put before the names of dimensions that a kernel needs in one piece


def recurrence(
    kernel: Callable[..., tuple],
    tensors: Sequence,
    like: Tensor,
    state: Sequence[int],
    layer: int,
    at: Optional[Decoding],
) -> Tensor:
    """Run a kernel over whole sequences, or over new tokens from the state that earlier ones left.

    Args:
      tensors: [batch, sequence, heads, features] each, features of any name and size.
      like: the one of them that the result has the shape and type of.
      state: sizes of the state after [batch, heads].
      at: a `Decoding`; None for whole sequences.
    """
    # Sequence and features have to be whole in every shard: names that no layout knows gather them where they are not.
    whole = [rename_whole(x) for x in tensors]
    out_shape, dtype = whole[tensors.index(like)].shape, like.dtype
    if at:
        out = StateOperation(kernel, whole, out_shape, dtype, state, layer, at).outputs[0]
    else:
        out = from_inputs(lambda *xs: kernel(*xs, real=None, state=None)[0], whole, out_shape, dtype)
    return mtf.reshape(out, like.shape)


def rename_whole(x: Tensor) -> Tensor:
    """Give all dimensions but batch and heads names of their own."""
    kept = (x.shape.dims[0].name, "heads")
    return mtf.reshape(x, [d if d.name in kept else mtf.Dimension(WHOLE + d.name, d.size) for d in x.shape.dims])


def from_inputs(kernel: Callable[..., Tensor], inputs: list, shape: mtf.Shape, dtype: tf.DType) -> Tensor:
    """A slicewise operation that keeps only its inputs for the backward pass, and runs the kernel again there.

    Every input has to have every dimension that is split, batch and heads, or its gradient would lack a sum.
    """
    splittable = [d for d in shape.dims if not d.name.startswith(WHOLE)]

    def gradient_kernel(*tensors: tf.Tensor) -> tf.Tensor:
        *again, grad = tensors
        # The dependency keeps TensorFlow from merging this run of the kernel with the first one.
        with tf.control_dependencies([grad]):
            again = [tf.identity(x) for x in again]
        grads = tf.gradients(kernel(*again), again, grad)
        return tuple(grads) if len(grads) > 1 else grads[0]

    def gradient(operation: mtf.Operation, grad: Tensor) -> list:
        xs = operation.inputs
        shapes, dtypes = [x.shape for x in xs], [x.dtype for x in xs]
        return list(mtf.slicewise(gradient_kernel, [*xs, grad], shapes, dtypes, splittable))

    out = mtf.slicewise(kernel, inputs, shape, dtype, splittable, grad_function=gradient)
    out.operation.is_product = True
    return out


class StateOperation(FusedOp):
    """New tokens from the state that is kept in a store. Rows start anew at position 0."""

    def __init__(
        self,
        kernel: Callable[..., tuple],
        tensors: list,
        shape: mtf.Shape,
        dtype: tf.DType,
        state: Sequence[int],
        layer: int,
        at: Decoding,
    ) -> None:
        super().__init__("recurrence", [*tensors, at.position, at.start], [(shape, dtype)])
        self.kernel, self.state, self.layer, self.store = kernel, state, layer, at.store

    def lower(self, lowering: mtf.Lowering) -> None:
        """Each shard has the state of its rows and heads."""
        mesh_impl = lowering.mesh_impl(self)
        shards = iter(range(mesh_impl.size))

        def run(*inputs: tf.Tensor) -> tf.Tensor:
            *tensors, position, start = inputs
            batch, length, heads, _ = tensors[0].shape.as_list()
            shape = (self.store.rows or batch, heads, *self.state)
            cache = CacheShard(self.layer, "state", next(shards), shape, tf.float32, is_state=True)
            state = self.store.read(cache)
            state = tf.where_v2(tf.reshape(tf.equal(position, 0), [-1, 1, 1, 1]), tf.zeros_like(state), state)
            real = tf.reshape(position, [-1, 1]) + tf.range(length) >= start[:, tf.newaxis]
            out, state = self.kernel(*tensors, real=real, state=state)
            with tf.control_dependencies([self.store.write(cache, state)]):
                return tf.identity(out)

        out = mesh_impl.slicewise(run, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)


def only_real(x: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """x [batch, sequence, heads, features], with 0 for padding."""
    return x if real is None else tf.where_v2(real[:, :, tf.newaxis, tf.newaxis], x, 0.0)
