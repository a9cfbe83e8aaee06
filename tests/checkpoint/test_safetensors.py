"""Safetensors files as large as those that people have; the format's own library reads the same."""

import json
import struct

import numpy as np
import pytest

from gpt_neo.checkpoint.safetensors import SafetensorsFile
from gpt_neo.errors import CheckpointError

GPT_J = 12_200_000_000  # bytes of its one file in float16, about


def write_sparse(path, begin):
    """A file whose second tensor begins at that byte; before it there is a hole, which takes no disk."""
    last = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = {
        "wide": {"dtype": "F16", "shape": [begin // 8, 4], "data_offsets": [0, begin]},
        "last": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, begin + last.nbytes]},
    }
    text = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.seek(begin, 1)
        handle.write(last.tobytes())
    return last


@pytest.mark.parametrize("begin", [500_000_000, GPT_J])
def test_a_large_file_is_read(begin, tmp_path):
    path = str(tmp_path / "model.safetensors")
    last = write_sparse(path, begin)
    file = SafetensorsFile(path)
    assert file.shape("wide") == (begin // 8, 4)
    np.testing.assert_array_equal(file.read("last"), last)
    np.testing.assert_array_equal(file.read("wide")[-2:], 0)
    theirs = pytest.importorskip("safetensors").safe_open(path, "numpy")
    np.testing.assert_array_equal(theirs.get_tensor("last"), last)


@pytest.mark.parametrize(
    "entry", [{"data_offsets": [0, 1 << 60]}, {"data_offsets": [-8, 24]}, {"shape": [1 << 30] * 3}]
)
def test_sizes_that_no_file_has_are_refused(entry, tmp_path):
    path = tmp_path / "model.safetensors"
    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **entry}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    with pytest.raises(CheckpointError, match="impossible sizes"):
        SafetensorsFile(str(path))
