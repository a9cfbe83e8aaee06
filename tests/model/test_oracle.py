"""The legacy program's own numbers: logits, 20 losses, and the weights after them."""

import glob
import json
import os

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import cross_entropy_per_token
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.optim.adam import adam_updates, clip_by_global_norm
from gpt_neo.optim.schedules import learning_rate_tensor

ORACLE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "oracle", "neo")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """The oracle's record and its config as the loader sees it."""
    with open(os.path.join(ORACLE, "oracle.json")) as handle:
        record = json.load(handle)
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "dataset_configs").mkdir()
    (folder / "dataset_configs" / "oracle.json").write_text(json.dumps(record["dataset_config"]))
    (folder / "model.json").write_text(json.dumps(record["config"]))
    return record, load_config(str(folder / "model.json"))


def read_records():
    records = []
    for path in sorted(glob.glob(os.path.join(ORACLE, "*.tfrecords"))):
        for item in tf.io.tf_record_iterator(path):
            records.append(tf.train.Example.FromString(item).features.feature["text"].int64_list.value[:])
    return np.array(records, np.int32)


def restore(session, step):
    tf.train.Saver().restore(session, os.path.join(ORACLE, f"model.ckpt-{step}"))


def test_logits_of_the_trained_checkpoint(oracle):
    _, run = oracle
    expected = np.load(os.path.join(ORACLE, "logits_20.npz"))
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(run.model, len(expected["inputs"]))
        tokens = mtf.import_tf_tensor(mesh, tf.constant(expected["inputs"]), dims.tokens)
        labels = mtf.import_tf_tensor(mesh, tf.constant(expected["labels"]), dims.tokens)
        logits = transformer(tokens, dims, run.model, is_training=False)
        loss = cross_entropy_per_token(logits, labels, dims.vocab, run.model.z_loss)
        lowering = lower_locally(graph, mesh)
        fetches = [lowering.export_to_tf_tensor(t) for t in (logits, loss)]
        restore(session, 20)
        got_logits, got_loss = session.run(fetches)
    np.testing.assert_allclose(got_logits, expected["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got_loss, expected["loss_batch"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_twenty_steps_of_training(oracle, recompute):
    import dataclasses

    record, run = oracle
    model = dataclasses.replace(run.model, recompute_grad=recompute)
    records, batch_size = read_records(), run.training.train_batch_size
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.train.get_or_create_global_step()
        batch = tf.placeholder(tf.int32, [batch_size, model.n_ctx + 1])
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(model, batch_size)
        tokens = mtf.import_tf_tensor(mesh, batch[:, :-1], dims.tokens)
        labels = mtf.import_tf_tensor(mesh, batch[:, 1:], dims.tokens)
        logits = transformer(tokens, dims, model, is_training=True)
        loss = mtf.reduce_mean(cross_entropy_per_token(logits, labels, dims.vocab, model.z_loss))
        grads = mtf.gradients([loss], [v.outputs[0] for v in graph.trainable_variables])
        grads = clip_by_global_norm(grads, run.optimizer.gradient_clipping)
        rate = learning_rate_tensor(step, run.optimizer, run.training.train_steps)
        mtf_rate = mtf.import_tf_tensor(mesh, rate, mtf.Shape([]))
        updates = adam_updates(graph.trainable_variables, grads, mtf_rate, run.optimizer)
        lowering = lower_locally(graph, mesh)
        loss_out = lowering.export_to_tf_tensor(loss)
        with tf.control_dependencies([loss_out, rate]):
            assigns = tf.group([lowering.lowered_operation(op) for op in updates])
            with tf.control_dependencies([assigns]):
                train = step.assign_add(1)
        reader = tf.train.load_checkpoint(os.path.join(ORACLE, "model.ckpt-20"))
        names = {v.op.name: list(v.shape) for v in tf.global_variables()}
        assert names == {name: shape for name, shape in reader.get_variable_to_shape_map().items()}
        masters = [v for v in tf.global_variables() if "adam" not in v.name]
        session.run(tf.global_variables_initializer())
        tf.train.Saver(masters).restore(session, os.path.join(ORACLE, "model.ckpt-0"))
        losses, rates = [], []
        for i in range(20):
            rows = records.take(range(i * batch_size, (i + 1) * batch_size), axis=0, mode="wrap")
            got, got_rate, _ = session.run([loss_out, rate, train], {batch: rows})
            losses.append(got)
            rates.append(got_rate)
        np.testing.assert_allclose(rates, record["learning_rate_at_step"], rtol=1e-5)
        np.testing.assert_allclose(losses, record["loss_before_update_at_step"], atol=1e-3, rtol=0)
        for variable, value in zip(tf.global_variables(), session.run(tf.global_variables())):
            wanted = reader.get_tensor(variable.op.name)
            # relative to the tensor's own size: single elements start at zero
            error = np.abs(value - wanted).max() / max(np.abs(wanted).max(), 1e-12)
            assert error < 1e-3, f"{variable.op.name}: {error}"
