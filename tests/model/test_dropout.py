"""Dropout masks: known answers, statistics, gradient, and the same masks however the batch is cut."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.config.schema import ModelConfig, MoeConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.dropout import RandomSource, dropout, threefry, uniform_like
from tests.conftest import ROOT
from tests.model.tools import plain_session, set_values

SHAPE = {"batch": 8, "sequence": 64, "heads": 4, "memory_length": 128}


@pytest.mark.parametrize(
    "key, counter, words",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_its_published_answers(key, counter, words):
    with tf.Graph().as_default(), tf.Session() as session:
        out = threefry(*(tf.constant([value], tf.uint32) for value in (*key, *counter)))
        assert tuple(int(value[0]) for value in session.run(out)) == words


def masks(rate, steps=(0,), seeds=(1,), count=1, rows=None, shape=None):
    """Masks (0 or the scale) of `count` dropouts of ones, and their gradients: [seed][step][dropout]."""
    sizes = shape or SHAPE
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = [mtf.Dimension(*item) for item in sizes.items()]
        step = tf.placeholder(tf.int32, [])
        mtf_step = mtf.import_tf_tensor(mesh, step, mtf.Shape([]))
        row_dim = mtf.Dimension("batch", len(rows or range(8)))
        mtf_rows = mtf.import_tf_tensor(mesh, tf.constant(rows or list(range(8))), mtf.Shape([row_dim]))
        ones = mtf.ones(mesh, mtf.Shape(dims))
        outs = []
        for seed in seeds:
            source = RandomSource(seed, mtf_step, mtf_rows)
            outs.append([dropout(ones, rate, source) for _ in range(count)])
        grads = [mtf.gradients([mtf.reduce_sum(out)], [ones])[0] for out in outs[0]]
        lowering = lower_locally(graph, mesh)
        fetches = [[lowering.export_to_tf_tensor(out) for out in row] for row in outs]
        fetched_grads = [lowering.export_to_tf_tensor(grad) for grad in grads]
        results = [session.run([fetches, fetched_grads], {step: value}) for value in steps]
    return [[np.array(result[0][i]) for result in results] for i in range(len(seeds))], results[0][1]


SMALL = {"n_head": 2, "n_embd": 8, "n_layer": 2, "n_vocab": 12, "n_ctx": 6}
TOKENS = np.random.RandomState(0).randint(0, 12, (2, 6)).astype(np.int32)


def trained_on(**options):
    """Logits of a pass in training, and the weights by name."""
    config = ModelConfig(**{**SMALL, "attention_types": ("global", "local"), "local_attention_radius": 3, **options})
    with tf.Graph().as_default(), plain_session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(config, 2)
        step = mtf.import_tf_tensor(mesh, tf.constant(3), mtf.Shape([]))
        source = RandomSource(1, step, mtf.range(mesh, dims.batch, tf.int32))
        tokens = mtf.import_tf_tensor(mesh, tf.constant(TOKENS), dims.tokens)
        out = transformer(tokens, dims, config, Context(is_training=True, randomness=source))
        lowering = lower_locally(graph, mesh)
        random = np.random.RandomState(1)
        weights = {v.op.name: random.normal(0.2, 0.5, v.shape.as_list()) for v in tf.global_variables()}
        set_values(session, [(v, weights[v.op.name]) for v in tf.global_variables()])
        return session.run(lowering.export_to_tf_tensor(out)), weights


def head_of(stream, weights):
    """Logits of a residual stream, in float64."""
    normed = stream - stream.mean(-1, keepdims=True)
    normed /= np.sqrt(np.square(normed).mean(-1, keepdims=True) + 1e-5)
    return (normed * weights["gpt2/ln_f/g"] + weights["gpt2/ln_f/b"]) @ weights["gpt2/wte"].T


EXPERTS = {"moe_layers": (0, 1), "moe_params": MoeConfig(moe_num_experts=2, moe_hidden_size=5)}


@pytest.mark.parametrize(
    "options",
    [{}, {"parallel_residual": True}, {"macaron": True}, EXPERTS],
    ids=["plain", "parallel", "macaron", "experts"],
)
def test_a_residual_dropout_of_all_leaves_the_embedding(options):
    """So it is on every branch: attention, feed-forward before and after, experts."""
    logits, weights = trained_on(res_dropout=1.0, **options)
    embedded = weights["gpt2/wte"][TOKENS] + weights["gpt2/wpe"]
    np.testing.assert_allclose(logits, head_of(embedded, weights), atol=1e-5)


def test_an_embedding_dropout_of_all_leaves_nothing_of_tokens_and_places():
    logits, weights = trained_on(embed_dropout=1.0, res_dropout=1.0)
    np.testing.assert_allclose(logits, head_of(np.zeros([2, 6, 8]), weights), atol=1e-5)


def test_an_attention_dropout_of_all_leaves_the_bias():
    logits, weights = trained_on(attn_dropout=1.0, n_layer=1, attention_types=("local",))
    x = weights["gpt2/wte"][TOKENS] + weights["gpt2/wpe"] + weights["gpt2/h0/attn/compute_output_bias/o_b"]
    normed = x - x.mean(-1, keepdims=True)
    normed /= np.sqrt(np.square(normed).mean(-1, keepdims=True) + 1e-5)
    hidden = normed * weights["gpt2/h0/norm_2/g"] + weights["gpt2/h0/norm_2/b"]
    for part in ("c_fc", "c_proj"):
        kernel, bias = (weights[f"gpt2/h0/mlp/conv1d_main/{part}/{name}"] for name in ("kernel", "bias"))
        hidden = hidden @ kernel + bias
        if part == "c_fc":
            hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(logits, head_of(x + hidden, weights), atol=1e-4)


def test_rate_and_scale():
    for rate in (0.1, 0.5, 0.9):
        (mask,) = masks(rate)[0][0][0]
        values = np.unique(mask)
        assert values[0] == 0 and values[1:] == pytest.approx([1 / (1 - rate)], rel=1e-6)
        # binomial: four standard deviations
        assert abs((mask == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / mask.size)
        # the share dropped per row, place and head scatters as that of independent draws does
        for axis in range(4):
            shares = (mask == 0).mean(axis=tuple(i for i in range(4) if i != axis))
            expected = rate * (1 - rate) / (mask.size / mask.shape[axis])
            spread = ((shares - rate) ** 2).sum() / expected  # chi-squared
            assert spread < mask.shape[axis] + 5 * np.sqrt(2 * mask.shape[axis]), axis


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_the_scale_is_not_rounded_to_bfloat16(rate):
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension("batch", 8), mtf.Dimension("embd", 4096)])
        step = mtf.import_tf_tensor(mesh, tf.constant(3), mtf.Shape([]))
        rows = mtf.import_tf_tensor(mesh, tf.range(8), shape.dims[:1])
        given = np.random.RandomState(0).uniform(1, 2, [8, 4096])
        x = mtf.import_tf_tensor(mesh, tf.constant(given, tf.bfloat16), shape)
        out = dropout(x, rate, RandomSource(1, step, rows))
        lowering = lower_locally(graph, mesh)
        fetched = session.run([lowering.export_to_tf_tensor(t) for t in (x, out)])
        (x, out) = (np.asarray(t).astype(np.float64) for t in fetched)
    kept = out != 0
    # each is rounded, by up to 1 / 256 of itself; the mean is not moved
    assert (out[kept] / x[kept]).mean() == pytest.approx(1 / (1 - rate), rel=2e-4)


def test_no_two_masks_are_correlated():
    by_seed, _ = masks(0.5, steps=(0, 1, 2**31 - 1), seeds=(1, 2), count=2)
    flat = np.array([m.ravel() for seed in by_seed for step in seed for m in step]) - 1
    rows = [by_seed[0][0][0][i].ravel() - 1 for i in range(3)]  # rows of one mask
    rows += [np.roll(rows[0], shift) for shift in (1, 128, 512)]  # and one against itself, shifted
    for group in (flat, np.array(rows)):
        correlation = np.corrcoef(group) - np.eye(len(group))
        assert np.abs(correlation).max() < 5 / np.sqrt(group.shape[1])


def test_the_gradient_has_the_mask_of_the_forward_pass():
    by_seed, grads = masks(0.3, count=2)
    for mask, grad in zip(by_seed[0][0], grads):
        np.testing.assert_array_equal(mask, grad)


def test_a_row_has_its_mask_in_whatever_microbatch_it_falls():
    whole = masks(0.5)[0][0][0][0]
    part = masks(0.5, rows=[1, 5], shape={**SHAPE, "batch": 2})[0][0][0][0]
    np.testing.assert_array_equal(part, whole[[1, 5]])


def test_without_a_batch_dimension_microbatches_differ():
    shape = {"experts": 8, "embd": 512}
    first, second = (masks(0.5, rows=rows, shape=shape)[0][0][0][0] for rows in ([0, 2, 4], [1, 3, 5]))
    assert abs((first == second).mean() - 0.5) < 0.05


def test_uniform_numbers_are_those_of_the_masks():
    """An element is dropped at rate r where its number is below r; numbers fill [0, 1) evenly."""
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        x = mtf.ones(mesh, mtf.Shape([mtf.Dimension(*item) for item in SHAPE.items()]))
        step = mtf.import_tf_tensor(mesh, tf.constant(3), mtf.Shape([]))
        rows = mtf.import_tf_tensor(mesh, tf.range(8), x.shape.dims[:1])
        outs = []
        for build in (lambda x, source: dropout(x, 0.25, source), uniform_like):
            outs.append(build(x, RandomSource(1, step, rows)))
        lowering = lower_locally(graph, mesh)
        mask, numbers = session.run([lowering.export_to_tf_tensor(out) for out in outs])
    np.testing.assert_array_equal(mask == 0, numbers < 0.25)
    counts, _ = np.histogram(numbers, 64, (0, 1))
    expected = numbers.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * np.sqrt(2 * 63)


def test_edges():
    assert masks(1.0)[0][0][0][0].max() == 0
    with tf.Graph().as_default():
        x = mtf.ones(mtf.Mesh(mtf.Graph(), "mesh"), mtf.Shape([mtf.Dimension("embd", 4)]))
        assert Context(is_training=True).dropout(x, 0.0) is x and Context().dropout(x, 0.1) is x
        with pytest.raises(ValueError, match="give its Context randomness"):
            Context(is_training=True).dropout(x, 0.1)


# (mesh sizes, dimensions split, microbatches, recompute)
VARIANTS = [([2], "embd", 2, True)]
SLOW_VARIANTS = [
    ([2, 2], "batch,embd", 2, True),
    ([], "", 4, False),
    ([], "", 1, True),
    ([2], "memory_length", 1, False),
]

SCRIPT = """
import dataclasses, json, sys
import numpy as np
from gpt_neo.config.schema import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig, MeshConfig
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime.train_step import loss_and_gradients
from tests.model.spread import evaluate, largest_error

