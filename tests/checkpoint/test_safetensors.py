"""Safetensors files as large as those that people have; the format's own library reads the same."""

import json
import struct

import numpy as np
import pytest

from gpt_neo.checkpoint import safetensors as module
from gpt_neo.checkpoint.safetensors import TYPES, SafetensorsFile, write_safetensors
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


def test_every_type_is_the_one_of_the_format_there_and_back(tmp_path):
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    values = {str(dtype): np.array([[0, 1, 77], [1, 0, 100]]).astype(dtype) for dtype in TYPES.values()}
    assert len(values) == 10
    ours = str(tmp_path / "ours.safetensors")
    write_safetensors(
        ours, {name: (v.dtype, v.shape) for name, v in values.items()}, {n: [v] for n, v in values.items()}
    )
    found = theirs.load_file(ours)
    assert {name: str(value.dtype).partition(".")[2] for name, value in found.items()} == {
        name: name for name in values
    }
    theirs.save_file(found, str(tmp_path / "theirs.safetensors"))
    again = SafetensorsFile(str(tmp_path / "theirs.safetensors"))
    for name, value in values.items():
        np.testing.assert_array_equal(found[name].to(torch.float64).numpy(), value.astype(np.float64))
        assert again.dtype(name) == value.dtype
        np.testing.assert_array_equal(again.read(name), value)
    with open(ours, "rb") as handle:
        assert struct.unpack("<Q", handle.read(8))[0] % 8 == 0, "tensors begin aligned"
    with theirs.safe_open(ours, "pt") as file:
        assert file.metadata() == {"format": "pt"}, "without which transformers loads no file"


def test_pieces_that_are_not_the_whole_of_a_tensor(tmp_path, monkeypatch):
    part, synced = np.ones(2, np.float32), []
    monkeypatch.setattr(module, "sync", lambda path: synced.append((path, (tmp_path / "y").read_bytes()[-8:])))
    write_safetensors(str(tmp_path / "y"), {"a": (part.dtype, (2,))}, {"a": [part]})
    assert synced == [(str(tmp_path / "y"), part.tobytes())], "what is whole is put on the disk"
    with pytest.raises(ValueError, match="tensor a: 8 bytes written, 12 promised"):
        write_safetensors(str(tmp_path / "x"), {"a": (part.dtype, (3,))}, {"a": [part]})
