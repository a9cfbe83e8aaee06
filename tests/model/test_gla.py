"""Gated linear attention: chunkwise, recurrent and stepwise forms against NumPy written from the formulas."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config.network import gla_variables
from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.model.attention.gla import gla_attention, gla_kernel
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.linear_recurrence import advance, chunkwise, recurrent
from tests.model.tools import parameters

NAMES = ("q", "k", "v", "log_decay")
MORE = [(2048, -30), (8192, 0)]


def draw(length, batch=2, heads=2, keys=4, values=6, seed=0):
    """q, k, v and decays as gates of random logits give them, float64."""
    rng = np.random.RandomState(seed)
    q, k, logits = (rng.normal(size=(batch, length, heads, keys)) for _ in range(3))
    return q, k, rng.normal(size=(batch, length, heads, values)), log_decay_of(4 * logits)


def log_decay_of(logits):
    return -np.logaddexp(0, -logits) / 16


def reference(q, k, v, log_decay, state=None):
    """S_t = diag(alpha_t) S_{t-1} + k_t^T v_t; o_t = q_t S_t. Returns (o, S_T)."""
    batch, length, heads, keys = q.shape
    state = np.zeros([batch, heads, keys, v.shape[-1]]) if state is None else state
    out = np.zeros([*q.shape[:3], v.shape[-1]])
    for t in range(length):
        state = np.exp(log_decay[:, t])[..., None] * state + k[:, t][..., None] * v[:, t][..., None, :]
        out[:, t] = np.einsum("bhi,bhif->bhf", q[:, t], state)
    return out, state


def run(build, arrays, dtype=np.float32):
    """Evaluate build(*tensors) on fed arrays."""
    with tf.Graph().as_default(), tf.Session() as session:
        fed = [tf.placeholder(dtype, x.shape) for x in arrays]
        return session.run(build(*fed), dict(zip(fed, arrays)))


@pytest.mark.parametrize(
    "length", [1, 64, 100, *(pytest.param(length, marks=pytest.mark.slow) for length in (15, 131))]
)
def test_chunkwise_equals_recurrent_and_numpy(length):
    arrays = draw(length)
    chunks = sorted({1, 16, 64, length})
    expected, state = reference(*arrays)

    def build(*xs):
        return [recurrent(*xs), *(chunkwise(*xs, chunk=chunk) for chunk in chunks)]

    for name, (out, last) in zip(["recurrent", *chunks], run(build, arrays)):
        np.testing.assert_allclose(out, expected, atol=2e-5, err_msg=str(name))
        np.testing.assert_allclose(last, state, atol=2e-5, err_msg=str(name))


def test_without_decay_it_is_a_running_sum():
    q, k, v, log_decay = draw(70)
    expected = np.einsum("bthi,bthif->bthf", q, np.cumsum(np.einsum("bthi,bthf->bthif", k, v), 1))
    plain, gated = run(lambda *xs: (chunkwise(*xs[:3])[0], chunkwise(*xs)[0]), (q, k, v, 0 * log_decay))
    np.testing.assert_allclose(plain, expected, atol=1e-4)
    np.testing.assert_allclose(gated, expected, atol=1e-4)


def test_one_token():
    q, k, v, log_decay = draw(1)
    out, _ = run(chunkwise, (q, k, v, log_decay))
    np.testing.assert_allclose(out, np.einsum("bthi,bthi->bth", q, k)[..., None] * v, rtol=1e-5)


def test_constant_gate_gives_a_geometric_sum():
    ones = np.ones([1, 80, 1, 1])
    out, _ = run(chunkwise, (ones, ones, ones, np.full_like(ones, np.log(0.9))))
    expected = (1 - 0.9 ** np.arange(1, 81)) / 0.1
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-5)


def test_a_sequence_split_anywhere_equals_the_whole():
    arrays = draw(40)
    expected, state = reference(*arrays)

    def build(*xs):
        results = []
        for at in (1, 7, 32, 39):
            first, between = advance(*(x[:, :at] for x in xs), None)
            second, last = advance(*(x[:, at:] for x in xs), between)
            results.append((tf.concat([first, second], 1), last))
        return results

    for out, last in run(build, arrays):
        np.testing.assert_allclose(out, expected, atol=1e-5)
        np.testing.assert_allclose(last, state, atol=1e-5)


def test_gradients_equal_those_of_the_recurrent_form():
    arrays = (*draw(20), np.random.RandomState(9).normal(size=(2, 2, 4, 6)))
    weights = np.random.RandomState(7).normal(size=(2, 20, 2, 6)), np.random.RandomState(8).normal(size=(2, 2, 4, 6))

    def gradients(form, xs):
        return tf.gradients(sum(tf.reduce_sum(x * w) for x, w in zip(form, weights)), xs)

    def build(*xs):
        forms = [recurrent(*xs), *(chunkwise(*xs, chunk=chunk) for chunk in (8, 64))]
        return [gradients(form, xs) for form in forms]

    expected, *others = run(build, arrays, np.float64)
    for got in others:
        for name, a, b in zip((*NAMES, "state"), got, expected):
            np.testing.assert_allclose(a, b, atol=1e-10, err_msg=name)


def test_a_token_changes_no_earlier_output():
    arrays = draw(40)
    changed = [x.copy() for x in arrays]
    for x in changed:
        x[:, 23] -= 3.0
    before, after = (run(chunkwise, xs)[0] for xs in (arrays, changed))
    np.testing.assert_array_equal(before[:, :23], after[:, :23])
    assert np.abs(before[:, 23:] - after[:, 23:]).max(axis=(0, 2, 3)).min() > 1e-3


def kernel_reference(q, k, v, logits, gate, params):
    """The kernel in float64."""
    log_decay = log_decay_of(logits) if params.clamp_min is None else np.maximum(log_decay_of(logits), params.clamp_min)
    out, _ = reference(q * q.shape[-1] ** -0.5, k, v, log_decay)
    out /= np.sqrt(np.square(out).mean(-1, keepdims=True) + params.norm_eps)
    return out * gate / (1 + np.exp(-gate))


@pytest.mark.parametrize(
    "length, shift",
    [(2048, 0), (2048, -3000), (8192, -30), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE)],
)
def test_long_sequences_in_both_precisions(length, shift):
    """Outputs, and the loss's slope along a random direction, against float64; finite whatever the gates."""
    q, k, v, _ = draw(length, batch=1)
    rng = np.random.RandomState(1)
    logits, gate, weights = rng.normal(size=q.shape) + shift, rng.normal(size=v.shape), rng.normal(size=v.shape)
    # What bfloat16 makes of the inputs is not the kernel's doing.
    arrays = [x.astype(tf.bfloat16.as_numpy_dtype).astype(np.float64) for x in (q, k, v, logits, gate)]
    directions = [rng.normal(size=x.shape) for x in arrays]
    beside = [np.concatenate([x, x + 1e-6 * d, x - 1e-6 * d]) for x, d in zip(arrays, directions)]
    expected, *moved = kernel_reference(*beside, GlaParams())
    slope = np.sum((moved[0] - moved[1]) / 2e-6 * weights)

    def build(*xs):
        results = []
        for dtype in (tf.float32, tf.bfloat16):
            ins = [tf.cast(x, dtype) for x in xs]
            out, state = gla_kernel(*ins, params=GlaParams(), real=None, state=None)
            grads = tf.gradients(tf.cast(out, tf.float32) * weights.astype(np.float32), ins)
            results.append([tf.cast(x, tf.float32) for x in (out, state, *grads)])
        return results

    for (out, state, *grads), tolerance in zip(run(build, arrays), (1e-4, 0.02)):
        assert all(np.isfinite(x).all() for x in (out, state, *grads))
        np.testing.assert_allclose(out[0], expected, atol=tolerance, rtol=tolerance)
        got = sum(np.sum(g.astype(np.float64) * d) for g, d in zip(grads, directions))
        assert abs(got - slope) < tolerance * np.sqrt(sum(np.square(g).sum() for g in grads))


