"""A block that is run again in the backward pass: the same gradients, and products made once where they are kept."""

import collections

import numpy as np

from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.model.options import make_run
from tests.model.tools import plain_session, set_values

AGAIN = {"inputs": {"recompute_grad": True}, "products": {"recompute_grad": True, "recompute_keep": "products"}}
DROPOUT = {"attn_dropout": 0.1, "res_dropout": 0.1, "embed_dropout": 0.1}


def trained(changes):
    """(loss and new weights after two steps, number of operations of each kind in the graph)."""
    run = make_run({**changes, "lr": 0.01, "seed": 3})
    batch = np.random.RandomState(0).randint(0, run.model.n_vocab, [run.training.train_batch_size, run.model.n_ctx + 1])
    with tf.Graph().as_default() as graph, plain_session() as session:
        step = build_train_step(tf.constant(batch, tf.int32), run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        weights = [v for v in tf.trainable_variables() if "adam" not in v.op.name]
        random = [np.random.RandomState(i).normal(0, 0.1, v.shape.as_list()) for i, v in enumerate(weights)]
        set_values(session, zip(weights, random))
        session.run(step.lowering.copy_masters_to_slices())
        losses = [session.run([step.loss, step.train])[0] for _ in range(2)]
        return losses, session.run(weights), collections.Counter(op.type for op in graph.get_operations())


def compare(changes):
    """Operations of the graphs that keep everything, inputs and products, which train alike."""
    losses, weights, plain = trained(changes)
    counts = {}
    for kept in AGAIN:
        others, these, counts[kept] = trained({**changes, **AGAIN[kept]})
        np.testing.assert_allclose(losses, others, rtol=1e-6)
        for a, b in zip(weights, these):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    return plain, counts["inputs"], counts["products"]


def test_a_block_run_again_trains_as_one_that_is_not_and_kept_products_are_made_once():
    plain, inputs, products = compare({**DROPOUT, "attention_types": ["global", "local"], "n_layer": 2})
    made = plain["MatMul"]
    assert products["MatMul"] == made
    assert inputs["MatMul"] == made + 2 * 6  # q, k, v, o and the two of the MLP


def test_a_gated_block_run_again_in_microbatches():
    compare({"tokens_per_mb_per_replica": 16, "attention_types": ["gla"], "n_layer": 1})
