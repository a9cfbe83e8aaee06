"""A module imports only from its own room and the rooms above it (docs/architecture.md)."""

import ast
import glob
import os

import gpt_neo

LIGHT = "errors wire storage config tokenizer dataprep tracking".split()  # no TensorFlow before a job needs it
ROOMS = (
    "errors wire storage config tokenizer dataprep mtf_compat ops inputs model optim checkpoint tracking sampling "
    "runtime evaluation serving spmd cli __main__"
).split()
PACKAGE = os.path.dirname(gpt_neo.__file__)


def imported(path):
    """Modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(open(path, encoding="utf-8").read())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return os.path.relpath(path, PACKAGE).split(os.sep)[0].removesuffix(".py")


def test_imports_point_upwards():
    wrong = []
    for path in glob.glob(os.path.join(PACKAGE, "**", "*.py"), recursive=True):
        room = room_of(path)
        if room == "__init__":
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "gpt_neo" and len(parts) > 1 and ROOMS.index(parts[1]) > ROOMS.index(room):
                wrong.append(f"{path} imports {name}")
            if parts[0] in ("tensorflow", "mesh_tensorflow") and room in LIGHT:
                wrong.append(f"{path} imports {name}")
            assert not name.startswith("mesh_tensorflow.transformer"), path
    assert not wrong


def test_only_the_compatibility_module_reaches_into_tensorflow():
    for path in glob.glob(os.path.join(PACKAGE, "**", "*.py"), recursive=True):
        if room_of(path) != "mtf_compat":
            assert not [name for name in imported(path) if name.startswith("tensorflow.python")], path


def test_files_and_functions_stay_small():
    for path in glob.glob(os.path.join(PACKAGE, "**", "*.py"), recursive=True):
        source = open(path, encoding="utf-8").read()
        assert source.count("\n") <= 500, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno <= 65, f"{path}: {node.name}"
