"""spmd-run on virtual devices of JAX, stopped and started again."""

import glob
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import latest_checkpoint
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config import load_config
from gpt_neo.errors import LOST
from gpt_neo.mtf_compat import tf
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def spmd_run(path, *argv):
    """A process with its output in a file beside the config."""
    output = open(f"{path}.txt", "w+", encoding="utf-8")
    command = [sys.executable, "-u", "-m", "gpt_neo", "spmd-run", "--model", path, *argv]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT), output.name


def values_of(path, step):
    bundle = Bundle(os.path.join(load_config(path).training.model_path, f"model.ckpt-{step}"))
    return {name: bundle.read(name).tobytes() for name in bundle.names()}


def worker_of(pid):
    """The process of a run's devices; the run has a second child, which filters the words of native code."""
    children = open(f"/proc/{pid}/task/{pid}/children", encoding="ascii").read().split()
    (found,) = (int(one) for one in children if "worker.py" in open(f"/proc/{one}/cmdline", encoding="utf-8").read())
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(world, jax_python, number):
    mesh = {
        "mesh_shape": "x:4,y:2",
        "layout": "batch:x,heads:y,slots:x",
        "precision": "bfloat16",
        "res_dropout": 0.1,
        "embed_dropout": 0.1,
        "opt_name": "adam",
    }
    stopped = world.config(f"stopped_{number}", train_steps=5000, **mesh)
    process, output = spmd_run(stopped, "--steps_per_checkpoint", "1000")
    log = os.path.join(load_config(stopped).training.model_path, "train_log.jsonl")
    while not os.path.exists(log):
        assert process.poll() is None, open(output, encoding="utf-8").read()
    worker = worker_of(process.pid)
    process.send_signal(number)
    assert process.wait(120) == 128 + number
    text = open(output, encoding="utf-8").read()
    step = int(re.search(rf"stopped   by {number.name}: step (\d+) is saved. The same command goes on", text)[1])
    assert 10 <= step < 5000 and "Traceback" not in text and not os.path.exists(f"/proc/{worker}")

    last = step + 7
    whole = world.config(f"not_stopped_{number}", train_steps=5000, **mesh)
    for path in (stopped, whole):
        process, output = spmd_run(path, "--set", f"train_steps={last}")
        assert process.wait(300) == 0, open(output, encoding="utf-8").read()
    assert f"steps {step:,} to {last:,}" in open(f"{stopped}.txt", encoding="utf-8").read()
    assert values_of(stopped, last) == values_of(whole, last)
    rows = [
        [json.loads(line) for line in open(os.path.join(load_config(path).training.model_path, "train_log.jsonl"))]
        for path in (stopped, whole)
    ]
    assert [(row["step"], row["loss"], row["lr"]) for row in rows[0]] == [
        (row["step"], row["loss"], row["lr"]) for row in rows[1]
    ]
    (events, *_) = glob.glob(os.path.join(load_config(whole).training.model_path, "events.out.tfevents.*"))
    tags = {value.tag for event in tf.train.summary_iterator(events) for value in event.summary.value}
    assert {"loss", "learning_rate"} <= tags


def test_devices_that_die_end_the_run_with_a_line(world, jax_python):
    path = world.config("devices_die", train_steps=5000, mesh_shape="x:2", layout="batch:x")
    process, output = spmd_run(path, "--steps_per_checkpoint", "5")
    log = os.path.join(load_config(path).training.model_path, "train_log.jsonl")
    while not os.path.exists(log):
        assert process.poll() is None, open(output, encoding="utf-8").read()
    worker = worker_of(process.pid)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(120) == LOST
    text = open(output, encoding="utf-8").read()
    assert "error: the JAX process ended: " in text and "Traceback" not in text, text
    step = step_of(latest_checkpoint(load_config(path).training.model_path))
    assert step >= 5 and step % 5 == 0 and values_of(path, step)["global_step"][0] == step
