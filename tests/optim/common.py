"""One variable, given gradients, and an optimizer."""

import numpy as np

from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.build import optimizer_updates

START = np.linspace(-1, 1, 6).astype(np.float32)
GRADS = np.random.RandomState(0).normal(size=(5, 6)).astype(np.float32)


def train(name, config, start=START, grads=GRADS, partition=Partition(), role="bias"):  # noqa: B008  (frozen)
    """The variables after a step of the configured optimizer for each of `grads`."""

    def updates(variable, grad, step):
        return optimizer_updates([variable], {name: role}, [grad], tf.constant(config.lr), step, config, partition)

    return train_with(updates, name, start, grads)


def train_with(updates, name, start, grads):
    """The same for `updates`: (variable, gradient, step) -> mtf operations."""
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension(f"d{i}", size) for i, size in enumerate(start.shape)])
        value = mtf.get_variable(mesh, name, shape, initializer=tf.constant_initializer(start))
        fed, step = tf.placeholder(tf.float32, start.shape), tf.placeholder(tf.int64, [])
        made = updates(value.operation, mtf.import_tf_tensor(mesh, fed, shape), step)
        lowering = lower_locally(graph, mesh)
        operations = [lowering.lowered_operation(op) for op in made]
        session.run(tf.global_variables_initializer())
        for i, row in enumerate(grads):
            session.run(operations, {fed: row, step: i})
        return session.run({v.op.name: v for v in tf.global_variables()})
