"""The environment of `worker.py`, apart from TensorFlow's: JAX and what a platform needs, made on first use."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

from gpt_neo.errors import DeviceError
from gpt_neo.spmd.gpus import KEPT
from gpt_neo.system import cache_folder

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
CUDA = Path(__file__).with_name("constraints_gpu.txt")
GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # of a machine, a container, Windows: where JAX looks
VARIABLE = "GPT_NEO_SPMD_PYTHON"  # a Python that has JAX already
FOLDER = "GPT_NEO_SPMD_FOLDER"  # where environments are made; default ~/.cache/gpt_neo
OLDEST = (3, 10)  # that JAX has builds for, in the versions that worker.py knows


def worker_python(tell: Callable[[str], None] = lambda line: None, platform: str = "cpu", present: bool = True) -> str:
    """The Python of the environment for a platform; makes it if it is not there yet.

    Args:
      tell: called with one line before something that takes a while.
      present: whether a device of the platform is used, and not only compiled for.

    Raises:
      DeviceError: it cannot be made, with the installer's reason; or a GPU is used, and there is none.
    """
    given = os.environ.get(VARIABLE)
    if given:
        if not shutil.which(given):
            raise DeviceError(f"{VARIABLE} is {given!r}, which cannot be run; unset it to have an environment made")
        return given
    if present and platform == "gpu" and not any(map(os.path.exists, GPU_FILES)):
        raise DeviceError(f"--platform gpu: this machine has no NVIDIA GPU (none of {', '.join(GPU_FILES)})")
    files = [CONSTRAINTS, *([CUDA] if platform == "gpu" else [])]
    folder = environment_folder(files)
    python, done = folder / "bin" / "python", folder / ".complete"
    if done.exists():
        return str(python)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f"{folder.name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it, others wait
            if not done.exists():
                what = "CUDA, 6 GB" if platform == "gpu" else "the TPU compiler"
                tell(f"making an environment for JAX and {what} in {folder} (once, a minute or a few)")
                make_environment(folder, files)
                done.touch()
    except OSError as error:
        raise DeviceError(f"cannot make the JAX environment in {folder}: {error} (set {FOLDER})") from error
    return str(python)


def environment_folder(files: Sequence[Path] = (CONSTRAINTS,)) -> Path:
    """The folder of the environment for these versions and this Python.

    Raises:
      DeviceError: no folder is named, and there is no home folder.
    """
    wanted = b"".join(path.read_bytes() for path in files) + sys.version.encode()
    base = os.environ.get(FOLDER) or cache_folder()
    if not base:
        raise DeviceError(f"no home folder for the JAX environment (HOME is not set); {FOLDER} names a folder")
    return Path(base) / f"spmd-{hashlib.sha256(wanted).hexdigest()[:12]}"


def make_environment(folder: Path, files: Sequence[Path]) -> None:
    """A virtual environment with the packages of some lists.

    Raises:
      DeviceError: they cannot be installed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    lists = [word for path in files for word in ("-r", str(path))]
    for command in ([*environment_maker(), str(folder)], [*install, *lists]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = last_line(result.stderr) or last_line(result.stdout) or f"it ended with {result.returncode}"
            raise DeviceError(f"cannot make the JAX environment in {folder}: {command[0]}: {reason}")


def environment_maker() -> list[str]:
    """A command that makes a virtual environment: with this Python, or where that is too old with another one of the
    machine, or with one that `uv` brings.

    Raises:
      DeviceError: there is none.
    """
    if sys.version_info >= OLDEST:
        return [sys.executable, "-m", "venv"]
    for name in ("python3.13", "python3.12", "python3.11", "python3.10"):
        # Not all that has the name can be called: pyenv's may be switched off, Debian's may have no pip to give.
        if (
            shutil.which(name)
            and not subprocess.run([name, "-c", "import venv, ensurepip"], capture_output=True).returncode
        ):
            return [name, "-m", "venv"]
    if shutil.which("uv"):
        return ["uv", "venv", "--seed", "--python", "3.11"]
    raise DeviceError(
        f"JAX needs Python {'.'.join(map(str, OLDEST))} or later, this is {sys.version.split()[0]}: install one, or uv "
        f"(pip install uv), or set {VARIABLE} to a Python that has jax"
    )


def last_line(text: str) -> Optional[str]:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [None])[-1]  # type: ignore[list-item]


def compiler_environment() -> dict:
    """Environment variables of the compiler. No device is opened, so others may compile at the same time; nothing is
    asked of a cloud machine's metadata; CUDA's plugin looks for no driver."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    tpu = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    gpu = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    return {**kept, "JAX_PLATFORMS": "cpu", **tpu, **gpu}


def worker_environment(platform: str, cores: int) -> dict:
    """Environment variables of the worker. CPU devices are made as many as there are cores."""
    # TPU_LOAD_LIBRARY keeps this side's TensorFlow away from the TPU, not the worker.
    others = ("PYTHONPATH", "XLA_FLAGS", "TPU_LOAD_LIBRARY")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    flags = os.environ.get("XLA_FLAGS", "")
    if platform == "cpu":
        flags = f"{flags} --xla_force_host_platform_device_count={cores}"
    if platform != "tpu":  # a TPU asks the cloud's metadata what it is
        kept["TPU_SKIP_MDS_QUERY"] = "1"
    names = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{1 - KEPT:g}"}  # of a GPU; JAX left to itself takes three quarters
    return {**share, **kept, "JAX_PLATFORMS": names[platform], "XLA_FLAGS": flags.strip(), "TF_CPP_MIN_LOG_LEVEL": "3"}
