"""Gelu, normalisation and masked softmax as single operations.

Composed from Mesh-TF primitives each of these keeps five or more tensors alive for the backward pass. As one operation
it keeps its input or its output, and on one shard runs as one compiled pass over memory.
"""

from __future__ import annotations

import math
from typing import Any

from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import compiled

MASKED = -1e10
GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x: Any) -> Any:
    """The tanh approximation of gelu (Hendrycks and Gimpel 2016, section 2), elementwise."""
    return mtf.slicewise(gelu_kernel, [x], x.shape, x.dtype, x.shape.dims, grad_function=gelu_gradient)


def gelu_gradient(operation: Any, dy: Any) -> list:
    """Gradient from the input alone."""
    x = operation.inputs[0]
    return [mtf.slicewise(gelu_grad_kernel, [x, dy], x.shape, x.dtype, x.shape.dims)]


@compiled
def gelu_kernel(x: Any) -> Any:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), rounded once."""
    wide = tf.cast(x, tf.float32)
    return tf.cast(wide * (0.5 + 0.5 * tf.tanh(GELU_SCALE * (wide + GELU_CUBE * wide * wide * wide))), x.dtype)


@compiled
def gelu_grad_kernel(x: Any, dy: Any) -> Any:
    """dy times the derivative of gelu at x, rounded once."""
    wide = tf.cast(x, tf.float32)
    t = tf.tanh(GELU_SCALE * (wide + GELU_CUBE * wide * wide * wide))
    slope = 0.5 * wide * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBE * wide * wide)
    return tf.cast(tf.cast(dy, tf.float32) * (0.5 * (1 + t) + slope), dy.dtype)


def normalize(x: Any, dim: Any, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon) over `dim`, which is last; statistics in float32, type of x kept."""
    return NormalizeOperation(x, dim, epsilon).outputs[0]


def masked_softmax(scores: Any, allowed: Any, dim: Any) -> Any:
    """softmax over `dim` (last) of float32 scores, -1e10 added where `allowed` (a boolean suffix shape) is false."""
    return SoftmaxOperation(scores, allowed, dim).outputs[0]


