"""Variables of legacy options: names, shapes and initial values, as checkpoints of the legacy program have them."""

import numpy as np
import pytest

from gpt_neo.config.estimate import count_parameters
from gpt_neo.mtf_compat import tf
from tests.model.options import make_run
from tests.model.tools import forward

D, V, T = 64, 96, 32
BASE = {"n_embd": D, "n_vocab": V, "n_ctx": T, "n_layer": 2, "n_head": 2}


def initial(changes):
    """Initial values by name."""
    config = make_run({**BASE, "attention_types": "global", **changes}).model
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        forward(tf.zeros([1, T], tf.int32), config)
        session.run(tf.global_variables_initializer())
        values = session.run({v.op.name: v for v in tf.global_variables()})
    assert count_parameters(config) == sum(value.size for value in values.values())
    return values


def block(scope, mlp=("mlp",), hidden=4 * D, norms=("norm_1", "norm_2"), attention=True):
    """Names and shapes of a block with layer norms."""
    shapes = {f"{scope}/{norm}/{part}": (D,) for norm in norms for part in "gb"}
    if attention:
        shapes.update({f"{scope}/attn/{name}": (D, D) for name in "qkvo"})
        shapes[f"{scope}/attn/compute_output_bias/o_b"] = (D,)
    for name in mlp:
        shapes[f"{scope}/{name}/conv1d_main/c_fc/kernel"] = (D, hidden)
        shapes[f"{scope}/{name}/conv1d_main/c_fc/bias"] = (hidden,)
        shapes[f"{scope}/{name}/conv1d_main/c_proj/kernel"] = (4 * D, D)
        shapes[f"{scope}/{name}/conv1d_main/c_proj/bias"] = (D,)
    return shapes


TOP = {"gpt2/wte": (V, D), "gpt2/wpe": (T, D), "gpt2/ln_f/g": (D,), "gpt2/ln_f/b": (D,)}
BLOCKS = {**block("gpt2/h0"), **block("gpt2/h1")}
BARE = {**block("gpt2/h0", norms=()), **block("gpt2/h1", norms=())}
MEMORY = {f"gpt2/h{i}/attn/attention/mem_{part}": (3, 2, D // 2) for i in range(2) for part in "kv"}
OWN_HEAD = {
    "gpt2/wte_final_linear/conv1d_main/linear_out/kernel": (D, V),
    "gpt2/wte_final_linear/conv1d_main/linear_out/bias": (V,),
}
NO_WPE = {name: shape for name, shape in TOP.items() if "wpe" not in name}

EXPECTED = {
    "default": ({}, {**TOP, **BLOCKS}),
    "axial": ({"axial_pos_emb": [4, 8]}, {**NO_WPE, **BLOCKS, "gpt2/axial_wpe_1": (4, D), "gpt2/axial_wpe_2": (8, D)}),
    "rotary": ({"rotary_emb": True}, {**NO_WPE, **BLOCKS}),
    "scalenorm": (
        {"scalenorm": True},
        {**TOP, **BARE, **{f"gpt2/h{i}/norm_{j}/g": () for i in (0, 1) for j in (1, 2)}},
    ),
    "rezero": (
        {"rezero": True},
        {**TOP, **BARE, **{f"gpt2/h{i}/norm_rezero_{j}/g": () for i in (0, 1) for j in (1, 2)}},
    ),
    "macaron": (
        {"macaron": True},
        {**TOP, **block("gpt2/h0", mlp=("mlp", "mlp_macaron")), **block("gpt2/h1", mlp=("mlp", "mlp_macaron"))},
    ),
    "glu": ({"mlp_glu": True}, {**TOP, **block("gpt2/h0", hidden=8 * D), **block("gpt2/h1", hidden=8 * D)}),
    "memory": ({"num_mem_kv": 3}, {**TOP, **BLOCKS, **MEMORY}),
    "shared": ({"share_parameters": True}, {**TOP, **block("gpt2/")}),
    "head": ({"no_weight_tie": True}, {"gpt2/wte": (V, D), "gpt2/wpe": (T, D), **BLOCKS, **OWN_HEAD}),
    "none": (
        {"attention_types": ["none", "global"]},
        {**TOP, **block("gpt2/h0", norms=("norm_2",), attention=False), **block("gpt2/h1")},
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_names_and_shapes(name):
    changes, expected = EXPECTED[name]
    assert {variable: value.shape for variable, value in initial(changes).items()} == expected


def check_spread(values, expected):
    """Standard deviations within 10 %, of a mean near 0."""
    for name, std in expected.items():
        assert abs(values[name].std() / std - 1) < 0.1 and abs(values[name].mean()) < std / 4, name


def test_initial_values():
    values = initial({"num_mem_kv": 16, "no_weight_tie": True, "scale_by_depth": True})
    k = D // 2
    check_spread(
        values,
        {
            "gpt2/wte": 0.02,
            "gpt2/wpe": 0.01,
            "gpt2/h1/attn/q": (D * k) ** -0.5,
            "gpt2/h1/attn/k": D**-0.5,
            "gpt2/h1/attn/v": D**-0.5,
            "gpt2/h1/attn/o": (2 * k) ** -0.5,
            "gpt2/h1/mlp/conv1d_main/c_fc/kernel": 0.02,
            "gpt2/h1/mlp/conv1d_main/c_proj/kernel": 0.02 / 2**0.5,
            "gpt2/h0/attn/attention/mem_k": k**-0.5,
            "gpt2/wte_final_linear/conv1d_main/linear_out/kernel": 0.02,
        },
    )
    for name, value in values.items():
        if name.endswith(("bias", "o_b", "/b")):
            assert not value.any(), name
        if name.endswith("norm_1/g"):
            assert np.all(value == 1), name


def test_initial_values_of_other_options():
    values = initial(
        {
            "scale_by_in": True,
            "scale_attention": True,
            "rezero": True,
            "mlp_glu": True,
            "axial_pos_emb": [4, 8],
            "activation_fn": "prelu",
        }
    )
    check_spread(
        values,
        {
            "gpt2/h0/attn/q": D**-0.5,
            "gpt2/h0/mlp/conv1d_main/c_fc/kernel": 0.02 / D**0.5,
            "gpt2/h0/mlp/conv1d_main/c_proj/kernel": 0.02 / (4 * D) ** 0.5,
            "gpt2/axial_wpe_1": 0.01,
        },
    )
    assert values["gpt2/h0/norm_rezero_1/g"] == values["gpt2/h0/norm_rezero_2/g"] == 0
    np.testing.assert_allclose(values["gpt2/h0/mlp/activation/slope"], 0.2)
