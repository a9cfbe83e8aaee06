"""Modules import from their own room and those above it (docs/architecture.md), in no circle, and change nothing."""

import ast
import glob
import json
import os
import subprocess
import sys

import gpt_neo
from tests.conftest import ROOT

# no TensorFlow before a job needs it
LIGHT = "errors system wire storage plots config tokenizer dataprep tracking".split()
ROOMS = (
    "errors system wire storage plots config tokenizer dataprep mtf_compat ops inputs model optim checkpoint tracking "
    "sampling fast runtime evaluation serving spmd cli api __main__"
).split()
BACK_END = os.path.join("storage", "tensorflow.py")  # asks for TensorFlow when a path is on its file systems
PACKAGE = os.path.dirname(gpt_neo.__file__)
FILES = sorted(glob.glob(os.path.join(PACKAGE, "**", "*.py"), recursive=True))
MODULES = {os.path.relpath(p, ROOT)[:-3].replace(os.sep, ".").removesuffix(".__init__"): p for p in FILES}
TREES = {path: ast.parse(open(path, encoding="utf-8").read()) for path in FILES}


def imported(tree):
    """Modules that a file imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return os.path.relpath(path, PACKAGE).split(os.sep)[0].removesuffix(".py")


def module_of(name):
    """The module of ours that a name of an import stands in, or ""."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def test_imports_point_upwards():
    wrong = []
    for path, tree in TREES.items():
        room = room_of(path)
        if room == "__init__" or path.endswith(BACK_END):
            continue
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] == "gpt_neo" and len(parts) > 1 and ROOMS.index(parts[1]) > ROOMS.index(room):
                wrong.append(f"{path} imports {name}")
            if parts[0] in ("tensorflow", "mesh_tensorflow") and room in LIGHT:
                wrong.append(f"{path} imports {name}")
            assert not name.startswith("mesh_tensorflow.transformer"), path
    assert not wrong


def test_scripts_of_another_environment_need_nothing_of_ours():
    """Those that JAX's Python runs, which has no gpt_neo: a script names the files beside it by their bare names."""
    found = set()
    for path, tree in TREES.items():
        beside = {name: os.path.join(os.path.dirname(path), f"{name.split('.')[0]}.py") for name in imported(tree)}
        near = {other for name, other in beside.items() if other in TREES and not name.startswith("gpt_neo")}
        found |= {path, *near} if near else set()
    assert {"worker.py", "kept_programs.py", "slices.py", "orphans.py"} <= set(map(os.path.basename, found))
    assert not [path for path in found for name in imported(TREES[path]) if name.split(".")[0] == "gpt_neo"]


def test_files_import_each_other_in_no_circle():
    """Imports within functions count too: they only put a circle off."""
    left = {
        name: {module_of(x) for x in imported(TREES[path])} - {name, "gpt_neo", ""} for name, path in MODULES.items()
    }
    while free := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in free}
    # What is left stands in a circle or needs one: take away what nothing in it needs.
    while loose := set(left) - set().union(*left.values(), set()):
        left = {name: needs for name, needs in left.items() if name not in loose}
    assert not left


def test_only_the_compatibility_module_reaches_into_tensorflow():
    for path, tree in TREES.items():
        if room_of(path) != "mtf_compat":
            reached = ("tensorflow.python", "tensorflow.compiler")
            assert not [name for name in imported(tree) if name.startswith(reached)], path


def test_only_storage_knows_schemes():
    """Where a path leads is asked in one place: no other file tests for `://` or uses TensorFlow's file systems."""
    for path, tree in TREES.items():
        if room_of(path) != "storage":
            for node in ast.walk(tree):
                assert not (isinstance(node, ast.Constant) and node.value in ("://", "gs://")), path
                assert not (isinstance(node, ast.Attribute) and node.attr == "gfile"), path


def run_apart(*words):
    """What `side_effects.py` says, in a process of its own that has begun; a function that waits for it."""
    script = os.path.join(ROOT, "tests", "side_effects.py")
    environment = {**os.environ, "PYTHONPATH": ROOT, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen([sys.executable, script, *words], stdout=subprocess.PIPE, env=environment, text=True)

    def wait():
        out = process.communicate()[0]
        assert process.returncode == 0
        return json.loads(out.splitlines()[-1])

    return wait


def test_importing_changes_nothing_of_the_process():
    """Environment, signals, warnings, logging, modules and Keras are as TensorFlow alone leaves them."""
    ours, theirs = run_apart("ours"), run_apart("theirs")
    found = ours()
    assert found["state"] == theirs()["state"]
    assert {name for _, name in found["lacking"]} <= {"jax", "lm_eval", "openvino", "starlette", "uvicorn"}
    saved, picture, table = found["keras"]
    assert saved and picture in ([3, 2], None) and table in ("module", None)


def test_light_rooms_are_light():
    assert run_apart("light", *LIGHT)() == []


def test_files_and_functions_stay_small():
    for path, tree in TREES.items():
        assert open(path, encoding="utf-8").read().count("\n") <= 500, path
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno <= 65, f"{path}: {node.name}"
