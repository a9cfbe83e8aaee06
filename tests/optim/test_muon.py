"""Muon against NumPy: the orthogonal factor, updates over steps, and AdamW where there is no matrix of a block."""

import itertools
import re

import numpy as np
import pytest

from gpt_neo.config.network import roles_of
from gpt_neo.config.optimizers import ORTHOGONAL
from gpt_neo.config.schema import GlaParams, ModelConfig, MoeConfig, OptimizerConfig
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.optim.muon import orthogonal
from tests.optim.common import GRADS, START, train
from tests.optim.test_adam import EPSILON, numpy_adam

CONFIG = OptimizerConfig(
    opt_name="muon", lr=0.1, beta1=0.9, beta2=0.95, epsilon=EPSILON, weight_decay=0.1, muon_momentum=0.8
)
# By the names that checkpoints have: attention, the MLP, and both matrices of every expert; no table, no head.
MATRICES = re.compile(r"(/attn/(q|k|v|o|output_gate)|/mlp(_macaron)?/conv1d_main/\w+/kernel|/w[io]/kernel)$")
SHAPES = [(6, 4), (4, 6), (5, 5), (7, 4, 6)]


def newton_schulz(g):
    """As published: in float64, transposed where there are more rows than columns."""
    x = g.astype(np.float64)
    x = x / (np.linalg.norm(x) + 1e-7)
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def each(function, array):
    """A function of matrices, of an array of them."""
    return function(array) if array.ndim == 2 else np.stack([function(part) for part in array])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_orthogonal_factor(shape):
    g = np.random.RandomState(1).normal(size=shape).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = mtf.Shape([mtf.Dimension(f"d{i}", size) for i, size in enumerate(shape)])
        out = orthogonal(mtf.import_tf_tensor(mesh, tf.constant(g), dims))
        assert out.shape == dims
        lowering = lower_locally(graph, mesh)
        got = session.run(lowering.export_to_tf_tensor(out))
    np.testing.assert_allclose(got, each(newton_schulz, g), rtol=1e-4, atol=1e-5)
    for matrix in got.reshape(-1, *shape[-2:]):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert 0.3 < singular.min() and singular.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_updates_equal_numpy(shape):
    random = np.random.RandomState(2)
    start, grads = random.normal(size=shape).astype(np.float32), random.normal(size=(4, *shape)).astype(np.float32)
    name, role = ("gpt2/h0/wi/kernel", "expert") if len(shape) == 3 else ("gpt2/h0/attn/q", "matrix")
    value, m = start.astype(np.float64), 0.0
    for grad in grads.astype(np.float64):
        m = 0.8 * m + grad
        change = 0.2 * max(shape[-2:]) ** 0.5 * each(newton_schulz, grad + 0.8 * m)
        value = value - 0.1 * (change + 0.1 * value)
    got = train(name, CONFIG, start, grads, role=role)
    assert set(got) == {name, f"{name}/muon_m"}
    np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)
    # Terms of different signs leave little of some numbers, and their own last bits in it.
    bits = 4 * np.finfo(np.float32).eps * np.abs(m).max()
    np.testing.assert_allclose(got[f"{name}/muon_m"], m, rtol=1e-5, atol=bits)


@pytest.mark.parametrize("name, role, decay", [("gpt2/wte", "table", 0.1), ("gpt2/h0/norm_1/g", "gain", 0.0)])
def test_others_are_adamw(name, role, decay):
    got = train(name, CONFIG, role=role)
    np.testing.assert_allclose(got[name], numpy_adam(START, GRADS, decay, True), rtol=1e-5)
    assert set(got) == {name, f"{name}/adam_m", f"{name}/adam_v"}


def test_the_matrices_are_those_of_the_blocks():
    kinds = ("global", "local", "linear", "gla", "none")
    base = {"n_head": 2, "n_embd": 8, "n_layer": 5, "n_vocab": 9, "n_ctx": 4, "attention_types": kinds}
    found = 0
    for shared, glu, macaron, head in itertools.product([False, True], repeat=4):
        kind = {"attention_types": ("global",) * 5} if shared else {}
        model = ModelConfig(
            **{**base, **kind},
            moe_layers=() if shared else (1,),
            moe_params=MoeConfig(moe_num_experts=2, moe_hidden_size=4),
            gla_params=GlaParams(),
            share_parameters=shared,
            mlp_glu=glu,
            macaron=macaron,
            untied_head=head,
        )
        for name, role in roles_of(model).items():
            inside = MATRICES.search(name) is not None
            assert (role in ORTHOGONAL) == inside, name
            found += inside
    assert found > 300
