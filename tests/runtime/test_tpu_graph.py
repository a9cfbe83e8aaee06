"""The graph that TPUEstimator would send to a TPU: devices, host call, batch and hooks. Nothing runs."""

import json
import types

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime.model_fn import model_fn
from gpt_neo.runtime.watch import Watch

CONFIG = {
    "n_head": 2, "n_embd": 8, "n_layer": 1, "n_vocab": 32, "n_ctx": 8, "lr": 1e-2, "train_batch_size": 8,
    "train_steps": 10, "mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y",
}  # fmt: skip


@pytest.fixture(scope="module")
def tpu(tmp_path_factory):
    """Graph, spec and run of a training step for four cores on two hosts' worth of chips."""
    folder = tmp_path_factory.mktemp("tpu")
    (folder / "model.json").write_text(json.dumps(CONFIG))
    run = load_config(str(folder / "model.json"))
    cores = np.array([[[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 1]]])
    topology = tf.tpu.experimental.Topology(mesh_shape=[2, 1, 1, 2], device_coordinates=cores)
    assignment = tf.tpu.experimental.DeviceAssignment.build(topology, num_replicas=4)
    context = types.SimpleNamespace(
        num_replicas=4, num_of_cores_per_replica=1, num_hosts=1, device_assignment=assignment,
        tpu_host_placement_function=lambda host_id: f"/job:worker/task:{host_id}/device:CPU:0",
    )  # fmt: skip
    params = {"run": run, "folder": str(folder), "steps_per_checkpoint": 7, "use_tpu": True, "context": context,
              "watch": lambda: Watch(str(folder)), "origin": str}  # fmt: skip
    specs = []

    def program():
        batch = {name: tf.zeros([8, 8], tf.int32) for name in ("inputs", "labels")}
        specs.append(model_fn(batch, None, tf.estimator.ModeKeys.TRAIN, params))
        with tf.control_dependencies([specs[0].train_op]):
            return tf.identity(specs[0].loss)

    with tf.Graph().as_default() as graph:
        tf.train.get_or_create_global_step()
        tf.tpu.replicate(program, inputs=[[]] * 4, device_assignment=assignment)
        yield graph, specs[0]


def test_masters_stay_on_the_host(tpu):
    graph, _ = tpu
    masters = [v for v in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES) if v.name.startswith("gpt2/")]
    assert len(masters) > 10 and {v.device for v in masters} == {"/job:worker/task:0/device:CPU:0"}


def test_host_call_has_a_row_per_core(tpu):
    _, spec = tpu
    function, values = spec.host_call
    assert callable(function) and [value.shape.as_list() for value in values] == [[1], [1], [1]]


def test_hooks_restore_and_save_slices(tpu):
    _, spec = tpu
    assert any(isinstance(hook, mtf.MtfRestoreHook) for hook in spec.training_hooks)
    saver = next(hook for hook in spec.training_hooks if isinstance(hook, tf.train.CheckpointSaverHook))
    assert any(isinstance(one, mtf.MtfCheckpointSaverListener) for one in saver._listeners)
