"""The environment of the worker: told clearly where it cannot be made."""

import subprocess
import sys

import pytest

from gpt_neo.errors import DeviceError
from gpt_neo.spmd import environment


def test_a_python_that_is_given_is_taken(monkeypatch):
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    assert environment.worker_python() == sys.executable
    monkeypatch.setenv(environment.VARIABLE, "/no/such/python")
    with pytest.raises(DeviceError, match="GPT_NEO_SPMD_PYTHON is '/no/such/python'"):
        environment.worker_python()


def test_a_failed_installation_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setenv(environment.FOLDER, str(tmp_path))
    monkeypatch.setattr(environment.venv, "create", lambda folder, with_pip: folder.mkdir(parents=True))
    done = subprocess.CompletedProcess([], 1, "", "looking\nERROR: no matching distribution found for jax\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(DeviceError, match="no matching distribution found for jax"):
        environment.worker_python()
    assert not (environment.environment_folder() / ".complete").exists()
