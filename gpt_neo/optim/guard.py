"""Updates that are left out when the loss of their batch is too high: weights and slots stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_neo.mtf_compat import Tensor, mtf, tf


def guard_updates(updates: Sequence[mtf.Operation], loss: Tensor, limit: Tensor) -> list:
    """Operations in the place of others, which run only where the loss is a number no greater than the limit.

    The gradients are computed either way. The condition stands around each update's own kernels, so that an update in
    place costs no copy of the variable.

    Args:
      updates: operations of `optimizer_updates`, not yet lowered; they leave the graph's list for those returned.
      loss: mtf scalar.
      limit: float32 TensorFlow scalar; infinity lets every finite loss through.
    """
    places = {operation: place for place, operation in enumerate(loss.graph.operations)}
    guarded = [GuardedUpdate(update, loss, limit) for update in updates]
    operations = loss.graph.operations
    del operations[-len(guarded) :]
    for update, guard in zip(updates, guarded):  # what waits for an update comes after it still
        operations[places[update]] = guard
    return guarded


class GuardedUpdate(mtf.Operation):
    """An update inside one branch of a condition."""

    def __init__(self, update: mtf.Operation, loss: Tensor, limit: Tensor) -> None:
        super().__init__([loss], name="guarded_update")
        self.update, self.limit = update, limit

    def lower(self, lowering: mtf.Lowering) -> None:
        """The update lowered inside the branch; whoever waits for it waits for the condition."""
        value = tf.cast(lowering.tensors[self.inputs[0]].to_laid_out_tensor().all_slices[0], tf.float32)
        # infinity equals the limit of infinity, and is no number to learn from
        accepted = tf.logical_and(tf.math.is_finite(value), value <= self.limit)

        def run() -> tf.Tensor:
            self.update.lower(lowering)
            with tf.control_dependencies([lowering.operations[self.update]]):
                return tf.constant(True)

        done = tf.cond(accepted, run, lambda: tf.constant(False)).op
        lowering.operations[self] = lowering.operations[self.update] = done
