"""Operations over the vocabulary that Mesh-TF writes as one-hot products.

A one-hot product with the [vocab, embd] table costs as much as the output head and holds [tokens, vocab] numbers
for a look-up of one row per token. These do the same by index, and still when a layout splits `vocab`.
"""

from __future__ import annotations

from typing import Any

from gpt_neo.model.quantized import stored_int8
from gpt_neo.mtf_compat import mtf, summed_wide, tf
from gpt_neo.ops.kernels import compiled


def embed(table: Any, ids: Any, vocab: Any) -> Any:
    """Rows of a table: [vocab, embd], int32 [...] -> [..., embd]."""
    return EmbedOperation(table, ids, vocab).outputs[0]


def log_z_and_target(logits: Any, labels: Any, vocab: Any) -> tuple:
    """Log of the partition function and the logit of the label.

    Args:
      logits: float32 [..., vocab].
      labels: int32 [...].

    Returns:
      (log Z, logits[label]), both float32 [...].
    """
    operation = LogZAndTargetOperation(logits, labels, vocab)
    return operation.outputs[0], operation.outputs[1]


def shard_offset(mesh_impl: Any, vocab: Any) -> tuple:
    """The mesh axis that splits `vocab` (or None), the rows per shard, and the first row of each shard."""
    axis = mesh_impl.tensor_dimension_to_mesh_axis(vocab)
    depth = mesh_impl.slice_shape(mtf.Shape([vocab]))[0]
    if axis is None:
        return None, depth, 0
    return axis, depth, mesh_impl.slicewise(lambda coordinate: coordinate * depth, mesh_impl.laid_out_pcoord(axis))


def split_axes(mesh_impl: Any, shape: Any) -> list:
    """Mesh axes over which a tensor of that shape is split."""
    return [axis for axis in mesh_impl.tensor_layout(shape).tensor_axis_to_mesh_axis if axis is not None]


