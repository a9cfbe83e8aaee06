"""Causal softmax attention by blocks of queries: exact, without a [sequence, sequence] tensor to keep.

A block of queries is held against the keys it can see and nothing else: half of the products of global attention, a
band of those of local attention. The backward pass computes the weights again from the log of their sum, which is all
that is kept beside q, k, v and the output (Dao et al. 2022, section 3.1 and appendix B.4).
"""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.model.fused_ops import MASKED, last_sum
from gpt_neo.mtf_compat import compiled, mtf, tf

BLOCK = 256  # queries; large enough for the matrix units, small beside a context


def blockwise_attention(q: Any, k: Any, v: Any, radius: Optional[int]) -> Any:
    """Query i sees keys j with 0 <= i - j (< radius, if given); scores are not scaled; softmax in float32.

    Args:
      q, k, v: [batch, sequence, heads, features_per_head].

    Returns:
      a tensor of the shape of q.
    """
    return BlockwiseAttention(q, k, v, radius).outputs[0]


def blocks(length: int, radius: Optional[int]) -> list[tuple[int, int, int]]:
    """(first query, end of queries, first key) of every block; keys end where queries do."""
    spans = []
    for low in range(0, length, BLOCK):
        first = 0 if radius is None else max(0, low - radius + 1) // BLOCK * BLOCK
        spans.append((low, min(low + BLOCK, length), first))
    return spans


class WholeSequences(mtf.Operation):
    """Base of operations on [batch, sequence, heads, features_per_head] whose shards need whole sequences."""

    radius: Optional[int]

    def lower(self, lowering: Any) -> None:
        """Rows and heads are independent; a sequence that a layout splits is put together first."""
        mesh_impl = lowering.mesh_impl(self)
        tensors = [lowering.tensors[x].to_laid_out_tensor() for x in self.inputs]
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.inputs[0].shape.dims[1])
        if axis is not None:
            where = [x.shape.dims.index(self.inputs[0].shape.dims[1]) for x in self.inputs]
            tensors = [mesh_impl.allconcat(t, axis, at) for t, at in zip(tensors, where)]
        outs = mesh_impl.slicewise(lambda *slices: self.kernel(*slices), *tensors)
        for tensor, out in zip(self.outputs, outs):
            if axis is not None:
                out = mesh_impl.allsplit(out, axis, tensor.shape.dims.index(self.inputs[0].shape.dims[1]))
            lowering.set_tensor_lowering(tensor, out)

    def kernel(self, *slices: Any) -> Any:
        """The operation on TensorFlow tensors."""
        raise NotImplementedError


class BlockwiseAttention(WholeSequences):
    """See `blockwise_attention`; the second output is the log of the sum of weights, [batch, heads, sequence]."""

    def __init__(self, q: Any, k: Any, v: Any, radius: Optional[int]) -> None:
        super().__init__([q, k, v], name="blockwise_attention")
        self.radius = radius
        batch, sequence, heads, _ = q.shape.dims
        log_sum = mtf.Tensor(self, mtf.Shape([batch, heads, sequence]), tf.float32)
        self._outputs = [mtf.Tensor(self, q.shape, v.dtype), log_sum]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: Any) -> list:
        """Gradients of q, k and v."""
        out, log_sum = self.outputs
        return BlockwiseAttentionGrad([*self.inputs, out, log_sum, grad_ys[0]], self.radius).outputs

    def kernel(self, q: Any, k: Any, v: Any) -> tuple:
        """Three of [batch, sequence, heads, features] -> the same and [batch, heads, sequence]."""
        q, k, v = (heads_first(x) for x in (q, k, v))
        outs, log_sums = [], []
        for low, high, first in blocks(q.shape[2], self.radius):
            weights, log_sum = block_weights(block_scores(q, k, low, high, first), low - first, self.radius)
            outs.append(tf.linalg.matmul(tf.cast(weights, v.dtype), v[:, :, first:high]))
            log_sums.append(log_sum)
        return heads_first(tf.concat(outs, 2)), tf.concat(log_sums, 2)


