"""Adam against NumPy, and its in-place kernel against plain arithmetic."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.optim.adam import AdamOperation, adam_updates

CONFIG = OptimizerConfig(lr=0.1, beta1=0.9, beta2=0.95, epsilon=1e-6, weight_decay=0.1)
START = np.linspace(-1, 1, 6).astype(np.float32)
GRADS = np.random.RandomState(0).normal(size=(5, 6)).astype(np.float32)


def numpy_adam(value, grads, decay):
    value, m, v = value.astype(np.float64), 0.0, 0.0
    for grad in grads.astype(np.float64):
        m = 0.9 * m + 0.1 * grad
        v = 0.95 * v + 0.05 * grad**2
        value = value - 0.1 * (m / (np.sqrt(v) + 1e-6) + decay * value)
    return value


def run(name, config=CONFIG):
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension("embd", 6)])
        mtf.get_variable(mesh, name, shape, initializer=tf.constant_initializer(START))
        fed = tf.placeholder(tf.float32, [6])
        grad = mtf.import_tf_tensor(mesh, fed, shape)
        updates = adam_updates(graph.trainable_variables, [grad], mtf.constant(mesh, 0.1, mtf.Shape([])), config)
        lowering = lower_locally(graph, mesh)
        train = [lowering.lowered_operation(op) for op in updates]
        session.run(tf.global_variables_initializer())
        for row in GRADS:
            session.run(train, {fed: row})
        return session.run({v.op.name: v for v in tf.global_variables()})


@pytest.mark.parametrize("name, decay", [("q", 0.1), ("wte", 0.1), ("norm_1_g", 0.0), ("bias", 0.0)])
@pytest.mark.parametrize("in_place", [True, False])
def test_equals_numpy(name, decay, in_place, monkeypatch):
    if not in_place:
        monkeypatch.setattr(AdamOperation, "update_in_place", AdamOperation.update_by_assigning)
    got = run(name)
    np.testing.assert_allclose(got[name], numpy_adam(START, GRADS, decay), rtol=1e-5)
    assert set(got) == {name, f"{name}/adam_m", f"{name}/adam_v"}


def test_no_decay_without_the_key():
    got = run("q", dataclasses.replace(CONFIG, weight_decay=0.0))
    np.testing.assert_allclose(got["q"], numpy_adam(START, GRADS, 0.0), rtol=1e-5)
