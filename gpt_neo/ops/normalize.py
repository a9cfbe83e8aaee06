"""Normalisation over the last dimension with its gain and shift, as one operation.

Composed from Mesh-TF's primitives, normalised and scaled tensors would all be kept for the backward pass; here the
input alone is, and on one shard each direction is one compiled pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from gpt_neo.mtf_compat import LaidOut, Tensor, mtf, tf
from gpt_neo.ops.fused import FusedOp, Reducing, Total, last_sum, split_axes
from gpt_neo.ops.kernels import compiled


def normalize(x: Tensor, gain: Tensor, shift: Optional[Tensor], centre: bool, epsilon: float) -> Tensor:
    """gain (x - mean) / sqrt(variance + epsilon) + shift, statistics in float32 over the last dimension of x.

    With `centre` and a shift a layer norm (Ba et al. 2016, equation 4); without either an RMS norm (Zhang and Sennrich
    2019, equation 4), whose mean is taken to be 0.

    Args:
      x: [..., dim].
      gain: [dim] or [].
      shift: [dim], or None.

    Returns:
      a tensor of the shape and type of x.
    """
    inputs = [x, gain] if shift is None else [x, gain, shift]
    return NormalizeOperation(inputs, centre, epsilon).outputs[0]


class NormalizeOperation(Reducing):
    """See `normalize`."""

    def __init__(self, inputs: list, centre: bool, epsilon: float) -> None:
        super().__init__("normalize", inputs, inputs[0].shape.dims[-1])
        self.centre, self.epsilon = centre, epsilon

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Gradients of input, gain and shift, statistics computed again."""
        x, gain, *_ = self.inputs
        return NormalizeGradOperation(x, gain, grad_ys[0], self.centre, self.epsilon).outputs[: len(self.inputs)]

    def kernel(self, x: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor = None) -> tf.Tensor:
        """[..., dim], [dim] or [], [dim] or None -> [..., dim]."""
        return normalize_kernel(x, gain, shift, self.centre, self.epsilon)

    def lower_split(self, mesh_impl: mtf.MeshImpl, total: Total, x: LaidOut, gain: LaidOut, *shift: LaidOut) -> LaidOut:
        """Mean and variance are sums over the shards."""
        normed, _ = split_statistics(mesh_impl, total, x, self.dim.size, self.centre, self.epsilon)
        return mesh_impl.slicewise(lambda n, like, *t: tf.cast(scaled(n, *t), like.dtype), normed, x, gain, *shift)


