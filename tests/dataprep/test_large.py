"""Inputs too large for a unit test: run by hand with -m slow."""

import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.dataprep.records import read_records
from gpt_neo.tokenizer import load_tokenizer
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
GIGABYTE = 10**9
# The command line, with the largest memory of any of its processes on the last line. Its own is not asked of getrusage,
# which counts the memory of the test's process from before the command was loaded into its copy.
COMMAND = """
import re, resource, sys
sys.path[:0] = [{root!r}, {root!r} + "/data"]
if __name__ == "__main__":
    import create_tfrecords
    assert create_tfrecords.main(sys.argv[1:]) == 0
    own = int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024)
"""


def create(*arguments):
    """Run it; return the largest memory of a process, bytes."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(root=ROOT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


def text_of(folder, name):
    """The bytes of the documents in records, separators left out, as a hash and a length."""
    tokenizer, digest, size = load_tokenizer(), hashlib.sha256(), 0
    with open(os.path.join(folder, f"{name}_manifest.json"), encoding="utf-8") as handle:
        manifest = json.load(handle)
    for file in manifest["files"]:
        for row in read_records(os.path.join(folder, file)):
            data = tokenizer.decode_bytes(row[row != tokenizer.eos_id])
            digest.update(data)
            size += len(data)
    return digest.hexdigest(), size, manifest["account"]


@pytest.mark.parametrize("kind", ["prose", "one line", "base64", "chinese"])
def test_a_document_of_200_megabytes(tmp_path, prose, kind):
    chinese = "\u4e2d\u6587\u5b57\u3002" * 50_000
    rest = {"prose": prose, "one line": prose.replace("\n", " "), "chinese": chinese}.get(kind)
    if kind == "base64":
        letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
        rest = letters[np.random.RandomState(0).randint(0, 64, 1 << 20)].tobytes().decode()
    data = rest.encode()
    path = tmp_path / "big.txt"
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as handle:
        while size < 200_000_000:
            handle.write(data)
            digest.update(data)
            size += len(data)
    peak = create("--input_dir", path, "--output_dir", tmp_path / "out", "--processes", 2)
    assert peak < GIGABYTE
    found, length, account = text_of(tmp_path / "out", "data")
    assert (found, length) == (digest.hexdigest(), size) and account["documents_written"] == 1


@pytest.mark.parametrize("options", [["--deduplicate"], ["--shuffle"], ["--mode", "documents", "--files_per", "1"]])
def test_a_document_of_200_megabytes_that_cannot_be_cut(tmp_path, prose, options):
    path = tmp_path / "big.txt"
    with open(path, "w", encoding="utf-8") as handle:
        for _ in range(200_000_000 // len(prose) + 1):
            handle.write(prose)
    peak = create("--input_dir", path, "--output_dir", tmp_path / "out", "--processes", 2, *options)
    assert peak < GIGABYTE


def test_one_file_64_workers_and_64_files_one_worker(tmp_path, prose):
    (tmp_path / "many").mkdir()
    for i in range(64):
        (tmp_path / "many" / f"{i}.txt").write_text(prose[i * 1000 : i * 1000 + 5000], encoding="utf-8")
    with open(tmp_path / "one.jsonl", "w", encoding="utf-8") as handle:
        for i in range(64):
            handle.write(json.dumps({"text": prose[i * 1000 : i * 1000 + 5000]}) + "\n")
    create("--input_dir", tmp_path / "many", "--output_dir", tmp_path / "a", "--processes", 1)
    create("--input_dir", tmp_path / "one.jsonl", "--output_dir", tmp_path / "b", "--processes", 64)
    assert text_of(tmp_path / "a", "data") == text_of(tmp_path / "b", "data")
    assert multiprocessing.active_children() == [] and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
