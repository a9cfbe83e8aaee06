"""The output head: its logits, or the loss of its logits chunk by chunk of tokens.

[batch, sequence, vocab] is the largest tensor of a training step, and would lie in memory several times: logits, their
gradient, and both again where activations are bfloat16. What is wanted of it are a number per token and, in training,
gradients of its factors. They are made of some tokens at a time. A loss is linear in the weights of the tokens, and
these are known, so a chunk's gradients are made with its loss: no product is made twice.
"""

from __future__ import annotations

import contextvars
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.config.estimate import head_chunks
from gpt_neo.mtf_compat import Dimension, LaidOut, Tensor, is_one, mtf, summed_wide, tf
from gpt_neo.ops.fused import FusedOp, split_axes
from gpt_neo.ops.kernels import INLINES, matrix_product, row_product
from gpt_neo.ops.matmul import matmul
from gpt_neo.ops.softmax import MASKED
from gpt_neo.ops.vocabulary import log_z_grad, shard_offset, slices_of_log_z_and_target

# Rows of logits have a multiple of so many columns in programs that are compiled as a whole.
ALIGNED: contextvars.ContextVar[int] = contextvars.ContextVar("ALIGNED", default=1)


@dataclasses.dataclass(frozen=True)
class Head:
    """The last product of the network.

    x: [..., embd]. weight: [vocab, embd] or [embd, vocab], for `logits` also an Int8Weight. bias: [vocab].
    """

    x: Tensor
    weight: Any
    bias: Optional[Tensor]
    vocab: Dimension

    def logits(self) -> Tensor:
        """float32 [..., vocab]."""
        return mtf.cast(matmul(self.x, self.weight, self.x.shape.dims[-1:], self.bias), tf.float32)

    def log_z_and_target(self, labels: Tensor) -> tuple:
        """Log of the partition function and the logit of the label; no gradients.

        Args:
          labels: int32 [...].

        Returns:
          (log Z, logits[label]), both float32 [...].
        """
        return tuple(HeadOperation(self, labels).outputs)

    def cross_entropy(self, labels: Tensor, weights: Tensor, z_loss: float) -> Tensor:
        """Sum over all tokens of weight * (log Z - logits[label] + z_loss * log^2 Z).

        Args:
          labels: int32 [...].
          weights: float32 [...]; they have no gradient.

        Returns:
          float32 scalar.
        """
        return HeadLossOperation(self, labels, weights, z_loss).outputs[0]


