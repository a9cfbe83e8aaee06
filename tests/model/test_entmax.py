"""Entmax against an exact solution and its optimality conditions; its loss and gradient against float64 differences."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.entmax import entmax_loss_per_token
from gpt_neo.sampling.filters import SampleOptions, entmax, probabilities

ALPHAS = (1.01, 1.3, 1.5, 2.0)


def bisected(z, alpha):
    """entmax by halving the bracket of the threshold a hundred times, in float64."""
    x = (alpha - 1) * np.asarray(z, np.float64)
    low, high = x.max() - 1, x.max()
    for _ in range(100):
        tau = (low + high) / 2
        if (np.maximum(x - tau, 0) ** (1 / (alpha - 1))).sum() > 1:
            low = tau
        else:
            high = tau
    return np.maximum(x - low, 0) ** (1 / (alpha - 1))


def reference(z, label, alpha):
    """The Fenchel-Young loss in float64."""
    p = bisected(z, alpha)
    return (p @ z - z[label]) + (p - p**alpha).sum() / (alpha * (alpha - 1))


def sparsemax(z):
    """The projection onto the simplex by sorting (Martins and Astudillo 2016, algorithm 1)."""
    ordered = np.sort(z)[::-1]
    sums = np.cumsum(ordered)
    support = 1 + np.arange(len(z)) * ordered + ordered - sums > 0
    count = support.sum()
    return np.maximum(z - (sums[count - 1] - 1) / count, 0)


def samples():
    rng = np.random.RandomState(0)
    rows = [rng.normal(0, scale, 40) for scale in (0.1, 1.0, 5.0)]
    return [*rows, np.zeros(40), np.arange(40.0) * 9, rng.normal(0, 1, 40) - 1e3]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_distribution_of_sampling(alpha):
    for z in samples():
        p = entmax(z, alpha)
        np.testing.assert_allclose(p, bisected(z, alpha), atol=1e-9)
        assert abs(p.sum() - 1) < 1e-9
    np.testing.assert_allclose(entmax(samples()[1], 2.0), sparsemax(samples()[1]), atol=1e-12)
    near_one = entmax(samples()[1], 1.0001)
    softmax = np.exp(samples()[1]) / np.exp(samples()[1]).sum()
    np.testing.assert_allclose(near_one, softmax, atol=1e-4)


def test_a_solution_in_closed_form():
    """For [0.5, 1, 2] at alpha 1.5: u = z / 2 - tau, and the squares of u sum to one."""
    tau = (1.75 - np.sqrt(1.75**2 - 3 * (0.0625 + 0.25 + 1 - 1))) / 3
    z = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(entmax(z, 1.5), (z / 2 - tau) ** 2, atol=1e-12)


def test_sampling_options():
    z = np.array([2.0, 1.8, 1.0, -4.0, 0.0])
    sharp = probabilities(z, SampleOptions(temperature=0.5, entmax_alpha=1.5))
    np.testing.assert_allclose(sharp, entmax(z / 0.5, 1.5), atol=1e-12)
    assert sharp[3] == 0 and probabilities(z, SampleOptions(temperature=0.5))[3] > 0
    two = probabilities(z, SampleOptions(top_k=2, entmax_alpha=1.5))
    np.testing.assert_allclose(two[:2], entmax(z[:2], 1.5), atol=1e-12)
    assert two[2:].max() == 0
    mass = probabilities(z, SampleOptions(top_p=0.3, entmax_alpha=1.5))
    assert mass.tolist() == [1, 0, 0, 0, 0]
    assert probabilities(z, SampleOptions(temperature=0, entmax_alpha=1.5)).tolist() == [1, 0, 0, 0, 0]


def graph_loss(logits, labels, alpha, weights):
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        rows, vocab = mtf.Dimension("rows", len(labels)), mtf.Dimension("vocab", logits.shape[1])
        z = mtf.import_tf_tensor(mesh, tf.constant(logits, tf.float32), mtf.Shape([rows, vocab]))
        ids = mtf.import_tf_tensor(mesh, tf.constant(labels, tf.int32), mtf.Shape([rows]))
        loss = entmax_loss_per_token(z, ids, vocab, alpha)
        scale = mtf.import_tf_tensor(mesh, tf.constant(weights, tf.float32), mtf.Shape([rows]))
        (grad,) = mtf.gradients([mtf.reduce_sum(loss * scale)], [z])
        lowering = lower_locally(graph, mesh)
        return session.run([lowering.export_to_tf_tensor(t) for t in (loss, grad)])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_loss_and_gradient(alpha):
    logits, rng = np.array(samples()[:5]), np.random.RandomState(1)
    labels, weights = np.array([3, 0, 7, 39, 38]), rng.normal(size=5)
    loss, grad = graph_loss(logits, labels, alpha, weights)
    expected = [reference(z, label, alpha) for z, label in zip(logits, labels)]
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=2e-5)
    for row, (z, label) in enumerate(zip(logits, labels)):
        exact = bisected(z, alpha) - (np.arange(40) == label)
        np.testing.assert_allclose(grad[row], weights[row] * exact, atol=2e-5)
        differences = np.zeros(40)
        for column in range(40):
            step = 1e-5 * (np.arange(40) == column)
            differences[column] = (reference(z + step, label, alpha) - reference(z - step, label, alpha)) / 2e-5
        np.testing.assert_allclose(exact, differences, atol=1e-5)


def test_no_loss_where_all_mass_is_on_the_label():
    logits = np.array([[30.0, 0, 0, 0], [0, 30.0, 0, 0]])
    loss, grad = graph_loss(logits, np.array([0, 0]), 1.5, np.ones(2))
    np.testing.assert_allclose(loss, [0, 30], atol=1e-5)  # finite although the label has probability 0
    np.testing.assert_allclose(grad, [[0, 0, 0, 0], [-1, 1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("alpha", [1.3, 1.5])
def test_a_vocabulary_of_real_size_through_the_compiled_kernel(alpha):
    rng = np.random.RandomState(2)
    logits = np.stack([np.zeros(50257), rng.normal(0, 3, 50257)])
    loss, grad = graph_loss(logits, np.array([5, 6]), alpha, np.ones(2))
    np.testing.assert_allclose(loss, [reference(z, i, alpha) for z, i in zip(logits, (5, 6))], rtol=1e-4)
    for row in range(2):
        exact = bisected(logits[row], alpha) - (np.arange(50257) == 5 + row)
        np.testing.assert_allclose(grad[row], exact, atol=1e-6, rtol=1e-3)


SCRIPT = """
import json, sys
import numpy as np
from gpt_neo.ops.entmax import entmax_loss_per_token
from gpt_neo.mtf_compat import mtf, tf

logits = np.random.RandomState(0).normal(0, 2, (8, 32))
labels = np.random.RandomState(1).randint(0, 32, 8)

def run(shape, layout, count):
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        batch, vocab = mtf.Dimension("batch", 8), mtf.Dimension("vocab", 32)
        z = mtf.import_tf_tensor(mesh, tf.constant(logits, tf.float32), mtf.Shape([batch, vocab]))
        ids = mtf.import_tf_tensor(mesh, tf.constant(labels, tf.int32), mtf.Shape([batch]))
        loss = entmax_loss_per_token(z, ids, vocab, 1.3)
        (grad,) = mtf.gradients([mtf.reduce_sum(mtf.square(loss))], [z])
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape, layout, ["/cpu:%d" % i for i in range(count)])
        lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
        return session.run([lowering.export_to_tf_tensor(t) for t in (loss, grad)])

alone = run("", "", 1)
print(json.dumps([[float(np.abs(a - b).max()) for a, b in zip(alone, run(shape, layout, 4))]
                  for shape, layout in [("x:2,y:2", "batch:x,vocab:y")]]))
"""


def test_a_split_vocabulary_gives_the_same():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.max(json.loads(done.stdout.splitlines()[-1])) < 1e-5
