"""One device equals a mesh of several local CPU devices, which takes the head by chunks, in loss and every gradient."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

# (kinds of attention, mesh sizes, dimensions split)
LAYOUTS = [
    ("local", [2, 2], "batch,heads"),
    ("global", [2, 2], "embd,vocab"),
    ("global,local", [2, 2], "sequence,memory_length"),
    # Whatever is split, linear and gla layers have whole sequences and features, gathered where they must be.
    ("gla", [2, 2], "batch,heads"),
    ("linear,gla", [2], "features_per_head"),
]
# Parts of those above, other sizes, and other layers beside them.
MORE_LAYOUTS = [
    *[("global,local", [2], name) for name in ("batch", "heads", "embd", "vocab", "memory_length")],
    *[("global,local", [4], name) for name in ("batch", "heads", "embd")],
    ("global,local", [3], "memory_length"),
    *[("global,local", [2, 2], names) for names in ("batch,heads", "embd,vocab", "batch,vocab")],
    *[("global,local", [2, 2], f"{name},memory_length") for name in ("heads", "features_per_head")],
    ("linear,gla,none", [4], "heads"),
    ("linear,gla,none", [2], "sequence"),
    *[("linear,gla,none", [2, 2], names) for names in ("batch,heads", "embd,features_per_head")],
]

# The devices have to be set up before TensorFlow starts, so this part has a process of its own.
SCRIPT = """
import json, sys
import numpy as np
from gpt_neo.config import estimate
from gpt_neo.config.schema import ModelConfig
from gpt_neo.ops import flash_attention as blockwise
from gpt_neo.ops import head
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import cross_entropy_per_token
from gpt_neo.model.transformer import up_to_head
from gpt_neo.mtf_compat import mtf, tf
from tests.model.spread import evaluate

blockwise.BLOCK = 8  # several blocks
head.ALIGNED.set(17)  # one or two columns more than there are
estimate.HEAD_BYTES = 20 * 32 * 4  # several chunks of the 96 tokens, in the head of a mesh alone
tokens = np.random.RandomState(0).randint(0, 32, (4, 25)).astype(np.int32)

def run(kinds, sizes, names, weights):
    kinds = tuple(kinds.split(","))
    config = ModelConfig(n_head=4, n_embd=16, n_layer=len(kinds), n_vocab=32, n_ctx=24, attention_types=kinds,
                         local_attention_radius=8)
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(config, 4)
        inputs = mtf.import_tf_tensor(mesh, tf.constant(tokens[:, :-1]), dims.tokens)
        labels = mtf.import_tf_tensor(mesh, tf.constant(tokens[:, 1:]), dims.tokens)
        last = up_to_head(inputs, dims, config, Context(is_training=True))
        if sizes:
            share = mtf.constant(mesh, 1 / labels.shape.size, labels.shape)
            loss = last.cross_entropy(labels, share, 1e-4)
        else:
            loss = mtf.reduce_mean(cross_entropy_per_token(last.logits(), labels, dims.vocab, 1e-4))
        variables = graph.trainable_variables
        grads = mtf.gradients([loss], [v.outputs[0] for v in variables])
        return evaluate(graph, mesh, [loss, *grads], sizes, names, weights)

alone, reports = {}, []
for kinds, sizes, names in json.loads(sys.argv[1]):
    if kinds not in alone:
        weights = {}
        alone[kinds] = run(kinds, [], [], weights), weights
    wanted, weights = alone[kinds]
    spread = run(kinds, sizes, names.split(","), weights)
    scale = max(np.abs(g).max() for g in wanted[1:])
    errors = [float(abs(spread[0] - wanted[0]))]
    errors += [float(np.abs(a - b).max() / scale) for a, b in zip(wanted[1:], spread[1:])]
    reports.append({"loss": float(wanted[0]), "scale": float(scale), "errors": errors})
print(json.dumps(reports))
"""


def compare(layouts):
    env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    argv = [sys.executable, "-c", SCRIPT, json.dumps(layouts)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reports():
    return compare(LAYOUTS)


def check(report):
    assert np.isfinite(report["loss"]) and report["scale"] > 1e-3
    assert max(report["errors"]) < 1e-4, report["errors"]


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=[f"{k}-{n}-{s}" for k, s, n in LAYOUTS])
def test_loss_and_gradients_equal_one_device(reports, number):
    check(reports[number])


@pytest.mark.slow
def test_more_layouts():
    for report in compare(MORE_LAYOUTS):
        check(report)
