"""Training on devices of another process is main.py's training: what is kept, logged, and survives. The devices here
are stood in for; tests/spmd/test_run.py and test_resume.py have real ones."""

import glob
import json
import os
import re
import signal
import time

import pytest

from gpt_neo.__main__ import main
from gpt_neo.checkpoint.best import read_best
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import read_state
from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli import quiet, spmd_jobs
from gpt_neo.config import load_config
from gpt_neo.errors import DeviceError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.watch import Watch
from gpt_neo.spmd import parts
from tests.conftest import folder_of
from tests.fake_gcs import CLIENT, fake_gcs
from tests.forks import forks
from tests.namespaces import need_mounts
from tests.runtime.test_full_disk import FILL, MOUNTED
from tests.spmd.fakes import VARIABLES, FakeDevices, install

# In a process of its own: `train --backend xla` in place of main.py, on devices that are none.
FAKED = """
import os, sys
from gpt_neo.__main__ import main as door
from tests.spmd.fakes import FakeDevices, install
install()
main = lambda words: door(["train", "--backend", "xla", *words])
{more}
status = main(argv)
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


@pytest.fixture
def spmd(monkeypatch, capsys):
    """train --backend xla in this process: (exit status, what it wrote)."""
    install(monkeypatch.setattr)
    monkeypatch.setattr(quiet, "filter_native_stderr", lambda: None)

    def run(*argv):
        status = main(["train", "--backend", "xla", *map(str, argv)])
        written = capsys.readouterr()
        return status, written.out + written.err

    return run


@pytest.fixture(scope="module")
def whole(world, server):
    """What an undisturbed run of eight steps ends with."""
    path = world.config("spmd_whole", train_steps=8)
    assert server.run("--model", path, before=FAKED.format(more=""))[0] == 0
    return values_of(folder_of(path), 8)


def values_of(folder, step):
    bundle = Bundle(os.path.join(folder, f"model.ckpt-{step}"))
    return {name: bundle.read(name).tobytes() for name in bundle.names()}


def steps_in(folder):
    return sorted(int(re.search(r"(\d+)\.index", path)[1]) for path in glob.glob(os.path.join(folder, "*.index")))


class HeldOutRecords:
    """As an `Evaluation`: losses by step."""

    def __init__(self, batches):
        assert batches == 4  # of the 5 asked for: there are no more records

    def evaluate(self, checkpoint, progress):
        progress(1, 1)
        loss = {3: 4.0, 6: 1.0, 9: 2.0, 10: 3.0}.get(step_of(checkpoint), 9.0)
        numbers = {"loss": loss, "perplexity": loss, "bits_per_byte": None, "bits_per_character": None}
        return {
            "step": step_of(checkpoint),
            **numbers,
            "tokens": 1,
            "records": 1,
            "datasets": [],
            "intervals": {"loss": [loss, loss]},
        }

    def close(self):
        pass


def test_what_a_run_leaves_is_what_main_leaves(world, spmd, monkeypatch):
    monkeypatch.setattr(parts, "AT_ONCE", 100)  # bytes: several parts
    monkeypatch.setattr(spmd_jobs.ProgramsBeside, "held_out", lambda self, sources, batches: HeldOutRecords(batches))
    path = world.config("spmd_kept", train_steps=10, keep_checkpoints=2, eval_steps=5)
    status, text = spmd("--model", path, "--steps_per_checkpoint", 3, "--steps_per_log", 2)
    assert status == 0, text
    folder, (devices,) = folder_of(path), FakeDevices.made
    assert steps_in(folder) == [9, 10] and devices.closed
    stated, listed = read_state(folder)
    assert {os.path.basename(name) for name in listed} == {"model.ckpt-9", "model.ckpt-10"}
    assert os.path.basename(stated) == "model.ckpt-10" and "/" not in open(os.path.join(folder, "checkpoint")).read()
    bundle = Bundle(os.path.join(folder, "model.ckpt-10"))
    assert set(bundle.names()) == {*VARIABLES, "global_step"} and bundle.read("global_step") == 10
    for name in VARIABLES:
        value = bundle.read(name)
        assert value.dtype == devices.held[name].dtype and (value == devices.held[name]).all(), name
    record = json.load(open(os.path.join(folder, "model.ckpt-10.json")))
    assert record["step"] == 10 and record["data"]["records_read"] == 40 and "spike_losses" not in record
    names = set(os.listdir(folder))
    assert not [name for name in names if "temp" in name or "tmp" in name or name.endswith((".meta", ".lock"))]
    assert {name for name in names if name.startswith("model.ckpt-9")} > {"model.ckpt-9.index", "model.ckpt-9.json"}
    rows = [json.loads(line) for line in open(os.path.join(folder, "train_log.jsonl"))]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10] and rows[-1]["tokens_per_second"] > 0
    (events,) = glob.glob(os.path.join(folder, "events.out.tfevents.*"))
    written = [value for event in tf.train.summary_iterator(events) for value in event.summary.value]
    losses, rates = ([v.simple_value for v in written if v.tag == tag] for tag in ("loss", "learning_rate"))
    # beside the rows of the log, those of their steps
    assert losses == pytest.approx([row["loss"] for row in rows])
    assert rates == pytest.approx([0.5 / row["step"] for row in rows])
    lines = [line.split()[0] for line in text.splitlines()]
    assert lines[:6] == ["model", "memory", "training", "devices", "weights", "folder"] and lines[-2:] == [
        "trained",
        "next",
    ]
    with open(os.path.join(folder, "eval_spmd_kept.jsonl"), encoding="utf-8") as handle:
        held_out = [json.loads(line) for line in handle]
    assert [(row["step"], row["loss"]) for row in held_out] == [(3, 4.0), (6, 1.0), (9, 2.0), (10, 3.0)]
    assert read_best(folder).step == 6 and text.count("held out  step") == 4
    status, text = spmd("--model", path)
    assert status == 0 and "nothing to do" in text and len(FakeDevices.made) == 1
    status, text = spmd("--model", path, "--new", "--yes", "--set", "train_steps=1")
    assert status == 0 and steps_in(folder) == [0, 1], text


def test_tasks_are_not_left_out_in_silence(world, spmd, monkeypatch, capsys):
    monkeypatch.setattr(spmd_jobs.ProgramsBeside, "held_out", lambda self, sources, batches: HeldOutRecords(batches))
    path = world.config("spmd_tasks", train_steps=3, eval_steps=5, eval_tasks=["lambada=held.jsonl"])
    said = "eval_tasks (lambada=held.jsonl) are scored with --backend tensorflow"
    status, text = spmd("--model", path)
    assert status == 0 and text.count(said) == 1 and "held out  step 3" in text
    dataset = world.dataset_config("no_held_out", eval_path=None)
    assert main(["eval", path, "--backend", "xla", "--set", f'datasets=["{dataset}"]']) == 2
    assert f"error: {said}, and no dataset has an eval_path" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["lora_rank=2", 'freeze=["wte"]'])
def test_what_trains_only_some_variables_is_refused(world, spmd, key):
    path = world.config("spmd_refused", train_steps=3)
    status, text = spmd("--model", path, "--set", key)
    assert status == 2 and "lora_rank and freeze go with --backend tensorflow" in text and not FakeDevices.made


def test_sigterm_saves_and_the_same_command_goes_on(world, server, whole):
    path = world.config("spmd_terminated", train_steps=500)
    slow = FAKED.format(more="FakeDevices.pause = 0.02")
    child = server.start("--model", path, before=slow)
    folder = folder_of(path)
    child.until(lambda: os.path.exists(os.path.join(folder, "train_log.jsonl")))
    status, text = server.run("--model", path, before=slow)
    assert status == 73 and f"is in use: process {child.pid} on " in text
    child.kill(signal.SIGTERM)
    assert child.wait() == 143, child.text
    step = int(re.search(r"stopped   by SIGTERM: step (\d+) is saved. The same command", child.text)[1])
    assert 10 <= step < 500 and steps_in(folder) == [0, step] and "run.lock" not in os.listdir(folder)
    again = world.config("spmd_whole", train_steps=step + 5)
    for one in (path, again):
        status, text = server.run("--model", one, "--set", f"train_steps={step + 5}", before=FAKED.format(more=""))
        assert status == 0, text
    assert values_of(folder, step + 5) == values_of(folder_of(again), step + 5)
    assert whole["gpt2/wte"] != values_of(folder, step + 5)["gpt2/wte"]


def test_a_signal_before_the_first_step_ends_at_once(world, server):
    path = world.config("spmd_early", train_steps=2)
    more = """
