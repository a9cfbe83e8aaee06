"""The table of facts: held against networks as they are built, and against formulas written out."""

import dataclasses
import math

import pytest

from gpt_neo.config.estimate import count_parameters, slot_bytes, training_memory
from gpt_neo.config.network import KINDS, POSITIONS, kinds_of, matches, variables_of
from gpt_neo.config.optimizers import owner_of, slots_of
from gpt_neo.config.origins import presence_keys, size_keys
from gpt_neo.config.schema import ModelConfig, OptimizerConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.model.options import alone, covering_rows, label, make_run, merged

SMALL = {"n_head": 2, "n_embd": 8, "n_layer": 3, "n_vocab": 11, "n_ctx": 16}


@pytest.mark.parametrize("row", [*covering_rows(), *alone()], ids=label)
def test_variables_are_those_that_are_built(row):
    """Names, shapes, names of dimensions and the number of parameters, for every pair of options."""
    model = make_run(merged(row)).model
    with tf.Graph().as_default():
        graph, dims = mtf.Graph(), make_dims(model, 1)
        tokens = mtf.import_tf_tensor(mtf.Mesh(graph, "mesh"), tf.zeros([1, model.n_ctx], tf.int32), dims.tokens)
        transformer(tokens, dims, model, Context())
        built = {v.name: tuple((dim.name, dim.size) for dim in v.shape.dims) for v in graph.trainable_variables}
    assert built == {name: variable.dims for name, variable in variables_of(model).items()}
    assert count_parameters(model) == sum(math.prod(size for _, size in dims) for dims in built.values())


NAMES = ("adam", "adamw", "lion", "adafactor", "muon")
PLAIN = [
    (name, 0.0) if name in ("adam", "adafactor") else pytest.param(name, 0.0, marks=pytest.mark.slow) for name in NAMES
]


@pytest.mark.parametrize("name, beta1", [*((name, 0.9) for name in NAMES), *PLAIN])
def test_slots_are_those_that_are_built(name, beta1):
    changes = {"opt_name": name, "beta1": beta1, "n_embd": 128, "n_vocab": 130, "n_layer": 1}
    run = make_run({**changes, "attention_types": "global"})
    with tf.Graph().as_default():
        batch = tf.zeros([run.training.train_batch_size, run.model.n_ctx + 1], tf.int32)
        build_train_step(batch, run, LocalPlacement(MeshPlan()))
        weights = {v.op.name for v in tf.trainable_variables()}
        built = {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()}
    slots = slots_of(variables_of(run.model), run.optimizer)
    assert slots == {n: s for n, s in built.items() if n not in weights and n != "global_step"}
    assert all(owner_of(slot) in weights for slot in slots) and not any(map(owner_of, weights))
    assert slot_bytes(run.model, run.optimizer) == 4 * sum(map(math.prod, slots.values()))
    assert training_memory(run).slots == slot_bytes(run.model, run.optimizer)


def test_costs_of_kinds():
    model = ModelConfig(**SMALL, attention_types=("global", "local", "none"), local_attention_radius=5)
    everything, local, none = kinds_of(model)
    assert everything.cache_bytes(model, 16) == 2 * 16 * 8 * 4 and local.cache_bytes(model, 16) == 2 * 5 * 8 * 4
    assert local.cache_bytes(model, 3) == 2 * 3 * 8 * 4 and none.cache_bytes(model, 16) == 0
    narrow = dataclasses.replace(model, precision="bfloat16")
    assert everything.cache_bytes(narrow, 16) == 2 * 16 * 8 * 2
    assert KINDS["linear"].cache_bytes(narrow, 16) == 2 * 4 * 5 * 4  # states are float32
    assert KINDS["gla"].cache_bytes(narrow, 16) == 2 * 2 * 4 * 4
    # means over queries: 1 + 2 + ... + 16, and the same cut off at 5
    assert everything.seen(model) == sum(range(1, 17)) / 16
    assert local.seen(model) == sum(min(t, 5) for t in range(1, 17)) / 16
    assert none.seen(model) == none.kept(model) == none.at_once(model) == 0
    dropping = dataclasses.replace(model, attn_dropout=0.1)
    assert [kind.kept(dropping) for kind in kinds_of(dropping)] == [16, 10, 0]
    assert KINDS["gla"].kept(dropping) == 0


@pytest.mark.parametrize(
    "name, keys",
    [
        ("gpt2/wpe", ["axial_pos_emb", "rotary_emb", "no_pos_emb"]),
        ("gpt2/axial_wpe_2", ["axial_pos_emb"]),
        ("gpt2/h3/attn/q", ["n_layer"]),
        ("gpt2/h3/norm_1/b", ["n_layer"]),
        ("gpt2//attn/q", ["share_parameters"]),
        ("gpt2/h1/wi/kernel", ["moe_layers"]),
        ("gpt2/h1/attn/attention/mem_k", ["num_mem_kv"]),
        ("gpt2/h0/attn/gate_up/bias", ["attention_types"]),
        ("gpt2/h0/mlp/activation/slope", ["activation_function"]),
        ("gpt2/h0/mlp_macaron/conv1d_main/c_fc/bias", ["macaron"]),
        ("gpt2/h7/norm_rezero_1/g", ["rezero"]),
        ("gpt2/ln_f/g", ["no_weight_tie"]),
        ("gpt2/wte_final_linear/conv1d_main/linear_out/kernel", ["no_weight_tie", "untied_head"]),
        ("gpt2/else", []),
    ],
)
def test_keys_behind_a_variable(name, keys):
    assert presence_keys(name) == keys


def test_keys_behind_sizes():
    assert size_keys("gpt2/wte") == ["n_vocab", "n_embd"] and size_keys("gpt2/wpe") == ["n_ctx", "n_embd"]
    assert size_keys("gpt2/h9/mlp/conv1d_main/c_proj/kernel") == ["n_inner", "n_embd"]
    assert size_keys("gpt2/h0/wi/kernel") == ["moe_params", "n_embd", "moe_params"]
    assert size_keys("gpt2/h0/attn/attention/mem_v")[0] == "num_mem_kv" and size_keys("gpt2/else") == []


def test_every_name_says_what_it_is():
    assert all(kind.doc for kind in KINDS.values()) and all(encoding.doc for encoding in POSITIONS.values())
    assert OptimizerConfig(lr=1.0).opt_name == "adam"


def test_a_pattern_that_takes_for_ever_is_refused(monkeypatch):
    monkeypatch.setattr("gpt_neo.config.network.PATIENCE", 0.1)
    name = "gpt2/h0/attn/compute_output_bias/o_b"
    with pytest.raises(ConfigError, match="takes more than 0.1 s on the name 'gpt2/h0/attn"):
        matches("(.*?)" * 7 + "z|" + "(([a-z0-9_/]+)+)+$x", name)
    assert matches("norm|bias", name) and not matches("^norm", name)
