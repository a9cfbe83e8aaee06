"""Variables of cores in stacks: run on this machine's processor, which stands in for every core."""

import types

import numpy as np
import pytest

from gpt_neo.mtf_compat import SimdMeshImpl, tf
from gpt_neo.runtime.mesh import TpuPlacement
from gpt_neo.runtime.stacks import make_stacks
from gpt_neo.runtime.train_step import build_train_step
from tests.spmd.tools import make_batches, make_run, steps_on_one_device

CPU = "/device:CPU:0"


@pytest.fixture
def on_cpu(monkeypatch):
    """run -> the placement of its mesh, whose cores are all this processor. The program is that of the first core."""
    monkeypatch.setattr(SimdMeshImpl, "pnum_tensor", property(lambda self: tf.constant(0)))

    def place(run):
        cores = int(np.prod([size for _, size in run.mesh.mesh_shape]))
        return TpuPlacement(
            run.mesh,
            types.SimpleNamespace(
                num_replicas=cores,
                num_hosts=1,
                tpu_host_placement_function=lambda host_id: CPU,
                device_assignment=types.SimpleNamespace(tpu_device=lambda replica: CPU),
            ),
        )

    return place


def slow(**changes):
    return pytest.param(changes, marks=pytest.mark.slow)


OPTIMIZERS = [
    {"opt_name": "adam", "freeze": ["mlp"], "attention_types": [[["global"], 2]]},
    slow(opt_name="adam"),
    slow(opt_name="adamw"),
    slow(opt_name="adafactor", attention_types=[[["linear", "gla"], 1]]),
    slow(opt_name="lion", num_mem_kv=2),
]


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_steps_are_those_of_variables_that_stand_alone(tmp_path, on_cpu, changes):
    run = make_run(tmp_path, mesh_shape="x:1", layout="", **changes)
    batches = make_batches(run, 3)
    with tf.Graph().as_default(), tf.Session() as session:
        fed = {name: tf.placeholder(tf.int32, value.shape) for name, value in batches[0].items()}
        step = build_train_step(fed, run, on_cpu(run))
        (impl,) = step.lowering.mesh_to_impl.values()
        stacks = {id(stack): stack for stack, _ in impl.stacks.values()}.values()
        masters = {v.op.name: v for v in tf.global_variables() if v.op.name != "global_step"}
        # every matrix and vector of a block is in a stack with that of the other block, or with its own slots
        assert len(impl.stacks) > 0.9 * len(masters) and len(stacks) < len(masters) / 4
        session.run([tf.global_variables_initializer(), [v.initializer for v in tf.get_collection("TPU_VAR")]])
        rng = np.random.RandomState(1)
        begin = {n: x + (rng.normal(0, 0.02, x.shape) if x.ndim else 0) for n, x in session.run(masters).items()}
        begin = {n: np.abs(x) if n.endswith(("_v", "vr", "vc")) else x for n, x in begin.items()}
        for name, variable in masters.items():
            variable.load(begin[name].astype(variable.dtype.base_dtype.as_numpy_dtype), session)
        begin = session.run(masters)
        session.run(step.lowering.copy_masters_to_slices())
        losses = [session.run([step.loss, step.train], {fed[n]: b[n] for n in fed})[0] for b in batches]
        assert (session.run(masters["gpt2/wte"]) == begin["gpt2/wte"]).all()  # masters are written by a save alone
        session.run(step.lowering.copy_slices_to_masters())
        got, count = session.run([masters, tf.train.get_global_step()])
    wanted_losses, wanted = steps_on_one_device(run, begin, batches)
    assert count == 3 and set(got) == set(wanted)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-6)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6 * np.abs(value).max() + 1e-12, err_msg=name)


