"""A TPU that is looked for: what the machine, its TensorFlow and Google's API say, in one line where it is not."""

import os
import socket
import subprocess

import pytest

from gpt_neo.cli import doctor
from gpt_neo.config import load_config
from gpt_neo.runtime import tpu
from tests.conftest import ROOT
from tests.runtime.fake_cloud import attach_chips, cloud


@pytest.fixture
def chips(tmp_path, monkeypatch):
    """This machine has four chips of a v3."""
    monkeypatch.setattr(tpu, "PCI", attach_chips(tmp_path / "pci", 4))
    monkeypatch.delenv("TPU_LOAD_LIBRARY", raising=False)


@pytest.fixture
def training(world, command, capsys):
    """Training with --tpu: (status, lines of errors)."""
    path = world.config("tpu_train", mesh_shape="x:4,y:2", layout="batch:x", train_batch_size=8)

    def call(name):
        status = command("--model", path, "--tpu", name)
        assert not os.path.exists(os.path.join(load_config(path).training.model_path, "checkpoint"))
        return status, capsys.readouterr().err.splitlines()

    return call


def test_this_tensorflow_cannot_run_a_tpu_and_says_so():
    assert tpu.missing_kernels() == list(tpu.KERNELS)


def test_chips_are_counted_by_their_pci_numbers(tmp_path, monkeypatch):
    for number, device, name in [(0, "", ""), (4, "0x0027", "v2 or v3"), (8, "0x0063", "v5e")]:
        monkeypatch.setattr(tpu, "PCI", attach_chips(tmp_path / f"of_{number}", number, device))
        assert tpu.attached_chips() == [name] * number


def test_local_without_a_tpu_is_one_line(training, monkeypatch, tmp_path):
    monkeypatch.setattr(tpu, "PCI", str(tmp_path))
    assert training("local") == (
        2,
        ["error: --tpu local: this machine has no TPU chip; call on a TPU VM, or give the TPU's name"],
    )


def test_local_without_kernels_names_the_wheel(training, chips, monkeypatch, tmp_path):
    wheel = tmp_path / "tensorflow-2.15.1-cp310-cp310-linux_x86_64.whl"
    wheel.touch()
    monkeypatch.setattr(tpu, "WHEELS", str(tmp_path / "tensorflow-2.15*.whl"))
    status, (line,) = training("local")
    assert status == 2 and line.endswith(f"; pip install --force-reinstall --no-deps {wheel}")
    assert "this TensorFlow has no kernels for TPUs (none of _ConfigureDistributedTPU, " in line


def test_local_whose_cores_are_taken_is_one_line(training, chips, monkeypatch):
    """With kernels: TPUEstimator itself finds no core here."""
    monkeypatch.setattr(tpu, "missing_kernels", list)
    monkeypatch.setenv("TPU_LOAD_LIBRARY", "0")
    assert "TPU_LOAD_LIBRARY=0 keeps TensorFlow away" in training("local")[1][-1]
    monkeypatch.delenv("TPU_LOAD_LIBRARY")
    status, lines = training("local")
    assert status == 2 and lines[-1].startswith("error: --tpu: TensorFlow finds no core there; look whether")


def line_of(name):
    """Doctor's line."""
    options = doctor.CloudOptions(tpu=name)
    doctor.quiet.spare_tpu(name)
    return doctor.tpu_line(options)


def test_doctor_looks_at_chips_and_kernels(chips, monkeypatch):
    assert line_of("local").advice.startswith("pip install --force-reinstall --no-deps /usr/share/tpu/tensorflow-2.15")
    monkeypatch.setattr(tpu, "missing_kernels", list)
    line = line_of("local")
    assert (line.text, line.advice) == ("local: 4 chips of TPU v2 or v3, and a TensorFlow with kernels for it", "")


def test_a_name_is_looked_up_and_its_own_tpu_spared(monkeypatch):
    monkeypatch.delenv("TPU_LOAD_LIBRARY", raising=False)
    with cloud(monkeypatch) as fake, socket.create_server(("127.0.0.1", 0)) as worker:
        port = worker.getsockname()[1]
        hosts = [{"ipAddress": "127.0.0.1", "port": port}, {"ipAddress": "10.0.0.2", "port": 8470}]
        fake.nodes["neo"] = {"state": "READY", "networkEndpoints": hosts}
        fake.nodes["away"] = {"state": "CREATING"}
        resolver = tpu.resolve_tpu(tpu.TpuOptions("neo"))
        assert resolver.cluster_spec().as_dict() == {"worker": [f"127.0.0.1:{port}", "10.0.0.2:8470"]}
        assert fake.asked[-1][0].startswith("/v1/projects/project/locations/zone-a/nodes/neo")
        assert fake.asked[-1][1] == "Bearer secret"
        with pytest.raises(
            tpu.TpuError, match='--tpu away: cannot be reached: TPU "away" is not yet ready; state: "CR'
        ):
            tpu.resolve_tpu(tpu.TpuOptions("away"))
        with pytest.raises(tpu.TpuError, match="--tpu none: cannot be reached: .*; check name, --tpu_zone and"):
            tpu.resolve_tpu(tpu.TpuOptions("none", zone="zone-a", project="project"))
        try:
            assert line_of("neo").text == f"neo: grpc://127.0.0.1:{port} answers"
            assert os.environ["TPU_LOAD_LIBRARY"] == "0"
            os.environ["TPU_LOAD_LIBRARY"] = "1"
            assert line_of("neo").advice.startswith("unset TPU_LOAD_LIBRARY")
        finally:
            del os.environ["TPU_LOAD_LIBRARY"]


def test_without_googles_client_the_extra_is_named(training, monkeypatch):
    real = tpu.importlib.util.find_spec
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None if name == "oauth2client" else real(name))
    monkeypatch.setenv("TPU_LOAD_LIBRARY", "0")
    assert training("neo") == (
        2,
        [
            "error: --tpu neo: oauth2client not installed, to look the name up with; "
            "pip install -c constraints.txt -e '.[tpu]'"
        ],
    )


@pytest.mark.parametrize(
    "wheel, more, wanted",
    [
        ("", ["HASHED=yes"], "--require-hashes --only-binary :all: -r requirements.txt"),
        ("", ["HASHED="], " -e '.[plot,fast]'"),
        ("/a/tf.whl", [], "/a/tf.whl -e '.[plot,fast,tpu]'"),
    ],
)
def test_setting_up_takes_the_tensorflow_of_a_tpu_vm(wheel, more, wanted, tmp_path):
    command = ["make", "-n", "setup", f"VENV={tmp_path}", f"TPU_WHEEL={wheel}", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert wanted in done.stdout
