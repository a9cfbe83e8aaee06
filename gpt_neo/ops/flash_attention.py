"""Causal softmax attention by blocks of queries: exact, without a [sequence, sequence] tensor to keep.

A block of queries is held against the keys it can see and nothing else: half of the products of global attention, a
band of those of local attention. The backward pass computes the weights again from the log of their sum, which is all
that is kept beside q, k, v and the output (Dao et al. 2022, section 3.1 and appendix B.4).

A layout rule for `memory_length` splits the keys: each device of that mesh axis attends to every n-th key, so that all
have the same work under a causal mask, and the partial results are joined by their shares of the softmax.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Sequence
from typing import Callable, Optional, Union

from gpt_neo.mtf_compat import LaidOut, Tensor, mtf, summed_wide, tf
from gpt_neo.ops.fused import FusedOp, last_sum
from gpt_neo.ops.kernels import compiled, matrix_product, wide_product
from gpt_neo.ops.softmax import MASKED

BLOCK = 256  # queries; large enough for the matrix units, small beside a context
MEMORY = "memory_length"  # what a layout calls the keys
# What takes the place of the blocks: (radius, q, k, v) -> [output, log of the sum of weights], (radius, q, k, v, these
# two, gradient of the output) -> their three gradients; or None where there is nothing for them. See `spmd.attention`.
CALLED: contextvars.ContextVar[Optional[Callable]] = contextvars.ContextVar("CALLED", default=None)


def called(stripe: Stripe, radius: Optional[int], *tensors: tf.Tensor) -> Optional[list[tf.Tensor]]:
    """What `CALLED` makes of whole sequences; None where there is no such thing."""
    call = CALLED.get()
    return call(radius, *tensors) if call and stripe.step == 1 else None


@dataclasses.dataclass(frozen=True)
class Stripe:
    """The keys of one device: numbers place, place + step, place + 2 step, ... place is an int32 scalar or an int."""

    step: int = 1
    place: Union[int, tf.Tensor] = 0

    def take(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, sequence, heads, features] -> the same with its part of the sequence."""
        if self.step == 1:
            return x
        batch, length, heads, features = x.shape.as_list()
        rows = tf.reshape(x, [batch, length // self.step, self.step, heads, features])
        size = [batch, length // self.step, 1, heads, features]
        return tf.reshape(tf.slice(rows, tf.stack([0, 0, self.place, 0, 0]), size), [batch, -1, heads, features])


def flash_attention(q: Tensor, k: Tensor, v: Tensor, radius: Optional[int]) -> Tensor:
    """Query i sees keys j with 0 <= i - j (< radius, if given); scores are not scaled; softmax in float32.

    Args:
      q, k, v: [batch, sequence, heads, features_per_head].

    Returns:
      a tensor of the shape of q.
    """
    return FlashAttention(q, k, v, radius).outputs[0]


def blocks(length: int, radius: Optional[int], step: int = 1) -> list[tuple[int, int, int]]:
    """(first query, end of queries, first key) of every block; keys end where queries do. All divide by `step`."""
    size = max(1, BLOCK // step) * step
    spans = []
    for low in range(0, length, size):
        first = 0 if radius is None else max(0, low - radius + 1) // size * size
        spans.append((low, min(low + size, length), first))
    return spans


class WholeSequences(FusedOp):
    """Base of operations on [batch, sequence, heads, features_per_head] whose shards need whole sequences."""

    radius: Optional[int]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Rows and heads are independent; sequences and features that a layout splits are put together first."""
        mesh_impl = lowering.mesh_impl(self)
        tensors = [lowering.tensors[x].to_laid_out_tensor() for x in self.inputs]
        _, sequence, _, features = self.inputs[0].shape.dims
        split = [(dim, mesh_impl.tensor_dimension_to_mesh_axis(dim)) for dim in (sequence, features)]
        split = [(dim, axis) for dim, axis in split if axis is not None]
        for dim, axis in split:
            tensors = [
                mesh_impl.allconcat(t, axis, x.shape.dims.index(dim)) if dim in x.shape.dims else t
                for t, x in zip(tensors, self.inputs)
            ]
        outs = self.attend(mesh_impl, tensors, sequence.size)
        for tensor, out in zip(self.outputs, outs):
            for dim, axis in split:
                if dim in tensor.shape.dims:
                    out = mesh_impl.allsplit(out, axis, tensor.shape.dims.index(dim))
            lowering.set_tensor_lowering(tensor, out)

    def attend(self, mesh_impl: mtf.MeshImpl, tensors: list, length: int) -> Tensor:
        """Results of whole sequences and features; each device takes all keys, or those that the layout gives it."""
        axis = mesh_impl.tensor_dimension_to_mesh_axis(mtf.Dimension(MEMORY, length))
        step = 1 if axis is None else mesh_impl.shape[axis].size
        if step == 1 or length % step:
            return mesh_impl.slicewise(lambda *slices: self.kernel(Stripe(), *slices), *tensors)
        outs = mesh_impl.slicewise(
            lambda place, *slices: self.kernel(Stripe(step, place), *slices), mesh_impl.laid_out_pcoord(axis), *tensors
        )
        return self.joined(mesh_impl, axis, *outs)

    def kernel(self, stripe: Stripe, *slices: tf.Tensor) -> tf.Tensor:
        """The operation on TensorFlow tensors, for some of the keys."""
        raise NotImplementedError

    def joined(self, mesh_impl: mtf.MeshImpl, axis: int, *outs: LaidOut) -> tuple:
        """Whole results from those of the devices along a mesh axis."""
        raise NotImplementedError


class FlashAttention(WholeSequences):
    """See `flash_attention`. Two more outputs are for the gradient: the log of the sum of weights [batch, heads,
    sequence], and the first output as it was before it was rounded, which only the gradient of the blocks reads."""

    is_product = True

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, radius: Optional[int]) -> None:
        self.radius = radius
        batch, sequence, heads, _ = q.shape.dims
        log_sum = mtf.Shape([batch, heads, sequence]), tf.float32
        super().__init__("flash_attention", [q, k, v], [(q.shape, v.dtype), log_sum, (q.shape, tf.float32)])

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Gradients of q, k and v."""
        return FlashAttentionGrad([*self.inputs, *self.outputs, grad_ys[0]], self.radius).outputs

    def kernel(self, stripe: Stripe, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tuple:
        """Three of [batch, sequence, heads, features] -> the same, [batch, heads, sequence], the first in float32."""
        made = called(stripe, self.radius, q, k, v)
        if made is not None:  # nothing reads the third, so no program has it
            return *made, tf.cast(made[0], tf.float32)
        q, k, v = (heads_first(x) for x in (q, stripe.take(k), stripe.take(v)))
        outs, log_sums = [], []
        for low, high, first in blocks(q.shape[2], self.radius, stripe.step):
            keys = slice(first // stripe.step, high // stripe.step)
            scores = block_scores(q[:, :, low:high], k[:, :, keys])
            weights, log_sum = block_weights(scores, low - first, self.radius, stripe.step, stripe.place)
            outs.append(wide_product(weights, v[:, :, keys]))
            log_sums.append(log_sum)
        wide = heads_first(tf.concat(outs, 2))
        return tf.cast(wide, v.dtype), tf.concat(log_sums, 2), wide

    def joined(self, mesh_impl: mtf.MeshImpl, axis: int, *outs: LaidOut) -> tuple:
        """Each device's output weighs as much as its keys do in the softmax; a query that sees none there, nothing."""
        out, log_sum, wide = outs
        top = mesh_impl.allreduce(log_sum, [axis], "MAX")
        mass = mesh_impl.slicewise(lambda one, most: tf.exp(one - most), log_sum, top)
        total = mesh_impl.allreduce(mass, [axis], "SUM")

        def part(wide: tf.Tensor, mass: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
            return wide * tf.transpose(mass / total, [0, 2, 1])[..., tf.newaxis]

        whole = mesh_impl.allreduce(mesh_impl.slicewise(part, wide, mass, total), [axis], "SUM")
        rounded = mesh_impl.slicewise(lambda x, like: tf.cast(x, like.dtype), whole, out)
        return rounded, mesh_impl.slicewise(lambda most, sum_: most + tf.math.log(sum_), top, total), whole


class FlashAttentionGrad(WholeSequences):
    """With p the weights, d the gradient of the output o: dv = p^T d; ds = p (d v^T - sum(p d v^T)); dq = ds k;
    dk = ds^T q.

    The sum is that of d o as well, and is taken so, which needs no second pass over the keys. From a rounded o it would
    not do: ds would differ from a softmax's gradient by what all keys of a query have in common.
    """

    def __init__(self, inputs: list, radius: Optional[int]) -> None:
        super().__init__("flash_attention_grad", inputs, [(x.shape, x.dtype) for x in inputs[:3]])
        self.radius = radius

    def kernel(
        self,
        stripe: Stripe,
        q: tf.Tensor,
        k: tf.Tensor,
        v: tf.Tensor,
        out: tf.Tensor,
        log_sum: tf.Tensor,
        wide: tf.Tensor,
        grad: tf.Tensor,
    ) -> tuple:
        """Gradients of q, k, v, each [batch, sequence, heads, features]."""
        made = called(stripe, self.radius, q, k, v, out, log_sum, grad)
        if made is not None:
            return tuple(made)
        # TensorFlow runs what is ready: without this the scores of all layers, in the forward pass, to keep them.
        with tf.control_dependencies([grad]):
            q, k, v, wide, log_sum = (tf.identity(x) for x in (q, k, v, wide, log_sum))
        q, k, v, wide, grad = (heads_first(x) for x in (q, stripe.take(k), stripe.take(v), wide, grad))
        inner = last_sum(wide * tf.cast(grad, tf.float32))
        spans, step = blocks(q.shape[2], self.radius, stripe.step), stripe.step
        dq: list = []
        dk: list[list] = [[] for _ in spans]
        dv: list[list] = [[] for _ in spans]
        for low, high, first in spans:
            keys = slice(first // step, high // step)
            scores = block_scores(q[:, :, low:high], k[:, :, keys])
            d_out = grad[:, :, low:high]
            weights, d_scores = block_gradients(
                scores,
                log_sum[:, :, low:high],
                block_scores(d_out, v[:, :, keys]),
                inner[:, :, low:high],
                low - first,
                self.radius,
                step,
                stripe.place,
            )
            weights, d_scores = tf.cast(weights, v.dtype), tf.cast(d_scores, q.dtype)
            dq.append(matrix_product(d_scores, k[:, :, keys]))
            # Blocks of keys apart, each with its own sum over the blocks of queries that see it.
            for number, (start, end, _) in enumerate(spans):
                if first <= start < high:
                    here = slice((start - first) // step, (end - first) // step)
                    dk[number].append(matrix_product(d_scores[..., here], q[:, :, low:high], transpose_a=True))
                    dv[number].append(matrix_product(weights[..., here], d_out, transpose_a=True))
        sums = [
            heads_first(tf.concat([summed_wide(lambda *wide: tf.add_n(wide), *parts) for parts in grads], 2))
            for grads in (dk, dv)
        ]
        return heads_first(tf.concat(dq, 2)), *sums

    def joined(self, mesh_impl: mtf.MeshImpl, axis: int, *outs: LaidOut) -> tuple:
        """Gradients of queries add up; those of keys and values take their places among the others."""
        dq, *others = outs
        whole = []
        for x in others:
            x = mesh_impl.allconcat(mesh_impl.slicewise(lambda part: tf.expand_dims(part, 2), x), axis, 2)
            whole.append(mesh_impl.slicewise(lambda rows: tf.reshape(rows, [rows.shape[0], -1, *rows.shape[3:]]), x))
        wide = mesh_impl.slicewise(lambda part: tf.cast(part, tf.float32), dq)
        total = mesh_impl.allreduce(wide, [axis], "SUM")
        return mesh_impl.slicewise(lambda x, like: tf.cast(x, like.dtype), total, dq), *whole


def heads_first(x: tf.Tensor) -> tf.Tensor:
    """[batch, sequence, heads, features] to [batch, heads, sequence, features], and back."""
    return tf.transpose(x, [0, 2, 1, 3])


def block_scores(q: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """float32 products [batch, heads, queries, keys] of a block of queries and the keys that it may see."""
    return tf.linalg.matmul(tf.cast(q, tf.float32), tf.cast(k, tf.float32), transpose_b=True)


def mask_block(
    scores: tf.Tensor, offset: int, radius: Optional[int], step: int, place: Union[int, tf.Tensor]
) -> tf.Tensor:
    """Scores, -1e10 added where a key is later than the query or too far back; positions come from iota.

    Args:
      offset: from the first key of the block, of all devices' keys, to the first query.
      step, place: of the stripe that the keys are.
    """
    queries, keys = scores.shape.as_list()[-2:]
    numbers = tf.range(keys) if step == 1 else tf.range(keys) * step + place
    distance = (tf.range(queries) + offset)[:, tf.newaxis] - numbers
    allowed = distance >= 0
    if radius is not None:
        allowed = tf.logical_and(allowed, distance < radius)
    return scores + tf.where_v2(allowed, 0.0, MASKED)


@compiled
def block_weights(
    scores: tf.Tensor, offset: int, radius: Optional[int], step: int, place: Union[int, tf.Tensor]
) -> tuple:
    """Softmax of masked scores, and the log of its denominator [batch, heads, queries]."""
    masked = mask_block(scores, offset, radius, step, place)
    peak = tf.reduce_max(masked, -1, keepdims=True)
    exponent = tf.exp(masked - peak)
    total = last_sum(exponent)
    return exponent / total, tf.squeeze(peak + tf.math.log(total), -1)


@compiled
def block_gradients(
    scores: tf.Tensor,
    log_sum: tf.Tensor,
    d_weights: tf.Tensor,
    inner: tf.Tensor,
    offset: int,
    radius: Optional[int],
    step: int,
    place: Union[int, tf.Tensor],
) -> tuple:
    """Weights again, and the gradient of the scores; both [batch, heads, queries, keys].

    inner: the sums over all keys of weights times d_weights, [batch, heads, queries, 1].
    """
    weights = tf.exp(mask_block(scores, offset, radius, step, place) - log_sum[..., tf.newaxis])
    return weights, weights * (d_weights - inner)