def test_in_bfloat16_a_stack_changes_no_bit(tmp_path, on_cpu, monkeypatch):
    """Against Mesh-TF's own variables, one for each."""
    run = make_run(tmp_path, mesh_shape="x:1", layout="", precision="bfloat16", attention_types=[[["global"], 2]])
    batch, results, begin = make_batches(run, 1)[0], [], {}
    for stacked in (True, False):
        with tf.Graph().as_default(), tf.Session() as session:
            if not stacked:
                monkeypatch.setattr("gpt_neo.runtime.mesh.make_stacks", lambda *_: {})
            fed = {name: tf.placeholder(tf.int32, value.shape) for name, value in batch.items()}
            step = build_train_step(fed, run, on_cpu(run))
            session.run([tf.global_variables_initializer(), [v.initializer for v in tf.get_collection("TPU_VAR")]])
            masters = {v.op.name: v for v in tf.global_variables()}
            begin = begin or session.run(masters)
            for name, variable in masters.items():
                variable.load(begin[name], session)
            session.run(step.lowering.copy_masters_to_slices())
            losses = [session.run([step.loss, step.train], {fed[n]: batch[n] for n in fed})[0] for _ in range(3)]
            session.run(step.lowering.copy_slices_to_masters())
            results.append((losses, session.run(masters)))
    (losses, weights), (wanted_losses, wanted) = results
    assert losses == wanted_losses and losses[0] > losses[-1] and set(weights) == set(wanted)
    assert all((weights[name] == wanted[name]).all() for name in wanted)


def test_masters_go_to_the_cores_and_back(tmp_path, on_cpu):
    """Each core has its slice of every variable, at that variable's place in the stack."""
    run = make_run(tmp_path, mesh_shape="x:2,y:2", layout="heads:y,intermediate_expanded:y,vocab:x")
    # the collectives of the step have no kernel here, and are not run
    config = tf.ConfigProto(graph_options=tf.GraphOptions(place_pruned_graph=True))
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        fed = {name: tf.placeholder(tf.int32, value.shape) for name, value in make_batches(run, 1)[0].items()}
        lowering = build_train_step(fed, run, on_cpu(run)).lowering
        (impl,) = lowering.mesh_to_impl.values()
        cores = {v.op.name: v for v in tf.get_collection("TPU_VAR")}
        masters = {v.op.name: v for v in tf.global_variables() if v.op.name != "global_step"}
        session.run([v.initializer for v in [*cores.values(), *tf.global_variables()]])
        rng = np.random.RandomState(0)
        values = {name: rng.normal(size=v.shape.as_list()).astype(np.float32) for name, v in masters.items()}
        for name, variable in masters.items():
            variable.load(values[name], session)
        session.run(lowering.copy_masters_to_slices())
        held, split = session.run(cores), 0
        for variable in lowering.graph.all_variables:
            if variable.name not in impl.stacks:
                continue
            stack, place = impl.stacks[variable.name]
            for core in range(4):
                first, size = impl.slice_begin(variable.shape, core), impl.slice_shape(variable.shape)
                part = values[variable.name][tuple(slice(a, a + n) for a, n in zip(first, size))]
                (name,) = [name for name in held if name.endswith(f"{stack.joined.name}_slice_{core}")]
                assert (held[name][place] == part).all(), (variable.name, core)
                split += any(first)
        assert split > 20
        session.run([v.initializer for v in masters.values()])
        session.run(lowering.copy_slices_to_masters())
        for name, value in session.run(masters).items():
            assert (value == values[name]).all(), name


def test_no_stack_is_larger_than_allowed(monkeypatch, tmp_path, on_cpu):
    run = make_run(tmp_path, mesh_shape="x:2", layout="heads:x")
    with tf.Graph().as_default():
        fed = {name: tf.placeholder(tf.int32, value.shape) for name, value in make_batches(run, 1)[0].items()}
        lowering = build_train_step(fed, run, on_cpu(run)).lowering
    (impl,) = lowering.mesh_to_impl.values()
    for name, most in (("WHOLE", 3 * 32 * 128), ("SLICE", 3 * 32 * 64)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"gpt_neo.runtime.stacks.{name}", most)
            stacks = make_stacks(lowering.graph, impl, lambda joined: None)
            assert len(stacks) > 20
            for stack, _ in stacks.values():
                size = stack.joined.shape.size if name == "WHOLE" else impl.slice_size(stack.joined.shape)
                assert size <= most and stack.count > 1
