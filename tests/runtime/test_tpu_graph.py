"""The graph that TPUEstimator would send to a TPU, made by TPUEstimator itself for slices of one host and of several:
devices, infeed, batch, host call and hooks. Nothing runs on a core."""

import dataclasses
import glob
import os
import signal
import threading

import numpy as np
import pytest
import tensorflow as tf2

from gpt_neo.checkpoint.saver import RecordListener
from gpt_neo.config import load_config
from gpt_neo.dataprep.readers import natural_key
from gpt_neo.errors import DeviceError
from gpt_neo.inputs.sources import evaluation_sources
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops import kernels
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime import hooks as hooks_module
from gpt_neo.runtime import watch as watch_module
from gpt_neo.runtime.hooks import LoopHook, LoopLength, ProgressLog, SaveHook
from gpt_neo.runtime.mesh import GatheringMesh, mesh_strings
from gpt_neo.runtime.watch import Watch, WatchHook
from tests.conftest import set_clock
from tests.runtime.fake_tpu import CORES, Slice, not_compiled

SLICES = {"v3-8": (1, 1, "x:4,y:2"), "v3-32": (2, 2, "x:16,y:2")}
BATCH = 16


@pytest.fixture(scope="module", params=list(SLICES))
def built(request, world):
    """(name, run, slice, graph) of training."""
    across, down, mesh = SLICES[request.param]
    path = world.config(
        f"tpu_{request.param}",
        mesh_shape=mesh,
        layout="batch:x,heads:y",
        train_batch_size=BATCH,
        iterations=10,
        shuffle_input_filenames=False,
        train_steps=40,
        n_layer=1,
        attention_types="global",
    )
    run = load_config(path)
    with pytest.MonkeyPatch.context() as patch:
        slice_ = Slice(patch, across, down)
        watch = Watch(run.training.model_path)
        made = slice_.train(run, run.training.model_path, watch=watch, steps_per_checkpoint=20)
        made.watch = watch
        yield request.param, run, slice_, made
    tf.enable_control_flow_v2()


def assignment_of(made):
    """[cores, 4]: where in the topology each core of the program lies, in the order of the program's numbers."""
    (metadata,) = made.ops("TPUReplicateMetadata")
    return np.array(metadata.get_attr("device_assignment")).reshape(metadata.get_attr("num_replicas"), 4)


def mesh_of(run):
    """Mesh-TF's own arithmetic."""
    return GatheringMesh(*mesh_strings(run.mesh.mesh_shape, run.mesh.layout))