model = ModelConfig(n_head=4, n_embd=16, n_layer=1, n_vocab=32, n_ctx=24, attention_types=("local",),
                    local_attention_radius=8, embed_dropout=0.2, attn_dropout=0.3, res_dropout=0.25)
training = TrainingConfig(train_batch_size=8, train_steps=1, seed=5)
tokens = np.random.RandomState(0).randint(0, 32, (8, 25)).astype(np.int32)
weights = {}

def run(sizes, names, splits, recompute, step=3):
    config = RunConfig("", "", dataclasses.replace(model, recompute_grad=recompute), OptimizerConfig(lr=1.0),
                       MeshConfig(), training, ())
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(model, 8)
        features = {"inputs": mtf.import_tf_tensor(mesh, tf.constant(tokens[:, :-1]), dims.tokens),
                    "labels": mtf.import_tf_tensor(mesh, tf.constant(tokens[:, 1:]), dims.tokens),
                    "rows": mtf.range(mesh, dims.batch, tf.int32)}
        step = mtf.import_tf_tensor(mesh, tf.constant(step), mtf.Shape([]))
        loss, *grads = loss_and_gradients(graph, features, step, config, splits)
        return evaluate(graph, mesh, [loss, *grads], sizes, names, weights)

alone = run([], [], 1, False)
print(json.dumps({"errors": [largest_error(alone, run(sizes, names.split(","), splits, recompute))
                             for sizes, names, splits, recompute in json.loads(sys.argv[1])],
                  "other step": largest_error(alone, run([], [], 1, False, step=4))}))
"""


@pytest.fixture(scope="module")
def report():
    return compare(VARIANTS)


def compare(variants):
    env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(variants)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=[f"{n or 'one'}-{m}-{r}" for _, n, m, r in VARIANTS])
def test_recomputed_split_and_spread_training_drops_the_same(report, variant):
    assert report["other step"] > 1e-2  # so that a wrong mask would be seen
    assert report["errors"][variant] < 1e-4


@pytest.mark.slow
def test_more_of_them():
    assert max(compare(SLOW_VARIANTS)["errors"]) < 1e-4
