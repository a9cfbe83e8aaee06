"""Attention against a NumPy reference written from the definition."""

import numpy as np
import pytest

from gpt_neo.model.attention.softmax import global_attention, local_attention
from gpt_neo.model.context import Context
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops import flash_attention as blockwise
from gpt_neo.ops.dropout import RandomSource


def reference(q, k, v, radius, nearest=0):
    """out_i = sum_j softmax_j(q_i . k_j) v_j over nearest <= i - j < radius, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.einsum("bihf,bjhf->bhij", q, k)
    distance = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None, :]
    scores = np.where((distance >= nearest) & (distance < radius), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhij,bjhf->bihf", weights, v)


def run(kind, q, k, v, radius, weights_kept=False, grad=None, causal=True):
    """Output of a layer, or with `grad` the gradients of q, k and v."""
    names = ("batch", "sequence", "heads", "features_per_head")
    # A rate at which nothing is dropped takes the path that holds the weights as a tensor.
    rate = 1e-9 if weights_kept else 0.0
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension(n, s) for n, s in zip(names, q.shape)])
        inputs = [mtf.import_tf_tensor(mesh, tf.constant(x), shape) for x in (q, k, v)]
        step = mtf.constant(mesh, 0, mtf.Shape([]), tf.int32)
        source = RandomSource(1, step, mtf.range(mesh, shape.dims[0], tf.int32))
        context = Context(is_training=weights_kept, randomness=source)
        if kind == "local":
            out = local_attention(*inputs, shape.dims[1], radius, rate, context, causal)
        else:
            out = global_attention(*inputs, shape.dims[1], rate, context, causal)
        if grad is None:
            return session.run(lower_locally(graph, mesh).export_to_tf_tensor(out))
        grads = mtf.gradients([out], inputs, [mtf.import_tf_tensor(mesh, tf.constant(grad), shape)])
        lowering = lower_locally(graph, mesh)
        return session.run([lowering.export_to_tf_tensor(g) for g in grads])


def reference_gradients(q, k, v, radius, grad):
    """Gradients of `reference`, from the definition, in float64."""
    q, k, v, grad = (x.astype(np.float64) for x in (q, k, v, grad))
    scores = np.einsum("bihf,bjhf->bhij", q, k)
    distance = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None, :]
    scores = np.where((distance >= 0) & (distance < radius), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("bihf,bjhf->bhij", grad, v)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    dq, dk = np.einsum("bhij,bjhf->bihf", d_scores, k), np.einsum("bhij,bihf->bjhf", d_scores, q)
    return dq, dk, np.einsum("bhij,bihf->bjhf", weights, grad)


def random_qkv(length, seed=0):
    return np.random.RandomState(seed).normal(size=(3, 2, length, 2, 4)).astype(np.float32)


@pytest.mark.parametrize("weights_kept", [False, True])
@pytest.mark.parametrize("length", [1, 255, 256, 257, 512, 513])
def test_local_equals_numpy(length, weights_kept):
    q, k, v = random_qkv(length)
    np.testing.assert_allclose(run("local", q, k, v, 256, weights_kept), reference(q, k, v, 256), atol=1e-5)


@pytest.mark.parametrize("weights_kept", [False, True])
@pytest.mark.parametrize("length, radius", [(7, 1), (7, 3), (9, 3), (10, 4), (10, 20)])
def test_small_windows_equal_numpy(length, radius, weights_kept, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 3)
    q, k, v = random_qkv(length)
    np.testing.assert_allclose(run("local", q, k, v, radius, weights_kept), reference(q, k, v, radius), atol=1e-5)


@pytest.mark.parametrize("weights_kept", [False, True])
@pytest.mark.parametrize("length", [33, 513])
def test_global_equals_numpy(length, weights_kept):
    q, k, v = random_qkv(length)
    np.testing.assert_allclose(run("global", q, k, v, None, weights_kept), reference(q, k, v, length), atol=1e-5)


@pytest.mark.parametrize("weights_kept", [False, True])
@pytest.mark.parametrize(
    "kind, length, radius, block",
    [
        ("global", 10, 10, 4),
        ("global", 513, 513, 256),
        ("local", 10, 3, 4),
        ("local", 9, 5, 2),
        ("local", 513, 256, 256),
    ],
)
def test_gradients_equal_numpy(kind, length, radius, block, weights_kept, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    q, k, v = random_qkv(length)
    grad = np.random.RandomState(1).normal(size=q.shape).astype(np.float32)
    got = run(kind, q, k, v, radius, weights_kept, grad)
    for have, want in zip(got, reference_gradients(q, k, v, radius, grad)):
        np.testing.assert_allclose(have, want, atol=2e-5)


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