def test_every_core_is_in_the_program_once_and_neighbours_are_near(built):
    name, run, slice_, made = built
    places = assignment_of(made)
    assert len(places) == CORES * slice_.hosts
    wanted = {tuple(core) for host in slice_.topology.device_coordinates for core in host}
    assert {tuple(place) for place in places} == wanted
    # mesh dimension y, the last one, is the two cores of a chip; Mesh-TF counts along it first
    mesh = mesh_of(run)
    for core, place in enumerate(places):
        assert mtf.pnum_to_processor_coordinates(mesh.shape, core) == [core // 2, core % 2]
        assert (place[:3] == places[core - core % 2][:3]).all() and place[3] == core % 2


def test_each_core_is_told_its_number(built):
    _, _, _, made = built
    (numbers,) = [op for op in made.ops("TPUReplicatedInput") if "pnum_constants" in op.name]
    told = [tf.make_ndarray(value.op.get_attr("value")).item() for value in numbers.inputs]
    assert told == list(range(len(assignment_of(made))))


def test_sums_go_over_rows_and_columns_of_the_mesh(built):
    _, _, _, made = built
    count = len(assignment_of(made))
    along_y = [[core, core + 1] for core in range(0, count, 2)]
    along_x = [list(range(y, count, 2)) for y in (0, 1)]
    groups = [tf.make_ndarray(op.inputs[1].op.get_attr("value")).tolist() for op in made.ops("CrossReplicaSum")]
    assert along_y in groups and along_x in groups
    assert all(sorted(map(sorted, group)) in (along_y, along_x, [list(range(count))]) for group in groups)


def test_slices_lie_on_their_cores_and_masters_on_the_hosts(built):
    name, run, slice_, made = built
    places = assignment_of(made)
    variables = {op.name: op.device for op in made.ops("VarHandleOp")}
    masters = {name: device for name, device in variables.items() if name.startswith("gpt2/") and "_slice_" not in name}
    assert len(masters) > 10
    assert set(masters.values()) == {f"/job:worker/task:{host}/device:CPU:0" for host in range(slice_.hosts)}
    for core, place in enumerate(places):
        task = slice_.topology.task_ordinal_at_coordinates(place)
        ordinal = slice_.topology.tpu_device_ordinal_at_coordinates(place)
        mine = {device for name, device in variables.items() if name.endswith(f"_slice_{core}")}
        assert mine == {f"/task:{task}/device:TPU:{ordinal}"}
    # a variable of every core for those of one shape together
    assert len([name for name in variables if "_slice_" in name]) < len(masters) * len(places) / 3


@pytest.mark.slow  # variables of the cores, which made it grow so, are counted above
def test_another_layer_costs_the_same_on_any_slice(world, monkeypatch):
    """A graph that grew by a variable a core was 0.6 GB for 1.3B on 256 cores: TensorFlow ends at 2."""
    grown = []
    for across in (1, 2):
        cores, sizes = CORES * across, []
        for layers in (1, 2):
            changes = {"n_layer": layers, "attention_types": [[["global"], layers]], "train_batch_size": cores // 2}
            path = world.config(
                f"tpu_deep_{cores}", mesh_shape=f"x:{cores // 2},y:2", layout="batch:x,heads:y", **changes
            )
            run = load_config(path)
            made = Slice(monkeypatch, across, 1).train(run, run.training.model_path)
            sizes.append(made.graph.as_graph_def().ByteSize())
        grown.append(sizes[1] - sizes[0])
    assert grown[1] < 1.2 * grown[0] < 500_000, grown


def test_each_host_feeds_each_of_its_cores_once(built):
    name, run, slice_, made = built
    queues = made.ops("InfeedEnqueueTuple")
    places = assignment_of(made)
    assert len(queues) == len(places)
    fed = {(op.device, op.get_attr("device_ordinal")) for op in queues}
    assert fed == {
        (f"/job:worker/task:{host}/device:CPU:0", core) for host in range(slice_.hosts) for core in range(CORES)
    }
    for core, op in enumerate(queues):  # that of core n feeds core n
        task = slice_.topology.task_ordinal_at_coordinates(places[core])
        assert op.device == f"/job:worker/task:{task}/device:CPU:0"
        assert op.get_attr("device_ordinal") == slice_.topology.tpu_device_ordinal_at_coordinates(places[core])
        assert op.get_attr("dtypes") == [tf.int32, tf.int32]
        assert [tf.TensorShape(shape).as_list() for shape in op.get_attr("shapes")] == [[BATCH, 32]] * 2
    (dequeue,) = made.ops("InfeedDequeueTuple")
    assert dequeue.get_attr("dtypes") == [tf.int32, tf.int32]
    assert [output.shape.as_list() for output in dequeue.outputs] == [[BATCH, 32]] * 2


def test_all_hosts_are_fed_from_one_pipeline_on_the_first(built):
    _, _, _, made = built
    (following,) = made.ops("IteratorGetNext")
    assert following.device == "/job:worker/task:0/device:CPU:0"
    for op in made.ops("InfeedEnqueueTuple"):
        assert [tensor.op for tensor in op.inputs] == [following, following]


def records_of(run):
    """Tokens of every record in the order of a run that does not shuffle."""
    pattern = run.datasets[0][1].path
    paths = sorted(glob.glob(pattern), key=natural_key)
    examples = [tf.train.Example.FromString(record) for path in paths for record in tf.io.tf_record_iterator(path)]
    return np.array([example.features.feature["text"].int64_list.value for example in examples])


def batches_of(made, step, count):
    """What the pipeline of the graph hands out when a session begins at a step; on this machine."""
    definition = made.graph.as_graph_def()
    for node in definition.node:
        node.device = ""
    (maker,) = made.ops("MakeIterator")
    structure = {name: tf.TensorSpec([BATCH, 32], tf.int32) for name in ("inputs", "labels")}
    with tf.Graph().as_default(), tf.Session() as session:
        part = tf.graph_util.extract_sub_graph(definition, [maker.inputs[0].op.name, "global_step"])
        source, counter = tf.import_graph_def(part, name="", return_elements=[maker.inputs[0].name, "global_step:0"])
        data = tf.data.experimental.from_variant(source, structure)
        iterator = tf.data.make_initializable_iterator(data)
        following = iterator.get_next()
        session.run(tf.raw_ops.AssignVariableOp(resource=counter, value=tf.constant(step, tf.int64)))
        session.run(iterator.initializer)
        return [session.run(following) for _ in range(count)]


@pytest.mark.parametrize("step", [0, 3])
def test_the_cores_together_read_the_batch_in_order_and_no_row_twice(built, step):
    name, run, slice_, made = built
    records, mesh = records_of(run), mesh_of(run)
    dims = mtf.Shape([mtf.Dimension("batch", BATCH), mtf.Dimension("sequence", 32)])
    for number, batch in enumerate(batches_of(made, step, 2), step):
        wanted = records[[(number * BATCH + row) % len(records) for row in range(BATCH)]]
        assert batch["inputs"].dtype == batch["labels"].dtype == np.int32
        # every core is given all of it, and takes its own rows
        taken = {}
        for core in range(mesh.size):
            first, size = mesh.slice_begin(dims, core), mesh.slice_shape(dims)
            assert first[1] == 0 and size == [BATCH // dict(run.mesh.mesh_shape)["x"], 32]
            rows = slice(first[0], first[0] + size[0])
            place = mtf.pnum_to_processor_coordinates(mesh.shape, core)[0]
            taken.setdefault(place, []).append([batch["inputs"][rows], batch["labels"][rows]])
        assert all(np.array_equal(one, other) for one, other in taken.values())  # along y
        together = np.concatenate([np.stack(taken[place][0]) for place in sorted(taken)], 1)
        np.testing.assert_array_equal(together, [wanted[:, :-1], wanted[:, 1:]])


def test_the_host_call_writes_what_the_first_core_says(built):
    _, _, _, made = built
    (sent,) = made.ops("OutfeedEnqueueTuple")
    assert [tensor.shape.as_list() for tensor in sent.inputs] == [[1], [1], [1]]
    assert [tensor.dtype for tensor in sent.inputs] == [tf.int64, tf.float32, tf.float32]
    writes = made.ops("WriteSummary")
    assert {op.device for op in writes} == {"/job:worker/task:0/device:CPU:0"}
    names = [tf.make_ndarray(op.inputs[3].op.get_attr("value")).item() for op in writes]
    assert names == [b"loss", b"learning_rate"]
    # the number of a step is read once the step is counted
    number = sent.inputs[0].op.inputs[0].op
    assert number.type == "Identity" or number.type == "ReadVariableOp"
    seen, left = set(), [number]
    while left:
        op = left.pop()
        if op not in seen:
            seen.add(op)
            left += [*op.control_inputs, *(tensor.op for tensor in op.inputs)]
    assert any(op.type == "AssignAddVariableOp" for op in seen)


def test_hooks_restore_report_watch_and_save_last(built):
    _, run, _, made = built
    kinds = [type(hook) for hook in made.hooks]
    places = [kinds.index(kind) for kind in (mtf.MtfRestoreHook, LoopHook, LoopLength, WatchHook, SaveHook)]
    assert places == sorted(places) and [kind.__name__ for kind in kinds].index("_TPUStopAtStepHook") < places[2]
    assert (made.hooks[places[2]].every, made.hooks[places[2]].last) == (20, 40)
    assert places == sorted(places) and places[-1] == len(kinds) - 1
    saver = made.hooks[-1]
    assert [type(one) for one in saver._listeners] == [mtf.MtfCheckpointSaverListener, RecordListener]
    assert saver._timer._every_steps == 20
    (written,) = made.graph.get_collection(tf.GraphKeys.SAVERS)
    names = {variable.op.name for variable in written._var_list}
    assert "gpt2/wte" in names and "global_step" in names and not any("_slice_" in name for name in names)


def test_sigint_asks_for_the_end_although_tpuestimator_lets_it_kill(built):
    _, _, _, made = built
    before = signal.getsignal(signal.SIGINT)
    with made.watch as watch:
        killer = next(hook for hook in made.hooks if type(hook).__name__ == "InstallSignalHandlerHook")
        for hook in made.hooks:
            if hook is killer or isinstance(hook, WatchHook):
                hook.before_run(None)
        assert signal.getsignal(signal.SIGINT) == watch.on_signal
    assert signal.getsignal(signal.SIGINT) == before


def test_progress_is_told_of_the_last_step_of_a_loop(tmp_path):
    told, watch = [], Watch(str(tmp_path))
    log = ProgressLog(40, 8, str(tmp_path), log_every=0)
    with tf.Graph().as_default():
        step = tf.train.get_or_create_global_step()
        loop = tf.assign_add(step, 10)
        with tf.control_dependencies([loop]):
            loss = 100 / tf.cast(tf.identity(loop), tf.float32)
        tf.add_to_collection(tf.GraphKeys.LOSSES, loss)
        hook = LoopHook(lambda before: tf.cast(before, tf.float32) / 100, log, told.append, watch)
        with tf.train.MonitoredSession(hooks=[hook]) as session:
            for _ in range(2):
                session.run(loop)
    assert [(progress.step, progress.loss) for progress in told] == [(10, 10.0), (20, 5.0)]
    assert [progress.rate for progress in told] == [pytest.approx(0.09), pytest.approx(0.19)]
    assert told[1].tokens_per_second > 0 and watch.step == 20 and not os.listdir(tmp_path)


class Clock:
    """A clock that a session's runs move on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    "seconds, longest, every, lengths",
    [
        (60.0, 500, 5000, [1] * 8),  # a step of a minute: nothing can be heard in between
        (8.0, 500, 5000, [1, 1, 3, 3]),
        (0.05, 500, 1000, [1, 1, 500, 498, 500, 500, 500]),  # saved at 1000 and at 2000
        (0.01, 70, 5000, [1, 1, 70, 70]),
    ],
)
def test_a_tpu_is_heard_of_every_half_minute(monkeypatch, tmp_path, seconds, longest, every, lengths):
    """With TPUEstimator's own hook, which wants `iterations` steps, and a step whose time is known."""
    from tensorflow_estimator.python.estimator.tpu import tpu_estimator

    clock, ran, watch = Clock(), [], Watch(str(tmp_path), stall_minutes=5)
    set_clock(monkeypatch, watch_module, clock)

    def steps(count):
        ran.append(int(count))
        clock.now += seconds * count + (400 if len(ran) == 1 else 0)  # the first one compiles
        if len(ran) > 1:
            assert clock.now - watch.alive <= max(seconds, hooks_module.LOOP_SECONDS)
        return np.int64(count)

    counter = tpu_estimator.util_lib.IterationsPerLoopCounter(longest, "count")
    with tf.Graph().as_default():
        step = tf.train.get_or_create_global_step()
        stop = tpu_estimator._TPUStopAtStepHook(counter, final_step=sum(lengths))
        loop = tf.numpy_function(steps, [tpu_estimator._create_or_get_iterations_per_loop()], tf.int64)
        made = tf.assign_add(step, loop)
        hooks = [stop, LoopLength(longest, every, sum(lengths), clock), WatchHook(watch)]
        with tf.train.MonitoredSession(hooks=hooks) as session:
            while not session.should_stop():
                session.run(made)
    assert ran == lengths


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_float32_model_is_multiplied_in_float32(world, monkeypatch, precision):
    """While TPUEstimator's session runs; and what the compiler then makes of a product."""
    run = load_config(world.config("tpu_exact", mesh_shape="x:8", layout="batch:x", train_batch_size=8))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, precision=precision))
    texts = []

    def compiled():
        product = tf2.function(lambda x, y: tf.matmul(x, y), jit_compile=True)
        texts.append(product.experimental_get_compiler_ir(tf.ones([2, 2]), tf.ones([2, 2]))(stage="hlo"))

    def session(*_, **__):
        thread = threading.Thread(target=compiled)  # where no graph is being built
        thread.start()
        thread.join()

    slice_ = Slice(monkeypatch, 1, 1)
    estimator, plan = slice_.estimator(run, run.training.model_path)
    estimator.train = session  # all of it: building the graph, too
    runtime.train(estimator, run, plan, run.training.model_path)
    assert ("operand_precision={highest,highest}" in texts[0]) == (precision == "float32")
    assert tf.config.experimental.tensor_float_32_execution_enabled()


def slow(**changes):
    return pytest.param(changes, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "layout": "batch:x,heads:y,slots:x",
            "tokens_per_mb_per_replica": 32,
            "train_batch_size": 16,
            "recompute_grad": True,
            "recompute_keep": "products",
            "precision": "bfloat16",
            "n_layer": 1,
            "attention_types": "local",
        },
        slow(layout="batch:x,embd:y", tokens_per_mb_per_replica=32, train_batch_size=16),
        slow(layout="batch:x,memory_length:y", attn_dropout=0.1),
        slow(layout="batch:x,heads:y", attention_types=[[["linear", "gla"], 1]], res_dropout=0.1),
        slow(layout="batch:x,experts:x", moe_layers=[1], moe_params={"moe_num_experts": 4, "moe_hidden_size": 16}),
        slow(layout="batch:x,loss_sequence:y,intermediate_expanded:y", opt_name="lion", mlp_glu=True, rotary_emb=True),
        slow(layout="batch:x,vocab:y", opt_name="adafactor"),
    ],
)
def test_what_a_model_may_be_made_of_is_compiled_as_a_whole(world, monkeypatch, changes):
    monkeypatch.setattr(kernels, "WORTH_COMPILING", 1)
    run = load_config(world.config("tpu_variant", **{"mesh_shape": "x:4,y:2", "train_batch_size": 8, **changes}))
    made = Slice(monkeypatch, 1, 1).train(run, run.training.model_path)
    cores = made.on_cores()
    assert len(cores) > 300 and not [op.name for op in cores if "PartitionedCall" in op.type]
    assert not_compiled(cores) == []
    assert all(output.shape.is_fully_defined() for op in cores for output in op.outputs)
    assert len(made.ops("InfeedEnqueueTuple")) == CORES