def layer_reference(x, w, config):
    """The whole layer from the formulas, float64."""
    heads, params = config.gla_heads, config.gla_params
    split = [(x @ w[name]).reshape(*x.shape[:2], heads, -1) for name in ("q", "k", "v")]
    logits = (x @ w["gate_down"] @ w["gate_up/kernel"] + w["gate_up/bias"]).reshape(*split[0].shape)
    gate = (x @ w["output_gate"]).reshape(*split[2].shape)
    out = kernel_reference(*split, logits, gate, params) * w["g_norm/g"]
    return out.reshape(*x.shape[:2], -1) @ w["o"]


@pytest.mark.parametrize("params", [GlaParams(), GlaParams(num_heads=4, expand_k=1.0, expand_v=2.0, clamp_min=-0.05)])
def test_layer_equals_numpy(params):
    sizes = {"n_head": 2, "n_embd": 16, "n_layer": 1, "n_vocab": 8, "n_ctx": 70}
    config = ModelConfig(**sizes, attention_types=("gla",), gla_params=params)
    x = np.random.RandomState(0).normal(size=(2, 70, 16))
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        dims = make_dims(config, 2)
        shape = mtf.Shape([dims.batch, dims.sequence, dims.embd])
        inputs = mtf.import_tf_tensor(mtf.Mesh(graph, "mesh"), tf.constant(x, tf.float32), shape)
        p = parameters(inputs.mesh, gla_variables(config), "attn")
        out = gla_attention(inputs, p, 0, dims, config, Context())
        lowering = lower_locally(graph, inputs.mesh)
        fetched = lowering.export_to_tf_tensor(out)
        weights = {}
        for i, variable in enumerate(tf.global_variables()):
            name = variable.op.name.removeprefix("attn/")
            weights[name] = np.random.RandomState(i).normal(0, 0.5, variable.shape.as_list())
            variable.load(weights[name], session)
        got = session.run(fetched)
    np.testing.assert_allclose(got, layer_reference(x, weights, config), atol=2e-5)
    names = "q k v o gate_down gate_up/kernel gate_up/bias output_gate g_norm/g"
    assert set(weights) == set(names.split())


def test_the_output_gate_can_be_left_out():
    q, k, v, logits = draw(20)
    params = GlaParams(use_output_gate=False)
    got, _ = run(lambda *xs: gla_kernel(*xs, params=params, real=None, state=None), (q, k, v, logits))
    out, _ = reference(q / 2, k, v, log_decay_of(logits))
    np.testing.assert_allclose(got, out / np.sqrt(np.square(out).mean(-1, keepdims=True) + 1e-5), atol=1e-5)
    assert dataclasses.asdict(params)["gate_low_rank_dim"] == 16
