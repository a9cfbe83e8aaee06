"""TPUEstimator's graphs for slices that are not there: their topology is made up, and no session is started."""

import dataclasses

import numpy as np
import tensorflow as tf2
from tensorflow.python.framework import kernels
from tensorflow.python.tpu.tpu_system_metadata import TPUSystemMetadata
from tensorflow_estimator.python.estimator.tpu import tpu_context

from gpt_neo.mtf_compat import tf
from gpt_neo.runtime import estimator as runtime

CORES = 8  # of a host: four chips, two by two, of two cores


def topology(across, down):
    """A v3 slice of so many hosts in each direction."""
    cores = [
        [[2 * i + x, 2 * j + y, 0, core] for y in (0, 1) for x in (0, 1) for core in (0, 1)]
        for j in range(down)
        for i in range(across)
    ]
    return tf.tpu.experimental.Topology(mesh_shape=[2 * across, 2 * down, 1, 2], device_coordinates=np.array(cores))


class Resolver:
    """Stands in for TPUClusterResolver."""

    def __init__(self, hosts):
        self.hosts = hosts

    def master(self):
        return "grpc://10.0.0.1:8470"

    def cluster_spec(self):
        return tf.train.ClusterSpec({"worker": [f"10.0.0.{host}:8470" for host in range(1, self.hosts + 1)]})


# What only TPUs have, and what a loop or condition is made of until the compiler rewrites it.
OF_TPUS = {
    "AllToAll",
    "CollectivePermute",
    "CrossReplicaSum",
    "InfeedDequeueTuple",
    "OutfeedEnqueueTuple",
    "TPUReplicateMetadata",
    "TPUReplicatedInput",
    "TPUReplicatedOutput",
}
OF_LOOPS = {"Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch"}


def not_compiled(ops):
    """Of operations on cores, (type, name) of those that XLA has no kernel for with these types; of its kernels for
    CPUs, as this TensorFlow has none for TPUs. Float64 counts too: a TPU has none."""
    with tf.Graph().as_default(), tf.Session() as session:  # the first compilation registers the kernels
        session.run(tf2.function(lambda x: x + 1, jit_compile=True)(tf.constant(1.0)))
    missing, known = [], {}
    for op in ops:
        if op.type not in known:
            registered = kernels.get_registered_kernels_for_op(op.type).kernel
            known[op.type] = [kernel for kernel in registered if kernel.device_type == "XLA_CPU_JIT"]
        double = tf.float64 in [tensor.dtype for tensor in [*op.inputs, *op.outputs]]
        if op.type not in OF_TPUS | OF_LOOPS and not any(allows(kernel, op) for kernel in known[op.type]) or double:
            missing.append((op.type, op.name))
    return missing


def allows(kernel, op):
    """Whether a kernel takes an operation's types."""
    for constraint in kernel.constraint:
        value = op.node_def.attr[constraint.name]
        if value.HasField("type") and value.type not in constraint.allowed_values.list.type:
            return False
    return True


@dataclasses.dataclass
class Built:
    """What TPUEstimator would run. hooks: in their order."""

    graph: object
    hooks: list
    train_op: object = None
    values: object = None

    def ops(self, kind):
        """The operations of a type."""
        return [op for op in self.graph.get_operations() if op.type == kind]

    def on_cores(self):
        """The operations of the program that every core runs."""
        return [op for op in self.graph.get_operations() if "_tpu_replicate" in op.node_def.attr]


class Slice:
    """A slice of across * down hosts, as TPUEstimator would find it."""

    def __init__(self, monkeypatch, across, down):
        self.hosts, self.topology = across * down, topology(across, down)
        metadata = TPUSystemMetadata(CORES * self.hosts, self.hosts, CORES, self.topology, ())
        library = tpu_context.tpu_system_metadata_lib
        monkeypatch.setattr(library, "_query_tpu_system_metadata", lambda *_, **__: metadata)
        monkeypatch.setattr(runtime, "resolve_tpu", lambda options: Resolver(self.hosts))

    def estimator(self, run, folder, **options):
        plan = runtime.MeshPlan(("",), run.mesh.mesh_shape, run.mesh.layout)
        return runtime.make_estimator(run, folder, plan, tpu=runtime.TpuOptions("name"), **options), plan

    def train(self, run, folder, **options):
        """The graph of training, with the pipeline that main.py has."""
        estimator, plan = self.estimator(run, folder, **options)
        built = []

        def keep(spec, worker_hooks, hooks, *_):
            # as Estimator does it before it starts a session
            tf.add_to_collection(tf.GraphKeys.LOSSES, spec.loss)
            every = [*worker_hooks, *hooks, *spec.training_hooks]
            built.append(Built(tf.get_default_graph(), every, spec.train_op))

        estimator._train_with_estimator_spec = keep
        runtime.train(estimator, run, plan, folder)
        return built[0]

    def evaluate(self, run, folder, sources):
        """The graph of evaluation."""
        estimator, _ = self.estimator(run, folder, eval_sources=len(sources))
        built = []

        def keep(checkpoint_path, scaffold, update_op, eval_dict, all_hooks, output_dir):
            built.append(Built(tf.get_default_graph(), list(all_hooks), values=eval_dict))
            return {"sums": np.ones([len(sources), 5, 5]), "global_step": 1}

        estimator._evaluate_run = keep
        runtime.evaluate(estimator, run, folder, sources)
        return built[0]