import signal
class Slow(FakeDevices):
    def __init__(self, *given):
        os.kill(os.getpid(), signal.SIGINT)
from gpt_neo.cli import hosts
hosts.Devices = Slow
"""
    status, text = server.run("--model", path, before=FAKED.format(more=more))
    assert status == 130 and "stopped   by SIGINT: before the first step" in text and "Traceback" not in text


KILL = """
import time
def kill(step, fake):
    if step == 7:
        while {wait} and not os.path.exists(fake.path + ".index"):
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
FakeDevices.act = staticmethod(kill)
"""
NEVER_WRITTEN = """
written = FakeDevices.written
FakeDevices.written = lambda self: None if self.step_held == 6 else written(self)
"""


@pytest.mark.parametrize("more, left", [(KILL.format(wait=True), 6), (KILL.format(wait=False) + NEVER_WRITTEN, 3)])
def test_a_kill_costs_what_came_after_the_last_checkpoint(world, server, whole, more, left):
    """Of one that is being written while the run goes on, the one before it is the last."""
    path = world.config(f"spmd_killed_{left}", train_steps=8)
    status, text = server.run("--model", path, "--steps_per_checkpoint", 3, before=FAKED.format(more=more))
    assert status == -signal.SIGKILL and steps_in(folder_of(path)) == list(range(0, left + 1, 3)), text
    status, text = server.run("--model", path, before=FAKED.format(more=""))
    assert status == 0 and f"steps {left} to 8" in text and "that process is gone" in text
    assert values_of(folder_of(path), 8) == whole
    assert not [name for name in os.listdir(folder_of(path)) if "temp" in name]


@pytest.mark.parametrize(
    "diverges, last",
    [(True, 5), (True, 6), (True, 8), (False, 6), *(pytest.param(False, n, marks=pytest.mark.slow) for n in (5, 8))],
)
def test_what_fails_is_one_line(world, spmd, monkeypatch, diverges, last):
    """Nothing of a step that failed is saved: of one between checkpoints, before one, or at the end."""

    def failing(step, fake):
        if step == last - 1 and diverges:
            fake.held["gpt2/wte/adam_m"] = float("nan") + fake.held["gpt2/wte/adam_m"]
        elif step == last - 1:
            raise DeviceError("the JAX process ended: killed")

    monkeypatch.setattr(FakeDevices, "act", staticmethod(failing))
    path = world.config("spmd_failing", train_steps=8)
    status, text = spmd("--model", path, "--steps_per_checkpoint", 2)
    told = f"step {last}: the loss is nan; its batch is records " if diverges else "the JAX process ended: killed\n"
    assert status == 2 and f"error: {told}" in text and "Traceback" not in text, text
    assert steps_in(folder_of(path)) == list(range(0, last, 2)) and FakeDevices.made[0].closed
    spmd("--model", path, "--new", "--yes", "--set", "train_steps=0")


def test_a_checkpoint_that_does_not_fit_is_told_before_devices_are_asked(world, spmd, monkeypatch):
    path = world.config("spmd_unfit", train_steps=4)
    assert spmd("--model", path)[0] == 0
    monkeypatch.setitem(VARIABLES, "gpt2/h0/b", {**VARIABLES["gpt2/h0/b"], "shape": [6]})
    status, text = spmd("--model", path, "--set", "train_steps=6")
    assert status == 2 and "does not fit the config in 1 tensor" in text and len(FakeDevices.made) == 1


def test_devices_that_fail_in_a_save_cost_no_checkpoint(world, spmd, monkeypatch):
    path = world.config("spmd_unsaved", train_steps=8)
    folder = folder_of(path)

    def get(self, name):
        if self.held["gpt2/h0/b"][0] > 2 and len(steps_in(folder)) == 2:
            raise DeviceError("the JAX process ended: killed")
        return self.held[name]

    monkeypatch.setattr(FakeDevices, "get", get)
    status, text = spmd("--model", path, "--steps_per_checkpoint", 2)
    assert status == 2 and text.endswith("error: the JAX process ended: killed\n") and "Traceback" not in text, text
    assert steps_in(folder) == [0, 2] and not [name for name in os.listdir(folder) if "temp" in name]


def test_steps_go_on_while_a_checkpoint_is_written(world, spmd, monkeypatch):
    """The next checkpoint, and the end, wait for it; what an error interrupts is written, too."""
    path, seen = world.config("spmd_beside", train_steps=8), []
    written, lasting = FakeDevices.written, []

    def slowly(self):
        if self.step_held == 3 and len(lasting) < 3:  # until the steps up to the next checkpoint are done
            lasting.append(len(seen) >= 6)
            return None if not lasting[-1] else written(self)
        return written(self)

    monkeypatch.setattr(FakeDevices, "written", slowly)
    monkeypatch.setattr(
        FakeDevices, "act", staticmethod(lambda step, fake: seen.append((step, steps_in(folder_of(path)))))
    )
    assert spmd("--model", path, "--steps_per_checkpoint", 3)[0] == 0
    assert (4, [0]) in seen and steps_in(folder_of(path)) == [0, 3, 6, 8]

    failing = world.config("spmd_beside_failing", train_steps=8)

    def fail(step, fake):
        if step == 3:
            raise DeviceError("the JAX process ended: killed")

    monkeypatch.setattr(FakeDevices, "written", lambda self: time.sleep(0.3) or written(self))
    monkeypatch.setattr(FakeDevices, "act", staticmethod(fail))
    assert spmd("--model", failing, "--steps_per_checkpoint", 3)[0] == 2
    assert steps_in(folder_of(failing)) == [0, 3]


def test_a_full_disk_names_the_path_and_costs_nothing(world, server):
    need_mounts()
    path = world.config("spmd_full", train_steps=8)
    act = FILL.replace("20_000", "6_000")  # these checkpoints are smaller
    mounted = MOUNTED.format(folder=folder_of(path), act=act, mend="os.remove(os.path.join(folder, 'filler'))")
    status, text = server.run("--model", path, "--steps_per_checkpoint", 3, before=FAKED.format(more=mounted))
    first, _, second = text.partition("status ")
    assert status == 0 and second.startswith("2\n") and "Traceback" not in text, text
    assert re.search(
        r"error: .*/model.ckpt-6(\.json)?: cannot be written: .*No space left on device.*Nothing is lost: "
        r"the newest whole checkpoint is that of step 3",
        first,
    ), first
    left = re.search("left (.*)", second)[1]
    assert "temp" not in left and "model.ckpt-6.index" not in left
    assert "steps 3 to 8" in second and "trained   5 steps" in second


def test_a_stall_ends_the_process_of_the_devices_too(tmp_path):
    from gpt_neo.spmd.training import DeviceTraining

    ended = []
    run = load_config(str(config_file(tmp_path)))
    training = DeviceTraining(run, lambda program: None, print)
    watch = Watch(str(tmp_path), leave=ended.append)
    training.devices = FakeDevices(None, "")
    training.devices.kill = lambda: ended.append("killed")
    training.leave(75, watch.leave)
    assert ended == ["killed", 75]


def config_file(folder):
    path = folder / "model.json"
    path.write_text(
        json.dumps(
            {
                "n_head": 2,
                "n_embd": 8,
                "n_layer": 1,
                "n_vocab": 32,
                "n_ctx": 8,
                "lr": 1e-2,
                "lr_decay": "cosine",
                "train_batch_size": 8,
                "train_steps": 10,
            }
        )
    )
    return path


@pytest.mark.slow
def test_a_bucket_with_faults_on_the_way(world, tmp_path, whole):
    need_mounts()
    dataset = {"path": "gs://bucket/data/train_*.tfrecords", "eval_path": "gs://bucket/data/held_*.tfrecords"}
    world.dataset_config("spmd_bucket", **dataset)
    path = world.config(
        "spmd_remote", train_steps=8, datasets=["spmd_bucket"], model_path="gs://bucket/runs/spmd", keep_checkpoints=2
    )
    with fake_gcs(str(tmp_path)) as store, forks(tmp_path, **CLIENT) as runner:
        for record in glob.glob(os.path.join(world.records, "*.tfrecords")):
            store.put(f"bucket/data/{os.path.basename(record)}", open(record, "rb").read())
        store.fail("create", None, None, "503", None, "503")
        for steps in (4, 8):
            status, text = runner.run(
                "--model",
                path,
                "--steps_per_checkpoint",
                2,
                "--set",
                f"train_steps={steps}",
                before=store.before + FAKED.format(more=""),
            )
            assert status == 0, text
        names = [name for name in store.store if name.startswith("bucket/runs/spmd/model.ckpt")]
        assert {re.search(r"ckpt-(\d+)", name)[1] for name in names} == {"6", "8"}, names
        for name in names:
            (tmp_path / os.path.basename(name)).write_bytes(store.store[name][0])
    assert values_of(str(tmp_path), 8) == whole
