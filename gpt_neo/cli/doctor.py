"""`doctor`: whether this machine can run a config, line by line, and what to do where it cannot."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from gpt_neo.cli import quiet
from gpt_neo.cli.console import folded, size_text
from gpt_neo.cli.job import load_run
from gpt_neo.cli.options import CloudOptions
from gpt_neo.cli.tool_options import Doctor
from gpt_neo.config.estimate import count_parameters, less_memory, slot_bytes, training_memory
from gpt_neo.config.folders import model_folder
from gpt_neo.config.records import PLACEHOLDER, how_to_prepare
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import GptNeoError, counted
from gpt_neo.storage import local, scheme_of
from gpt_neo.system import available_memory, cores, how_to_install, shipped

CONSTRAINTS = shipped("constraints.txt")
INDENT = 18  # columns before the text of a line
LITTLE_DISK = 1 << 30  # bytes; less is called wrong where no config says how much is needed
FIND, CONNECT = 20.0, 5.0  # seconds to look a TPU up, and to connect to it


@dataclasses.dataclass(frozen=True)
class Line:
    """One finding. advice: what to do; empty where all is well."""

    subject: str
    text: str
    advice: str = ""


def doctor(options: Doctor) -> int:
    """Print the lines."""
    quiet.silence(verbose=False)
    quiet.spare_tpu(options.devices.tpu)
    run = load_run(options.model, options.set, needs_data=False) if options.model else None
    wrong = 0
    for line in findings(options, run):
        wrong += bool(line.advice)
        print(folded(f"{'wrong' if line.advice else 'ok   '}  {line.subject:10s} {line.text}", INDENT), flush=True)
        if line.advice:
            todo = line.advice.replace("\n", "\n" + " " * INDENT)  # commands, which are not torn
            print(f"{'':{INDENT}s}what to do: {todo}", flush=True)
    several = f"{wrong} of these lines need" if wrong > 1 else "one of these lines needs"
    print(f"{several} something done" if wrong else "all is well")
    return 1 if wrong else 0


def findings(options: Doctor, run: Optional[RunConfig]) -> Iterator[Line]:
    """Every check in turn; one that fails does not end those after it, unless they need it."""
    yield python_line()
    yield from version_lines()
    imported = import_line()
    yield imported
    yield memory_line(run)
    folder = model_folder(run) if run else os.getcwd()
    if not scheme_of(folder):
        yield disk_line(folder, run)
    there = {ref.name for ref, _ in run.datasets} if run else set()
    for name in [ref.name for ref in run.training.datasets if ref.name not in there] if run else ():
        advice = f"gpt-neo prepare --name {name} --write_dataset_config makes one"
        yield Line("data", f"dataset {name!r} has no config", advice)
    if imported.advice:
        return
    yield device_line()
    yield from path_lines(options.path, run)
    if options.devices.tpu:
        yield tpu_line(options.devices)


def python_line() -> Line:
    """The interpreter."""
    good = (3, 9) <= sys.version_info[:2] <= (3, 11)
    advice = (
        "" if good else "TensorFlow 2.15 has builds for Python 3.9, 3.10 and 3.11 only: uv venv --python 3.11 .venv"
    )
    return Line("python", f"{platform.python_version()} on {platform.platform()}", advice)


def version_lines() -> Iterator[Line]:
    """Installed packages against the ranges of setup.py, and against the versions that the tests ran with."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in importlib.metadata.requires("gpt_neo") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Line("packages", "gpt_neo is not installed", "pip install -c constraints.txt -e .")
        return
    wanted, checked = tested_versions(), 0
    others = []
    for need in required:
        extra = need.marker is not None and "extra" in str(need.marker)
        try:
            found = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            if not extra:
                yield Line(need.name, "is not installed", f"pip install -c constraints.txt '{need.name}'")
            continue
        checked += 1
        if not need.specifier.contains(found, prereleases=True):
            fix = wanted.get(canonical(need.name))
            yield Line(
                need.name,
                f"{found} is outside {need.specifier}",
                f"pip install '{need.name}{'==' + fix if fix else need.specifier}'",
            )
        elif wanted.get(canonical(need.name), found) not in (found, found.partition("+")[0]):  # +cpu: a build
            others.append(f"{need.name} {found} (tested: {wanted[canonical(need.name)]})")
    note = f"; other than tested, within range: {', '.join(others)}" if others else ""
    yield Line("packages", f"{checked} of those that gpt_neo names are here{note}")


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tested_versions() -> dict[str, str]:
    """Package to version of constraints.txt, of the lines for this Python."""
    from packaging.requirements import Requirement

    if not os.path.isfile(CONSTRAINTS):
        return {}
    with open(CONSTRAINTS, encoding="utf-8") as handle:
        pins = [Requirement(line.strip()) for line in handle if "==" in line and not line.startswith("#")]
    return {canonical(p.name): str(p.specifier)[2:] for p in pins if p.marker is None or p.marker.evaluate()}


def import_line() -> Line:
    """Whether the graph libraries can be imported together."""
    try:
        from gpt_neo.mtf_compat import tf
    except Exception as error:  # whatever a broken installation raises is what this line is about
        return Line(
            "import",
            f"TensorFlow and Mesh-TensorFlow: {type(error).__name__}: {error}",
            "pip install -c constraints.txt -e . in a fresh virtual environment",
        )
    return Line("import", f"TensorFlow {tf.__version__} and Mesh-TensorFlow work together")


