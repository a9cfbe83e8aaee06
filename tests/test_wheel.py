"""The wheel: all that a command needs is in it, and it works where nothing else is."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of a wheel made of this tree, in a folder of its own: setuptools leaves things behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if name.startswith(("gpt_neo/", "configs/")) or "/" not in name:
            os.makedirs(os.path.dirname(source / name), exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", made, source],
        check=True,
    )
    return next(made.iterdir())


def test_what_is_in_it(wheel, tmp_path):
    inside = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "configs/gpt3_125M.json",
        "configs/dataset_configs/pile.json",
        "configs/eval_tasks/lambada.json",
        "constraints.txt",
        "vocabulary/gpt2.bpe",
        "vocabulary/LICENSE",
        "serving/page/page.html",
        "serving/openapi.json",
        "spmd/constraints.txt",
        "checkpoint/custom_code/modeling_gpt_neo_mtf.py",
    ):
        assert f"gpt_neo/{name}" in inside, name
    assert not [name for name in inside if name.startswith(("tests", "bench", "data"))]
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    code = (
        "import gpt_neo.system as s, gpt_neo.tokenizer as t; from gpt_neo.cli.commands import main; "
        "print(s.CLONE, t.load_tokenizer('gpt2').encode('Hello world')); main(['plan', 'gpt3_125M'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True,
        text=True,
    )
    assert f"{tmp_path / 'unpacked'} [15496, 995]\n" in done.stdout and "parameters" in done.stdout, done.stderr


@pytest.mark.slow
def test_it_works_in_an_empty_environment(wheel, tmp_path):
    """Installs with its dependencies and the extra serve, and runs the commands of a first hour from another folder."""
    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    constraints = os.path.join(ROOT, "constraints.txt")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[serve]"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    smoke = os.path.join(ROOT, "tests", "smoke.py")
    done = subprocess.run([python, smoke], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "all is well" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_steps_of_the_dockerfile(tmp_path):
    """What .dockerignore leaves is copied, RUN is run with the pip of an empty environment; no Docker is needed."""
    with open(os.path.join(ROOT, "Dockerfile"), encoding="utf-8") as handle:
        steps = dict(line.split(maxsplit=1) for line in handle.read().splitlines() if line and not line.startswith("#"))
    with open(os.path.join(ROOT, ".dockerignore"), encoding="utf-8") as handle:
        ignored = shutil.ignore_patterns(*handle.read().split())
    assert steps["COPY"] == ". /gpt_neo" and steps["ENTRYPOINT"] == '["gpt-neo"]'
    shutil.copytree(ROOT, tmp_path / "gpt_neo", ignore=ignored)
    venv.create(tmp_path / "empty", with_pip=True)
    command = steps["RUN"].replace("/gpt_neo", str(tmp_path / "gpt_neo"))
    extras, path = steps["ARG"].partition("=")[2], f"{tmp_path / 'empty' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "EXTRAS": extras, "PATH": path}
    environment.pop("PYTHONPATH", None)
    subprocess.run(["sh", "-c", command], check=True, env=environment)
    assert not os.path.exists(tmp_path / "gpt_neo")
    smoke = [str(tmp_path / "empty" / "bin" / "python"), os.path.join(ROOT, "tests", "smoke.py")]
    done = subprocess.run(smoke, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "all is well" in done.stdout, done.stdout + done.stderr
