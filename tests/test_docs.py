"""The pages: the site is made without a warning, the notebook runs, and what the README says first works as typed."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGES = ["README.md", *(os.path.join("docs", name) for name in sorted(os.listdir(os.path.join(ROOT, "docs"))))]
PAGES = [name for name in PAGES if name.endswith(".md")]


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as handle:
        return handle.read()


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(page)):
        if "://" not in target:
            assert os.path.exists(os.path.join(ROOT, os.path.dirname(page), target)), target


@pytest.mark.parametrize("page", PAGES)
def test_code_that_pages_name_is_there(page):
    for path in re.findall(r"`((?:gpt_neo|tests|bench)/[\w/]+\.py)`", read(page)):
        assert os.path.exists(os.path.join(ROOT, path)), path


def test_every_page_is_in_the_site():
    listed = re.findall(r"\b([\w-]+\.md)$", read("mkdocs.yml"), re.M)
    assert sorted(listed) == sorted(os.path.basename(page) for page in PAGES[1:])


@pytest.mark.slow
def test_the_site_is_made_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr + done.stdout == ""
    python = (tmp_path / "python" / "index.html").read_text(encoding="utf-8")
    assert "Natural logarithm" in python or "natural logarithm" in python
    for name in ("load", "train", "Model.generate", "Model.stream", "Model.logprobs"):
        assert f'id="gpt_neo.api.{name}"' in python, name


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(os.path.join(ROOT, "notebooks", "gpt_neo.ipynb"), as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        "".join(str(out.get("text", "")) for out in cell.get("outputs", ()))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert not [text for text in printed if "error:" in text or "Traceback" in text or "INFO:" in text]
    assert "gpt-neo " in printed[0] and "trained   300 steps" in printed[2] and "The class statement" in printed[4]
    picture = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(picture) == 1 and float(printed[5].splitlines()[-1]) < 0


@pytest.mark.parametrize("where", ["notebooks", "."])
def test_the_notebook_takes_the_commands_of_its_clone(tmp_path, monkeypatch, where):
    """Where it lies or in the folder above; they are installed where neither its own Python nor the clone has them."""
    cell = next(c for c in json.loads(read("notebooks/gpt_neo.ipynb"))["cells"] if c["cell_type"] == "code")
    code = re.sub(r"^( *)!(.*)$", lambda m: f"{m[1]}asked.append({m[2]!r})", "".join(cell["source"]), flags=re.M)
    bin_folder, other = tmp_path / ".venv" / "bin", tmp_path / "other"
    for folder in (tmp_path / "notebooks", bin_folder, other):
        folder.mkdir(parents=True)
    (tmp_path / "constraints.txt").touch()
    monkeypatch.setattr(sys, "executable", str(other / "python"))
    monkeypatch.setenv("PATH", "")
    for there, installs in ((None, True), (bin_folder, False), (other, False)):
        if there:
            (there / "gpt-neo").touch()
        monkeypatch.chdir(tmp_path / where)
        names = {"asked": []}
        exec(compile(code, "notebook", "exec"), names)
        assert os.getcwd() == str(tmp_path) and names["commands"] == str(there or bin_folder)
        assert os.environ["PATH"].split(os.pathsep)[0] == names["commands"]
        assert any("install" in line and "constraints.txt" in line for line in names["asked"]) == installs


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(read("notebooks/gpt_neo.ipynb"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


def test_advisories_are_of_the_pins():
    """Versions that the section names, but for the trackers, which it says nobody has looked up, are those of pins."""
    pins = {}
    for line in read("constraints.txt").splitlines():
        name, found, rest = line.partition("==")
        if found and not line.startswith("#"):
            pins.setdefault(name.lower(), set()).add(rest.split()[0])
    section = read("docs/reliability.md").split("## Known advisories")[1].split("\n## ")[0]
    named = re.findall(r"^\| ([\w-]+) (\d[\d., ]*\d) (?:\(3\.9\) )?\|", section, re.M)
    named += re.findall(r"(wandb|mlflow-skinny|trackio) (\d[\d.]*\d)", section)
    assert len(named) == section.count("\n| ") - 1 + 3, named
    for name, versions in named:
        assert set(versions.split(", ")) <= pins[name], (name, versions, pins[name])
