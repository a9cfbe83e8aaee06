"""A mesh over processes with gRPC servers on loopback: the losses of one process; one is killed, the run resumes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from gpt_neo.config.cluster import Cluster, Task, cluster_of
from gpt_neo.config.schema import MeshConfig
from gpt_neo.errors import LOST, DeviceError, HostLost
from gpt_neo.runtime import cluster as module
from gpt_neo.runtime.cluster import Lead, Pulse, answers, plan_cluster, serve, wait_for
from tests.conftest import ROOT

STEPS, KILLED_AT = 8, 4

# One process imports TensorFlow; each task is a fork of it. A job is {"argv", "clusters": [TF_CONFIG or null], "log"}.
SCRIPT = """
import json, os, signal, sys, time
from gpt_neo.cli import quiet
from gpt_neo.cli.common import run_command
from gpt_neo.cli.main import main
from gpt_neo.runtime import model_fn

quiet.filter_native_stderr = lambda: None

def task(job, config, number):
    output = os.open("%s.%d" % (job["log"], number), os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(output, 1); os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1); sys.stderr = os.fdopen(2, "w", buffering=1)
    if config:
        os.environ["TF_CONFIG"] = json.dumps(config)
    status = run_command(main, job["argv"])
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(status)

def rows(path):
    return open(path).read().count("\\n") if os.path.exists(path) else 0

