"""One optimizer step as a graph."""

from __future__ import annotations

import dataclasses
import random
from typing import Callable, Optional, Union

from gpt_neo.config.estimate import microbatches
from gpt_neo.config.network import is_trained, roles_of
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import count_of, mean_loss, split_batch
from gpt_neo.model.transformer import spread, up_to_head
from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.dropout import RandomSource
from gpt_neo.ops.parameters import trained
from gpt_neo.ops.trained import Partition, stored_part
from gpt_neo.optim.build import global_norm, optimizer_updates
from gpt_neo.optim.guard import guard_updates
from gpt_neo.optim.schedules import learning_rate
from gpt_neo.runtime.network import Placement


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """Tensors of a lowered training step.

    loss, rate: float32 scalars, before the update. norm: likewise, of the gradients before they are clipped; there with
    `log_grads`. train: the operation that updates and counts the step; where the
    placement does not count, that is left to whoever runs the step.
    """

    loss: tf.Tensor
    rate: tf.Tensor
    train: tf.Operation
    lowering: mtf.Lowering
    norm: Optional[tf.Tensor] = None


WHOLE = Partition()  # nothing is stored in parts


def build_train_step(
    batch: Union[tf.Tensor, dict], run: RunConfig, placement: Placement, loss_limit: Optional[tf.Tensor] = None
) -> TrainStep:
    """Build and lower a training step.

    Args:
      batch: TensorFlow tensors as `split_batch` takes them: int32 [batch, n_ctx + 1], or inputs, labels, weights.
      placement: LocalPlacement or TpuPlacement.
      loss_limit: float32 scalar; the update of a batch with a greater loss is left out. None updates always.
    """
    # Mesh-TF draws the seeds of its random operations from Python's generator while it lowers.
    random.seed(run.training.seed or 1)
    step = tf.train.get_or_create_global_step()
    sums = tf.as_dtype(run.mesh.gradient_sums_dtype)
    partition = Partition(placement.mesh_shape, placement.layout, placement.in_place, sums)
    graph = mtf.Graph()
    mesh = placement.make_mesh(graph)
    dims = make_dims(run.model, run.training.train_batch_size)
    features = {name: mtf.import_tf_tensor(mesh, t, dims.tokens) for name, t in split_batch(batch).items()}
    features["rows"] = mtf.range(mesh, dims.batch, tf.int32)
    mtf_step = mtf.import_tf_tensor(mesh, tf.cast(step, tf.int32), mtf.Shape([]))
    splits = microbatches(run.mesh, run.model.n_ctx, dims.batch.size // placement.replicas)
    loss, *grads = loss_and_gradients(graph, features, mtf_step, run, splits, partition)
    norm = global_norm(grads) if run.training.log_grads else None
    rate = learning_rate(step, run.optimizer, run.training.train_steps)
    variables, roles = graph.trainable_variables, roles_of(run.model)
    updates = optimizer_updates(variables, roles, grads, rate, step, run.optimizer, partition, norm)
    if loss_limit is not None:
        updates = guard_updates(updates, loss, loss_limit)
    lowering = placement.lower(graph, mesh)
    loss_out = lowering.export_to_tf_tensor(loss)
    # Loss and rate belong to the step before the update.
    with tf.control_dependencies([loss_out, rate]):
        assigns = tf.group([lowering.lowered_operation(op) for op in updates])
    with tf.control_dependencies([assigns]):
        train = tf.assign_add(step, 1).op if placement.counts else assigns
    return TrainStep(loss_out, rate, train, lowering, lowering.export_to_tf_tensor(norm) if norm else None)


def loss_and_gradients(
    graph: mtf.Graph, features: dict, step: Tensor, run: RunConfig, splits: int, partition: Partition = WHOLE
) -> list:
    """Mean loss over the labels that count, then its gradients, each summed over `splits` microbatches.

    Args:
      features: inputs, labels and perhaps weights [batch, sequence]; rows [batch], their numbers in the batch.
      step: int32 scalar.
      partition: how the weights are stored.

    Returns:
      float32: the loss, and of each trainable variable the gradient, as `stored_part` makes it, after every microbatch
      or after all of them (`gradient_sums`).
    """
    count = count_of(features)
    summed = WHOLE if run.mesh.gradient_sums == "step" else partition  # after a microbatch; the rest after all
    at_use = run.mesh.weight_gathers == "use"

    def differentiated(parts: dict) -> list:
        dims = make_dims(run.model, parts["inputs"].shape.dims[0].size)
        context = Context(
            is_training=True,
            spread_loss=True,
            storage=trained(partition, lambda name: is_trained(name, run.model, run.optimizer.freeze), at_use),
            gathers=at_use,
            randomness=RandomSource(run.training.seed or 1, step, parts["rows"]),
        )
        head = up_to_head(parts["inputs"], dims, run.model, context)
        named = {name: spread(parts[name], context) for name in ("labels", "weights") if name in parts}
        auxiliary = [loss / splits for loss in context.auxiliary_losses]
        loss = mtf.add_n([mean_loss(head, named, count, splits, run.model), *auxiliary])
        if not graph.trainable_variables:
            raise ConfigError(f"{run.source}: {why_nothing_is_trained(run)}: nothing is left to train")
        grads = mtf.gradients([loss], [v.value if at_use else v.whole for v in graph.trainable_variables])
        return [loss, *(stored_part(grad, summed) for grad in grads)]

    found = summed_over_microbatches(differentiated, features, splits) if splits > 1 else differentiated(features)
    return [found[0], *(stored_part(grad, partition) for grad in found[1:])]


def why_nothing_is_trained(run: RunConfig) -> str:
    """The reason, where no variable is."""
    if run.model.lora_rank and "adapter" not in roles_of(run.model).values():
        return "lora_rank trains adapters alone, and no block has a matrix for one (experts have none)"
    return f"freeze matches every {'adapter' if run.model.lora_rank else 'variable'}"


def summed_over_microbatches(function: Callable[[dict], list], features: dict, splits: int) -> list:
    """What a function of a batch gives, none of it with a batch dimension, added up over microbatches in a loop.

    A sum over devices that is still to be made is made once, after the loop.

    Args:
      features: name -> [batch, ...].
      splits: number of microbatches; it divides the batch.
    """
    batch = next(iter(features.values())).shape.dims[0]
    number = mtf.Dimension("microbatch", splits)
    smaller = mtf.Dimension(batch.name, batch.size // splits)

    def body(done: tf.Tensor) -> list:
        # Rows of a replica are neighbours, so every microbatch takes some of each replica.
        parts = {
            name: mtf.gather(mtf.replace_dimensions(x, batch, [smaller, number]), done, number)
            for name, x in features.items()
        }
        return [done + 1, *function(parts)]

    start = mtf.constant(next(iter(features.values())).mesh, 0, dtype=tf.int32)
    return mtf.while_loop(lambda done: mtf.less(done, splits), body, [start], has_accumulators=True)[1:]
