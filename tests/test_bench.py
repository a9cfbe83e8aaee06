"""The benches are not run by the tests, but what they import has to be there."""

import ast
import glob
import importlib
import importlib.util
import os

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(ROOT, "bench", "*.py"))), ids=os.path.basename)
def test_names_that_a_bench_imports_exist(path):
    with open(path, encoding="utf-8") as handle:
        tree = ast.parse(handle.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("gpt_neo", "bench"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = hasattr(module, "__path__") and importlib.util.find_spec(full) is not None
                assert hasattr(module, alias.name) or is_module, full
