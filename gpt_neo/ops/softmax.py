"""Masked softmax as one operation, which keeps its output alone for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_neo.mtf_compat import Dimension, LaidOut, Tensor, mtf, tf
from gpt_neo.ops.fused import Reducing, Total, last_sum
from gpt_neo.ops.kernels import compiled

MASKED = -1e10


def masked_softmax(scores: Tensor, allowed: Tensor, dim: Dimension) -> Tensor:
    """softmax over `dim` (last) of float32 scores, -1e10 added where `allowed` (a boolean suffix shape) is false."""
    return SoftmaxOperation(scores, allowed, dim).outputs[0]


class SoftmaxOperation(Reducing):
    """See `masked_softmax`."""

    def __init__(self, scores: Tensor, allowed: Tensor, dim: Dimension) -> None:
        super().__init__("masked_softmax", [scores, allowed], dim)
        if scores.shape.dims[-len(allowed.shape) :] != allowed.shape.dims:
            raise ValueError(f"the mask {allowed.shape} has to be a suffix of the scores {scores.shape}")

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Gradient from the output alone."""
        return [SoftmaxGradOperation(self.outputs[0], grad_ys[0], self.dim).outputs[0], None]

    def kernel(self, scores: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
        """[..., dim] and a boolean suffix -> [..., dim]."""
        return softmax_kernel(scores, allowed)

    def lower_split(self, mesh_impl: mtf.MeshImpl, total: Total, scores: LaidOut, allowed: LaidOut) -> LaidOut:
        """Largest score and sum over the shards."""
        masked = mesh_impl.slicewise(mask_scores, scores, allowed)
        largest = total(lambda s: tf.reduce_max(s, -1, keepdims=True), masked, kind="MAX")
        exponent = mesh_impl.slicewise(lambda s, peak: tf.exp(s - peak), masked, largest)
        return mesh_impl.slicewise(tf.divide, exponent, total(last_sum, exponent))


class SoftmaxGradOperation(Reducing):
    """ds = p (dp - sum(p dp))."""

    def __init__(self, weights: Tensor, grad: Tensor, dim: Dimension) -> None:
        super().__init__("masked_softmax_grad", [weights, grad], dim)

    def kernel(self, weights: tf.Tensor, grad: tf.Tensor) -> tf.Tensor:
        """Two of [..., dim] -> [..., dim]."""
        return softmax_grad_kernel(weights, grad)

    def lower_split(self, mesh_impl: mtf.MeshImpl, total: Total, weights: LaidOut, grad: LaidOut) -> LaidOut:
        """The inner product is a sum over the shards."""
        inner = total(lambda p, d: last_sum(p * d), weights, grad)
        return mesh_impl.slicewise(lambda p, d, s: p * (d - s), weights, grad, inner)


def mask_scores(scores: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
    """Scores with -1e10 added where they do not count."""
    return scores + tf.where_v2(allowed, 0.0, MASKED)


@compiled
def softmax_kernel(scores: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
    """See `masked_softmax`."""
    return tf.nn.softmax(mask_scores(scores, allowed))


@compiled
def softmax_grad_kernel(weights: tf.Tensor, grad: tf.Tensor) -> tf.Tensor:
    """See `SoftmaxGradOperation`."""
    return weights * (grad - last_sum(weights * grad))
