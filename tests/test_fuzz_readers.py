"""Coverage-guided fuzzing of every reader of files that strangers write; slow, and with the extra `fuzz` only."""

import ast
import gzip
import importlib.util
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import zstandard

from gpt_neo.checkpoint.bundle import BundleWriter, format_block
from gpt_neo.checkpoint.partitions import slice_key
from gpt_neo.checkpoint.safetensors import write_safetensors
from gpt_neo.dataprep.records import RecordWriter, encode_example
from gpt_neo.wire import bytes_field, masked_checksum, number_field
from tests.checkpoint.test_torch_file import TENSOR, state
from tests.conftest import MODEL, ROOT

SECONDS = os.environ.get("GPT_NEO_FUZZ_SECONDS", "600")
SCRIPT = os.path.join(ROOT, "tests", "fuzz_reader.py")
LINES = b'{"text": "one"}\n{"text": "two", "meta": {"pile_set_name": "x"}}\n'


def readers():
    """Keys of READERS, without atheris."""
    for node in ast.parse(open(SCRIPT, encoding="utf-8").read()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "READERS":
            return [key.value for key in node.value.keys]


def sound_files(folder):
    """A few bytes of every kind, by the name of a reader."""
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = str(folder / "x")
    writer = BundleWriter(path)
    writer.add("a/b", table.shape, table.dtype, [table])
    writer.finish()
    write_safetensors(path + ".safetensors", {"a": (table.dtype, table.shape)}, {"a": [table]})
    records = RecordWriter(str(folder), "r", 0)
    records.write([1, 2, 3])
    written = records.close()
    tar, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    record = {"host": "h", "pid": 1, "since": 1.0, "alive": 2.0, "boot": "", "processes": ""}
    run = {"experiment": {"name": "x"}, "status": "COMPLETED", "host": {}, "loss": {"steps": [1], "values": [2.0]}}
    found = {
        "index": open(path + ".index", "rb").read(),
        "safetensors": open(path + ".safetensors", "rb").read(),
        "records": open(written, "rb").read(),
        "pickle": torch_file(),
        "table": format_block(
            [
                (b"", number_field(1, 1)),
                (slice_key("b", ((0, 2),)), entry(8)),
                (b"a", entry()),
                (b"b", entry() + bytes_field(7, bytes_field(1, number_field(2, 2)))),
            ]
        ),
        "pickled": state(TENSOR),
        "rows": encode_example(np.array([1, 2, 3])),
        "config": json.dumps({**MODEL, "datasets": []}).encode(),
        "json": b"[" + LINES.replace(b"\n", b",")[:-1] + b"]",
        "dat": b"%016d%s" % (3, b"abc"),
        "tar": tar.getvalue(),
        "zip": zipped.getvalue(),
        "zst": zstandard.compress(LINES),
        "xz": lzma.compress(LINES),
        "lock": json.dumps(record).encode(),
        "ledger": b'{"unit": 1}\n{"shard": 2}\n{"forget": 1, "shards": [2]}\n{"manifest": {}}\n',
        "provenance": b'{"format": 1, "step": 3}',
        "best": b'{"checkpoint": "model.ckpt-1", "step": 1, "loss": 2.0, "worse": [3]}',
        "runs": json.dumps(run).encode(),
        "log": b'{"step": 1, "loss": 2.0}\n',
        "request": b'{"prompt": "a", "max_tokens": 1}',
        "cluster": b'{"cluster": {"chief": ["a:1"], "worker": ["b:2"]}, "task": {"type": "worker", "index": 0}}',
        "tokens": b'{"added_tokens": [{"content": "a", "id": 1}], "model": {"vocab": {"a": 1}}}',
    }
    return {**dict.fromkeys(readers(), LINES), **found}


def entry(at=0):
    """What an index says of a tensor of two zeros."""
    shape = bytes_field(2, bytes_field(2, number_field(1, 2)))
    return (
        number_field(1, 1)
        + shape
        + number_field(4, at)
        + number_field(5, 8)
        + b"5"
        + struct.pack("<I", masked_checksum(bytes(8)))
    )


def torch_file():
    """A file of torch.save, gzip's magic where PyTorch is not there."""
    try:
        import torch
    except ModuleNotFoundError:
        return gzip.compress(LINES)
    found = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3)}, found)
    return found.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("reader", readers())
def test_whatever_a_file_holds(tmp_path, reader):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install 'gpt_neo[fuzz]'")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "sound").write_bytes(sound_files(tmp_path)[reader])
    done = subprocess.run(
        [sys.executable, SCRIPT, reader, str(corpus), SECONDS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