class EmbedOperation(mtf.Operation):
    """Look-up of rows; its gradient adds rows up."""

    def __init__(self, table: Any, ids: Any, vocab: Any) -> None:
        super().__init__([table, ids], name="embed")
        self.vocab = vocab
        self._outputs = [mtf.Tensor(self, ids.shape + (table.shape - vocab), table.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: Any) -> list:
        """Gradients with respect to table and ids."""
        return [EmbedGradOperation(grad_ys[0], self.inputs[1], self.inputs[0], self.vocab).outputs[0], None]

    def lower(self, lowering: Any) -> None:
        """Each shard looks up the rows it holds and gives zeros for the others; the sum is the answer."""
        mesh_impl = lowering.mesh_impl(self)
        axis, depth, offset = shard_offset(mesh_impl, self.vocab)

        def look_up(table: Any, ids: Any, first: Any) -> Any:
            # Read first: a gather from the variable itself puts it into a mode in which every later read copies it.
            table = tf.convert_to_tensor(table)
            small = stored_int8(table)
            if small:
                rows = tf.cast(tf.gather(small[0], ids), table.dtype)
                return rows * tf.cast(tf.gather(small[1], ids), table.dtype)[..., tf.newaxis]
            if axis is None:
                return tf.gather(table, ids)
            local = ids - first
            held = tf.logical_and(local >= 0, local < depth)
            rows = tf.gather(table, tf.where(held, local, tf.zeros_like(local)))
            return rows * tf.cast(held, rows.dtype)[..., tf.newaxis]

        rows = mesh_impl.slicewise(look_up, *[lowering.tensors[x] for x in self.inputs], offset)
        if axis is not None:
            rows = mesh_impl.allreduce(rows, [axis], "SUM")
        lowering.set_tensor_lowering(self.outputs[0], rows)


class EmbedGradOperation(mtf.Operation):
    """Sum of the gradients of each row's uses: [..., embd], int32 [...] -> float32 [vocab, embd]."""

    def __init__(self, grad: Any, ids: Any, table: Any, vocab: Any) -> None:
        super().__init__([grad, ids], name="embed_grad")
        self.vocab = vocab
        self._outputs = [mtf.Tensor(self, table.shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Each shard adds up its rows; shards that hold other tokens are summed."""
        mesh_impl = lowering.mesh_impl(self)
        axis, depth, offset = shard_offset(mesh_impl, self.vocab)

        def add_up(grad: Any, ids: Any, first: Any) -> Any:
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


class LogZAndTargetOperation(mtf.Operation):
    """Two outputs of one pass over the logits; the gradient is one pass as well."""

    def __init__(self, logits: Any, labels: Any, vocab: Any) -> None:
        super().__init__([logits, labels], name="log_z_and_target")
        self.vocab = vocab
        if logits.shape.dims[-1] != vocab:
            raise ValueError(f"the last dimension of the logits {logits.shape} has to be {vocab}")
        self._outputs = [mtf.Tensor(self, labels.shape, logits.dtype) for _ in range(2)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: Any) -> list:
        """Gradients with respect to logits and labels."""
        grads = [mtf.zeros_like(out) if g is None else g for g, out in zip(grad_ys, self.outputs)]
        logits, labels = self.inputs
        d_log_z, d_target = grads
        return [LogZGradOperation(logits, labels, self.outputs[0], d_log_z, d_target, self.vocab).outputs[0], None]

    def lower(self, lowering: Any) -> None:
        """Reduce within each shard, then over the shards."""
        mesh_impl = lowering.mesh_impl(self)
        axis, depth, offset = shard_offset(mesh_impl, self.vocab)
        axes = [] if axis is None else [axis]
        logits, labels = (lowering.tensors[x] for x in self.inputs)
        largest = mesh_impl.allreduce(mesh_impl.slicewise(largest_logit, logits), axes, "MAX")

        def pick(x: Any, ids: Any, first: Any) -> Any:
            local = ids - first
            held = tf.logical_and(local >= 0, local < depth)
            picked = tf.gather(x, tf.where(held, local, tf.zeros_like(local)), batch_dims=len(ids.shape))
            return picked * tf.cast(held, picked.dtype)

        total = mesh_impl.allreduce(mesh_impl.slicewise(partial_sum, logits, largest), axes, "SUM")
        target = mesh_impl.allreduce(mesh_impl.slicewise(pick, logits, labels, offset), axes, "SUM")
        log_z = mesh_impl.slicewise(lambda s, peak: tf.math.log(s) + peak, total, largest)
        lowering.set_tensor_lowering(self.outputs[0], log_z.to_laid_out_tensor())
        lowering.set_tensor_lowering(self.outputs[1], target.to_laid_out_tensor())


class LogZGradOperation(mtf.Operation):
    """softmax(logits) * d log Z + onehot(label) * d target: [..., vocab]."""

    def __init__(self, logits: Any, labels: Any, log_z: Any, d_log_z: Any, d_target: Any, vocab: Any) -> None:
        super().__init__([logits, labels, log_z, d_log_z, d_target], name="log_z_grad")
        self.vocab = vocab
        self._outputs = [mtf.Tensor(self, logits.shape, logits.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
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
def largest_logit(logits: Any) -> Any:
    """[..., vocab] -> [...]."""
    return tf.reduce_max(logits, -1)


@compiled
def partial_sum(logits: Any, peak: Any) -> Any:
    """Sum of exp(logit - peak): [..., vocab], [...] -> [...]."""
    return tf.reduce_sum(tf.exp(logits - peak[..., tf.newaxis]), -1)


@compiled
def log_z_grad(logits: Any, labels: Any, log_z: Any, d_log_z: Any, d_target: Any, first: Any = 0) -> Any:
    """Gradient with respect to a shard of the logits whose first column is `first`: [..., vocab]."""
    columns = tf.range(logits.shape[-1]) + first
    softmax = tf.exp(logits - log_z[..., tf.newaxis]) * d_log_z[..., tf.newaxis]
    return softmax + tf.where_v2(tf.equal(labels[..., tf.newaxis], columns), d_target[..., tf.newaxis], 0.0)
