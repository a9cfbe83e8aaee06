"""Operations over the vocabulary that Mesh-TF writes as one-hot products.

A one-hot product with the [vocab, embd] table costs as much as the output head and holds [tokens, vocab] numbers
for a look-up of one row per token. These do the same by index, and still when a layout splits `vocab`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

from gpt_neo.mtf_compat import Dimension, LaidOut, Tensor, mtf, summed_wide, tf
from gpt_neo.ops.fused import FusedOp, split_axes
from gpt_neo.ops.kernels import compiled
from gpt_neo.ops.quantized import Int8Weight, parts_of


def embed(table: Union[Tensor, Int8Weight], ids: Tensor, vocab: Dimension) -> Tensor:
    """Rows of a table: [vocab, embd], perhaps an Int8Weight, int32 [...] -> [..., embd]."""
    return EmbedOperation(table, ids, vocab).outputs[0]


def log_z_and_target(logits: Tensor, labels: Tensor, vocab: Dimension) -> tuple:
    """Log of the partition function and the logit of the label.

    Args:
      logits: float32 [..., vocab].
      labels: int32 [...].

    Returns:
      (log Z, logits[label]), both float32 [...].
    """
    operation = LogZAndTargetOperation(logits, labels, vocab)
    return operation.outputs[0], operation.outputs[1]


def shard_offset(mesh_impl: mtf.MeshImpl, vocab: Dimension) -> tuple:
    """The mesh axis that splits `vocab` (or None), the rows per shard, and the first row of each shard."""
    axis = mesh_impl.tensor_dimension_to_mesh_axis(vocab)
    depth = mesh_impl.slice_shape(mtf.Shape([vocab]))[0]
    if axis is None:
        return None, depth, 0
    return axis, depth, mesh_impl.slicewise(lambda coordinate: coordinate * depth, mesh_impl.laid_out_pcoord(axis))


class EmbedOperation(FusedOp):
    """Look-up of rows; its gradient adds rows up."""

    def __init__(self, table: Union[Tensor, Int8Weight], ids: Tensor, vocab: Dimension) -> None:
        self.vocab, self.int8 = vocab, isinstance(table, Int8Weight)
        values, *scale = parts_of(table)
        super().__init__("embed", [values, ids, *scale], [(ids.shape + (table.shape - vocab), table.dtype)])

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Gradients with respect to table and ids."""
        return [EmbedGradOperation(grad_ys[0], self.inputs[1], self.inputs[0], self.vocab).outputs[0], None]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Each shard looks up the rows it holds and gives zeros for the others; the sum is the answer."""
        mesh_impl = lowering.mesh_impl(self)
        axis, depth, offset = shard_offset(mesh_impl, self.vocab)

        dtype = self.outputs[0].dtype

        def look_up(first: tf.Tensor, table: tf.Tensor, ids: tf.Tensor, *scale: tf.Tensor) -> tf.Tensor:
            # Read first: a gather from the variable itself puts it into a mode in which every later read copies it.
            table = tf.convert_to_tensor(table)
            local, held = ids, None
            if axis is not None:
                local = ids - first
                held = tf.logical_and(local >= 0, local < depth)
                local = tf.where(held, local, tf.zeros_like(local))
            rows = tf.cast(tf.gather(table, local), dtype)
            for factor in scale:
                rows *= tf.cast(tf.gather(factor, local), dtype)[..., tf.newaxis]
            return rows if held is None else rows * tf.cast(held, dtype)[..., tf.newaxis]

        rows = mesh_impl.slicewise(look_up, offset, *[lowering.tensors[x] for x in self.inputs])
        if axis is not None:
            rows = mesh_impl.allreduce(rows, [axis], "SUM")
        lowering.set_tensor_lowering(self.outputs[0], rows)


class EmbedGradOperation(FusedOp):
    """Sum of the gradients of each row's uses: [..., embd], int32 [...] -> float32 [vocab, embd]."""

    def __init__(self, grad: Tensor, ids: Tensor, table: Tensor, vocab: Dimension) -> None:
        super().__init__("embed_grad", [grad, ids], [(table.shape, tf.float32)])
        self.vocab = vocab

    def lower(self, lowering: mtf.Lowering) -> None:
        """Each shard adds up its rows; shards that hold other tokens are summed."""
        mesh_impl = lowering.mesh_impl(self)
        axis, depth, offset = shard_offset(mesh_impl, self.vocab)

        def add_up(grad: tf.Tensor, ids: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
            local = tf.reshape(ids, [-1]) - first
            if axis is not None:
                local = tf.where(tf.logical_and(local >= 0, local < depth), local, -tf.ones_like(local))
            rows = tf.reshape(grad, [-1, grad.shape[-1]])
            return summed_wide(lambda wide: tf.math.unsorted_segment_sum(wide, local, depth), rows, dtype=tf.float32)

        table = mesh_impl.slicewise(add_up, *[lowering.tensors[x] for x in self.inputs], offset)
        axes = [a for a in split_axes(mesh_impl, self.inputs[1].shape) if a != axis]
        if axes:  # lazily: microbatches and the head's part of a tied table are added up before
            table = mtf.ops.LazyAllreduceSum(mesh_impl, table, axes)
        lowering.set_tensor_lowering(self.outputs[0], table)


class LogZAndTargetOperation(FusedOp):
    """Two outputs of one pass over the logits; the gradient is one pass as well."""

    def __init__(self, logits: Tensor, labels: Tensor, vocab: Dimension) -> None:
        super().__init__("log_z_and_target", [logits, labels], [(labels.shape, logits.dtype)] * 2)
        self.vocab = vocab
        if logits.shape.dims[-1] != vocab:
            raise ValueError(f"the last dimension of the logits {logits.shape} has to be {vocab}")

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Gradients with respect to logits and labels."""
        grads = [mtf.zeros_like(out) if g is None else g for g, out in zip(grad_ys, self.outputs)]
        logits, labels = self.inputs
        d_log_z, d_target = grads
        return [LogZGradOperation(logits, labels, self.outputs[0], d_log_z, d_target, self.vocab).outputs[0], None]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Reduce within each shard, then over the shards."""
        mesh_impl = lowering.mesh_impl(self)
        logits, labels = (lowering.tensors[x] for x in self.inputs)
        found = slices_of_log_z_and_target(mesh_impl, logits, labels, self.vocab)
        for output, value in zip(self.outputs, found):
            lowering.set_tensor_lowering(output, value)


def slices_of_log_z_and_target(mesh_impl: mtf.MeshImpl, logits: LaidOut, labels: LaidOut, vocab: Dimension) -> list:
    """`log_z_and_target` of laid-out tensors, both float32.

    Logits come in the type that they were rounded to, and each reader widens what it reads: the largest tensor of a
    step would be written a second time, in float32, for whoever reads it so.
    """
    axis, depth, offset = shard_offset(mesh_impl, vocab)
    axes = [] if axis is None else [axis]
    largest = mesh_impl.allreduce(mesh_impl.slicewise(largest_logit, logits), axes, "MAX")

    def pick(x: tf.Tensor, ids: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        local = ids - first
        held = tf.logical_and(local >= 0, local < depth)
        picked = tf.gather(x, tf.where(held, local, tf.zeros_like(local)), batch_dims=len(ids.shape))
        return tf.cast(picked, tf.float32) * tf.cast(held, tf.float32)

    total = mesh_impl.allreduce(mesh_impl.slicewise(partial_sum, logits, largest), axes, "SUM")
    target = mesh_impl.allreduce(mesh_impl.slicewise(pick, logits, labels, offset), axes, "SUM")
    log_z = mesh_impl.slicewise(lambda s, peak: tf.math.log(s) + peak, total, largest)
    return [log_z.to_laid_out_tensor(), target.to_laid_out_tensor()]


class LogZGradOperation(FusedOp):
    """softmax(logits) * d log Z + onehot(label) * d target: [..., vocab]."""

    def __init__(
        self, logits: Tensor, labels: Tensor, log_z: Tensor, d_log_z: Tensor, d_target: Tensor, vocab: Dimension
    ) -> None:
        super().__init__("log_z_grad", [logits, labels, log_z, d_log_z, d_target], [(logits.shape, logits.dtype)])
        self.vocab = vocab

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards are independent: log Z is known already."""
        mesh_impl = lowering.mesh_impl(self)
        axis, _, offset = shard_offset(mesh_impl, self.vocab)
        tensors = [lowering.tensors[x] for x in self.inputs]
        if axis is None:
            out = mesh_impl.slicewise(log_z_grad, *tensors)
        else:
            out = mesh_impl.slicewise(log_z_grad, *tensors, offset)
        lowering.set_tensor_lowering(self.outputs[0], out)


@compiled
def largest_logit(logits: tf.Tensor) -> tf.Tensor:
    """[..., vocab] -> float32 [...]."""
    return tf.reduce_max(tf.cast(logits, tf.float32), -1)


@compiled
def partial_sum(logits: tf.Tensor, peak: tf.Tensor) -> tf.Tensor:
    """Sum of exp(logit - peak): [..., vocab], float32 [...] -> float32 [...]."""
    return tf.reduce_sum(tf.exp(tf.cast(logits, tf.float32) - peak[..., tf.newaxis]), -1)


@compiled
def log_z_grad(
    logits: tf.Tensor,
    labels: tf.Tensor,
    log_z: tf.Tensor,
    d_log_z: tf.Tensor,
    d_target: tf.Tensor,
    first: tf.Tensor = 0,
    dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """Gradient with respect to a shard of the logits whose first column is `first`: [..., vocab], in `dtype`."""
    columns = tf.range(logits.shape[-1]) + first
    softmax = tf.exp(tf.cast(logits, tf.float32) - log_z[..., tf.newaxis]) * d_log_z[..., tf.newaxis]
    label = tf.equal(labels[..., tf.newaxis], columns)
    return tf.cast(softmax + tf.where_v2(label, d_target[..., tf.newaxis], 0.0), dtype)
