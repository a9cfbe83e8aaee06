"""A process of its own (devices are set up before TensorFlow starts): loss and gradients over meshes of CPU devices.

python -m tests.model.mesh_worker '[[changes, sizes, names], ...]' prints, per case, the largest errors against one
device that neither recomputes nor takes microbatches.
"""

import contextlib
import json
import sys

import numpy as np

from gpt_neo.config.estimate import microbatches
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import inlined
from gpt_neo.runtime.train_step import loss_and_gradients
from tests.model.options import make_run
from tests.model.tools import plain_session, set_values

PLAIN = {"recompute_grad": False, "tokens_per_mb_per_replica": None}


def loss_and_gradients_over(changes, sizes, names, weights):
    """[loss, gradient of each variable]; weights are drawn once per variable name."""
    run = make_run(changes)
    count = int(np.prod(sizes))
    tokens = np.random.RandomState(0).randint(0, run.model.n_vocab, (4, run.model.n_ctx + 1)).astype(np.int32)
    with tf.Graph().as_default(), plain_session(devices=4) as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(run.model, 4)
        parts = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
        features = {k: mtf.import_tf_tensor(mesh, tf.constant(v), dims.tokens) for k, v in parts.items()}
        features["rows"] = mtf.range(mesh, dims.batch, tf.int32)
        step = mtf.constant(mesh, 0, mtf.Shape([]), tf.int32)
        replicas = dict(zip(names, sizes)).get("batch", 1)
        splits = microbatches(run.mesh, run.model.n_ctx, 4 // replicas)
        loss, *grads = loss_and_gradients(graph, features, step, run, splits)
        shape = ",".join(f"m{i}:{size}" for i, size in enumerate(sizes))
        layout = ",".join(f"{name}:m{i}" for i, name in enumerate(names))
        devices = [f"/cpu:{i}" for i in range(count)]
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape, layout, devices)
        with inlined() if sizes else contextlib.nullcontext():  # each device would compile every kernel again
            lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
            fetches = [lowering.export_to_tf_tensor(t) for t in [loss, *grads]]
        session.run(tf.global_variables_initializer())
        masters = [v.get_master() for v in graph.trainable_variables]
        for variable in masters:
            if variable.op.name not in weights:
                random = np.random.RandomState(len(weights)).normal(0, 0.3, variable.shape.as_list())
                weights[variable.op.name] = random
        set_values(session, [(variable, weights[variable.op.name]) for variable in masters])
        session.run(lowering.copy_masters_to_slices())
        return session.run(fetches)


def main(cases):
    """Errors of every case: of the loss, and of the gradients relative to the largest of them."""
    errors, alone, weights = [], {}, {}
    for changes, sizes, names in cases:
        known = json.dumps(changes)
        if known not in alone:
            weights[known] = {}
            alone[known] = loss_and_gradients_over({**changes, **PLAIN}, [], [], weights[known])
        expected = alone[known]
        spread = loss_and_gradients_over(changes, sizes, names, weights[known])
        scale = max(np.abs(g).max() for g in expected[1:])
        worst = max(np.abs(a - b).max() for a, b in zip(expected[1:], spread[1:])) / scale
        errors.append([float(abs(spread[0] - expected[0])), float(worst), float(scale)])
    print(json.dumps(errors))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
