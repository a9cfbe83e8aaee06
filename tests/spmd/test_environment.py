"""The environment of the worker: told clearly where it cannot be made, and every JAX that it may have runs a step."""

import glob
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.__main__ import main
from gpt_neo.errors import DeviceError
from gpt_neo.spmd import environment
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.environment import worker_environment
from gpt_neo.spmd.gpus import H100
from gpt_neo.spmd.program import export_train_step, initial_values
from tests.spmd.tools import make_batches, make_run, steps_on_one_device


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Commands that would make an environment in a folder of its own; none is run."""
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setenv(environment.FOLDER, str(tmp_path))
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environment.subprocess, "run", run)
    return commands


def test_a_python_that_is_given_is_taken(monkeypatch):
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    assert environment.worker_python() == environment.worker_python(platform="gpu") == sys.executable
    monkeypatch.setenv(environment.VARIABLE, "/no/such/python")
    with pytest.raises(DeviceError, match="GPT_NEO_SPMD_PYTHON is '/no/such/python'"):
        environment.worker_python()


def test_a_failed_installation_is_told(made, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "looking\nERROR: no matching distribution found for jax\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(DeviceError, match="no matching distribution found for jax"):
        environment.worker_python()
    assert not (environment.environment_folder() / ".complete").exists()


def test_an_environment_for_a_gpu_has_cuda_and_is_another_one(made, monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(environment, "GPU_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setattr(environment.Path, "touch", lambda self: None)
    plain, cuda = environment.worker_python(), environment.worker_python(platform="gpu")
    assert os.path.dirname(plain) != os.path.dirname(cuda)
    lists = [[word for word in command if word.endswith(".txt")] for command in made if "pip" in command]
    assert lists == [[str(environment.CONSTRAINTS)], [str(environment.CONSTRAINTS), str(environment.CUDA)]]
    pins = environment.CUDA.read_text().splitlines()
    for pin in environment.CONSTRAINTS.read_text().splitlines():
        if pin.startswith("jaxlib=="):  # its plugin goes with it
            assert (
                pin.replace("jaxlib", "jax-cuda12-plugin") in pins and pin.replace("jaxlib", "jax-cuda12-pjrt") in pins
            )


def test_to_compile_for_a_gpu_none_is_needed(made, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "GPU_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setattr(environment.Path, "touch", lambda self: None)
    environment.worker_python(platform="gpu", present=False)
    assert str(environment.CUDA) in made[-1]


def test_without_a_gpu_nothing_is_downloaded_for_one(made, monkeypatch, tmp_path, world, capsys):
    monkeypatch.setattr(environment, "GPU_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    path = world.config("on_gpu", mesh_shape="x:1", train_steps=1)
    assert main(["train", path, "--backend", "xla", "--platform", "gpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"error: --platform gpu: this machine has no NVIDIA GPU (none of {tmp_path / 'nvidia0'})"
    assert made == []


def test_a_python_too_old_for_jax_takes_another(made, monkeypatch, tmp_path):
    assert environment.environment_maker() == [sys.executable, "-m", "venv"]
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 18))
    there = []
    monkeypatch.setattr(environment.shutil, "which", lambda name: name if name in there else None)
    with pytest.raises(DeviceError, match="JAX needs Python 3.10 or later, this is .*: install one, or uv"):
        environment.environment_maker()
    there.append("uv")
    assert environment.environment_maker() == ["uv", "venv", "--seed", "--python", "3.11"]
    there.append("python3.12")
    assert environment.environment_maker() == ["python3.12", "-m", "venv"]
    failed = subprocess.CompletedProcess([], 1, "", "No module named ensurepip")
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **options: failed)
    assert environment.environment_maker()[0] == "uv"


def test_a_gpu_gives_the_memory_that_verdicts_count_on(monkeypatch):
    """JAX takes three quarters of it, unless it is told."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    share = worker_environment("gpu", 1)["XLA_PYTHON_CLIENT_MEM_FRACTION"]
    assert float(share) * H100.memory == H100.usable
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert worker_environment("gpu", 1)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


def test_only_a_tpu_asks_the_cloud_what_it_is(monkeypatch):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert [worker_environment(platform, 8).get("TPU_SKIP_MDS_QUERY") for platform in ("cpu", "gpu", "tpu")] == [
        "1",
        "1",
        None,
    ]


# (Python, JAX): the oldest and the newest that the worker knows, what Python 3.10 gets, and one between.
VERSIONS = [("3.10", "0.6.0"), ("3.10", "0.6.2"), ("3.11", "0.7.2"), ("3.11", "0.8.3"), ("3.11", "0.10.2")]


def jax_of(python, version):
    """A Python with that JAX in the folder of environments, made once; None where there is no such Python."""
    known = [f"python{python}", *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{python}.*/bin/python"))]
    maker = next((path for path in known if shutil.which(path) and works(path)), None)
    if maker is None:
        return None
    folder = environment.environment_folder().parent / f"jax-{version}-python-{python}"
    if not (folder / ".complete").exists():
        subprocess.run([maker, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", f"jax=={version}", f"jaxlib=={version}"]
        subprocess.run(pip, check=True)
        (folder / ".complete").touch()
    return str(folder / "bin" / "python")


def works(path):
    """Whether a Python can be called and makes environments; pyenv's names may be switched off."""
    return subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """(program, what it starts from, a batch, the loss and weights that TensorFlow has for it)."""
    run = make_run(
        tmp_path_factory.mktemp("step"), mesh_shape="x:2", layout="batch:x", n_layer=1, attention_types="global"
    )
    program, (batch,) = export_train_step(run), make_batches(run, 1)
    values = dict(initial_values(program))
    return program, values, batch, *steps_on_one_device(run, values, [batch])


@pytest.mark.slow
@pytest.mark.parametrize("python, version", VERSIONS)
def test_a_step_on_every_jax(step, python, version):
    program, values, batch, (loss,), weights = step
    jax_python = jax_of(python, version)
    if jax_python is None:
        pytest.skip(f"no Python {python}")
    with Devices(program, jax_python) as devices:
        for name, value in values.items():
            devices.put(name, value)
        assert devices.step_ahead({"step": np.int32(0), **batch}) == (True, {})
        np.testing.assert_allclose(devices.settle()["loss"], [loss] * 2, atol=1e-5)
        assert devices.settle() == {}
        for name, value in weights.items():
            np.testing.assert_allclose(devices.get(name), value, atol=1e-5, err_msg=name)
