"""`python -m gpt_neo doctor`: each line is ok, or wrong with what to do."""

import importlib.metadata
import re
import socket
import threading

import pytest

from gpt_neo.__main__ import main
from gpt_neo.cli import doctor, quiet


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(quiet, "filter_native_stderr", lambda: None)

    def call(*argv):
        status = main(["doctor", *map(str, argv)])
        captured = capsys.readouterr()
        assert captured.err == ""
        return status, captured.out

    return call


def test_a_machine_that_is_fine(run, trained, tmp_path):
    status, out = run("--model", trained, "--path", tmp_path)
    assert status == 0 and out.endswith("all is well\n"), out
    for subject, text in [
        ("python", r"3\.\d+"),
        ("packages", r"\d+ of those that gpt_neo names are here"),
        ("import", "work together"),
        ("memory", r"available; training trained on one device takes about \d+ KB"),
        ("disk", "10 checkpoints take"),
        ("devices", r"\d+ CPU cores?, 0 GPUs"),
        ("access", r"dataset 'small', key 'path': [^:]*: 3 files, listed"),
        ("access", r"--path .*: listed, written, replaced, read, deleted"),
    ]:
        assert re.search(rf"^ok     {subject} +.*{text}", out, re.M), (subject, out)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said_with_what_to_do(run, world, monkeypatch):
    versions = {"numpy": "2.3.0", "tensorflow": "2.16.1"}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    monkeypatch.setattr(doctor, "available_memory", lambda: 1000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    world.dataset_config("nowhere_there", path="/nowhere/x_*.tfrecords")
    status, out = run("--model", world.config("ill", datasets=["nowhere_there"], model_path="/proc/x/run"))
    assert status == 1
    for line, todo in [
        ("tensorflow 2.16.1 is outside <2.16,>=2.15.1", "pip install 'tensorflow==2.15.1'"),
        ("memory     1 KB available; training ill on one", "lower train_batch_size"),
        ("disk       1 KB free for /proc/x/run; 10 ch", "lower keep_checkpoints"),
        ("key 'path': no records match '/nowhere/x_*.tfrecords'", "correct the path"),
        ("model_path '/proc/x/run' cannot be written", "correct the path"),
    ]:
        assert re.search(rf"^wrong  .*{re.escape(line)}.*\n +what to do: .*{re.escape(todo)}", out, re.M), (line, out)
    assert re.search(r"^\d+ of these lines needs? something done$", out, re.M)


def test_a_config_whose_data_is_not_there_yet(run, world, capsys):
    path = world.config("dataless", datasets=["not_made"])
    status, out = run("--model", path)
    assert status == 1 and re.search(
        r"^wrong  data       dataset 'not_made' has no config\n +what to do: .*prepare", out, re.M
    )
    assert out.count("\nwrong") > 1 or "one of these lines needs something done" in out
    assert main(["plan", str(path)]) == 0
    assert "epoch     not_made: there is no dataset config of this name" in capsys.readouterr().out


def test_records_that_nobody_has_made_are_no_trouble_of_the_network(run, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: real(name) + ("+cpu" if name == "numpy" else ""))
    status, out = run("--model", "gpt3_125M", "--set", "model_path=/tmp/none")
    assert "numpy" not in out, "a build of the version that was tested"
    line = "access     dataset 'pile', key 'path': gs://YOUR_BUCKET/pile/train_*.tfrecords is a placeholder"
    todo = "make records of your texts, and name them:\n +gpt-neo prepare .*\n +--set datasets=mine.json\n"
    assert status == 1 and re.search(rf"^wrong  {re.escape(line)}\n +what to do: {todo}", out, re.M), out


def test_nothing_is_made_for_a_look(run, world, tmp_path):
    below = tmp_path / "runs"
    config = world.config("not_trained_yet", model_path=str(below / "a" / "b"))
    status, out = run("--model", config, "--path", tmp_path / "typo" / "deeper")
    assert f"wrong  access     --path {tmp_path}/typo/deeper: no such folder\n" in out
    assert f"ok     access     model_path {below}/a/b, which a training makes in {tmp_path}: listed, written" in out
    assert status == 1 and not any(tmp_path.iterdir())


def test_a_tpu(run, monkeypatch):
    status, out = run("--tpu", "colab")
    assert status == 1 and "wrong  tpu        --tpu colab: COLAB_TPU_ADDR is not set" in out
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("COLAB_TPU_ADDR", address)
        assert f"ok     tpu        colab: grpc://{address} answers" in run("--tpu", "colab")[1]
    assert f"{address} does not answer" in run("--tpu", "colab")[1]
    monkeypatch.setattr(doctor, "FIND", 0.05)
    monkeypatch.setattr(doctor, "reach_tpu", lambda args: threading.Event().wait(1))
    assert "gave no answer in 0 seconds" in run("--tpu", "mine")[1]
