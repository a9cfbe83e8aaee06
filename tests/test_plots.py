"""Pictures as files."""

import os
import struct
import subprocess
import sys

from tests.conftest import ROOT

DRAW = """
import os, sys
from gpt_neo.plots import picture
with picture(sys.argv[1], "--png", size=(2, 1)) as axes:
    axes[0, 0].plot([1, 2])
assert os.environ["MPLBACKEND"] == "a_notebooks_own"
"""


def test_the_backend_of_a_notebook_is_not_asked_for(tmp_path):
    """It stands in the environment of every command that a notebook starts, and may be of another Python's packages."""
    path = str(tmp_path / "x.png")
    environment = {**os.environ, "MPLBACKEND": "a_notebooks_own"}
    done = subprocess.run([sys.executable, "-c", DRAW, path], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    with open(path, "rb") as handle:
        head = handle.read(24)
    assert head.startswith(b"\x89PNG") and struct.unpack(">II", head[16:]) == (240, 120)
