"""Models with linear, gla and none layers: decoding, meshes, microbatches, recomputation, parameter counts."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.network import gla_variables
from gpt_neo.config.schema import GlaParams, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, check_layout
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import plain_session, save_random, set_values, uncached

KINDS = ("linear", "gla", "none", "global", "local")


def make_config(n_ctx=100, kinds=KINDS, **changes):
    return ModelConfig(
        n_head=2,
        n_embd=16,
        n_layer=len(kinds),
        n_vocab=48,
        n_ctx=n_ctx,
        attention_types=kinds,
        local_attention_radius=8,
        **changes,
    )


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A sampler of three rows, tokens [3, 95], and the whole network's logits of them."""
    config = make_config(gla_params=GlaParams(num_heads=4))
    checkpoint = save_random(config, str(tmp_path_factory.mktemp("stateful")))
    tokens = np.random.RandomState(1).randint(0, 48, [3, 95]).astype(np.int32)
    return Sampler(config, checkpoint, batch_size=3), tokens, uncached(config, checkpoint, tokens)


@pytest.mark.parametrize("prompt", [64, 70])
def test_every_step_equals_uncached(sampled, prompt):
    sampler, tokens, expected = sampled
    logits, slot, start = sampler.prefill([row[:prompt] for row in tokens])
    np.testing.assert_allclose(logits, expected[:, prompt - 1], atol=1e-4, rtol=1e-4)
    for at in range(prompt, 95):
        logits = sampler.run(tokens[:, at : at + 1], slot, start)
        slot += 1
        np.testing.assert_allclose(logits, expected[:, at], atol=1e-4, rtol=1e-4)


def test_ragged_batches_and_used_samplers_equal_rows_alone(sampled):
    sampler, tokens, expected = sampled
    lengths = (1, 80, 13)
    for _ in range(2):  # the second time, the states of the first have to be gone
        logits, slot, start = sampler.prefill([row[:length] for row, length in zip(tokens, lengths)])
        token = np.array([[row[length]] for row, length in zip(tokens, lengths)], np.int32)
        following = sampler.run(token, slot, start)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row], expected[row, length - 1], atol=1e-4, rtol=1e-4)
            np.testing.assert_allclose(following[row], expected[row, length], atol=1e-4, rtol=1e-4)
        list(sampler.generate([[1, 2]], SampleOptions(max_tokens=5)))


def test_a_layer_without_attention_doubles_the_stream():
    config = make_config(n_ctx=8, kinds=("none",))
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(config, 1)
        tokens = mtf.import_tf_tensor(mesh, tf.constant([[3, 1, 4, 1, 5, 9, 2, 6]]), dims.tokens)
        logits = transformer(tokens, dims, config, Context())
        out = lower_locally(graph, mesh).export_to_tf_tensor(logits)
        variables = {v.op.name.removeprefix("gpt2/"): v for v in tf.global_variables()}
        session.run(tf.global_variables_initializer())
        # The MLP is silent, so the final norm sees twice the embedding.
        variables["h0/mlp/conv1d_main/c_proj/kernel"].load(np.zeros([64, 16]), session)
        w, got = session.run([variables, out])
    x = 2 * (w["wte"][[3, 1, 4, 1, 5, 9, 2, 6]] + w["wpe"])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got[0], x @ w["wte"].T, atol=1e-5)
    assert not [name for name in variables if "attn" in name or "norm_1" in name]


def first_step(config, mesh=None, precision="float32"):
    """Loss, and weights after one step of Adam, which with this epsilon is nearly the gradient."""
    config = dataclasses.replace(config, precision=precision)
    run = RunConfig(
        "",
        "",
        config,
        OptimizerConfig(lr=1.0, epsilon=1.0),
        mesh or MeshConfig(),
        TrainingConfig(train_batch_size=4, train_steps=10, seed=1),
        (),
    )
    data = np.random.RandomState(0).randint(0, 48, [4, config.n_ctx + 1])
    with tf.Graph().as_default(), plain_session() as session:
        batch = tf.placeholder(tf.int32, data.shape)
        step = build_train_step(batch, run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        trainable = [v for v in tf.global_variables() if "adam" not in v.name and v.op.name != "global_step"]
        random = [np.random.RandomState(i).normal(0, 0.3, v.shape.as_list()) for i, v in enumerate(trainable)]
        set_values(session, zip(trainable, random))
        session.run(step.lowering.copy_masters_to_slices())
        loss, _ = session.run([step.loss, step.train], {batch: data})
        return [loss, *session.run(trainable)]


def test_recomputation_microbatches_and_bfloat16():
    config = make_config(n_ctx=70, kinds=("linear", "gla"))
    again = dataclasses.replace(config, recompute_grad=True)
    plain = first_step(config)
    assert all(np.isfinite(x).all() for x in plain)
    for a, b in zip(plain, first_step(again, MeshConfig(tokens_per_mb_per_replica=70))):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    narrow = first_step(config, precision="bfloat16")
    assert abs(float(plain[0]) - float(narrow[0])) < 0.02
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in narrow)


def test_parameter_counts():
    config = ModelConfig(n_head=4, n_embd=1024, n_layer=1, n_vocab=8, n_ctx=8)
    assert (
        sum(variable.size for variable in gla_variables(config).values())
        == 4 * 1024**2 + 24 * 1024 + 512 + 256
        == 4_219_648
    )
    for model in (make_config(), make_config(gla_params=GlaParams(num_heads=1, expand_v=2.0, use_output_gate=False))):
        with tf.Graph().as_default():
            graph = mtf.Graph()
            dims = make_dims(model, 1)
            tokens = mtf.import_tf_tensor(mtf.Mesh(graph, "mesh"), tf.zeros([1, 100], tf.int32), dims.tokens)
            transformer(tokens, dims, model, Context())
            built = sum(v.shape.size for v in graph.trainable_variables)
        assert count_parameters(model) == built


def test_a_model_that_is_not_causal_is_not_sampled_from(tmp_path):
    config = make_config(n_ctx=16, kinds=("linear", "none"), causal=False)
    checkpoint = save_random(config, str(tmp_path))
    tokens = np.arange(16, dtype=np.int32)[None]
    before = uncached(config, checkpoint, tokens)
    tokens[0, 15] = 40
    assert np.abs(before - uncached(config, checkpoint, tokens))[0, 0].max() > 1e-3
    with pytest.raises(ConfigError, match="cannot be sampled from"):
        Sampler(config, checkpoint)


def test_a_layout_that_does_not_divide_the_heads_of_gla():
    config = make_config(gla_params=GlaParams(num_heads=1))
    run = RunConfig(
        "",
        "",
        config,
        OptimizerConfig(lr=1.0),
        MeshConfig((("x", 2),), (("heads", "x"),)),
        TrainingConfig(train_batch_size=4, train_steps=1),
        (),
    )
    with pytest.raises(ConfigError, match="splits heads of 1 into 2 parts"):
        check_layout(run, MeshPlan(("a", "b"), run.mesh.mesh_shape, run.mesh.layout), 4)
