"""Runs that are stopped, killed, stalled or fed with bad batches: what they say, and that they go on."""

import glob
import json
import os
import re
import shutil
import signal
import threading
import time

import pytest

from gpt_neo.config import load_config
from gpt_neo.dataprep.readers import natural_key
from gpt_neo.dataprep.records import count_records
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime import watch as watching
from gpt_neo.runtime.watch import SIGNALS, Watch
from tests.conftest import folder_of

# Steps that take a while, so that a signal comes between two of them.
SLOW = """
import time
from gpt_neo.runtime.hooks import ProgressHook
after_run = ProgressHook.after_run
def slow(self, context, values):
    time.sleep(0.02)
    after_run(self, context, values)
ProgressHook.after_run = slow
"""
# The loss of step K + 1 times a factor; its gradients as well.
FACTOR = """
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime import train_step
mean_loss = train_step.mean_loss
def changed(*given):
    at = tf.equal(tf.cast(tf.train.get_global_step(), tf.int32), {steps})
    factor = tf.where(tf.reduce_any(at), {factor}, 1.0)
    loss = mean_loss(*given)
    return loss * mtf.import_tf_tensor(loss.mesh, factor, mtf.Shape([]))
train_step.mean_loss = changed
"""
# A signal where the first step is built. What it raises does not always arrive: compiled code of TensorFlow drops it,
# or makes an error of its own of it.
EARLY = """
import os, signal
from gpt_neo.runtime import model_fn
build = model_fn.build_train_step
def interrupted(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        {then}
    return build(*arguments)
model_fn.build_train_step = interrupted
"""
NAN = "float('nan')"


def config_of(world, name, **changes):
    """The world's config of one block: nothing here is a matter of depth."""
    return world.config(name, n_layer=1, attention_types="global", **changes)


@pytest.fixture(scope="module")
def whole(world, server):
    """Weights of an undisturbed run of six steps."""
    path = config_of(world, "whole", train_steps=6)
    assert server.run("--model", path)[0] == 0
    return weights_of(folder_of(path), 6)


