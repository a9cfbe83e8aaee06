"""`pytorch_model.bin` without PyTorch: the zip form of 1.6 and later, and the older form of pickles and raw bytes.

A pickle is a program. This reader runs it with nothing in reach but the functions that put a tensor together: any
other name it asks for ends the reading.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO, Callable

import numpy as np

from gpt_neo.checkpoint.tensors import BFLOAT16, map_array
from gpt_neo.errors import CheckpointError

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_PROTOCOL = 1001
LARGEST_PICKLE = 100_000_000  # bytes; those of released models have less than 1 MB


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row that tensors are views of."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: part of a storage. offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class StorageType:
    """Stands for torch.FloatStorage and the like."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


def rebuild_tensor(storage: Any, offset: int, shape: Sequence, strides: Sequence, *rest: Any) -> View:
    """Stands for torch._utils._rebuild_tensor_v2; what follows the strides is about gradients."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    view = View(storage, int(offset), tuple(int(n) for n in shape), tuple(int(n) for n in strides))
    if len(view.shape) != len(view.strides) or min((view.offset, *view.shape, *view.strides)) < 0:
        raise pickle.UnpicklingError("a tensor with impossible sizes")
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides))
    if 0 not in view.shape and last >= storage.count:
        raise pickle.UnpicklingError("a tensor that reaches past its storage")
    return view


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{("torch", name): StorageType(dtype) for name, dtype in STORAGES.items()},
}


class SafeUnpickler(pickle.Unpickler):
    """Knows the names in ALLOWED and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up.

        Raises:
          CheckpointError: it is not one that tensors need.
        """
        if (module, name) not in ALLOWED:
            raise CheckpointError(f"refused: its pickle asks for {module}.{name}, which no tensor needs")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage, named by the pickle."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], StorageType)):
            raise CheckpointError("refused: its pickle refers to something that is no storage")
        if len(pid) > 5 and pid[5] is not None:
            raise CheckpointError("a storage that is a view of another; save it again with a later PyTorch")
        return Storage(pid[1].dtype, str(pid[2]), int(pid[4]))


class TorchFile:
    """One file; a `TensorSource`.

    Raises:
      CheckpointError: it is damaged, or its pickle asks for anything but tensors.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, "rb") as handle:
                read = read_zip if zipfile.is_zipfile(handle) else read_old
                handle.seek(0)
                state, self.places = read(handle)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        # Whatever a damaged pickle may do, it does to this reader only.
        except Exception as error:
            raise CheckpointError(f"{path}: not a file of tensors, or damaged: {error}") from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: holds {type(state).__name__}, expected named tensors")
        outer, state = state, unwrapped(state)
        self.wrapped = state is not outer
        if not any(isinstance(view, View) for view in state.values()):
            raise CheckpointError(f"{path}: holds no named tensors; its keys: {', '.join(map(str, state))}"[:400])
        self.views = {name: view for name, view in state.items() if isinstance(view, View)}
        for name, view in self.views.items():
            if view.storage.key not in self.places:
                raise CheckpointError(f"{path}: tensor {name}: its storage {view.storage.key} is missing")

    def names(self) -> list[str]:
        """Every tensor, sorted."""
        return sorted(self.views)

    def shape(self, name: str) -> tuple:
        """Sizes of a tensor."""
        return self.views[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self.views[name].storage.dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor, a view of the mapped file."""
        view = self.views[name]
        storage = view.storage
        offset, size = self.places[storage.key]
        if size < storage.count * storage.dtype.itemsize:
            raise CheckpointError(f"{self.path}: storage {storage.key} of tensor {name} is cut off")
        if 0 in view.shape:
            return np.zeros(view.shape, storage.dtype)
        numbers = map_array(self.path, storage.dtype, (storage.count,), offset)[view.offset :]
        strides = tuple(s * storage.dtype.itemsize for s in view.strides)
        return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)


def unwrapped(state: dict) -> dict:
    """The weights of a file that holds more: trainers save {"state_dict": {...}, "optimizer": ...} and the like."""
    for key in ("state_dict", "model_state_dict", "model", "module"):
        inner = state.get(key)
        if isinstance(inner, dict) and inner:
            return unwrapped(inner)
    return state


def read_zip(handle: BinaryIO) -> tuple[Any, dict]:
    """The object of a zip file, and (offset, bytes) of each storage in it."""
    with zipfile.ZipFile(handle) as archive:
        members = {info.filename: info for info in archive.infolist()}
        root = next((name[: -len("data.pkl")] for name in members if name.endswith("data.pkl")), None)
        if root is None:
            raise CheckpointError("a zip file without data.pkl; PyTorch did not write it")
        if root + "byteorder" in members and archive.read(root + "byteorder").strip() != b"little":
            raise CheckpointError("written on a big-endian machine, which is not read here")
        if members[root + "data.pkl"].file_size > LARGEST_PICKLE:
            raise CheckpointError("refused: its pickle is larger than any of a model")
        state = SafeUnpickler(io.BytesIO(archive.read(root + "data.pkl"))).load()
        places = {}
        for name, info in members.items():
            if name.startswith(root + "data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError("its storages are compressed, which PyTorch does not do")
                # The local header's name and extra field may be longer than the directory's.
                handle.seek(info.header_offset)
                name_size, extra_size = struct.unpack("<HH", handle.read(30)[26:])
                places[name[len(root) + 5 :]] = (info.header_offset + 30 + name_size + extra_size, info.file_size)
    return state, places


def read_old(handle: BinaryIO) -> tuple[Any, dict]:
    """The object of a file of PyTorch before 1.6, and (offset, bytes) of each storage in it."""
    load: Callable[[], Any] = lambda: SafeUnpickler(handle).load()  # noqa: E731
    if load() != OLD_MAGIC or load() != OLD_PROTOCOL:
        raise CheckpointError("not a file that PyTorch wrote")
    system = load()
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise CheckpointError("written on a big-endian machine, which is not read here")
    storages: dict[str, Storage] = {}

    class Noting(SafeUnpickler):
        """Remembers the storages, whose sizes say where each begins."""

        def persistent_load(self, pid: Any) -> Storage:
            storage = super().persistent_load(pid)
            storages[storage.key] = storage
            return storage

    state = Noting(handle).load()
    keys, places = load(), {}
    for key in keys:
        count = struct.unpack("<q", handle.read(8))[0]
        if str(key) not in storages or count != storages[str(key)].count:
            raise CheckpointError(f"storage {key} has {count} numbers, its tensors tell of another size")
        size = count * storages[str(key)].dtype.itemsize
        places[str(key)] = (handle.tell(), size)
        handle.seek(size, io.SEEK_CUR)
    return state, places
