"""Attention against a NumPy reference written from the definition."""

import numpy as np
import pytest

from gpt_neo.model.attention.softmax import global_attention, local_attention
from gpt_neo.mtf_compat import lower_locally, mtf, tf


def reference(q, k, v, radius, nearest=0):
    """out_i = sum_j softmax_j(q_i . k_j) v_j over nearest <= i - j < radius, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.einsum("bihf,bjhf->bhij", q, k)
    distance = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None, :]
    scores = np.where((distance >= nearest) & (distance < radius), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhij,bjhf->bihf", weights, v)


def run(kind, q, k, v, radius, causal=True):
    names = ("batch", "sequence", "heads", "features_per_head")
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension(n, s) for n, s in zip(names, q.shape)])
        q, k, v = (mtf.import_tf_tensor(mesh, tf.constant(x), shape) for x in (q, k, v))
        if kind == "local":
            out = local_attention(q, k, v, shape.dims[1], radius, 0.0, False, causal)
        else:
            out = global_attention(q, k, v, shape.dims[1], 0.0, False, causal)
        return session.run(lower_locally(graph, mesh).export_to_tf_tensor(out))


def random_qkv(length, seed=0):
    return np.random.RandomState(seed).normal(size=(3, 2, length, 2, 4)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 512, 513])
def test_local_equals_numpy(length):
    q, k, v = random_qkv(length)
    np.testing.assert_allclose(run("local", q, k, v, 256), reference(q, k, v, 256), atol=1e-5)


@pytest.mark.parametrize("length, radius", [(7, 1), (7, 3), (9, 3), (10, 4)])
def test_small_windows_equal_numpy(length, radius):
    q, k, v = random_qkv(length)
    np.testing.assert_allclose(run("local", q, k, v, radius), reference(q, k, v, radius), atol=1e-5)


def test_global_equals_numpy():
    q, k, v = random_qkv(33)
    np.testing.assert_allclose(run("global", q, k, v, None), reference(q, k, v, 33), atol=1e-5)


@pytest.mark.parametrize("length, radius", [(3, 4), (7, 1), (8, 4), (10, 4), (11, 5), (513, 256)])
def test_windows_to_both_sides_equal_numpy(length, radius):
    q, k, v = random_qkv(length)
    out = run("local", q, k, v, radius, causal=False)
    np.testing.assert_allclose(out, reference(q, k, v, radius, nearest=-radius), atol=1e-5)


def test_global_to_both_sides_equals_numpy():
    q, k, v = random_qkv(33)
    out = run("global", q, k, v, None, causal=False)
    np.testing.assert_allclose(out, reference(q, k, v, 33, nearest=-33), atol=1e-5)


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("changed", [0, 5, 8, 19])
def test_a_token_changes_no_earlier_output(kind, changed):
    q, k, v = random_qkv(20)
    before = run(kind, q, k, v, 8)
    for x in (q, k, v):
        x[:, changed] += 3.0
    after = run(kind, q, k, v, 8)
    np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
    assert np.abs(before[:, changed] - after[:, changed]).max() > 1e-2