class NormalizeGradOperation(FusedOp):
    """Three outputs: with d = dy gain and y the normalised x,

    dx = (d - mean(d) - y mean(d y)) / sqrt(variance + epsilon), mean(d) left out without `centre`; float32
    dgain = sum(dy y) and dshift = sum(dy).
    """

    def __init__(self, x: Tensor, gain: Tensor, dy: Tensor, centre: bool, epsilon: float) -> None:
        self.dim, self.centre, self.epsilon = x.shape.dims[-1], centre, epsilon
        sums = [(gain.shape, tf.float32), (mtf.Shape([self.dim]), tf.float32)]
        super().__init__("normalize_grad", [x, gain, dy], [(x.shape, x.dtype), *sums])

    def lower(self, lowering: mtf.Lowering) -> None:
        """Sums over rows go over the shards that hold other rows, means over the shards that split a row."""
        mesh_impl = lowering.mesh_impl(self)
        x, gain, dy = (lowering.tensors[t] for t in self.inputs)
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.dim)
        if axis is None:
            outs = mesh_impl.slicewise(lambda *t: normalize_grad_kernel(*t, self.centre, self.epsilon), x, gain, dy)
        else:
            outs = self.lower_split(mesh_impl, Total(mesh_impl, axis), x, gain, dy)
        lowering.set_tensor_lowering(self.outputs[0], outs[0])
        for tensor, out in zip(self.outputs[1:], outs[1:]):
            axes = [a for a in split_axes(mesh_impl, self.inputs[0].shape) if a != axis or not tensor.shape.dims]
            lowering.set_tensor_lowering(tensor, mtf.ops.LazyAllreduceSum(mesh_impl, out, axes) if axes else out)

    def lower_split(self, mesh_impl: mtf.MeshImpl, total: Total, x: LaidOut, gain: LaidOut, dy: LaidOut) -> tuple:
        """The three gradients where shards split the normalised dimension."""
        size, wide = self.dim.size, tf.float32
        normed, inverse = split_statistics(mesh_impl, total, x, size, self.centre, self.epsilon)
        d = mesh_impl.slicewise(lambda g, s: tf.cast(g, wide) * tf.cast(s, wide), dy, gain)
        mean_d_y = total(lambda d, y: last_sum(d * y) / size, d, normed)
        if self.centre:
            mean_d = total(lambda d: last_sum(d) / size, d)
            d = mesh_impl.slicewise(tf.subtract, d, mean_d)

        def combine(d: tf.Tensor, y: tf.Tensor, inv: tf.Tensor, inner: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
            return tf.cast((d - y * inner) * inv, like.dtype)

        dx = mesh_impl.slicewise(combine, d, normed, inverse, mean_d_y, x)
        dgain = mesh_impl.slicewise(lambda g, y, s: gain_grad(tf.cast(g, wide) * y, s), dy, normed, gain)
        return dx, dgain, mesh_impl.slicewise(row_sum, dy)


def split_statistics(
    mesh_impl: mtf.MeshImpl, total: Total, x: LaidOut, size: int, centre: bool, epsilon: float
) -> tuple:
    """Normalised x and 1 / sqrt(variance + epsilon), both float32, of a dimension split over shards."""
    wide = mesh_impl.slicewise(lambda s: tf.cast(s, tf.float32), x)
    if centre:
        wide = mesh_impl.slicewise(tf.subtract, wide, total(lambda s: last_sum(s) / size, wide))
    variance = total(lambda s: last_sum(tf.square(s)) / size, wide)
    inverse = mesh_impl.slicewise(lambda s: tf.math.rsqrt(s + epsilon), variance)
    return mesh_impl.slicewise(tf.multiply, wide, inverse), inverse


def row_sum(x: tf.Tensor) -> tf.Tensor:
    """Sum over all but the last axis, float32."""
    return tf.reduce_sum(tf.reshape(tf.cast(x, tf.float32), [-1, x.shape[-1]]), 0)


def gain_grad(terms: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Sum of [..., dim] to the shape of the gain."""
    return row_sum(terms) if gain.shape.ndims else tf.reduce_sum(row_sum(terms))


def scaled(normed: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor = None) -> tf.Tensor:
    """float32 normed times gain, plus shift if there is one."""
    out = normed * tf.cast(gain, tf.float32)
    return out if shift is None else out + tf.cast(shift, tf.float32)


def statistics(x: tf.Tensor, centre: bool, epsilon: float) -> tuple:
    """Normalised x and 1 / sqrt(variance + epsilon), both float32."""
    wide = tf.cast(x, tf.float32)
    if centre:
        wide -= tf.reduce_mean(wide, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), -1, keepdims=True) + epsilon)
    return wide * inverse, inverse


@compiled
def normalize_kernel(
    x: tf.Tensor, gain: tf.Tensor, shift: Optional[tf.Tensor], centre: bool, epsilon: float
) -> tf.Tensor:
    """See `normalize`."""
    normed, _ = statistics(x, centre, epsilon)
    return tf.cast(scaled(normed, gain, shift), x.dtype)


@compiled
def normalize_grad_kernel(x: tf.Tensor, gain: tf.Tensor, dy: tf.Tensor, centre: bool, epsilon: float) -> tuple:
    """See `NormalizeGradOperation`."""
    grad = tf.cast(dy, tf.float32)
    normed, inverse = statistics(x, centre, epsilon)
    d = grad * tf.cast(gain, tf.float32)
    inner = tf.reduce_mean(d * normed, -1, keepdims=True)
    if centre:
        d -= tf.reduce_mean(d, -1, keepdims=True)
    return tf.cast((d - normed * inner) * inverse, x.dtype), gain_grad(grad * normed, gain), row_sum(grad)
