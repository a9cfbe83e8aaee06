"""The environment that `worker.py` runs in: JAX and the TPU compiler, made on first use, apart from TensorFlow's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Callable, Optional

from gpt_neo.errors import DeviceError

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
VARIABLE = "GPT_NEO_SPMD_PYTHON"  # a Python that has JAX already, such as that of a GPU machine
FOLDER = "GPT_NEO_SPMD_FOLDER"  # where environments are made; default ~/.cache/gpt_neo


def worker_python(tell: Callable[[str], None] = lambda line: None) -> str:
    """The Python of the environment; makes it if it is not there yet.

    Args:
      tell: called with one line before something that takes a while.

    Raises:
      DeviceError: it cannot be made; the message has the installer's reason.
    """
    given = os.environ.get(VARIABLE)
    if given:
        if not shutil.which(given):
            raise DeviceError(f"{VARIABLE} is {given!r}, which cannot be run; unset it to have an environment made")
        return given
    folder = environment_folder()
    python, done = folder / "bin" / "python", folder / ".complete"
    if done.exists():
        return str(python)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f"{folder.name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it, others wait
            if not done.exists():
                tell(f"making an environment for JAX and the TPU compiler in {folder} (once, about a minute)")
                make_environment(folder)
                done.touch()
    except OSError as error:
        raise DeviceError(f"cannot make the JAX environment in {folder}: {error} (set {FOLDER})") from error
    return str(python)


def environment_folder() -> Path:
    """The folder of the environment for these versions and this Python."""
    wanted = CONSTRAINTS.read_bytes() + sys.version.encode()
    base = os.environ.get(FOLDER) or os.path.join(os.path.expanduser("~"), ".cache", "gpt_neo")
    return Path(base) / f"spmd-{hashlib.sha256(wanted).hexdigest()[:12]}"


def make_environment(folder: Path) -> None:
    """A virtual environment with the packages of constraints.txt.

    Raises:
      DeviceError: they cannot be installed.
    """
    if sys.version_info < (3, 11):
        raise DeviceError(
            f"jax 0.10.2 needs Python 3.11; this is {sys.version_info[0]}.{sys.version_info[1]} "
            f"(set {VARIABLE} to a Python that has jax)"
        )
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        str(CONSTRAINTS),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = last_line(result.stderr) or f"pip ended with status {result.returncode}"
        raise DeviceError(f"cannot make the JAX environment in {folder}: {reason}")


def last_line(text: str) -> Optional[str]:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [None])[-1]  # type: ignore[list-item]
