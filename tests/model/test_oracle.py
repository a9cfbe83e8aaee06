"""The legacy program's own numbers: logits, 20 losses, and the weights after them."""

import dataclasses
import json
import os

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.dataprep.records import read_records
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import cross_entropy_per_token
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.model.tools import plain_session

ORACLE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "oracle")
# The legacy program never read the key activation_function: its gelu is what the oracle `mb` holds.
OVERRIDES = {"neo": [], "mb": ["activation_function=gelu"], "linear": []}


@pytest.fixture(scope="module", params=["neo", "mb", "linear"])
def oracle(request, tmp_path_factory):
    """Folder, record and config (as the loader sees it) of an oracle."""
    source = os.path.join(ORACLE, request.param)
    with open(os.path.join(source, "oracle.json")) as handle:
        record = json.load(handle)
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "dataset_configs").mkdir()
    (folder / "dataset_configs" / "oracle.json").write_text(json.dumps(record["dataset_config"]))
    (folder / "model.json").write_text(json.dumps(record["config"]))
    return source, record, load_config(str(folder / "model.json"), OVERRIDES[request.param])


def test_logits_of_the_trained_checkpoint(oracle):
    source, _, run = oracle
    expected = np.load(os.path.join(source, "logits_20.npz"))
    with tf.Graph().as_default(), tf.Session() as session:
        placement = LocalPlacement(MeshPlan())
        graph = mtf.Graph()
        mesh = placement.make_mesh(graph)
        dims = make_dims(run.model, len(expected["inputs"]))
        tokens = mtf.import_tf_tensor(mesh, tf.constant(expected["inputs"]), dims.tokens)
        labels = mtf.import_tf_tensor(mesh, tf.constant(expected["labels"]), dims.tokens)
        logits = transformer(tokens, dims, run.model, Context())
        loss = cross_entropy_per_token(logits, labels, dims.vocab, run.model.z_loss)
        lowering = placement.lower(graph, mesh)
        fetches = [lowering.export_to_tf_tensor(t) for t in (logits, loss)]
        tf.train.Saver().restore(session, os.path.join(source, "model.ckpt-20"))
        got_logits, got_loss = session.run(fetches)
    np.testing.assert_allclose(got_logits, expected["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got_loss, expected["loss_batch"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_twenty_steps_of_training(oracle, recompute):
    source, record, run = oracle
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, recompute_grad=recompute))
    paths = [os.path.join(source, f"data_{i}_32.tfrecords") for i in range(2)]
    records, size = np.array([row for path in paths for row in read_records(path)]), run.training.train_batch_size
    with tf.Graph().as_default(), plain_session() as session:
        batch = tf.placeholder(tf.int32, [size, run.model.n_ctx + 1])
        step = build_train_step(batch, run, LocalPlacement(MeshPlan()))
        reader = tf.train.load_checkpoint(os.path.join(source, "model.ckpt-20"))
        names = {v.op.name: v.shape.as_list() for v in tf.global_variables()}
        assert names == reader.get_variable_to_shape_map()
        session.run(tf.global_variables_initializer())
        masters = [v for v in tf.global_variables() if "adam" not in v.name]
        tf.train.Saver(masters).restore(session, os.path.join(source, "model.ckpt-0"))
        losses, rates = [], []
        for i in range(20):
            rows = records.take(range(i * size, (i + 1) * size), axis=0, mode="wrap")
            loss, rate, _ = session.run([step.loss, step.rate, step.train], {batch: rows[:, : run.model.n_ctx + 1]})
            losses.append(loss)
            rates.append(rate)
        np.testing.assert_allclose(rates, record["learning_rate_at_step"], rtol=1e-5)
        np.testing.assert_allclose(losses, record["loss_before_update_at_step"], atol=1e-3, rtol=0)
        for variable, value in zip(tf.global_variables(), session.run(tf.global_variables())):
            wanted = reader.get_tensor(variable.op.name)
            # relative to the tensor's own size: single elements start at zero
            error = np.abs(value - wanted).max() / max(np.abs(wanted).max(), 1e-12)
            assert error < 1e-3, f"{variable.op.name}: {error}"
