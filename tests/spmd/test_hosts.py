"""Several processes with one exported program over the devices of all: they stand for several machines."""

import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import find_latest
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config import load_config
from gpt_neo.errors import AGAIN, LOST
from gpt_neo.mtf_compat import tf
from tests.conftest import ROOT
from tests.spmd.test_resume import worker_of

pytestmark = pytest.mark.slow
LAYOUT = {"mesh_shape": "x:4,y:2", "layout": "batch:x,heads:y,slots:x", "opt_name": "adam"}
KILLS = int(os.environ.get("GPT_NEO_HOST_KILLS", "20"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group:
    """The same command in several processes. texts: what each wrote."""

    def __init__(self, folder, count, *words):
        self.files = [open(os.path.join(folder, f"host_{rank}.txt"), "w+", encoding="utf-8") for rank in range(count)]
        where = ["--backend", "xla", "--coordinator", f"127.0.0.1:{free_port()}", "--hosts", str(count)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-u", "-m", "gpt_neo", *words, *where, "--rank", str(rank)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
            for rank, file in enumerate(self.files)
        ]

    def wait(self, seconds=300):
        """The exit status of each."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(1.0, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    @property
    def texts(self):
        return [open(file.name, encoding="utf-8").read() for file in self.files]

    def until(self, there):
        """Wait for something while all run."""
        while not there():
            assert all(process.poll() is None for process in self.processes), "\n".join(self.texts)
            time.sleep(0.02)


def run(folder, count, *words):
    """What each of so many hosts wrote; all end well."""
    group = Group(folder, count, *map(str, words))
    assert group.wait() == [0] * count, "\n".join(group.texts)
    return group.texts


def begun(folder, *words):
    """Two hosts that have come together."""
    group = Group(folder, 2, *words)
    group.until(lambda: "lending" in group.texts[1])
    return group


def alone(*words):
    done = subprocess.run(
        [sys.executable, "-m", "gpt_neo", *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def folder_of(path):
    return load_config(path).training.model_path


def rows_of(path):
    return [json.loads(line) for line in open(os.path.join(folder_of(path), "train_log.jsonl"), encoding="utf-8")]


def values_of(path, step):
    bundle = Bundle(os.path.join(folder_of(path), f"model.ckpt-{step}"))
    return {name: bundle.read(name) for name in bundle.names()}


def check_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def whole(world, jax_python):
    """A run of one process, evaluated and sampled by one."""
    path = world.config("hosts_one", train_steps=20, **LAYOUT)
    alone("train", path, "--backend", "xla", "--steps_per_checkpoint", 10, "--steps_per_log", 1)
    return path


@pytest.mark.parametrize("count", [2, 4])
def test_several_hosts_train_evaluate_and_sample_as_one(world, whole, tmp_path, count):
    path = world.config(f"hosts_{count}", train_steps=20, **LAYOUT)
    texts = run(tmp_path, count, "train", path, "--steps_per_checkpoint", 10, "--steps_per_log", 1)
    assert "running on 8 x cpu" in texts[0] and f"of host 1 of {count} to host 0" in texts[1]
    losses = [[row["loss"] for row in rows_of(p)] for p in (path, whole)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-6)
    check_close(values_of(path, 20), values_of(whole, 20))
    # each host has written its share, and TensorFlow reads the whole
    parts = [os.path.getsize(name) for name in glob.glob(os.path.join(folder_of(path), "model.ckpt-20.data-*"))]
    assert len(parts) == count and max(parts) < 1.5 * sum(parts) / count
    reader = tf.train.load_checkpoint(os.path.join(folder_of(path), "model.ckpt-20"))
    for name, value in values_of(path, 20).items():
        assert (reader.get_tensor(name) == value).all(), name

    run(tmp_path, count, "eval", path)
    alone("eval", whole, "--backend", "xla")
    results = [
        json.loads(open(glob.glob(os.path.join(folder_of(p), "eval_*.jsonl"))[0], encoding="utf-8").readlines()[-1])
        for p in (path, whole)
    ]
    assert abs(results[0]["loss"] - results[1]["loss"]) < 1e-6
    words = ("--prompt", "a b", "--max_tokens", 12, "--seed", 3)
    sampled = run(tmp_path, count, "sample", path, *words)[0]
    by_one = alone("sample", path, "--backend", "xla", *words)
    assert text_of(sampled) == text_of(by_one)


def text_of(output):
    """What was sampled, without what is told beside it."""
    return re.search(r"\n(a b.*?)\n---", output, re.DOTALL)[1]


def test_a_checkpoint_of_two_hosts_is_that_of_any_mesh_and_back(world, whole, tmp_path):
    path = world.config("hosts_any", train_steps=10, **LAYOUT)
    run(tmp_path, 2, "train", path, "--steps_per_checkpoint", 10)
    for number, (change, backend) in enumerate(
        [
            ({"mesh_shape": "x:2,y:4", "layout": "batch:x,vocab:y"}, "xla"),
            ({"mesh_shape": "x:1", "layout": ""}, "xla"),
            ({"mesh_shape": "x:4,y:2"}, "xla"),
            ({"mesh_shape": "x:1", "layout": ""}, "tensorflow"),
        ]
    ):
        other = world.config(f"hosts_any_{number}", **{**LAYOUT, **change, "train_steps": 15})
        copy_run(path, other)
        alone("train", other, "--backend", backend)
        back = world.config(f"hosts_back_{number}", train_steps=20, **LAYOUT)
        copy_run(other, back)
        run(tmp_path, 2, "train", back)
        check_close(values_of(back, 20), values_of(whole, 20))


def copy_run(source, target):
    """Another run begins with the newest checkpoint of one."""
    os.makedirs(folder_of(target))
    prefix = find_latest(folder_of(source)).path
    for name in glob.glob(prefix + ".*"):
        os.link(name, os.path.join(folder_of(target), os.path.basename(name)))


def test_a_signal_on_any_host_saves_for_all_and_the_resumed_run_is_the_same(world, tmp_path):
    stopped = world.config("hosts_stopped", train_steps=5000, res_dropout=0.1, **LAYOUT)
    group = Group(tmp_path, 2, "train", stopped, "--steps_per_checkpoint", "1000", "--steps_per_log", "1")
    log = os.path.join(folder_of(stopped), "train_log.jsonl")
    group.until(lambda: os.path.exists(log))
    group.processes[1].send_signal(signal.SIGTERM)
    status = group.wait()
    assert status == [128 + signal.SIGTERM] * 2, "\n".join(group.texts)
    assert "host 1 is asked to end, which ends" in group.texts[0] and "asking host 0 to end" in group.texts[1]
    step = step_of(find_latest(folder_of(stopped), verify=True).path)
    plain = world.config("hosts_not_stopped", train_steps=5000, res_dropout=0.1, **LAYOUT)
    for path in (stopped, plain):
        run(tmp_path, 2, "train", path, "--set", f"train_steps={step + 5}")
    found, expected = values_of(stopped, step + 5), values_of(plain, step + 5)
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in expected.items()}


@pytest.mark.parametrize("lost", [0, 1, "worker"])
def test_a_host_that_is_lost_ends_the_others(world, tmp_path, lost):
    path = world.config(f"hosts_lost_{lost}", train_steps=100000, **LAYOUT)
    group = Group(tmp_path, 2, "train", path, "--steps_per_checkpoint", "5", "--steps_per_log", "1")
    group.until(lambda: os.path.exists(os.path.join(folder_of(path), "model.ckpt-5.index")))
    pid = group.processes[1].pid if lost == "worker" else group.processes[lost].pid
    if lost == "worker":
        pid = worker_of(pid)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    status = group.wait(90)
    assert time.monotonic() - began < 60
    survivors = [0, 1] if lost == "worker" else [1 - lost]
    assert [status[rank] for rank in survivors] == [LOST] * len(survivors), "\n".join(group.texts)
    said = "host 1: the JAX process ended" if lost == "worker" else f"host {lost} is gone"
    told = group.texts[1 if lost == 0 else 0]
    assert said in told and AGAIN in told and "Traceback" not in "".join(group.texts)
    assert step_of(find_latest(folder_of(path), verify=True).path) >= 5


def test_kills_at_random_moments_lose_nothing(world, whole, tmp_path):
    """One process of a group is killed; the group is started again. The end is that of an undisturbed run."""
    rng = np.random.default_rng(5)
    words = ("--steps_per_checkpoint", "2", "--steps_per_log", "1")
    for name in ("first", "whole"):  # the second one finds the program compiled, as those below do
        path = world.config(f"hosts_{name}", train_steps=20, **LAYOUT)
        group = begun(tmp_path, "train", path, *words)
        began = time.monotonic()
        assert group.wait() == [0, 0]
        seconds = time.monotonic() - began
    expected = {name: value.tobytes() for name, value in values_of(path, 20).items()}
    for number in range(KILLS):
        path = world.config(f"hosts_killed_{number}", train_steps=20, **LAYOUT)
        group = begun(tmp_path, "train", path, *words)
        time.sleep(seconds * rng.uniform(0.0, 1.0))
        rank = int(rng.integers(2))
        group.processes[rank].kill()
        status = group.wait(90)
        assert status[1 - rank] in (0, LOST), "\n".join(group.texts)
        run(tmp_path, 2, "train", path, *words)
        assert {name: value.tobytes() for name, value in values_of(path, 20).items()} == expected
        assert not [name for name in os.listdir(folder_of(path)) if "temp" in name or name.endswith(".hosts")]