class HeadOperation(FusedOp):
    """log Z and the label's logit of every token. Also the base of what else goes through logits by chunks."""

    def __init__(self, head: Head, labels: Tensor, *others: Tensor, outputs: Sequence[tuple] = ()) -> None:
        bias = [] if head.bias is None else [head.bias]
        inputs = [head.x, head.weight, labels, *others, *bias]
        super().__init__("head", inputs, outputs or [(labels.shape, tf.float32)] * 2)
        self.vocab, self.biased, self.leading = head.vocab, bool(bias), head.weight.shape.dims[-1] == head.vocab

    def lower(self, lowering: mtf.Lowering) -> None:
        """Each device goes through the tokens that it holds; those that hold parts of their logits go in step."""
        mesh_impl = lowering.mesh_impl(self)
        found = self.in_chunks(mesh_impl, [lowering.tensors[x].to_laid_out_tensor() for x in self.inputs])
        for tensor, (value, axes) in zip(self.outputs, found):
            sizes = mesh_impl.slice_shape(tensor.shape)
            value = mesh_impl.slicewise(lambda x, sizes=sizes: fitted(x, sizes), value)
            lowering.set_tensor_lowering(tensor, mtf.ops.LazyAllreduceSum(mesh_impl, value, axes) if axes else value)

    def in_chunks(self, mesh_impl: mtf.MeshImpl, inputs: list) -> list:
        """(value, mesh axes over which it is still to be added up) of each output."""
        x, weight, labels, *bias = inputs
        weight, *bias = self.padded(mesh_impl, weight, *bias)

        def chunk(x: LaidOut, labels: LaidOut) -> tuple:
            logits = self.logits(mesh_impl, x, weight, *bias)
            return [], slices_of_log_z_and_target(mesh_impl, logits, labels, self.vocab)

        _, rows = self.over(mesh_impl, chunk, ([], [([], tf.float32)] * 2), x, labels)
        return [(value, []) for value in rows]

    def logits(self, mesh_impl: mtf.MeshImpl, x: LaidOut, weight: LaidOut, *bias: LaidOut) -> LaidOut:
        """[tokens, columns] of a device, in the type of x.

        Columns that `padded` added have logits of which nothing is left in a softmax.
        """
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.inputs[0].shape.dims[-1])
        within = bias if axis is None else ()

        def product(x: tf.Tensor, weight: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
            return matrix_product(x, weight, *bias, transpose_b=not self.leading)

        out = mesh_impl.slicewise(product, x, weight, *within)
        if axis is not None:
            out = mesh_impl.allreduce(out, [axis], "SUM")
            for b in bias:
                out = mesh_impl.slicewise(tf.add, out, b)
        (columns,) = mesh_impl.slice_shape(mtf.Shape([self.vocab]))

        def masked(x: tf.Tensor) -> tf.Tensor:
            added = x.shape[-1] > columns
            return tf.where_v2(tf.range(x.shape[-1]) < columns, x, tf.cast(MASKED, x.dtype)) if added else x

        return mesh_impl.slicewise(masked, out)

    def padded(self, mesh_impl: mtf.MeshImpl, weight: LaidOut, *bias: LaidOut) -> list:
        """Weight and bias of a device with zeros for more columns, for programs whose platform wants rows `ALIGNED`.

        No checkpoint has such columns.
        """
        (columns,) = mesh_impl.slice_shape(mtf.Shape([self.vocab]))
        more = -columns % ALIGNED.get()
        if not (more and INLINES.get()) or 16 * more > columns:  # small models would multiply zeros for the most part
            return [weight, *bias]

        def pad(x: tf.Tensor) -> tf.Tensor:
            axes = [0] * len(x.shape)
            axes[-1 if self.leading else 0] = more
            return tf.pad(x, [[0, after] for after in axes])

        return [mesh_impl.slicewise(pad, x) for x in (weight, *bias)]

    def over(self, mesh_impl: mtf.MeshImpl, function: Callable[..., tuple], made: tuple, *xs: LaidOut) -> tuple:
        """`over_chunks` of as many chunks as the logits need; xs lie over the tokens as x and the labels do."""
        labels = self.inputs[2].shape
        rows, (columns,) = math.prod(mesh_impl.slice_shape(labels)), mesh_impl.slice_shape(mtf.Shape([self.vocab]))
        depth = len(labels)
        flat = [mesh_impl.slicewise(lambda x: tf.reshape(x, [rows, *x.shape.as_list()[depth:]]), x) for x in xs]
        count = head_chunks(rows, columns, self.inputs[0].dtype.size)
        return over_chunks(mesh_impl, rows, count, function, made, *flat)


class HeadLossOperation(HeadOperation):
    """See `Head.cross_entropy`; the other outputs are the gradients of x, weight and bias.

    A weight that is not trained gets none.
    """

    def __init__(self, head: Head, labels: Tensor, weights: Tensor, z_loss: float) -> None:
        maker = head.weight.operation
        self.trained = not isinstance(maker, mtf.Variable) or maker in maker.graph.trainable_variables
        grads = [head.weight, *([] if head.bias is None else [head.bias])] if self.trained else []
        outputs = [(mtf.Shape([]), tf.float32), (head.x.shape, head.x.dtype), *((g.shape, tf.float32) for g in grads)]
        super().__init__(head, labels, weights, outputs=outputs)
        self.z_loss = z_loss

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Those that were made with the loss, times the gradient of the loss itself, which is 1 as a rule."""
        d_loss, (_, *grads) = grad_ys[0], self.outputs
        if not is_one(d_loss):
            grads = [grad * mtf.cast(d_loss, grad.dtype) for grad in grads]
        dx, *others = grads
        weight, *bias = others or [None] * (1 + self.biased)
        return [dx, weight, None, None, *bias]

    def in_chunks(self, mesh_impl: mtf.MeshImpl, inputs: list) -> list:
        """Loss and gradients."""
        x, weight, labels, weights, *bias = inputs
        weight, *bias = self.padded(mesh_impl, weight, *bias)
        axis, _, first = shard_offset(mesh_impl, self.vocab)
        dtype, z_loss = self.inputs[0].dtype, self.z_loss

        def parts(log_z: tf.Tensor, target: tf.Tensor, weights: tf.Tensor) -> tuple:
            losses = log_z - target + z_loss * tf.square(log_z)
            return tf.reduce_sum(weights * losses), weights * (1.0 + 2.0 * z_loss * log_z), -weights

        def chunk(x: LaidOut, labels: LaidOut, weights: LaidOut) -> tuple:
            logits = self.logits(mesh_impl, x, weight, *bias)
            log_z, target = slices_of_log_z_and_target(mesh_impl, logits, labels, self.vocab)
            loss, d_log_z, d_target = mesh_impl.slicewise(parts, log_z, target, weights)
            dy = mesh_impl.slicewise(
                lambda *slices: log_z_grad(*slices, dtype), logits, labels, log_z, d_log_z, d_target, first
            )
            dx = mesh_impl.slicewise(lambda dy, w: matrix_product(dy, w, transpose_b=self.leading), dy, weight)
            return [loss, *(self.weight_grads(mesh_impl, x, dy) if self.trained else [])], [dx]

        sizes = [x.shape.as_list() for x in (weight.tensor_list[0], *(b.tensor_list[0] for b in bias))]
        made = [[], *(sizes if self.trained else [])], [(x.tensor_list[0].shape.as_list()[-1:], dtype)]
        sums, (dx,) = self.over(mesh_impl, chunk, made, x, labels, weights)
        tokens = split_axes(mesh_impl, self.inputs[2].shape)
        loss, *grads = [(value, tokens) for value in sums]
        return [loss, (dx, [] if axis is None else [axis]), *grads]

    def weight_grads(self, mesh_impl: mtf.MeshImpl, x: LaidOut, dy: LaidOut) -> list:
        """float32 gradients of the weight and, where there is one, of the bias."""
        first, second = (x, dy) if self.leading else (dy, x)
        grads = [mesh_impl.slicewise(row_product, first, second)]
        if self.biased:
            grads.append(mesh_impl.slicewise(column_sums, dy))
        return grads


def fitted(x: tf.Tensor, sizes: list) -> tf.Tensor:
    """x in a shape of as many elements, or without what `padded` added."""
    if x.shape.num_elements() == math.prod(sizes):
        return tf.reshape(x, sizes)
    return tf.slice(x, [0] * len(sizes), sizes)


def column_sums(dy: tf.Tensor) -> tf.Tensor:
    """[tokens, columns] -> float32 [columns]."""
    return summed_wide(lambda wide: tf.raw_ops.BiasAddGrad(out_backprop=wide), dy, dtype=tf.float32)


def over_chunks(
    mesh_impl: mtf.MeshImpl, rows: int, count: int, function: Callable[..., tuple], made: tuple, *xs: LaidOut
) -> tuple[list, list]:
    """A function of laid-out tensors [rows, ...] in a loop over `count` parts of their rows, one after the other.

    Args:
      function: from parts of xs to (what is added up over the parts, what has the rows of the part). Where rows do not
        divide, the last part is filled up with zeros, of which the former must be zero.
      made: (shapes of the former, all float32; shapes without the rows and types of the latter).

    Returns:
      the same of all rows.
    """
    if count == 1:
        return function(*xs)
    size, wrap = -(-rows // count), mesh_impl.LaidOutTensor

    def cut(x: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(x, [[0, count * size - rows]] + [[0, 0]] * (len(x.shape) - 1))
        return tf.reshape(padded, [count, size, *x.shape.as_list()[1:]])

    def zeros(shape: list, dtype: tf.DType = tf.float32) -> list:
        return mesh_impl.slicewise(lambda: tf.zeros(shape, dtype)).tensor_list

    cuts = [mesh_impl.slicewise(cut, x) for x in xs]

    def body(number: tf.Tensor, sums: list, joined: list) -> tuple:
        more, parts = function(*(mesh_impl.slicewise(lambda x: tf.gather(x, number), x) for x in cuts))
        put = [[number]]
        sums = [mesh_impl.slicewise(tf.add, wrap(x), y).tensor_list for x, y in zip(sums, more)]
        joined = [
            mesh_impl.slicewise(lambda x, y: tf.tensor_scatter_nd_update(x, put, y[tf.newaxis]), wrap(x), y).tensor_list
            for x, y in zip(joined, parts)
        ]
        return number + 1, sums, joined

    # All chunks in the loop, the first too: what an exported program has outside of it as well, as the numbers of the
    # columns, would be shared, and then be read from memory by every chunk.
    sums, joined = (
        [zeros(shape) for shape in made[0]],
        [zeros([count, size, *shape], kind) for shape, kind in made[1]],
    )
    state = [tf.constant(0), sums, joined]
    _, sums, joined = tf.while_loop(lambda i, *_: i < count, body, state, parallel_iterations=1, back_prop=False)

    def whole(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [count * size, *x.shape.as_list()[2:]])[:rows]

    return [wrap(x) for x in sums], [mesh_impl.slicewise(whole, wrap(x)) for x in joined]