def test_the_look_for_kernels_finds_what_has_none():
    with tf.Graph().as_default():
        words, double, fine = tf.strings.as_string(1.0), tf.constant(1.0, tf.float64) + 1, tf.constant(1.0) + 1
        assert [kind for kind, _ in not_compiled([words.op, double.op, fine.op])] == ["AsString", "AddV2"]


def test_evaluation_gives_whole_losses_of_a_split_batch(world, trained, monkeypatch):
    run = load_config(
        world.config(
            "tpu_evaluated",
            mesh_shape="x:4,y:2",
            layout="batch:x,heads:y,vocab:y",
            model_path=load_config(trained).training.model_path,
            eval_batch_size=8,
        )
    )
    made = Slice(monkeypatch, 1, 1).evaluate(run, run.training.model_path, evaluation_sources(run))
    queues = made.ops("InfeedEnqueueTuple")
    assert len(queues) == CORES
    shapes = [tf.TensorShape(shape).as_list() for shape in queues[0].get_attr("shapes")]
    assert sorted(shapes) == [[8], [8], [8, 32], [8, 32]]
    sent = {tuple(tensor.shape.as_list()) for op in made.ops("OutfeedEnqueueTuple") for tensor in op.inputs}
    assert (8, 5) in sent and (8,) in sent
    assert any(isinstance(hook, mtf.MtfRestoreHook) for hook in made.hooks)
    assert not_compiled(made.on_cores()) == []


def test_a_mesh_of_another_size_is_refused(world, monkeypatch):
    run = load_config(world.config("tpu_small", mesh_shape="x:2,y:2", layout="batch:x"))
    with pytest.raises(DeviceError, match="mesh_shape multiplies to 4 cores, the TPU has 8: --set mesh_shape="):
        Slice(monkeypatch, 1, 1).train(run, run.training.model_path)


def test_a_layout_that_does_not_divide_is_refused(world, command, monkeypatch, capsys):
    Slice(monkeypatch, 1, 1)
    path = world.config("tpu_uneven", mesh_shape="x:4,y:2", layout="batch:x,heads:y", train_batch_size=6)
    assert command("--model", path, "--tpu", "name") == 2
    assert "splits batch of 6 into 4 parts" in capsys.readouterr().err
