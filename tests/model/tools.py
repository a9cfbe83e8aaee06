"""Building small networks, and checkpoints of chosen weights, for the tests beside this file."""

import os

import numpy as np

from gpt_neo.checkpoint.bundle import BundleWriter
from gpt_neo.config.network import under, variables_of
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.parameters import Parameters, plain
from gpt_neo.optim.schedules import learning_rate
from gpt_neo.runtime import network
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import load_weights


def forward(tokens, config):
    """Logits [batch, sequence, vocab] of a TensorFlow tensor of tokens [batch, sequence]."""
    (logits,), _ = network.forward(LocalPlacement(MeshPlan()), config, tokens)
    return logits


def rates_at(steps, config, train_steps):
    """The learning rate before the update of each step."""
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.placeholder(tf.int32, [])
        rate = learning_rate(step, config, train_steps)
        return [float(session.run(rate, {step: at})) for at in steps]


def parameters(mesh, variables, scope):
    """The weights `variables`, of names below `scope`."""
    return Parameters(mesh, under(scope, variables), tf.float32, plain, scope)


def plain_session(devices=1):
    """A session on so many CPU devices that runs its graph as it is: the optimizer takes longer than a test's steps."""
    options = tf.ConfigProto(device_count={"CPU": devices})
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    return tf.Session(config=options)


def set_values(session, pairs):
    """Give each variable of (variable, value) its value, in one run, as each run of its own takes the graph anew."""
    pairs = list(pairs)
    feeds = {variable.initializer.inputs[1]: value for variable, value in pairs}
    session.run([variable.initializer for variable, _ in pairs], feeds)


def save_weights(config, folder, choose):
    """A checkpoint whose variables are choose(name, shape), written without a graph; returns its path."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.ckpt-0")
    writer = BundleWriter(path)
    for name, variable in variables_of(config).items():
        value = np.ascontiguousarray(choose(name, list(variable.shape)), np.float32)
        writer.add(name, variable.shape, value.dtype, [value])
    writer.finish()
    tf.train.update_checkpoint_state(folder, path)
    return path


def save_random(config, folder, seed=0, scale=0.5):
    """A checkpoint of random weights, large enough that attention matters."""
    rng = np.random.RandomState(seed)
    return save_weights(config, folder, lambda name, shape: rng.normal(0, scale, shape))


def uncached(config, checkpoint, tokens):
    """Logits [batch, sequence, vocab] of whole sequences."""
    with tf.Graph().as_default(), plain_session() as session:
        logits = forward(tf.constant(tokens), config)
        load_weights(session, checkpoint)
        return session.run(logits)
