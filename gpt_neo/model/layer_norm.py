"""Layer norm with its scale and shift as one operation.

Composed, normalised and scaled tensors would both be kept for the backward pass; here the input alone is, and on one
shard each direction is one compiled pass over memory.
"""

from __future__ import annotations

from typing import Any

from gpt_neo.model.fused_ops import Reducing, last_sum, split_statistics
from gpt_neo.model.vocab_ops import split_axes
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import compiled


def scaled_layer_norm(x: Any, scale: Any, shift: Any, epsilon: float) -> Any:
    """scale (x - mean) / sqrt(variance + epsilon) + shift (Ba et al. 2016, equation 4), statistics in float32.

    Args:
      x: [..., embd], the normalised dimension last.
      scale, shift: [embd].

    Returns:
      a tensor of the shape and type of x.
    """
    return LayerNormOperation(x, scale, shift, epsilon).outputs[0]


class LayerNormOperation(Reducing):
    """See `scaled_layer_norm`."""

    def __init__(self, x: Any, scale: Any, shift: Any, epsilon: float) -> None:
        super().__init__([x, scale, shift], scale.shape.dims[0], "layer_norm")
        self.epsilon = epsilon

    def gradient(self, grad_ys: Any) -> list:
        """Gradients of input, scale and shift, statistics computed again."""
        x, scale, _ = self.inputs
        return LayerNormGradOperation(x, scale, grad_ys[0], self.dim, self.epsilon).outputs

    def kernel(self, x: Any, scale: Any, shift: Any) -> Any:
        """[..., dim], [dim], [dim] -> [..., dim]."""
        return layer_norm_kernel(x, scale, shift, self.epsilon)

    def lower_split(self, mesh_impl: Any, total: Any, x: Any, scale: Any, shift: Any) -> Any:
        """Mean and variance are sums over the shards."""
        normed, _ = split_statistics(mesh_impl, total, x, self.dim.size, self.epsilon)

        def affine(normed: Any, scale: Any, shift: Any) -> Any:
            wide = normed * tf.cast(scale, tf.float32) + tf.cast(shift, tf.float32)
            return tf.cast(wide, scale.dtype)

        return mesh_impl.slicewise(affine, normed, scale, shift)


class LayerNormGradOperation(mtf.Operation):
    """Three outputs: with d = dy scale and y the normalised x,

    dx = (d - mean(d) - y mean(d y)) / sqrt(variance + epsilon); float32 dscale = sum(dy y) and dshift = sum(dy).
    """

    def __init__(self, x: Any, scale: Any, dy: Any, dim: Any, epsilon: float) -> None:
        super().__init__([x, scale, dy], name="layer_norm_grad")
        self.dim, self.epsilon = dim, epsilon
        sums = [mtf.Tensor(self, scale.shape, tf.float32) for _ in range(2)]
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype), *sums]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Sums over rows go over the shards that hold other rows, means over the shards that split a row."""
        mesh_impl = lowering.mesh_impl(self)
        x, scale, dy = (lowering.tensors[t] for t in self.inputs)
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.dim)
        if axis is None:
            outs = mesh_impl.slicewise(lambda *t: layer_norm_grad_kernel(*t, self.epsilon), x, scale, dy)
        else:
            outs = self.lower_split(mesh_impl, axis, x, scale, dy)
        axes = [a for a in split_axes(mesh_impl, self.inputs[0].shape) if a != axis]
        for number, (tensor, out) in enumerate(zip(self.outputs, outs)):
            whole = mtf.ops.LazyAllreduceSum(mesh_impl, out, axes) if number and axes else out
            lowering.set_tensor_lowering(tensor, whole)

    def lower_split(self, mesh_impl: Any, axis: Any, x: Any, scale: Any, dy: Any) -> tuple:
        """The three gradients where shards split the normalised dimension."""

        def total(fn: Any, *xs: Any, kind: str = "SUM") -> Any:
            return mesh_impl.allreduce(mesh_impl.slicewise(fn, *xs), [axis], kind)

        size = self.dim.size
        normed, inverse = split_statistics(mesh_impl, total, x, size, self.epsilon)
        d = mesh_impl.slicewise(lambda g, s: tf.cast(g, tf.float32) * tf.cast(s, tf.float32), dy, scale)
        mean_d = total(lambda d: last_sum(d) / size, d)
        mean_d_y = total(lambda d, y: last_sum(d * y) / size, d, normed)

        def combine(d: Any, y: Any, inv: Any, a: Any, b: Any, like: Any) -> Any:
            return tf.cast((d - a - y * b) * inv, like.dtype)

        dx = mesh_impl.slicewise(combine, d, normed, inverse, mean_d, mean_d_y, x)
        dscale = mesh_impl.slicewise(lambda g, y: row_sum(tf.cast(g, tf.float32) * y), dy, normed)
        return dx, dscale, mesh_impl.slicewise(row_sum, dy)


def row_sum(x: Any) -> Any:
    """Sum over all but the last axis, float32."""
    return tf.reduce_sum(tf.reshape(tf.cast(x, tf.float32), [-1, x.shape[-1]]), 0)


@compiled
def layer_norm_kernel(x: Any, scale: Any, shift: Any, epsilon: float) -> Any:
    """See `scaled_layer_norm`."""
    wide, scale, shift = (tf.cast(t, tf.float32) for t in (x, scale, shift))
    centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    return tf.cast(centred * inverse * scale + shift, x.dtype)


@compiled
def layer_norm_grad_kernel(x: Any, scale: Any, dy: Any, epsilon: float) -> tuple:
    """See `LayerNormGradOperation`."""
    wide, grad = tf.cast(x, tf.float32), tf.cast(dy, tf.float32)
    centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    normed, d = centred * inverse, grad * tf.cast(scale, tf.float32)
    inner = tf.reduce_mean(d * normed, -1, keepdims=True)
    dx = (d - tf.reduce_mean(d, -1, keepdims=True) - normed * inner) * inverse
    return tf.cast(dx, x.dtype), row_sum(grad * normed), row_sum(grad)