class BlockwiseAttentionGrad(WholeSequences):
    """With p the weights, d the gradient of the output o: dv = p^T d; ds = p (d v^T - sum(d o)); dq = ds k;
    dk = ds^T q."""

    def __init__(self, inputs: list, radius: Optional[int]) -> None:
        super().__init__(inputs, name="blockwise_attention_grad")
        self.radius = radius
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype) for x in inputs[:3]]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def kernel(self, q: Any, k: Any, v: Any, out: Any, log_sum: Any, grad: Any) -> tuple:
        """Gradients of q, k, v, each [batch, sequence, heads, features]."""
        q, k, v, out, grad = (heads_first(x) for x in (q, k, v, out, grad))
        inner = last_sum(tf.cast(out, tf.float32) * tf.cast(grad, tf.float32))
        spans = blocks(q.shape[2], self.radius)
        dq: list = []
        dk: list[list] = [[] for _ in spans]
        dv: list[list] = [[] for _ in spans]
        for low, high, first in spans:
            scores = block_scores(q, k, low, high, first)
            d_out = grad[:, :, low:high]
            d_weights = tf.linalg.matmul(d_out, v[:, :, first:high], transpose_b=True)
            weights, d_scores = block_gradients(
                scores, log_sum[:, :, low:high], tf.cast(d_weights, tf.float32), inner[:, :, low:high], low - first,
                self.radius,
            )  # fmt: skip
            weights, d_scores = tf.cast(weights, v.dtype), tf.cast(d_scores, q.dtype)
            dq.append(tf.linalg.matmul(d_scores, k[:, :, first:high]))
            # Blocks of keys apart, each with its own sum over the blocks of queries that see it.
            for number, (start, _, _) in enumerate(spans):
                if first <= start < high:
                    here = slice(start - first, min(start + BLOCK, high) - first)
                    dk[number].append(tf.linalg.matmul(d_scores[..., here], q[:, :, low:high], transpose_a=True))
                    dv[number].append(tf.linalg.matmul(weights[..., here], d_out, transpose_a=True))
        sums = [heads_first(tf.concat([tf.add_n(parts) for parts in grads], 2)) for grads in (dk, dv)]
        return heads_first(tf.concat(dq, 2)), *sums


def heads_first(x: Any) -> Any:
    """[batch, sequence, heads, features] to [batch, heads, sequence, features], and back."""
    return tf.transpose(x, [0, 2, 1, 3])


def block_scores(q: Any, k: Any, low: int, high: int, first: int) -> Any:
    """float32 scores of queries low .. high - 1 against keys first .. high - 1: [batch, heads, queries, keys]."""
    queries, keys = (tf.cast(x, tf.float32) for x in (q[:, :, low:high], k[:, :, first:high]))
    return tf.linalg.matmul(queries, keys, transpose_b=True)


def mask_block(scores: Any, offset: int, radius: Optional[int]) -> Any:
    """Scores, -1e10 added where key > query + offset, or too far back; positions come from iota."""
    queries, keys = scores.shape.as_list()[-2:]
    distance = (tf.range(queries) + offset)[:, tf.newaxis] - tf.range(keys)
    allowed = distance >= 0
    if radius is not None:
        allowed = tf.logical_and(allowed, distance < radius)
    return scores + tf.where_v2(allowed, 0.0, MASKED)


@compiled
def block_weights(scores: Any, offset: int, radius: Optional[int]) -> tuple:
    """Softmax of masked scores, and the log of its denominator [batch, heads, queries]."""
    masked = mask_block(scores, offset, radius)
    peak = tf.reduce_max(masked, -1, keepdims=True)
    exponent = tf.exp(masked - peak)
    total = last_sum(exponent)
    return exponent / total, tf.squeeze(peak + tf.math.log(total), -1)


@compiled
def block_gradients(
    scores: Any, log_sum: Any, d_weights: Any, inner: Any, offset: int, radius: Optional[int]
) -> tuple:
    """Weights again, and the gradient of the scores; both [batch, heads, queries, keys]."""
    weights = tf.exp(mask_block(scores, offset, radius) - log_sum[..., tf.newaxis])
    return weights, weights * (d_weights - inner)