def memory_line(run: Optional[RunConfig]) -> Line:
    """Memory of this machine against what training takes on one device."""
    available = available_memory()
    if available is None:
        return Line("memory", "unknown on this system")
    text = f"{size_text(available)} available"
    if run is None:
        return Line("memory", text)
    need = training_memory(run, 1).total
    advice = f"fine for a GPU or TPU of that size; else {less_memory(run.model)}" if need > available else ""
    return Line("memory", f"{text}; training {run.name} on one device takes about {size_text(need)}", advice)


def nearest_folder(path: str) -> str:
    """The deepest folder of a local path that is there."""
    place = os.path.abspath(local(path))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


def disk_line(folder: str, run: Optional[RunConfig]) -> Line:
    """Free space where checkpoints go, against those that will be kept."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    text = f"{size_text(free)} free for {folder}"
    if run is None:
        return Line("disk", text, "" if free > LITTLE_DISK else "free some, or set model_path to another disk")
    one = count_parameters(run.model) * 4 + slot_bytes(run.model, run.optimizer)
    need = one * (run.training.keep_checkpoints + 1)
    advice = "lower keep_checkpoints, or set model_path to another disk" if need > free else ""
    return Line("disk", f"{text}; {run.training.keep_checkpoints} checkpoints take about {size_text(need)}", advice)


def device_line() -> Line:
    """Processors and accelerators that TensorFlow sees."""
    from gpt_neo.mtf_compat import tf

    gpus = tf.config.list_physical_devices("GPU")
    text = f"{counted(cores(), 'CPU core')}, {counted(len(gpus), 'GPU')}" + "".join(f", {gpu.name}" for gpu in gpus)
    if not gpus and os.path.exists("/dev/nvidia0"):
        return Line(
            "devices",
            f"{text}; there is an NVIDIA device that TensorFlow does not see",
            f"{how_to_install('gpu')}, and a driver for CUDA 12.2",
        )
    return Line("devices", text)


def path_lines(folders: Sequence[str], run: Optional[RunConfig]) -> Iterator[Line]:
    """Access to every path of the config, and to those of --path. Nothing is made that is not there."""
    from gpt_neo.runtime.access import check_writable, read_checks

    checks: list[Any] = read_checks(run, evaluates=True) if run else []
    if run:
        folder = model_folder(run)
        place = folder if scheme_of(folder) or os.path.exists(folder) else nearest_folder(folder)
        what, where = "model_path", "model_path"
        if place != folder:
            what, where = f"{what} {folder}, which a training makes in", f"{what} {folder!r} cannot be written: folder"
        checks.append((what, place, functools.partial(check_writable, place, where)))
    for folder in folders:
        if scheme_of(folder) or os.path.exists(local(folder)):
            checks.append(("--path", folder, functools.partial(check_writable, folder, "--path")))
        else:
            yield Line("access", f"--path {folder}: no such folder", "correct the path, or make the folder")
    for what, path, check in checks:
        if run and PLACEHOLDER in path:
            yield Line("access", f"{what} {path} is a placeholder", how_to_prepare(run))
            continue
        try:
            count = check()
        except GptNeoError as error:
            yield Line("access", str(error), "correct the path, or grant the permission")
        else:
            done = (
                "listed, written, replaced, read, deleted"
                if count is None
                else f"{counted(count, 'file')}, listed and read"
            )
            yield Line("access", f"{what} {path}: {done}")


def tpu_line(cloud: CloudOptions) -> Line:
    """Whether a TPU is found and answers, within a bounded time: Google's client tries for minutes."""
    answers: list[Line] = []
    thread = threading.Thread(target=lambda: answers.append(reach_tpu(cloud)), daemon=True)
    thread.start()
    thread.join(FIND)
    if answers:
        return answers[0]
    return Line(
        "tpu",
        f"{cloud.tpu}: Google Cloud gave no answer in {FIND:.0f} seconds",
        "see that this machine has a network, and credentials (gcloud auth application-default login)",
    )


def reach_tpu(cloud: CloudOptions) -> Line:
    """Look a TPU up and connect to it."""
    from gpt_neo.runtime.tpu import TpuError, TpuOptions, check_local, resolve_tpu

    name = str(cloud.tpu)
    try:
        address = resolve_tpu(TpuOptions(name, cloud.tpu_zone, cloud.tpu_project)).master()
        if not address:
            return Line("tpu", f"{name}: {check_local()}, and a TensorFlow with kernels for it")
    except TpuError as error:
        return Line("tpu", error.text, error.advice)
    if os.environ.get("TPU_LOAD_LIBRARY") != "0":
        text = f"TPU_LOAD_LIBRARY={os.environ.get('TPU_LOAD_LIBRARY')} has TensorFlow open this machine's own TPU"
        return Line("tpu", f"{name}: {text}", "unset TPU_LOAD_LIBRARY: 0 is set for a TPU that is given by name")
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except OSError as error:
        return Line(
            "tpu",
            f"{name}: {address} does not answer: {error}",
            "call from a machine of the same network; see that a firewall lets the port through",
        )
    return Line("tpu", f"{name}: {address} answers")
