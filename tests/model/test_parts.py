"""Positions, norms, activations and the gated MLP against NumPy, float64, written from the definitions."""

import numpy as np
import pytest

from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.network import axial_tables, mlp_variables, norm_variables
from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.activations import LEARNED, OVER_WIDTH, PLAIN, activate
from gpt_neo.model.attention.softmax import global_attention
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.mlp import mlp
from gpt_neo.model.norms import block_norm
from gpt_neo.model.positions import axial_rows, rotate
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.normalize import normalize
from tests.model.tools import parameters

SHAPE = {"batch": 2, "sequence": 5, "heads": 2, "features_per_head": 8}
SMALL = {"n_head": 2, "n_embd": 16, "n_layer": 1, "n_vocab": 8, "n_ctx": 12}


def evaluate(build, *arrays, dims):
    """Run build(*mtf tensors); returns its values, the gradient of sum(value^2) / 2 of the first array, variables.

    Variables take random values; dims are (name, size) pairs of each array.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shapes = [mtf.Shape([mtf.Dimension(*pair) for pair in pairs]) for pairs in dims]
        tensors = [mtf.import_tf_tensor(mesh, tf.constant(a), s) for a, s in zip(arrays, shapes)]
        out = build(*tensors)
        (grad,) = mtf.gradients([mtf.reduce_sum(mtf.square(out)) * 0.5], [tensors[0]])
        lowering = lower_locally(graph, mesh)
        fetches = [lowering.export_to_tf_tensor(t) for t in (out, grad)]
        session.run(tf.global_variables_initializer())
        rng, variables = np.random.RandomState(7), {}
        for v in tf.global_variables():
            variables[v.op.name] = rng.normal(0.3, 0.5, v.shape.as_list()).astype(np.float32)
            session.run(v.initializer, {v.initializer.inputs[1]: variables[v.op.name]})
        return (*session.run(fetches), variables)


def numeric(function, x, step=1e-6):
    """Gradient of sum(function(x)^2) / 2 by central differences, float64."""
    x, grad = x.astype(np.float64), np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(0.5 * np.square(function(moved)).sum())
        grad[place] = (ends[0] - ends[1]) / (2 * step)
    return grad


def rotated(x, numbers, features, interleaved, base=10000.0):
    """Each pair as a complex number, times exp(i number base^(-2j / features))."""
    x = x.astype(np.float64)
    turning, rest = x[..., :features], x[..., features:]
    pairs = turning.reshape(*x.shape[:-1], -1, 2) if interleaved else np.stack(np.split(turning, 2, -1), -1)
    angle = np.asarray(numbers)[..., None, None] * base ** (-2.0 * np.arange(features // 2) / features)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
    pairs = np.stack([turned.real, turned.imag], -1)
    flat = pairs.reshape(turning.shape) if interleaved else np.concatenate([pairs[..., 0], pairs[..., 1]], -1)
    return np.concatenate([flat, rest], -1)


@pytest.mark.parametrize("features, interleaved", [(8, False), (8, True), (4, False), (6, True)])
@pytest.mark.parametrize("per_row", [False, True])
def test_rotation_equals_complex_numbers(features, interleaved, per_row):
    config = ModelConfig(**SMALL, rotary_emb=True, rotary_dim=features, rotary_interleaved=interleaved)
    x = np.random.RandomState(0).normal(size=tuple(SHAPE.values())).astype(np.float32)
    numbers = np.array([[0, 1, 2, 3, 4], [-2, -1, 0, 1, 2000]] if per_row else [0, 1, 2, 3, 4], np.int32)
    places = [("batch", 2), ("sequence", 5)] if per_row else [("sequence", 5)]
    out, grad, _ = evaluate(lambda a, n: rotate(a, n, config), x, numbers, dims=[list(SHAPE.items()), places])
    np.testing.assert_allclose(out, rotated(x, numbers, features, interleaved), atol=3e-4 if per_row else 1e-5)
    np.testing.assert_allclose(grad, x, atol=1e-5)  # a rotation keeps every length, so the gradient is x


def test_scaled_rotation_has_positions_between():
    config = ModelConfig(**SMALL, rotary_emb=True, rotary_base=500.0, rotary_scaling=4.0)
    x, numbers = (
        np.random.RandomState(0).normal(size=tuple(SHAPE.values())).astype(np.float32),
        np.arange(5, dtype=np.int32),
    )
    out, _, _ = evaluate(lambda a, n: rotate(a, n, config), x, numbers, dims=[list(SHAPE.items()), [("sequence", 5)]])
    np.testing.assert_allclose(out, rotated(x, numbers / 4.0, 8, False, 500.0), atol=1e-5)


def test_large_tensors_take_the_compiled_kernels():
    config = ModelConfig(**SMALL, rotary_emb=True, rotary_dim=6, rotary_interleaved=True, norm_type="rmsnorm")
    shape = {"batch": 16, "sequence": 256, "heads": 2, "features_per_head": 16}
    x = np.random.RandomState(6).normal(size=tuple(shape.values())).astype(np.float32)
    numbers = np.arange(256, dtype=np.int32)

    def build(a, n):
        return normalize(rotate(a, n, config), mtf.ones(a.mesh, a.shape.dims[-1:]), None, centre=False, epsilon=1e-3)

    out, grad, _ = evaluate(build, x, numbers, dims=[list(shape.items()), [("sequence", 256)]])
    turned = rotated(x, numbers, 6, True)
    np.testing.assert_allclose(out, norm_by_hand(turned, "rmsnorm", 1.0), atol=1e-4)
    # y = x / r with r^2 = mean(x^2) + e, so the gradient of |y|^2 / 2 is x e / r^4; a rotation changes no length
    r2 = np.square(x.astype(np.float64)).mean(-1, keepdims=True) + 1e-3
    np.testing.assert_allclose(grad, x * 1e-3 / r2**2, atol=1e-5)


def test_scores_depend_on_distance_alone():
    config = ModelConfig(**SMALL, rotary_emb=True)
    q, k = np.random.RandomState(1).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    dims = [[("batch", 1), ("sequence", 1), ("heads", 1), ("features_per_head", 8)], [("sequence", 1)]]
    scores = []
    for at in (0, 3, 700):
        ends = [
            evaluate(lambda a, n: rotate(a, n, config), x, np.array([p], np.int32), dims=dims)[0]
            for x, p in ((q, at + 5), (k, at))
        ]
        scores.append((ends[0] * ends[1]).sum())
    np.testing.assert_allclose(scores, scores[0], atol=1e-3)


def test_axial_rows_are_means_of_two_tables():
    config = ModelConfig(**SMALL, axial_pos_emb=(3, 4))
    dims = make_dims(config, 2)
    numbers = np.array([[0, 5, 11], [3, 4, 7]], np.int32)

    def build(x, n):
        p = parameters(x.mesh, axial_tables(config), "gpt2")
        whole, some = axial_rows(None, p, dims, config), axial_rows(n, p, dims, config)
        flat = mtf.replace_dimensions(some, some.shape.dims[:2], mtf.Dimension("sequence", 6))
        return mtf.concat([whole, flat], "sequence") + x

    zeros = np.zeros([18, 16], np.float32)
    out, _, tables = evaluate(build, zeros, numbers, dims=[[("sequence", 18), ("embd", 16)], [("a", 2), ("b", 3)]])
    first, second = tables["gpt2/axial_wpe_1"], tables["gpt2/axial_wpe_2"]
    assert first.shape == (3, 16) and second.shape == (4, 16)
    rows = np.array([(first[i // 4] + second[i % 4]) / 2 for i in range(12)])
    np.testing.assert_allclose(out, np.concatenate([rows, rows[numbers.ravel()]]), atol=1e-6)


def norm_by_hand(x, kind, g, b=0.0):
    if kind != "rmsnorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-3) * g + b


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm", "scalenorm"])
def test_norms_and_their_gradients(kind):
    config = ModelConfig(**SMALL, norm_type=kind, norm_epsilon=1e-3)
    x = np.random.RandomState(2).normal(1.0, 2.0, size=(3, 16)).astype(np.float32)

    def build(a):
        return block_norm(a, parameters(a.mesh, norm_variables(config, kind), "norm_1"), config)

    out, grad, variables = evaluate(build, x, dims=[[("batch", 3), ("embd", 16)]])
    g, b = variables["norm_1/g"].astype(np.float64), variables.get("norm_1/b", np.zeros(())).astype(np.float64)
    assert ("norm_1/b" in variables) == (kind == "layernorm") and (g.shape == ()) == (kind == "scalenorm")
    np.testing.assert_allclose(out, norm_by_hand(x.astype(np.float64), kind, g, b), atol=1e-5)
    np.testing.assert_allclose(grad, numeric(lambda a: norm_by_hand(a, kind, g, b), x), atol=1e-5)


def softplus(x):
    return np.logaddexp(0.0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def leaky(slope):
    return lambda x, v: np.where(x > 0, x, slope * x)


# From the definitions that the legacy program took, learned numbers in v.
BY_HAND = {
    "gelu": lambda x, v: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x, v: np.maximum(x, 0),
    "sigmoid": lambda x, v: sigmoid(x),
    "tanh": lambda x, v: np.tanh(x),
    "selu": lambda x, v: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "elu": lambda x, v: np.where(x > 0, x, np.expm1(x)),
    "abs": lambda x, v: np.abs(x),
    "sin": lambda x, v: np.sin(x),
    "cos": lambda x, v: np.cos(x),
    "sign": lambda x, v: np.sign(x),
    "silu": lambda x, v: x * sigmoid(x),
    "swish": lambda x, v: x * sigmoid(x),
    "softplus": lambda x, v: softplus(x),
    "lrelu001": leaky(0.01),
    "lrelu020": leaky(0.2),
    "leaky_relu": leaky(0.2),
    "rrelu": leaky(1 / 3),
    "id": lambda x, v: x,
    "triangle_relax": lambda x, v: np.sin(x) - np.sin(3 * x) / 9 + np.sin(5 * x) / 25 - np.sin(7 * x) / 49,
    "square_relax": lambda x, v: np.cos(x) - np.cos(3 * x) / 3 + np.cos(5 * x) / 5 - np.cos(7 * x) / 7,
    "spike": lambda x, v: 1 / (1 + x**2),
    "spike2": lambda x, v: np.exp(-(x**2)),
    "tanhshrink": lambda x, v: x - np.tanh(x),
    "softsign": lambda x, v: x / (np.abs(x) + 1),
    "softmax": lambda x, v: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "logsoftmax": lambda x, v: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    "bipolarsigmoid": lambda x, v: 2 * sigmoid(x) - 1,
    "elish": lambda x, v: np.where(x > 0, x, np.expm1(x)) * sigmoid(x),
    "arcsinh": lambda x, v: np.arcsinh(x),
    "aria": lambda x, v: (
        x * (v["a"] + v["k"] / (softplus(v["c"]) + v["q"] * np.exp(v["b"] * x) ** (1 / (softplus(v["nu"]) + 1))))
    ),
    "prelu": lambda x, v: np.where(x > 0, x, v["slope"] * x),
    "parcsinh": lambda x, v: v["scale"] * np.arcsinh(x * (softplus(v["stretch"]) + 1)),
    "psoftplus": lambda x, v: v["scale"] * softplus(x * v["stretch"]) + v["shift"],
    "proottanh": lambda x, v: (
        np.tanh(x)
        * (np.abs(x) ** (softplus(v["power"]) + 2) + softplus(v["floor"]) + 1) ** (1 / (softplus(v["root"]) + 3))
    ),
    "maxsig": lambda x, v: np.maximum(x, sigmoid(x)),
    "cosid": lambda x, v: np.cos(x) - x,
    "minsin": lambda x, v: np.minimum(x, np.sin(x)),
    "maxtanh": lambda x, v: np.maximum(x, np.tanh(x)),
    "mish": lambda x, v: x * np.tanh(softplus(x)),
    "tanhexp": lambda x, v: x * np.tanh(np.exp(x)),
    "lisht": lambda x, v: x * np.tanh(x),
    "seagull": lambda x, v: np.log(1 + x**2),
    "snake": lambda x, v: x + np.sin(x) ** 2,
    "roottanh": lambda x, v: np.cbrt(x**2 + 1) * np.tanh(x),
    "softplusmone": lambda x, v: softplus(x) - 1,
    "gelu_erf": lambda x, v: 0.5 * x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))),
}


def each(names):
    """All in one graph, each on a slice of its own of the input [which, width]."""

    def build(tensor):
        rows = mtf.unstack(tensor, tensor.shape.dims[0])
        done = []
        for name, row in zip(names, rows):
            config = ModelConfig(**SMALL, activation_function=name)
            p = parameters(tensor.mesh, mlp_variables(config), name)
            done.append(activate(row, p, row.shape.dims[-1], config))
        return mtf.stack(done, "which")

    return build


def test_every_activation_and_its_gradient():
    assert set(BY_HAND) == set(ACTIVATIONS) == {*PLAIN, *OVER_WIDTH, *LEARNED}
    names = sorted(ACTIVATIONS)
    x = np.random.RandomState(3).normal(0, 1.5, size=(len(names), 7)).astype(np.float32)
    out, grad, variables = evaluate(each(names), x, dims=[[("which", len(names)), ("width", 7)]])
    for row, name in enumerate(names):
        v = {part: variables[f"{name}/activation/{part}"].astype(np.float64) for part in ACTIVATIONS[name]}
        wide = x[row].astype(np.float64)
        np.testing.assert_allclose(out[row], BY_HAND[name](wide, v), atol=2e-6, err_msg=name)
        np.testing.assert_allclose(
            grad[row], numeric(lambda a, n=name, v=v: BY_HAND[n](a, v), x[row]), atol=1e-4, err_msg=name
        )
    assert len([name for name in variables if "/activation/" in name]) == sum(map(len, ACTIVATIONS.values()))


def test_activations_stay_finite_far_out():
    names = sorted(ACTIVATIONS)
    x = np.tile(np.array([-1e4, -1e3, -60.0, 0.0, 60.0, 1e4], np.float32), [len(names), 1])
    out, grad, _ = evaluate(each(names), x, dims=[[("which", len(names)), ("width", 6)]])
    for name, values, slopes in zip(names, out, grad):
        assert np.isfinite(values).all() and np.isfinite(slopes).all(), (name, values, slopes)
    place, wide = names.index("arcsinh"), x[0].astype(np.float64)
    np.testing.assert_allclose(out[place], np.arcsinh(wide), rtol=1e-6)
    np.testing.assert_allclose(grad[place], np.arcsinh(wide) / np.sqrt(1 + wide**2), rtol=1e-6)  # of half its square


def test_gated_mlp_splits_in_halves():
    config = ModelConfig(**SMALL, mlp_glu=True, activation_function="silu")
    x = np.random.RandomState(4).normal(size=(2, 3, 16)).astype(np.float32)

    def build(a):
        return mlp(a, parameters(a.mesh, mlp_variables(config), "mlp"), make_dims(config, 2, 3), config)

    out, _, v = evaluate(build, x, dims=[[("batch", 2), ("sequence", 3), ("embd", 16)]])
    v = {name.removeprefix("mlp/"): value for name, value in v.items()}
    kernel, bias = v["conv1d_main/c_fc/kernel"], v["conv1d_main/c_fc/bias"]
    assert kernel.shape == (16, 128) and bias.shape == (128,)
    hidden, gate = np.split(x.astype(np.float64) @ kernel + bias, 2, -1)
    expected = hidden * gate * sigmoid(gate) @ v["conv1d_main/c_proj/kernel"] + v["conv1d_main/c_proj/bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("count", [0, 3])
def test_attention_with_memory_and_without_a_mask(causal, count):
    rng = np.random.RandomState(5)
    q, k, v = rng.normal(size=(3, *SHAPE.values())).astype(np.float32)
    extra = rng.normal(size=(2, count, 2, 8)).astype(np.float32)
    kept = [("mem_kv_sequence", count), ("heads", 2), ("features_per_head", 8)]

    def build(q, k, v, *memory):
        return global_attention(q, k, v, q.shape.dims[1], 0.0, Context(), causal, memory or ())

    more = list(extra) if count else []
    out, _, _ = evaluate(build, q, k, v, *more, dims=[list(SHAPE.items())] * 3 + [kept] * len(more))
    keys, values = (np.concatenate([np.stack([e] * 2), x], 1).astype(np.float64) for e, x in zip(extra, (k, v)))
    scores = np.einsum("bihf,bjhf->bhij", q.astype(np.float64), keys)
    seen = np.arange(5)[:, None] >= np.arange(5 + count)[None, :] - count
    scores = np.where(seen | (not causal), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(out, np.einsum("bhij,bjhf->bihf", weights, values), atol=1e-5)