def weights_of(folder, step):
    reader = tf.train.load_checkpoint(os.path.join(folder, f"model.ckpt-{step}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def check_equal(some, other):
    assert set(some) == set(other)
    for name, value in some.items():
        assert value.tobytes() == other[name].tobytes(), name


def records_of(path, step):
    """(file, record) of a batch of four, read in turn."""
    pattern = load_config(path).datasets[0][1].path
    places = [(p, n) for p in sorted(glob.glob(pattern), key=natural_key) for n in range(count_records(p))]
    return [places[(step * 4 + row) % len(places)] for row in range(4)]


def test_sigterm_saves_and_the_same_command_goes_on(world, server):
    path = config_of(world, "terminated", train_steps=2000, lr_decay_end=2000)
    folder = folder_of(path)
    child = server.start("--model", path, before=SLOW)
    child.until(lambda: os.path.exists(os.path.join(folder, "train_log.jsonl")))
    lock = json.load(open(os.path.join(folder, "run.lock")))
    assert lock["pid"] == child.pid
    status, text = server.run("--model", path)
    assert status == 73
    assert re.search(
        rf"error: model_path '.*' is in use: process {child.pid} on \S+ has held it for \d+ seconds, last "
        r"sign of life \d+ seconds ago",
        text,
    )
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    step = int(re.search(r"stopped   by SIGTERM: step (\d+) is saved. The same command", child.text)[1])
    assert 10 <= step < 2000 and os.path.exists(os.path.join(folder, f"model.ckpt-{step}.index"))
    assert not os.path.exists(os.path.join(folder, "run.lock"))
    before = os.stat(os.path.join(folder, f"model.ckpt-{step}.index"))

    child = server.start("--model", path, before=SLOW)
    child.until(lambda: f"steps {step} to 2,000" in child.text and "first step" in child.text)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    # what was read is not written again: a kill in the middle would cost it
    after = os.stat(os.path.join(folder, f"model.ckpt-{step}.index"))
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    status, text = server.run("--model", path, before=EARLY.format(then="raise"))
    assert status == 143 and f"the lock of process {child.pid} on " in text
    assert "is taken over: that process is gone" in text and f"steps {step} to 2,000" in text


@pytest.mark.parametrize("then", ["raise", "raise TypeError", "pass"])
def test_a_signal_before_the_first_step_ends_at_once(world, server, then):
    path = config_of(world, "early", train_steps=2)
    status, text = server.run("--model", path, before=EARLY.format(then=then))
    assert status == 143 and "stopped   by SIGTERM: before the first step" in text and "Traceback" not in text
    assert "run.lock" not in os.listdir(folder_of(path))


@pytest.fixture
def watch(tmp_path):
    """Of a run with something to save, in this process."""
    with Watch(str(tmp_path)) as found:
        found.running = True
        yield found


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_second_ctrl_c_ends_a_run_at_once_and_no_other_signal(watch, first):
    try:
        for number in (first, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        pytest.fail("no signal but a second Ctrl-C ends it at once")
    assert watch.signal == first and watch.raised is None
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert watch.signal == first
    watch.raised = None


def test_what_nohup_has_a_process_ignore_stays_so_and_all_is_as_before_in_the_end(tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Watch(str(tmp_path)) as watch:
            watch.running = True
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.signal is None and signal.getsignal(signal.SIGTERM) == watch.on_signal
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as TPUEstimator does
            watch.listen()
            assert signal.getsignal(signal.SIGINT) == watch.on_signal
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_only_what_is_no_step_for_minutes_is_a_stall(tmp_path, monkeypatch):
    """Not what is known to take its time; from its end on the time counts anew."""
    monkeypatch.setattr(watching, "POLL", 0.01)
    left, stalled = [], threading.Event()
    watch = Watch(str(tmp_path), stall_minutes=0.1 / 60, leave=lambda status: left.append(status) or stalled.set())
    with watch.waiting():
        time.sleep(0.3)
    assert watch.stall_seconds == 0.1 and not left
    with watch:
        for _ in range(10):
            watch.mark()
            time.sleep(0.03)
        with watch.apart():
            watch.alive -= 60  # as if it had taken so long
        time.sleep(0.05)
        assert not left
        assert stalled.wait(20) and left == [75]
    assert "no step for 0 seconds, before the first step" in (tmp_path / "stall.txt").read_text()


def test_a_loss_that_is_no_number(world, server):
    path = config_of(world, "diverged", train_steps=8)
    status, text = server.run("--model", path, "--steps_per_checkpoint", 2, before=FACTOR.format(steps=[5], factor=NAN))
    assert status == 2 and "Traceback" not in text
    (file, first), (_, last) = records_of(path, 5)[0], records_of(path, 5)[-1]
    assert f"error: step 6: the loss is nan; its batch is records {first}-{last} of {file}; " in text
    assert "the last good checkpoint is model.ckpt-4. Lower lr" in text


@pytest.mark.slow
def test_a_checkpoint_with_nan_is_passed_over(world, server, whole):
    path = config_of(world, "poisoned", train_steps=6)
    before = """
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.optim import build
clip = build.clipped
def poison(grads, norm, limit):
    at = tf.equal(tf.cast(tf.train.get_global_step(), tf.int32), 3)
    factor = mtf.import_tf_tensor(grads[0].mesh, tf.where(at, float('nan'), 1.0), mtf.Shape([]))
    return [grad * factor for grad in clip(grads, norm, limit)]
build.clipped = poison
"""
    status, text = server.run("--model", path, "--steps_per_checkpoint", 1, before=before)
    assert status == 2 and "step 5: the loss is nan; " in text
    assert re.search(r"the last good checkpoint is model.ckpt-3 \(model.ckpt-4 is not: gpt2/.* has .* NaN OR INF", text)
    status, text = server.run("--model", path)
    assert status == 0 and "steps 3 to 6" in text
    check_equal(weights_of(folder_of(path), 6), whole)


def test_spikes_are_skipped_and_decided_alike_after_a_restart(world, server):
    before = """
from gpt_neo.runtime import spikes
spikes.ENOUGH = 4
""" + FACTOR.format(steps=[5, 7], factor=f"tf.where(at[0], 50.0, {NAN})")
    path = config_of(world, "spiky", train_steps=9)
    argv = ["--model", path, "--skip_spikes", "--steps_per_checkpoint", 1, "--set", "keep_checkpoints=20"]
    status, text = server.run(*argv, before=before)
    assert status == 0, text
    folder = folder_of(path)
    (file, first), (_, last) = records_of(path, 5)[0], records_of(path, 5)[-1]
    assert f"batch skipped (records {first}-{last} of {file})" in text and text.count("batch skipped") == 2
    for step, skipped in ((5, True), (6, False), (7, True), (8, False)):
        old, new = weights_of(folder, step), weights_of(folder, step + 1)
        assert (old.pop("global_step"), new.pop("global_step")) == (step, step + 1)
        assert all((old[name] == new[name]).all() for name in old) == skipped, step
    log = [json.loads(line) for line in open(os.path.join(folder, "watch_log.jsonl"))]
    assert [(row["event"], row["step"], row["loss"] == "nan") for row in log] == [
        ("skipped", 6, False),
        ("skipped", 8, True),
    ]
    kept = [json.load(open(os.path.join(folder, f"model.ckpt-{step}.json"))) for step in (8, 9)]
    assert [(len(record["spike_losses"]), record["spikes_skipped"]) for record in kept] == [(6, 1), (7, 0)]

    again = config_of(world, "spiky_again", train_steps=9)
    argv[1], there = again, folder_of(again)
    os.makedirs(there)
    for name in glob.glob(os.path.join(folder, "model.ckpt-4.*")):  # all that a run of four steps leaves to go on from
        shutil.copy(name, there)
    with open(os.path.join(there, "checkpoint"), "w", encoding="utf-8") as handle:
        handle.write('model_checkpoint_path: "model.ckpt-4"')
    status, text = server.run(*argv, before=before)
    assert status == 0 and "steps 4 to 9" in text
    check_equal(weights_of(folder, 9), weights_of(there, 9))


@pytest.mark.slow
def test_skipping_changes_no_bit_where_there_is_no_spike(world, server, whole):
    path = config_of(world, "guarded", train_steps=6)
    assert server.run("--model", path, "--skip_spikes")[0] == 0
    check_equal(weights_of(folder_of(path), 6), whole)


@pytest.mark.slow
def test_many_spikes_in_a_row_end_the_run(world, server):
    path = config_of(world, "hopeless", train_steps=40)
    before = FACTOR.format(steps=list(range(2, 40)), factor="float('inf')")
    status, text = server.run("--model", path, "--skip_spikes", "--steps_per_checkpoint", 5, before=before)
    assert status == 2 and "step 22: the loss is inf, and 20 batches in a row were skipped" in text
    assert "the last good checkpoint is model.ckpt-0 (model.ckpt-20 is not: 18 batches in a row before it were" in text
    assert text.rstrip().endswith("or set gradient_clipping")
    status, text = server.run("--model", path)
    assert status == 0 and "steps 0 to 40" in text, "the weights before all that"


def test_a_stall_shows_where_it_hangs(world, server, whole):
    path = config_of(world, "stalled", train_steps=6)
    before = """
import time
from gpt_neo.runtime.hooks import ProgressHook
after_run = ProgressHook.after_run
def hang_in_the_fourth(self, context, values):
    after_run(self, context, values)
    if self.watch.step == 4:
        self.watch.stall_seconds = 0.5
        time.sleep(100)
ProgressHook.after_run = hang_in_the_fourth
"""
    status, text = server.run("--model", path, "--steps_per_checkpoint", 3, before=before)
    assert status == 75
    for where in (text, open(os.path.join(folder_of(path), "stall.txt")).read()):
        assert "in hang_in_the_fourth" in where and "no step for 0 seconds, after step 4" in where
    status, text = server.run("--model", path)
    assert status == 0 and "steps 3 to 6" in text and "that process is gone" in text
    check_equal(weights_of(folder_of(path), 6), whole)


def test_a_terminal_that_goes_away_saves(world, server):
    """SIGHUP, with a standard output that takes nothing any more; the run's own log says so."""
    path = config_of(world, "hung_up", train_steps=2000, lr_decay_end=2000)
    folder = folder_of(path)
    full = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
    child = server.start("--model", path, before=SLOW + full)
    child.until(lambda: os.path.exists(os.path.join(folder, "train_log.jsonl")))
    child.kill(signal.SIGHUP)
    assert child.wait() == 129 and "Traceback" not in child.text
    assert [name for name in os.listdir(folder) if name.endswith(".index")] != ["model.ckpt-0.index"]
    (row,) = [json.loads(line) for line in open(os.path.join(folder, "watch_log.jsonl"))]
    assert (row["event"], row["text"]) == ("note", "standard output is lost: No space left on device")
