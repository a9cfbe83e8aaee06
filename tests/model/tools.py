"""Building small networks, and checkpoints of chosen weights, for the tests beside this file."""

import os

import numpy as np

from gpt_neo.config.network import under
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.parameters import Parameters, plain
from gpt_neo.runtime import network
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import load_weights


def forward(tokens, config):
    """Logits [batch, sequence, vocab] of a TensorFlow tensor of tokens [batch, sequence]."""
    (logits,), _ = network.forward(LocalPlacement(MeshPlan()), config, tokens)
    return logits


def parameters(mesh, variables, scope):
    """The weights `variables`, of names below `scope`."""
    return Parameters(mesh, under(scope, variables), tf.float32, plain, scope)


def save_weights(config, folder, choose):
    """A checkpoint whose variables are choose(name, shape); returns its path."""
    path = os.path.join(folder, "model.ckpt-0")
    with tf.Graph().as_default(), tf.Session() as session:
        forward(tf.zeros([1, config.n_ctx], tf.int32), config)
        session.run(tf.global_variables_initializer())
        for v in tf.global_variables():
            session.run(v.initializer, {v.initializer.inputs[1]: choose(v.op.name, v.shape.as_list())})
        tf.train.Saver().save(session, path, write_meta_graph=False)
    return path


def save_random(config, folder, seed=0, scale=0.5):
    """A checkpoint of random weights, large enough that attention matters."""
    rng = np.random.RandomState(seed)
    return save_weights(config, folder, lambda name, shape: rng.normal(0, scale, shape))


def uncached(config, checkpoint, tokens):
    """Logits [batch, sequence, vocab] of whole sequences."""
    with tf.Graph().as_default(), tf.Session() as session:
        logits = forward(tf.constant(tokens), config)
        load_weights(session, checkpoint)
        return session.run(logits)
