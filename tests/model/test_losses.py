"""Losses in which not every label counts: however the batch is cut, the mean is over those that do."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config.schema import MeshConfig, ModelConfig, MoeConfig, OptimizerConfig, RunConfig, TrainingConfig
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import split_batch
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import loss_and_gradients

MODEL = ModelConfig(n_head=2, n_embd=8, n_layer=1, n_vocab=16, n_ctx=6, causal=False, z_loss=0.0)
RUN = RunConfig("", "", MODEL, OptimizerConfig(lr=1.0), MeshConfig(), TrainingConfig(8, 1), ())
RANDOM = np.random.RandomState(0)
BATCH = {
    "inputs": RANDOM.randint(0, 16, (8, 6)).astype(np.int32),
    "labels": RANDOM.randint(0, 16, (8, 6)).astype(np.int32),
}
# One microbatch of four has few labels that count, one has none.
COUNTED = np.array([[1] * 6, [1, 0, 0, 0, 0, 0], [0] * 6, [1] * 3 + [0] * 3] * 2, np.float32)


def run(splits, weights=COUNTED, model=MODEL):
    """Loss, gradients and per-token losses, from the same weights each time."""
    made = dataclasses.replace(RUN, model=model)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(model, 8)
        parts = {**BATCH, "weights": weights}
        features = {name: mtf.import_tf_tensor(mesh, tf.constant(t), dims.tokens) for name, t in parts.items()}
        features["rows"] = mtf.range(mesh, dims.batch, tf.int32)
        step = mtf.import_tf_tensor(mesh, tf.constant(0), mtf.Shape([]))
        loss, *grads = loss_and_gradients(graph, features, step, made, splits)
        lowering = lower_locally(graph, mesh)
        fetches = [lowering.export_to_tf_tensor(t) for t in [loss, *grads]]
        with tf.variable_scope("", reuse=True):
            losses, _ = build_eval_step({k: tf.constant(v) for k, v in BATCH.items()}, made, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        for i, variable in enumerate(tf.global_variables()):
            variable.load(np.random.RandomState(i).normal(0, 0.3, variable.shape.as_list()), session)
        return session.run([fetches, losses])


def test_the_mean_is_over_the_labels_that_count():
    (loss, *_), losses = run(1)
    assert loss == pytest.approx((losses.astype(np.float64) * COUNTED).sum() / COUNTED.sum(), rel=1e-6)


EXPERTS = MoeConfig(moe_num_experts=3, moe_hidden_size=5, moe_second_policy_train="all", moe_loss_coef=0.5)
MIXTURE = dataclasses.replace(MODEL, moe_layers=(0,), moe_params=EXPERTS)


@pytest.mark.parametrize("model", [MODEL, MIXTURE], ids=["dense", "mixture, whose experts are balanced"])
def test_microbatches_weigh_by_their_labels(model):
    (loss, *grads), losses = run(1, model=model)
    (split_loss, *split_grads), _ = run(4, model=model)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    balance = loss - (losses.astype(np.float64) * COUNTED).sum() / COUNTED.sum()
    assert (balance > 0.4) == (model is MIXTURE)
    for one, many in zip(grads, split_grads):
        np.testing.assert_allclose(many, one, atol=1e-6)


def test_no_label_at_all_is_a_loss_of_0():
    (loss, *grads), _ = run(1, np.zeros_like(COUNTED))
    assert loss == 0 and not any(np.abs(grad).max() for grad in grads)


def test_parts_of_a_batch():
    tokens = np.arange(12).reshape(2, 6)
    parts = split_batch(tokens)
    assert (parts["labels"] == parts["inputs"] + 1).all() and parts["inputs"].shape == (2, 5)
    assert set(split_batch({"inputs": 1, "labels": 2, "weight": 3})) == {"inputs", "labels"}
