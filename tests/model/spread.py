"""For scripts in a process of their own: a Mesh-TF graph over several local CPU devices."""

import contextlib

import numpy as np

from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import inlined
from tests.model.tools import plain_session, set_values


def evaluate(graph, mesh, tensors, sizes, names, weights):
    """Values of tensors on a mesh of the given sizes, the named tensor dimensions split over its dimensions in turn.

    Variables take the values of `weights`, by name; those that it lacks are drawn and put there.
    """
    axes = [f"m{i}" for i in range(len(sizes))]
    shape = ",".join(f"{axis}:{size}" for axis, size in zip(axes, sizes))
    layout = ",".join(f"{name}:{axis}" for name, axis in zip(names, axes))
    devices = [f"/cpu:{i}" for i in range(int(np.prod(sizes)))]
    impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape, layout, devices)
    with inlined() if sizes else contextlib.nullcontext():  # each device would compile every kernel again
        lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
        fetches = [lowering.export_to_tf_tensor(tensor) for tensor in tensors]
    with plain_session(devices=4) as session:
        session.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            if variable.op.name not in weights:
                random = np.random.RandomState(len(weights)).normal(0, 0.3, variable.shape.as_list())
                weights[variable.op.name] = random
        set_values(session, [(variable, weights[variable.op.name]) for variable in tf.global_variables()])
        session.run(lowering.copy_masters_to_slices())
        return session.run(fetches)


def largest_error(wanted, got):
    """Of a loss, and of gradients relative to the largest of them all."""
    scale = max(np.abs(gradient).max() for gradient in wanted[1:])
    differences = [np.abs(a - b).max() / scale for a, b in zip(wanted[1:], got[1:])]
    return float(max(abs(got[0] - wanted[0]), *differences))
