"""Giving memory back: less is resident, and everything still runs."""

import re
import subprocess
import sys

from gpt_neo.runtime.memory import unwritten_parts
from tests.conftest import ROOT

SCRIPT = """
import re, sys
import numpy as np
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.memory import release_unused_memory

def resident():
    return int(re.search(r"RssFile:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3

with tf.Session() as session:
    made = session.run(tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
    before = resident()
    release_unused_memory()
    after = resident()
    again = session.run(tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
names = [name for name in ("pandas", "h5py") if name in sys.modules]
print(before, after, bool((made == again).all()), *names)
"""


def test_what_importing_read_is_given_back():
    """A process of its own, as other tests' libraries would be counted too."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after, same, *taken_along = done.stdout.split()
    assert float(before) > 150 and float(after) < 0.3 * float(before), (before, after)
    assert same == "True"
    assert not taken_along  # Keras takes them along when it uses them: 76 MB less


def test_only_what_was_never_written_to_is_given_back():
    with open("/proc/self/maps", encoding="utf-8") as lines:
        found = {tuple(int(x, 16) for x in line.split()[0].split("-")): line for line in lines}
    spans = unwritten_parts()
    assert len(spans) > 10
    for span in spans:
        if span in found:  # a thread may have mapped something in between
            assert re.search(r" r-[x-]p .* /", found[span]), found[span]