class Reducing(mtf.Operation):
    """Base of operations that reduce over their last dimension, split over the mesh or not."""

    def __init__(self, inputs: list, dim: Any, name: str) -> None:
        super().__init__(inputs, name=name)
        if inputs[0].shape.dims[-1] != dim:
            raise ValueError(f"{name}: {dim} has to be the last dimension of {inputs[0].shape}")
        self.dim = dim
        self._outputs = [mtf.Tensor(self, inputs[0].shape, inputs[0].dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """One compiled kernel where `dim` is whole, reductions across shards where it is split."""
        mesh_impl = lowering.mesh_impl(self)
        tensors = [lowering.tensors[x] for x in self.inputs]
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.dim)
        if axis is None:
            out = mesh_impl.slicewise(self.kernel, *tensors)
        else:

            def total(fn: Any, *xs: Any, kind: str = "SUM") -> Any:
                return mesh_impl.allreduce(mesh_impl.slicewise(fn, *xs), [axis], kind)

            out = self.lower_split(mesh_impl, total, *tensors)
        lowering.set_tensor_lowering(self.outputs[0], out)

    def kernel(self, *tensors: Any) -> Any:
        """The operation on whole TensorFlow tensors."""
        raise NotImplementedError

    def lower_split(self, mesh_impl: Any, total: Any, *tensors: Any) -> Any:
        """The operation on laid-out tensors; `total` reduces a slicewise function over the shards."""
        raise NotImplementedError


class NormalizeOperation(Reducing):
    """See `normalize`."""

    def __init__(self, x: Any, dim: Any, epsilon: float) -> None:
        super().__init__([x], dim, "normalize")
        self.epsilon = epsilon

    def gradient(self, grad_ys: Any) -> list:
        """Gradient from the input, statistics computed again."""
        return [NormalizeGradOperation(self.inputs[0], grad_ys[0], self.dim, self.epsilon).outputs[0]]

    def kernel(self, x: Any) -> Any:
        """[..., dim] -> [..., dim]."""
        return normalize_kernel(x, self.epsilon)

    def lower_split(self, mesh_impl: Any, total: Any, x: Any) -> Any:
        """Mean and variance are sums over the shards."""
        normed, _ = split_statistics(mesh_impl, total, x, self.dim.size, self.epsilon)
        return mesh_impl.slicewise(lambda n, like: tf.cast(n, like.dtype), normed, x)


class NormalizeGradOperation(Reducing):
    """dx = (dy - mean(dy) - y mean(dy y)) / sqrt(variance + epsilon)."""

    def __init__(self, x: Any, dy: Any, dim: Any, epsilon: float) -> None:
        super().__init__([x, dy], dim, "normalize_grad")
        self.epsilon = epsilon

    def kernel(self, x: Any, dy: Any) -> Any:
        """Two of [..., dim] -> [..., dim]."""
        return normalize_grad_kernel(x, dy, self.epsilon)

    def lower_split(self, mesh_impl: Any, total: Any, x: Any, dy: Any) -> Any:
        """The two means are sums over the shards."""
        size = self.dim.size
        normed, inverse = split_statistics(mesh_impl, total, x, size, self.epsilon)
        mean_dy = total(lambda d: last_sum(tf.cast(d, tf.float32)) / size, dy)
        mean_dy_y = total(lambda d, y: last_sum(tf.cast(d, tf.float32) * y) / size, dy, normed)

        def combine(d: Any, y: Any, inv: Any, a: Any, b: Any) -> Any:
            return tf.cast((tf.cast(d, tf.float32) - a - y * b) * inv, d.dtype)

        return mesh_impl.slicewise(combine, dy, normed, inverse, mean_dy, mean_dy_y)


class SoftmaxOperation(Reducing):
    """See `masked_softmax`."""

    def __init__(self, scores: Any, allowed: Any, dim: Any) -> None:
        super().__init__([scores, allowed], dim, "masked_softmax")
        if scores.shape.dims[-len(allowed.shape) :] != allowed.shape.dims:
            raise ValueError(f"the mask {allowed.shape} has to be a suffix of the scores {scores.shape}")

    def gradient(self, grad_ys: Any) -> list:
        """Gradient from the output alone."""
        return [SoftmaxGradOperation(self.outputs[0], grad_ys[0], self.dim).outputs[0], None]

    def kernel(self, scores: Any, allowed: Any) -> Any:
        """[..., dim] and a boolean suffix -> [..., dim]."""
        return softmax_kernel(scores, allowed)

    def lower_split(self, mesh_impl: Any, total: Any, scores: Any, allowed: Any) -> Any:
        """Largest score and sum over the shards."""
        masked = mesh_impl.slicewise(mask_scores, scores, allowed)
        largest = total(lambda s: tf.reduce_max(s, -1, keepdims=True), masked, kind="MAX")
        exponent = mesh_impl.slicewise(lambda s, peak: tf.exp(s - peak), masked, largest)
        return mesh_impl.slicewise(tf.divide, exponent, total(last_sum, exponent))


class SoftmaxGradOperation(Reducing):
    """ds = p (dp - sum(p dp))."""

    def __init__(self, weights: Any, grad: Any, dim: Any) -> None:
        super().__init__([weights, grad], dim, "masked_softmax_grad")

    def kernel(self, weights: Any, grad: Any) -> Any:
        """Two of [..., dim] -> [..., dim]."""
        return softmax_grad_kernel(weights, grad)

    def lower_split(self, mesh_impl: Any, total: Any, weights: Any, grad: Any) -> Any:
        """The inner product is a sum over the shards."""
        inner = total(lambda p, d: last_sum(p * d), weights, grad)
        return mesh_impl.slicewise(lambda p, d, s: p * (d - s), weights, grad, inner)


def last_sum(x: Any) -> Any:
    """Sum over the last axis, which stays as 1."""
    return tf.reduce_sum(x, -1, keepdims=True)


def split_statistics(mesh_impl: Any, total: Any, x: Any, size: int, epsilon: float) -> tuple:
    """Normalised x and 1 / sqrt(variance + epsilon), both float32, of a dimension split over shards."""
    wide = mesh_impl.slicewise(lambda s: tf.cast(s, tf.float32), x)
    mean = total(lambda s: last_sum(s) / size, wide)
    centred = mesh_impl.slicewise(tf.subtract, wide, mean)
    variance = total(lambda s: last_sum(tf.square(s)) / size, centred)
    inverse = mesh_impl.slicewise(lambda s: tf.math.rsqrt(s + epsilon), variance)
    return mesh_impl.slicewise(tf.multiply, centred, inverse), inverse


@compiled
def normalize_kernel(x: Any, epsilon: float) -> Any:
    """See `normalize`."""
    wide = tf.cast(x, tf.float32)
    centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
    return tf.cast(centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon), x.dtype)


@compiled
def normalize_grad_kernel(x: Any, dy: Any, epsilon: float) -> Any:
    """See `NormalizeGradOperation`."""
    wide, grad = tf.cast(x, tf.float32), tf.cast(dy, tf.float32)
    centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    normed = centred * inverse
    inner = tf.reduce_mean(grad * normed, -1, keepdims=True)
    return tf.cast((grad - tf.reduce_mean(grad, -1, keepdims=True) - normed * inner) * inverse, x.dtype)


def mask_scores(scores: Any, allowed: Any) -> Any:
    """Scores with -1e10 added where they do not count."""
    return scores + tf.where_v2(allowed, 0.0, MASKED)


@compiled
def softmax_kernel(scores: Any, allowed: Any) -> Any:
    """See `masked_softmax`."""
    return tf.nn.softmax(mask_scores(scores, allowed))


@compiled
def softmax_grad_kernel(weights: Any, grad: Any) -> Any:
    """See `SoftmaxGradOperation`."""
    return weights * (grad - last_sum(weights * grad))
