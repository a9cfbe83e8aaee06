"""Small configs of every sort, and steps on one device to hold the devices of a mesh against."""

import json

import numpy as np

from gpt_neo.config import load_config
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step

CONFIG = {
    "n_head": 4,
    "n_embd": 32,
    "n_layer": 2,
    "n_vocab": 64,
    "n_ctx": 32,
    "lr": 1e-3,
    "lr_decay": "cosine",
    "train_batch_size": 8,
    "train_steps": 10,
    "weight_decay": 0.1,
    "gradient_clipping": 0.5,
    "mesh_shape": "x:8",
    "layout": "batch:x",
    "attention_types": [[["global", "local"], 1]],
    "local_attention_radius": 8,
    "seed": 5,
}
MOE = {"moe_layers": [1], "moe_params": {"moe_num_experts": 4, "moe_hidden_size": 16}}


def make_run(folder, **changes):
    """A config with some keys changed."""
    path = folder / "model.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return load_config(str(path))


def make_batches(run, count):
    """Batches of random tokens."""
    rng = np.random.RandomState(0)
    size = (count, run.training.train_batch_size, run.model.n_ctx + 1)
    tokens = rng.randint(0, run.model.n_vocab, size).astype(np.int32)
    return [{"inputs": rows[:, :-1], "labels": rows[:, 1:]} for rows in tokens]


def steps_on_one_device(run, values, batches):
    """Losses, and every variable after the last step, from given values on; the whole model on one device."""
    with tf.Graph().as_default(), tf.Session() as session:
        shape = [run.training.train_batch_size, run.model.n_ctx]
        fed = {name: tf.placeholder(tf.int32, shape) for name in ("inputs", "labels")}
        step = build_train_step(fed, run, LocalPlacement(MeshPlan()))
        variables = {v.op.name: v for v in tf.global_variables() if v.op.name != "global_step"}
        session.run(tf.variables_initializer([tf.train.get_global_step()]))
        for name, variable in variables.items():
            variable.load(values[name], session)
        losses = [session.run([step.loss, step.train], {fed[n]: batch[n] for n in fed})[0] for batch in batches]
        return losses, dict(zip(variables, session.run(list(variables.values()))))
