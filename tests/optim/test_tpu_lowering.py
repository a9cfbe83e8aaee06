"""The program of a TPU core can be built, with experts and slots split. Nothing runs."""

import json
import types

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import TpuPlacement
from gpt_neo.runtime.train_step import build_train_step

CONFIG = {
    "n_head": 2,
    "n_embd": 8,
    "n_layer": 1,
    "n_vocab": 32,
    "n_ctx": 8,
    "lr": 1e-2,
    "lr_decay": "cosine",
    "train_batch_size": 8,
    "train_steps": 10,
    "weight_decay": 0.1,
    "gradient_clipping": 0.5,
    "mesh_shape": "x:4",
    "moe_layers": [0],
    "moe_params": {"moe_num_experts": 4, "moe_hidden_size": 12},
}


def slice_shapes(tmp_path, **changes):
    """Shapes of each core's slices."""
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    run = load_config(str(path))
    cores = np.array([[[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 1]]])
    topology = tf.tpu.experimental.Topology(mesh_shape=[2, 1, 1, 2], device_coordinates=cores)
    assignment = tf.tpu.experimental.DeviceAssignment.build(topology, num_replicas=4)
    context = types.SimpleNamespace(
        num_replicas=4,
        num_of_cores_per_replica=1,
        num_hosts=1,
        device_assignment=assignment,
        tpu_host_placement_function=lambda host_id: "/device:CPU:0",
    )
    steps = []

    def program():
        step = build_train_step(tf.zeros([8, 9], tf.int32), run, TpuPlacement(run.mesh, context))
        steps.append(step)
        with tf.control_dependencies([step.train]):
            return tf.identity(step.loss)

    with tf.Graph().as_default() as graph:
        tf.train.get_or_create_global_step()
        tf.tpu.replicate(program, inputs=[[]] * 4, device_assignment=assignment)
        kinds = {operation.type for operation in graph.get_operations()}
    slices = {v.name: laid.laid_out_tensor.slice_shape for v, laid in steps[0].lowering.variables.items()}
    return slices, kinds


@pytest.mark.parametrize(
    "opt_name, suffix",
    [("adam", "/adam_m"), ("adafactor", "_slot_m"), pytest.param("lion", "/lion_m", marks=pytest.mark.slow)],
)
def test_experts_weights_and_slots_are_split(tmp_path, opt_name, suffix):
    shapes, kinds = slice_shapes(tmp_path, opt_name=opt_name, layout="batch:x,experts:x,slots:x")
    assert shapes["gpt2/wte"] == shapes["gpt2/wte" + suffix] == [8, 8]
    assert shapes["gpt2/h0/wi/kernel"] == shapes["gpt2/h0/wi/kernel" + suffix] == [1, 8, 12]
    assert "AllToAll" in kinds and "CrossReplicaSum" in kinds


def test_without_a_rule_slots_are_whole(tmp_path):
    shapes, kinds = slice_shapes(tmp_path, layout="batch:x", moe_layers=[])
    assert shapes["gpt2/wte"] == shapes["gpt2/wte/adam_m"] == [32, 8]
    assert "AssignVariableOp" in kinds and "AllToAll" not in kinds


@pytest.mark.parametrize("sums, gathers", [("microbatch", "step"), ("step", "step"), ("microbatch", "use")])
def test_parts_of_gradients_in_the_loop_over_microbatches_or_after_it(tmp_path, sums, gathers):
    shapes, kinds = slice_shapes(
        tmp_path,
        mesh_shape="x:2,y:2",
        moe_layers=[],
        tokens_per_mb_per_replica=8,
        layout="batch:x,heads:y,loss_sequence:y,slots:x",
        precision="bfloat16",
        gradient_sums=sums,
        weight_gathers=gathers,
    )
    assert shapes["gpt2/wte"] == shapes["gpt2/wte/adam_m"] == [16, 8]
    assert shapes["gpt2/h0/attn/q"] == shapes["gpt2/h0/attn/q/adam_v"] == [4, 4]
    assert "While" in kinds
