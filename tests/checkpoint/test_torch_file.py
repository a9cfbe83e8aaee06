"""pytorch_model.bin from strangers: what is in it is read, and nothing beside it."""

import collections
import pickle
import struct
import zipfile

import numpy as np
import pytest

from gpt_neo.checkpoint.torch_file import TorchFile
from gpt_neo.errors import CheckpointError

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
# _rebuild_tensor_v2(storage, 0, (2, 2), (2, 1), False, None)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89NtR"


def write(path, pickled):
    """A file of one storage of four numbers in PyTorch's zip form."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return str(path)


def state(tensor, name=b"X\x01\x00\x00\x00a"):
    """A pickle of {"a": tensor}."""
    return b"\x80\x02}" + name + tensor + b"s."


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word


def test_what_is_in_it(tmp_path):
    file = TorchFile(write(tmp_path / "a.bin", state(TENSOR)))
    np.testing.assert_array_equal(file.read("a"), [[1, 2], [3, 4]])


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_in_one_large_storage(zipped, tmp_path):
    """As optimizers leave them that lay all weights side by side."""
    torch = pytest.importorskip("torch")
    whole, half = torch.zeros(1 << 25, dtype=torch.float16), 1 << 24
    whole[half : half + 6] = torch.arange(6)
    path = str(tmp_path / "a.bin")
    tensors = {"a": whole[:half], "b": whole[half : half + 6].view(2, 3)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(TorchFile(path).read("b"), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_and_form_of_a_tensor(zipped, tmp_path):
    """A parameter, a number without dimensions, none at all, every second column; in an OrderedDict."""
    torch = pytest.importorskip("torch")
    numbers = torch.tensor([[0, 1, 77], [1, 0, 100]])
    types = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    tensors = {name: numbers.to(getattr(torch, name)) for name in types}
    tensors.update(
        parameter=torch.nn.Parameter(numbers.float().T),
        number=torch.tensor(2.5),
        nothing=torch.zeros(0, 3),
        strided=torch.arange(24.0).reshape(4, 6)[1:, ::2].T,
    )
    state = collections.OrderedDict(tensors)
    state._metadata = {"": {"version": 1}}  # as `state_dict` has it
    path = str(tmp_path / "a.bin")
    for saved in (tensors, state):
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        file = TorchFile(path)
        assert file.names() == sorted(tensors)
        for name, value in tensors.items():
            assert str(file.dtype(name)) == (name if name in types else "float32") and file.shape(name) == value.shape
            np.testing.assert_array_equal(file.read(name).astype(np.float64), value.detach().double().numpy())


@pytest.mark.parametrize(
    "pickled",
    [
        # the attributes of an object that was checked, changed by a state: strides, the type of a storage for all files
        state(TENSOR + b"}" + text(b"strides") + b"K\x7fK\x01\x86sb"),
        state(TENSOR + b"N}" + text(b"strides") + b"K\x7fK\x01\x86s\x86b"),
        state(b"ctorch\nFloatStorage\n}" + text(b"dtype") + text(b"O8") + b"sb"),
        # items set in, or appended to, something that is neither a dictionary nor a list
        state(TENSOR + b"K\x01K\x02s"),
        state(TENSOR + b"K\x01a"),
        # other calls: a class made without its check, an object of another class
        state(b"ctorch\nFloatStorage\n)\x81"),
        state(b"ctorch\nFloatStorage\n)R"),
        # sizes: past the storage, negative, of another kind, and more numbers than the file has, by strides of 0
        state(TENSOR.replace(b"K\x02K\x02\x86", b"K\x02K\x03\x86")),
        state(TENSOR.replace(b"K\x02K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86")),
        state(TENSOR.replace(b"K\x02K\x02\x86", b"G" + struct.pack(">d", 2.0) + b"K\x02\x86")),
        state(
            TENSOR.replace(b"K\x02K\x02\x86", b"J\x00\x00\x00\x40K\x02\x86").replace(
                b"K\x02K\x01\x86", b"K\x00K\x00\x86"
            )
        ),
        state(TENSOR.replace(b"cpuK\x04", b"cpuJ\x00\x00\x00\x40")),  # the storage ends after the file
        # memory: a text of which the file has no part, keys that take for ever to hash
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 32) + b".",
        state(b"N", name=b")" + b"2\x86" * 200),
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
    ],
)
def test_what_no_tensor_needs_ends_in_one_line(tmp_path, pickled):
    with pytest.raises(CheckpointError) as caught:
        file = TorchFile(write(tmp_path / "a.bin", pickled))
        for name in file.names():
            file.read(name)
    assert str(tmp_path / "a.bin") in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    # and the next file is read as before
    np.testing.assert_array_equal(TorchFile(write(tmp_path / "b.bin", state(TENSOR))).read("a"), [[1, 2], [3, 4]])


def test_a_dictionary_that_holds_itself(tmp_path):
    with pytest.raises(CheckpointError):
        TorchFile(write(tmp_path / "a.bin", b"\x80\x02}q\x00" + text(b"model") + b"h\x00s."))


def test_a_member_that_unpacks_to_more_than_the_file(tmp_path):
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state(TENSOR) + b"\x00" * (1 << 24))
        archive.writestr("archive/data/0", b"\x00" * 16)
    with pytest.raises(CheckpointError, match="compressed, which PyTorch does not do"):
        TorchFile(str(path))


def test_the_old_form(tmp_path):
    """A stream of pickles, then bytes; storages in it are named twice."""
    path = tmp_path / "a.bin"
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    old = TENSOR.replace(b"K\x04tQ", b"K\x04NtQ")
    numbers = struct.pack("<q4f", 4, 1, 2, 3, 4)
    body = b"".join(pickle.dumps(part, 2) for part in head) + state(old) + pickle.dumps(["0"], 2) + numbers
    path.write_bytes(body)
    np.testing.assert_array_equal(TorchFile(str(path)).read("a"), [[1, 2], [3, 4]])
    path.write_bytes(body[:-4])
    with pytest.raises(CheckpointError, match="cut off"):
        TorchFile(str(path))
