"""One device equals a mesh of several local CPU devices, which takes the head by chunks, in loss and every gradient."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

LAYOUTS = [([2, 2], "batch,heads"), ([2, 2], "embd,vocab"), ([3], "memory_length"), ([2, 2], "sequence,memory_length")]
# Parts of those above, and other sizes: in the slow tests.
MORE_LAYOUTS = [
    ([2], "batch"),
    ([2], "heads"),
    ([2], "embd"),
    ([2], "vocab"),
    ([4], "batch"),
    ([4], "heads"),
    ([4], "embd"),
    ([2], "memory_length"),
    ([2, 2], "batch,vocab"),
    ([2, 2], "heads,memory_length"),
    ([2, 2], "features_per_head,memory_length"),
]
# Whatever is split, linear and gla layers have whole sequences and features, gathered where they must be.
STATEFUL_LAYOUTS = [([2, 2], "batch,heads"), ([2, 2], "embd,features_per_head")]
MORE_STATEFUL_LAYOUTS = [([4], "heads"), ([2], "sequence")]

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
config = ModelConfig(n_head=4, n_embd=16, n_layer=2, n_vocab=32, n_ctx=24,
                     attention_types=tuple(sys.argv[2].split(",")), local_attention_radius=8)
tokens = np.random.RandomState(0).randint(0, 32, (4, 25)).astype(np.int32)
weights = {}

def run(sizes, names):
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

alone = run([], [])
errors = {}
for sizes, names in json.loads(sys.argv[1]):
    spread = run(sizes, names.split(","))
    scale = max(np.abs(g).max() for g in alone[1:])
    errors["%s over %s" % (names, sizes)] = [float(abs(spread[0] - alone[0]))] + [
        float(np.abs(a - b).max() / scale) for a, b in zip(alone[1:], spread[1:])]
print(json.dumps({"loss": float(alone[0]), "scale": float(scale), "errors": errors}))
"""


def compare(layouts, kinds):
    env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    argv = [sys.executable, "-c", SCRIPT, json.dumps(layouts), kinds]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return compare(LAYOUTS, "global,local")


@pytest.fixture(scope="module")
def stateful_report():
    return compare(STATEFUL_LAYOUTS, "linear,gla,none")


def check(report, sizes, names):
    assert np.isfinite(report["loss"]) and report["scale"] > 1e-3
    errors = report["errors"][f"{names} over {sizes}"]
    assert max(errors) < 1e-4, errors


@pytest.mark.parametrize("sizes, names", LAYOUTS, ids=[f"{n}-{s}" for s, n in LAYOUTS])
def test_loss_and_gradients_equal_one_device(report, sizes, names):
    check(report, sizes, names)


@pytest.mark.parametrize("sizes, names", STATEFUL_LAYOUTS, ids=[f"{n}-{s}" for s, n in STATEFUL_LAYOUTS])
def test_linear_and_gla_equal_one_device(stateful_report, sizes, names):
    check(stateful_report, sizes, names)


@pytest.mark.slow
def test_more_layouts():
    report = compare(MORE_LAYOUTS, "global,local")
    for sizes, names in MORE_LAYOUTS:
        check(report, sizes, names)


@pytest.mark.slow
def test_more_layouts_of_linear_and_gla():
    report = compare(MORE_STATEFUL_LAYOUTS, "linear,gla,none")
    for sizes, names in MORE_STATEFUL_LAYOUTS:
        check(report, sizes, names)
