"""One variable, five given gradients, and the optimizer that the config names."""

import numpy as np

from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.optim.build import optimizer_updates
from gpt_neo.optim.slots import SlotLayout

START = np.linspace(-1, 1, 6).astype(np.float32)
GRADS = np.random.RandomState(0).normal(size=(5, 6)).astype(np.float32)


def train(name, config, start=START, grads=GRADS, dtype=tf.float32, rate=None):
    """The variables after a step for each of `grads`."""
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension(f"d{i}", size) for i, size in enumerate(start.shape)])
        value = mtf.get_variable(mesh, name, shape, dtype=dtype, initializer=tf.constant_initializer(start))
        fed, step = tf.placeholder(tf.float32, start.shape), tf.placeholder(tf.int64, [])
        grad = mtf.import_tf_tensor(mesh, fed, shape)
        rate = tf.constant(config.lr if rate is None else rate, tf.float32)
        updates = optimizer_updates([value.operation], [grad], rate, step, config, SlotLayout())
        lowering = lower_locally(graph, mesh)
        operations = [lowering.lowered_operation(op) for op in updates]
        session.run(tf.global_variables_initializer())
        for i, row in enumerate(grads):
            session.run(operations, {fed: row, step: i})
        return session.run({v.op.name: v for v in tf.global_variables()})
