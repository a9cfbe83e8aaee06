"""Linear attention against NumPy written from the legacy program's formula (its own numbers: test_oracle.py)."""

import numpy as np
import pytest

from gpt_neo.model.attention.linear import bidirectional, linear_kernel
from gpt_neo.mtf_compat import lower_locally, mtf, tf


def draw(length, scale=1.0, seed=0):
    """q, k, v of [2, length, 2, 4], float64."""
    return np.random.RandomState(seed).normal(size=(3, 2, length, 2, 4)) * scale


def softmax(x, axis):
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


def reference(q, k, v):
    """(q_t . sum k v) / (q_t . (sum k + 1e-6)), with every cumulative state at hand."""
    q, k = softmax(q, -1), np.exp(k)
    state = np.cumsum(np.einsum("bthi,bthf->bthif", k, v), 1)
    return np.einsum("bthi,bthif->bthf", q, state) / np.sum(q * (np.cumsum(k, 1) + 1e-6), -1, keepdims=True)


def naive(q, k, v):
    """The same in TensorFlow, for its gradients."""
    q, k = tf.nn.softmax(q), tf.exp(k)
    state = tf.cumsum(tf.einsum("bthi,bthf->bthif", k, v), 1)
    out = tf.einsum("bthi,bthif->bthf", q, state)
    return out / tf.reduce_sum(q * (tf.cumsum(k, 1) + 1e-6), -1, keepdims=True)


def whole(q, k, v):
    return linear_kernel(q, k, v, real=None, state=None)[0]


def run(build, arrays):
    with tf.Graph().as_default(), tf.Session() as session:
        fed = [tf.placeholder(tf.float32, x.shape) for x in arrays]
        return session.run(build(*fed), dict(zip(fed, arrays)))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_equals_numpy(length, scale):
    arrays = draw(length, scale)
    np.testing.assert_allclose(run(whole, arrays), reference(*arrays), atol=2e-5 * scale)


def test_token_by_token_equals_the_whole():
    arrays = draw(20)

    def build(*xs):
        outs, state = [], tf.zeros([2, 2, 4, 5])
        for t in range(20):
            out, state = linear_kernel(*(x[:, t : t + 1] for x in xs), real=None, state=state)
            outs.append(out)
        return tf.concat(outs, 1)

    np.testing.assert_allclose(run(build, arrays), reference(*arrays), atol=1e-5)


@pytest.mark.parametrize(
    "length, dtype, tolerance", [(150, "float32", 1e-4), (8192, "float32", 1e-3), (2048, "bfloat16", 0.02)]
)
def test_gradients_equal_the_naive_form(length, dtype, tolerance):
    arrays = draw(length)
    weights = np.random.RandomState(3).normal(size=arrays[0].shape)

    def build(*xs):
        cast = [tf.cast(x, dtype) for x in xs]
        out = tf.cast(whole(*cast), tf.float32)
        got = [out, *(tf.cast(g, tf.float32) for g in tf.gradients(out * weights.astype(np.float32), cast))]
        wide = [tf.cast(x, tf.float64) for x in cast]
        expected = naive(*wide)
        return got, [expected, *tf.gradients(expected * weights, wide)]

    for got, expected in zip(*run(build, arrays)):
        assert np.abs(got - expected).max() < tolerance * max(1.0, np.abs(expected).max())


def test_a_token_changes_no_earlier_output():
    arrays = draw(20)
    before = run(whole, arrays)
    arrays[:, :, 11] += 2.0
    after = run(whole, arrays)
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert np.abs(before[:, 11:] - after[:, 11:]).max(axis=(0, 2, 3)).min() > 1e-4


def test_not_causal_equals_numpy():
    q, k, v = draw(13)
    names = ("batch", "sequence", "heads", "features_per_head")
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension(n, s) for n, s in zip(names, q.shape)])
        tensors = [mtf.import_tf_tensor(mesh, tf.constant(x, tf.float32), shape) for x in (q, k, v)]
        out = bidirectional(*tensors, shape.dims[1])
        got = session.run(lower_locally(graph, mesh).export_to_tf_tensor(out))
    state = np.einsum("bthi,bthf->bhif", softmax(k, 1), v)
    np.testing.assert_allclose(got, np.einsum("bthi,bhif->bthf", softmax(q, -1), state), atol=1e-5)
