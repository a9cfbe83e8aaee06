"""Updates that are left out when the loss of their batch is too high: weights and slots stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_neo.mtf_compat import tf


def guard_updates(updates: Sequence[Any], loss: Any, limit: Any) -> None:
    """Make mtf operations run only where the loss is a number no greater than the limit.

    The gradients are computed either way. The condition stands around each update's own kernels, so that an update in
    place costs no copy of the variable.

    Args:
      updates: operations of `optimizer_updates`, not yet lowered.
      loss: mtf scalar.
      limit: float32 TensorFlow scalar; infinity lets every finite loss through.
    """
    for operation in updates:
        operation.lower = guarded(operation, operation.lower, loss, limit)


def guarded(operation: Any, lower: Any, loss: Any, limit: Any) -> Any:
    """A `lower` method that puts what the given one makes into one branch of a condition."""

    def lower_in_branch(lowering: Any) -> None:
        value = tf.cast(lowering.tensors[loss].to_laid_out_tensor().all_slices[0], tf.float32)
        # infinity equals the limit of infinity, and is no number to learn from
        accepted = tf.logical_and(tf.math.is_finite(value), value <= limit)

        def update() -> Any:
            lower(lowering)
            with tf.control_dependencies([lowering.operations[operation]]):
                return tf.constant(True)

        lowering.operations[operation] = tf.cond(accepted, update, lambda: tf.constant(False)).op

    return lower_in_branch