for job in json.load(sys.stdin):
    pids = []
    for number, config in enumerate(job["clusters"]):
        pid = os.fork()
        if not pid:
            task(job, config, number)
        pids.append(pid)
    if job.get("kill"):
        while rows(job["kill"]["log"]) < job["kill"]["rows"] and os.waitpid(pids[0], os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        os.kill(pids[job["kill"]["task"]], job["kill"].get("signal", signal.SIGKILL))
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tf_configs(count):
    """TF_CONFIG of every task."""
    jobs = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    return [{"cluster": jobs, "task": {"type": "worker", "index": i}} for i in range(count)]


@pytest.fixture(scope="module")
def outcome(world, tmp_path_factory):
    """Statuses, logs and output of: one process; four, of which one is killed; the same four started again."""
    folder = tmp_path_factory.mktemp("cluster")
    common = {
        "train_steps": STEPS,
        "eval_steps": 1,
        "predict_steps": 1,
        "n_layer": 1,
        "attention_types": [[["global"], 1]],
    }
    one = world.config("one_process", model_path=str(folder / "one"), **common)
    four = world.config(
        "four_processes", model_path=str(folder / "four"), mesh_shape="x:2,y:2", layout="batch:x,heads:y", **common
    )
    flags = ["--steps_per_log", "1", "--steps_per_checkpoint", "2"]
    log = str(folder / "four" / "train_log.jsonl")
    jobs = [
        {"argv": ["--model", one, *flags], "clusters": [None], "log": str(folder / "alone")},
        {
            "argv": ["--model", four, *flags],
            "clusters": tf_configs(4),
            "log": str(folder / "killed"),
            "kill": {"log": log, "rows": KILLED_AT, "task": 2},
        },
        {"argv": ["--model", four, *flags], "clusters": tf_configs(4), "log": str(folder / "again")},
    ]
    statuses = run(jobs)
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    return folder, statuses, texts


def run(jobs):
    """Exit statuses of the tasks of every job."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def losses(path):
    return [(row["step"], row["loss"]) for row in map(json.loads, open(path, encoding="utf-8"))]


@pytest.mark.slow
def test_four_processes_give_the_losses_of_one(outcome):
    folder, statuses, texts = outcome
    assert statuses[0] == [0] and statuses[2] == [0] * 4, texts
    alone = dict(losses(folder / "one" / "train_log.jsonl"))
    assert sorted(alone) == list(range(1, STEPS + 1)) and alone[STEPS] < alone[1] - 0.1
    together = losses(folder / "four" / "train_log.jsonl")
    assert {step for step, _ in together} == set(alone)
    for step, loss in together:  # those before the kill, and those of the run that went on
        assert loss == pytest.approx(alone[step], abs=1e-4), step
    held_out = []
    for name in ("one", "four"):
        rows = map(json.loads, next((folder / name).glob("eval_*.jsonl")).read_text().splitlines())
        held_out.append({row["step"]: row["loss"] for row in rows})
    assert list(held_out[0]) == list(range(2, STEPS + 1, 2)) and list(held_out[1]) == list(held_out[0])
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-4)
    written = [sorted(path.name[-5:] for path in (folder / name).glob("predictions_*")) for name in ("one", "four")]
    assert written[0] == written[1] and len(written[0]) == len(held_out[0])
    assert "/job:worker/task:3/device:CPU:0" in texts["again.0"] and "lending   the devices" in texts["again.3"]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_cleanly_and_it_resumes(outcome):
    _, statuses, texts = outcome
    assert statuses[1] == [LOST, LOST, -signal.SIGKILL, LOST], texts
    lost = texts["killed.0"]
    assert "note      worker 2 (127.0.0.1:" in lost and "is gone: the run ends" in lost and "Traceback" not in lost
    assert f"with status {LOST}" in texts["killed.1"]
    start = int(texts["again.0"].partition("steps ")[2].split()[0])
    assert start and start % 2 == 0 and start >= KILLED_AT - 2
    assert texts["again.2"].splitlines()[-1].endswith("with status 0")


@pytest.mark.slow
def test_a_worker_that_is_asked_to_end_leaves_a_checkpoint(world, tmp_path):
    pytest.importorskip("gpt_neo.runtime.watch")
    path = world.config("asked", model_path=str(tmp_path / "model"), mesh_shape="x:2", train_steps=5000)
    job = {
        "argv": ["--model", path, "--steps_per_log", "1"],
        "clusters": tf_configs(2),
        "log": str(tmp_path / "asked"),
        "kill": {
            "log": str(tmp_path / "model" / "train_log.jsonl"),
            "rows": KILLED_AT,
            "task": 1,
            "signal": signal.SIGTERM,
        },
    }
    assert run([job]) == [[143, 143]]
    reached = max(step for step, _ in losses(tmp_path / "model" / "train_log.jsonl"))
    assert (tmp_path / "model" / f"model.ckpt-{reached}.index").exists() and KILLED_AT <= reached < 5000


def config_of(cluster, **task):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_clusters():
    made = cluster_of(config_of({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, type="worker", index=1))
    assert [str(task) for task in made.tasks] == ["chief 0 (c:1)", "worker 0 (a:1)", "worker 1 (b:1)"]
    assert made.own.address == "b:1" and not made.is_chief and made.chief.device == "/job:chief/task:0"
    assert cluster_of(config_of({"worker": ["a:1", "b:1"]}, type="worker", index=0)).is_chief
    assert cluster_of({}) is None and cluster_of({"TF_CONFIG": "{}"}) is None
    assert cluster_of(config_of({"worker": ["a:1"]}, type="worker", index=0)) is None


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"TF_CONFIG": "{"}, "no JSON object"),
        ({"TF_CONFIG": "[1]"}, "no JSON object"),
        ({"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:2"]}, "task": ["a:1"]}'}, "its task is an object"),
        ({"TF_CONFIG": '{"cluster": {"worker": "ab"}, "task": {}}'}, "each job of its cluster a list"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:²"]}, "task": {}}'}, "expected host:port"),
        (config_of({"worker": ["a:1", "b:1"], "ps": ["c:1"]}, type="worker", index=0), "has the job 'ps'"),
        (config_of({"chief": ["a:1", "b:1"]}, type="chief", index=0), "has 2 chiefs"),
        (config_of({"worker": ["a:1", "b"]}, type="worker", index=0), "worker 1 at 'b'; expected host:port"),
        (config_of({"worker": ["a:1", "b:65536"]}, type="worker", index=0), "a port from 1 to 65535"),
        (config_of({"chief": ["a:1"], "worker": ["b:1", "a:1"]}, type="chief", index=0), "chief 0 and worker 1 at a:1"),
        (config_of({"worker": ["a:1", "b:1"]}, type="worker", index=2), "its cluster has worker 0, worker 1"),
        (config_of({"worker": 3}, type="worker", index=2), "no JSON object"),
    ],
)
def test_wrong_clusters_are_refused(environment, message):
    with pytest.raises(DeviceError, match=message):
        cluster_of(environment)


def test_a_machine_that_does_not_come_is_named():
    (port,) = free_ports(1)
    notes = []
    with pytest.raises(HostLost, match=f"no answer from worker 1 \\(127.0.0.1:{port}\\) in 0 s"):
        wait_for([Task("worker", 1, f"127.0.0.1:{port}")], 0.01, notes.append)


def test_a_closed_port_is_told_from_silence(monkeypatch):
    (port,) = free_ports(1)
    task = Task("worker", 1, f"127.0.0.1:{port}")
    assert answers(task) is False
    with socket.create_server(("127.0.0.1", port)):
        assert answers(task) is True
    now = [0.0]
    pulse = Pulse([task], lambda: now[0])
    now[0] = module.REFUSED - 1
    assert pulse.look() is None
    now[0] = module.REFUSED + 1
    assert pulse.look() == task
    monkeypatch.setattr(module, "answers", lambda task: None)
    assert pulse.look() is None
    now[0] = module.SILENT + 1
    assert pulse.look() == task


@pytest.fixture(scope="module")
def pair():
    """Two tasks in this process: (cluster of the chief, of the worker), their servers."""
    tasks = tuple(Task("worker", i, f"127.0.0.1:{port}") for i, port in enumerate(free_ports(2)))
    clusters = [Cluster(tasks, task) for task in tasks]
    return clusters, [module.start_server(cluster, ["/device:CPU:0", "/device:CPU:1"]) for cluster in clusters]


def test_devices_of_all_tasks(pair):
    (chief, _), (server, _) = pair
    two = MeshConfig(mesh_shape=(("x", 2),), layout=(("batch", "x"),))
    plan = plan_cluster(two, chief, server, [])
    assert plan.devices == ("/job:worker/task:0/device:CPU:0", "/job:worker/task:1/device:CPU:0")
    assert plan.target == server.target and plan.chief == "/job:worker/task:0"
    with pytest.raises(DeviceError, match="x:2 multiplies to 2 devices, the machines of TF_CONFIG have 4: "):
        plan_cluster(two, chief, server, ["/device:CPU:0", "/device:CPU:1"])
    with pytest.raises(DeviceError, match="--gpu_ids names /device:GPU:0; worker 0 .* has /device:CPU:0"):
        plan_cluster(two, chief, server, ["/device:GPU:0"])


def test_a_worker_that_is_asked_to_end_tells_the_chief_which_tells_all(pair):
    (chief, worker), servers = pair
    interrupted, asked, notes, left = threading.Event(), threading.Event(), [], []
    statuses = []

    def work():
        statuses.append(serve(worker, servers[1], 10, notes.append, asked))

    thread = threading.Thread(target=work, daemon=True)
    with Lead(chief, servers[0], notes.append, left.append, interrupted.set) as context:
        thread.start()
        asked.set()
        assert interrupted.wait(20)
        context.status = 143
    thread.join(20)
    assert statuses == [143] and not left
    assert any("is asked to end, which ends the run for all" in note for note in notes)


def test_a_port_in_use_is_one_line(pair):
    (chief, _), _ = pair
    with pytest.raises(DeviceError, match="worker 0 .*: cannot listen on that port"):
        module.start_server(chief, [])


def test_gone_chiefs_end_workers(pair, monkeypatch):
    (_, worker), servers = pair
    monkeypatch.setattr(module.Pulse, "look", lambda self: self.alive and next(iter(self.alive)))
    notes = []
    assert serve(worker, servers[1], 10, notes.append, threading.Event()) == LOST
    assert "is gone: this task ends too. Start the same commands again: a training goes on" in notes[0]
