"""What differs between installations and systems, with what another system lacks taken away."""

import importlib.metadata
import io
import os
import pwd
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpt_neo import system
from gpt_neo.cli import imported
from gpt_neo.errors import CheckpointError, DeviceError
from gpt_neo.spmd import environment
from gpt_neo.spmd.kept_programs import VARIABLE, KeptPrograms
from tests.conftest import ROOT

PRODUCT = (  # make test-pythons installs these
    *("gcs", "tpu", "text", "parquet", "track", "wandb", "mlflow", "trackio", "plot", "beam", "harness", "serve"),
    *("fast", "chat", "completion"),
)


def test_cores_without_affinity(monkeypatch):
    """As on macOS."""
    assert 1 <= system.cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert system.cores() == 7


def test_a_user_without_a_home_folder(monkeypatch, tmp_path):
    """As in a container: no HOME, no entry in /etc/passwd. Python leaves `~` as it is, and a folder of that name in the
    working directory would be a trap for who removes it."""
    assert system.cache_folder("x") == os.path.join(os.path.expanduser("~"), ".cache", "gpt_neo", "x")
    for name in ("HOME", imported.FOLDER, environment.FOLDER, VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    monkeypatch.chdir(tmp_path)
    assert system.cache_folder() == system.cache_folder("x") == KeptPrograms().folder == ""
    with pytest.raises(CheckpointError, match="no home folder .*GPT_NEO_IMPORTED names a folder"):
        imported.kept_in()
    with pytest.raises(DeviceError, match="no home folder .*GPT_NEO_SPMD_FOLDER names a folder"):
        environment.environment_folder()
    monkeypatch.setenv(imported.FOLDER, "there")
    assert imported.kept_in() == "there" and not os.listdir(tmp_path)


def test_a_process_is_there_or_gone():
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert system.is_running(other.pid) and system.is_running(1)
    other.communicate(b"\n")
    assert not system.is_running(other.pid)


def test_an_extra_is_named_as_it_is_installed(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert system.how_to_install("serve") == "pip install -c constraints.txt -e '.[serve]'"
    monkeypatch.chdir("/")
    assert system.how_to_install("serve") == f"pip install -c {ROOT}/constraints.txt -e '{ROOT}[serve]'"
    monkeypatch.setattr(system, "CLONE", "/nowhere")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ['a>=1; extra == "serve"', "b", "c; extra == 'x'"])
    assert re.fullmatch(r"pip install -c \S+ 'a>=1'", system.how_to_install("serve"))


def test_an_extra_that_needs_a_later_python_says_so(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ['a; python_version >= "3.10" and extra == "x"'])
    assert system.how_to_install("x").endswith("[x]'")
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert system.how_to_install("x").endswith("[x]' (Python 3.10 or later; this is 3.9)")


def test_a_folder_with_a_space_is_quoted_in_the_command(monkeypatch, tmp_path):
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "setup.py").write_text("")
    monkeypatch.setattr(system, "CLONE", str(clone))
    words = shlex.split(system.how_to_install("serve"))
    assert words == ["pip", "install", "-c", f"{clone}/constraints.txt", "-e", f"{clone}[serve]"]


def is_for(line, environment):
    return line.marker is None or line.marker.evaluate(environment)


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.11"])
def test_every_python_has_one_version_of_each_package(python, monkeypatch):
    """Lines for one Python exclude each other, and name all that the package and its extras ask for."""
    version = pinned("constraints.txt", python)
    for need in needs_of(PRODUCT, python, monkeypatch):
        assert need.specifier.contains(version[canonicalize_name(need.name)]), need


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.11"])
def test_what_make_setup_installs_has_hashes_and_the_versions_that_are_tested(python, monkeypatch):
    version, tested = pinned("requirements.txt", python), pinned("constraints.txt", python)
    assert {name: tested[name] for name in version} == version
    assert {canonicalize_name(need.name) for need in needs_of(["plot", "fast"], python, monkeypatch)} <= set(version)
    with open(os.path.join(ROOT, "requirements.txt"), encoding="utf-8") as handle:
        blocks = re.split(r"^(?=\w)", handle.read(), flags=re.MULTILINE)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", block) for block in map(str.strip, blocks))


def pinned(file, python):
    """Package to version, of the lines of a file of pins that are for this Python; never two of one package."""
    here = environment_of(python)
    with open(os.path.join(ROOT, file), encoding="utf-8") as handle:
        pins = [Requirement(line.rstrip(" \\\n")) for line in handle if re.match(r"\w", line)]
    held = [(canonicalize_name(pin.name), pin) for pin in pins if is_for(pin, here)]
    version = {name: str(pin.specifier)[2:] for name, pin in held}
    assert len(version) == len(held)
    return version


def needs_of(extras, python, monkeypatch):
    """What setup.py asks for, with these extras, on this Python."""
    told, here = {}, environment_of(python)
    monkeypatch.setattr(setuptools, "setup", lambda **given: told.update(given))
    runpy.run_path(os.path.join(ROOT, "setup.py"))
    needs = [*told["install_requires"], *(need for extra in extras for need in told["extras_require"][extra])]
    return [need for need in map(Requirement, needs) if is_for(need, here)]


def environment_of(python):
    return {"python_version": python, "python_full_version": f"{python}.5"}


def test_what_the_processor_has(monkeypatch):
    flags = "processor : 0\nflags\t\t: fpu sse2 avx2 f16c\n"
    monkeypatch.setattr("builtins.open", lambda *args, **options: io.StringIO(flags))
    assert system.processor_has("avx512_bf16", "avx2") and not system.processor_has("avx512_bf16", "avx")

    def refused(*args, **options):
        raise FileNotFoundError("macOS has no such file")

    monkeypatch.setattr("builtins.open", refused)
    assert not system.processor_has("avx2")
