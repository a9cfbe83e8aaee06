"""RMS normalisation as one operation, as `fused_ops.normalize` is for layer norms."""

from __future__ import annotations

from typing import Any

from gpt_neo.model.fused_ops import Reducing, last_sum
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.kernels import compiled


def rms_normalize(x: Any, dim: Any, epsilon: float) -> Any:
    """x / sqrt(mean(x^2) + epsilon) over `dim`, which is last (Zhang and Sennrich 2019, equation 4).

    The mean is float32; the type of x is kept.
    """
    return RmsNormalizeOperation(x, dim, epsilon).outputs[0]


class RmsNormalizeOperation(Reducing):
    """See `rms_normalize`."""

    def __init__(self, x: Any, dim: Any, epsilon: float) -> None:
        super().__init__([x], dim, "rms_normalize")
        self.epsilon = epsilon

    def gradient(self, grad_ys: Any) -> list:
        """Gradient from the input, the mean computed again."""
        return [RmsNormalizeGradOperation(self.inputs[0], grad_ys[0], self.dim, self.epsilon).outputs[0]]

    def kernel(self, x: Any) -> Any:
        """[..., dim] -> [..., dim]."""
        return rms_kernel(x, self.epsilon)

    def lower_split(self, mesh_impl: Any, total: Any, x: Any) -> Any:
        """The mean is a sum over the shards."""
        inverse = split_inverse(mesh_impl, total, x, self.dim.size, self.epsilon)
        return mesh_impl.slicewise(lambda s, i: tf.cast(tf.cast(s, tf.float32) * i, s.dtype), x, inverse)


class RmsNormalizeGradOperation(Reducing):
    """dx = (dy - y mean(dy y)) / sqrt(mean(x^2) + epsilon)."""

    def __init__(self, x: Any, dy: Any, dim: Any, epsilon: float) -> None:
        super().__init__([x, dy], dim, "rms_normalize_grad")
        self.epsilon = epsilon

    def kernel(self, x: Any, dy: Any) -> Any:
        """Two of [..., dim] -> [..., dim]."""
        return rms_grad_kernel(x, dy, self.epsilon)

    def lower_split(self, mesh_impl: Any, total: Any, x: Any, dy: Any) -> Any:
        """Both means are sums over the shards."""
        size = self.dim.size
        inverse = split_inverse(mesh_impl, total, x, size, self.epsilon)
        wide = mesh_impl.slicewise(lambda s: tf.cast(s, tf.float32), x)
        inner = total(lambda d, s, i: last_sum(tf.cast(d, tf.float32) * s * i) / size, dy, wide, inverse)

        def combine(d: Any, s: Any, i: Any, mean: Any) -> Any:
            return tf.cast((tf.cast(d, tf.float32) - s * i * mean) * i, d.dtype)

        return mesh_impl.slicewise(combine, dy, wide, inverse, inner)


def split_inverse(mesh_impl: Any, total: Any, x: Any, size: int, epsilon: float) -> Any:
    """1 / sqrt(mean(x^2) + epsilon), float32 [..., 1], of a dimension split over shards."""
    mean = total(lambda s: last_sum(tf.square(tf.cast(s, tf.float32))) / size, x)
    return mesh_impl.slicewise(lambda s: tf.math.rsqrt(s + epsilon), mean)


@compiled
def rms_kernel(x: Any, epsilon: float) -> Any:
    """See `rms_normalize`."""
    wide = tf.cast(x, tf.float32)
    return tf.cast(wide * tf.math.rsqrt(tf.reduce_mean(tf.square(wide), -1, keepdims=True) + epsilon), x.dtype)


@compiled
def rms_grad_kernel(x: Any, dy: Any, epsilon: float) -> Any:
    """See `RmsNormalizeGradOperation`."""
    wide, grad = tf.cast(x, tf.float32), tf.cast(dy, tf.float32)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), -1, keepdims=True) + epsilon)
    normed = wide * inverse
    inner = tf.reduce_mean(grad * normed, -1, keepdims=True)
    return tf.cast((grad - normed * inner) * inverse, x.dtype)
