"""`pytorch_model.bin` without PyTorch: the zip form of 1.6 and later, and the older form of pickles and raw bytes.

A pickle is a program. This reader runs it with nothing in reach but the functions that put a tensor together: any
other name it asks for ends the reading, and so does any opcode that tensors do not need. What it builds are tuples,
which nothing can change after their check, and plain dictionaries and lists.
"""

from __future__ import annotations

import bisect
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from typing import Any, BinaryIO, Callable, NamedTuple

import numpy as np

from gpt_neo.checkpoint.tensors import BFLOAT16, check_name, check_numbers, check_shape, map_array
from gpt_neo.errors import CheckpointError, brief, reason_of
from gpt_neo.system import uncollected

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
LARGEST_PICKLE = 1 << 24  # bytes; those of released models have less than 1 MB
STEPS = 250_000  # opcodes, and what they are given, of a pickle; a tensor takes about 32, 20B have 700 tensors
LONGEST_NAME = 1 << 12  # bytes, of a module or a class


class Storage(NamedTuple):
    """Numbers in a row that tensors are views of."""

    dtype: np.dtype
    key: str
    numbers: int


class View(NamedTuple):
    """A tensor: part of a storage. offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class StorageType(NamedTuple):
    """Stands for torch.FloatStorage and the like."""

    dtype: np.dtype


def checked(view: View) -> View:
    """A view, if it lies within its storage and has no more numbers than that.

    Raises:
      ValueError: it does not, or its sizes are impossible.
    """
    check_shape(view.shape)
    if len(view.strides) != len(view.shape):
        raise ValueError("a tensor with impossible strides")
    check_numbers(view.storage.numbers, view.offset, *view.strides)
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides))
    if 0 not in view.shape and (last >= view.storage.numbers or math.prod(view.shape) > view.storage.numbers):
        raise ValueError("a tensor that reaches past its storage")
    return view


def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
    """Stands for torch._utils._rebuild_tensor_v2; what follows the strides is about gradients."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without a storage, or without sizes")
    return checked(View(storage, offset, shape, strides))


def rebuild_parameter(data: Any, *rest: Any) -> Any:
    """Stands for torch._utils._rebuild_parameter; what follows the tensor is about gradients."""
    return data


def ordered(pairs: Any = (), *rest: Any) -> dict:
    """Stands for collections.OrderedDict, which pickles of Python 2 hand its items to."""
    if rest or not isinstance(pairs, (list, tuple)):
        raise ValueError("a dictionary of something else than items")
    return {checked_key(key): value for key, value in pairs}


def checked_key(key: Any) -> Any:
    """A key of a dictionary. Others are no names, and a nested one can take for ever to hash."""
    if type(key) not in (str, int):
        raise ValueError(f"a dictionary with a key of type {type(key).__name__}")
    return key


REBUILD = {"_rebuild_tensor_v2": rebuild_tensor, "_rebuild_tensor": rebuild_tensor}
ALLOWED: dict[tuple[str, str], Any] = {
    **{("torch._utils", name): function for name, function in REBUILD.items()},
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("collections", "OrderedDict"): ordered,
    **{("torch", name): StorageType(dtype) for name, dtype in STORAGES.items()},
}
FUNCTIONS = (rebuild_tensor, rebuild_parameter, ordered)
# What pickles of tensors are made of, by pickletools' names. Nothing here reaches a module, and what changes an object
# (REDUCE, BUILD, SETITEM...) is replaced below.
OPCODES = {
    opcode.name: ord(opcode.code)
    for opcode in pickletools.opcodes
    if opcode.name
    in (
        "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
        "SHORT_BINUNICODE BINUNICODE SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
        "TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT "
        "MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID"
    ).split()
}


class Steps(dict):
    """What each opcode does, handed out so many times: a short pickle can do the same thing without end."""

    def __init__(self, known: dict) -> None:
        super().__init__(known)
        self.left = STEPS

    def __getitem__(self, code: int) -> Any:
        self.take(1)
        return super().__getitem__(code)

    def take(self, count: int) -> None:
        """Count steps. Raises: CheckpointError: there were too many."""
        self.left -= count
        if self.left < 0:
            raise CheckpointError("refused: its pickle does more than that of any model")


PythonUnpickler: Any = pickle._Unpickler  # the one in C cannot be told what an opcode may do


class SafeUnpickler(PythonUnpickler):
    """Runs the opcodes that tensors need, knows the names in ALLOWED, and changes nothing but dictionaries and lists
    that the pickle itself has made."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.dispatch = self.steps = Steps(type(self).dispatch)  # which the unpickler asks at every opcode

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up.

        Raises:
          CheckpointError: it is not one that tensors need.
        """
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f"refused: its pickle asks for {brief(f'{module}.{name}')}, which no tensor needs; save the weights "
                "alone, as model.save_pretrained or torch.save(model.state_dict(), ...) do"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage, named by the pickle."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], StorageType)):
            raise CheckpointError("refused: its pickle refers to something that is no storage")
        if len(pid) > 5 and pid[5] is not None:
            raise CheckpointError("a storage that is a view of another; save it again with a later PyTorch")
        check_numbers(pid[4])
        return Storage(pid[1].dtype, str(checked_key(pid[2])), pid[4])

    def refuse(self) -> None:
        """For every opcode that tensors do not need."""
        raise CheckpointError("refused: its pickle does what no tensor needs")

    def reduce(self) -> None:
        """Call one of the functions that put tensors together."""
        given = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(given, tuple) or not any(function is known for known in FUNCTIONS):
            self.refuse()
        self.steps.take(len(given) + sum(len(part) for part in given if isinstance(part, (list, tuple))))
        self.stack[-1] = function(*given)

    def build(self) -> None:
        """Leave an object as it is: state dictionaries have notes on versions of modules, and nothing else has any."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            self.refuse()

    def set_items(self) -> None:
        """Put items that lie after a mark into the dictionary before it."""
        self.set_all(self.pop_mark())

    def set_item(self) -> None:
        """Put one item into a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self.set_all([key, value])

    def set_all(self, items: list) -> None:
        """Put keys and values, in turn, into the dictionary on top."""
        if type(self.stack[-1]) is not dict or len(items) % 2:
            self.refuse()
        self.stack[-1].update((checked_key(key), value) for key, value in zip(items[::2], items[1::2]))

    def make_dict(self) -> None:
        """A dictionary of what lies after a mark."""
        items = self.pop_mark()
        self.stack.append({})
        self.set_all(items)

    def append_all(self) -> None:
        """Append what lies after a mark to the list before it."""
        items = self.pop_mark()
        if type(self.stack[-1]) is not list:
            self.refuse()
        self.stack[-1].extend(items)

    def append_one(self) -> None:
        """Append to a list."""
        item = self.stack.pop()
        if type(self.stack[-1]) is not list:
            self.refuse()
        self.stack[-1].append(item)

    dispatch: dict = dict.fromkeys(range(256), refuse)
    dispatch.update({code: PythonUnpickler.dispatch[code] for code in OPCODES.values()})
    dispatch.update(
        {
            OPCODES["REDUCE"]: reduce,
            OPCODES["BUILD"]: build,
            OPCODES["SETITEM"]: set_item,
            OPCODES["SETITEMS"]: set_items,
            OPCODES["DICT"]: make_dict,
            OPCODES["APPEND"]: append_one,
            OPCODES["APPENDS"]: append_all,
        }
    )


class Bounded:
    """A file for an unpickler: it asks for no more memory than there are bytes, and for no more than a pickle has."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self.handle = handle
        self.left = min(LARGEST_PICKLE, size - handle.tell())

    def read(self, count: int) -> bytes:
        """So many bytes."""
        return self.take(count, self.handle.read)

    def readline(self) -> bytes:
        """Up to a line's end: a name."""
        return self.take(LONGEST_NAME, self.handle.readline)

    def take(self, count: int, read: Callable[[int], bytes]) -> bytes:
        """Read, and count what was read. Raises: ValueError."""
        if count > max(self.left, LONGEST_NAME):
            raise ValueError("its pickle tells of more than the file holds, or is larger than any of a model")
        data = read(count)
        self.left -= len(data)
        return data


class TorchFile:
    """One file; a `TensorSource`.

    Raises:
      CheckpointError: it is damaged, or its pickle asks for anything but tensors.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, "rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                read = read_zip if zipfile.is_zipfile(handle) else read_old
                handle.seek(0)
                with uncollected():
                    state, self.places = read(handle, size)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}") from error
        # Whatever a damaged pickle may do, it does to this reader only.
        except Exception as error:
            raise CheckpointError(
                f"{path}: not a file of tensors, or damaged: {brief(reason_of(error), 200)}"
            ) from error
        if type(state) is not dict:
            raise CheckpointError(f"{path}: holds {type(state).__name__}, expected named tensors")
        outer, state = state, unwrapped(state)
        self.wrapped = state is not outer
        if not has_tensors(state):
            raise CheckpointError(f"{path}: holds no named tensors; its keys: {brief(', '.join(map(str, state)), 300)}")
        if not all(type(name) is str for name in state):
            raise CheckpointError(f"{path}: holds no dictionary of named tensors")
        self.views = {name: view for name, view in state.items() if isinstance(view, View)}
        for name, view in self.views.items():
            try:
                check_name(name)
            except ValueError as error:
                raise CheckpointError(f"{path}: {error}") from error
            self.place(name, view, size)

    def place(self, name: str, view: View, whole: int) -> int:
        """The byte at which a tensor's storage begins, held against the size of the file.

        Raises:
          CheckpointError: it is not there, or cut off.
        """
        storage = view.storage
        if storage.key not in self.places:
            raise CheckpointError(f"{self.path}: tensor {name}: its storage {brief(storage.key)} is missing")
        offset, size = self.places[storage.key]
        if size < storage.numbers * storage.dtype.itemsize or offset + size > whole:
            raise CheckpointError(f"{self.path}: storage {brief(storage.key)} of tensor {name} is cut off")
        return offset

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
        try:
            checked(view)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {name}: {error}") from error
        offset = self.place(name, view, os.path.getsize(self.path))
        if 0 in view.shape:
            return np.zeros(view.shape, storage.dtype)
        numbers = map_array(self.path, storage.dtype, (storage.numbers,), offset)[view.offset :]
        strides = tuple(s * storage.dtype.itemsize for s in view.strides)
        return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)


def unwrapped(state: dict) -> dict:
    """The weights of a file that holds more: trainers save {"state_dict": {...}, "optimizer": ...} and the like.

    Under another name they are found where they are the only tensors.
    """
    for _ in range(3):  # a dictionary can hold itself
        inner = [state.get(key) for key in ("state_dict", "model_state_dict", "model", "module")]
        if not has_tensors(state):
            each = {
                id(value): value for value in state.values() if type(value) is dict
            }  # one may stand a million times
            good = {key for key, value in each.items() if has_tensors(value)}
            others = [value for value in state.values() if id(value) in good]
            inner += others if len(others) == 1 else []
        state = next((found for found in inner if type(found) is dict and found), state)
    return state


def has_tensors(state: dict) -> bool:
    """Whether tensors stand directly in it."""
    return any(isinstance(value, View) for value in state.values())


def read_zip(handle: BinaryIO, size: int) -> tuple[Any, dict]:
    """The object of a zip file, and (offset, bytes) of each storage in it."""
    with zipfile.ZipFile(handle) as archive:
        root, members = members_of(archive, size)
        if root + "byteorder" in members and archive.read(root + "byteorder").strip() != b"little":
            raise CheckpointError("written on a big-endian machine, which is not read here")
        text = archive.read(root + "data.pkl")
        places = {name[len(root) + 5 :]: place for name, place in places_of(archive, handle, root + "data/").items()}
        return SafeUnpickler(Bounded(io.BytesIO(text), len(text))).load(), places


def members_of(archive: zipfile.ZipFile, size: int) -> tuple[str, dict]:
    """What stands before the names of a file's members, and these by name.

    Raises:
      CheckpointError: PyTorch writes no such file: two members of one name, compressed ones, ones that lie about sizes.
    """
    members = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in members if f"/{name}".endswith("/data.pkl")]
    if not roots:
        raise CheckpointError("a zip file without data.pkl; PyTorch did not write it")
    if len(roots) > 1 or len(members) < len(archive.infolist()):
        raise CheckpointError("a zip file with two members of one name; PyTorch did not write it")
    root = roots[0]
    for name, info in members.items():
        if name.startswith(root) and (info.compress_type != zipfile.ZIP_STORED or info.file_size > size):
            raise CheckpointError("its storages are compressed, which PyTorch does not do")
        if name.startswith(root) and info.file_size != info.compress_size:
            raise CheckpointError(f"its member {brief(name)} has two sizes; PyTorch did not write it")
    for name, most in (("data.pkl", LARGEST_PICKLE), ("byteorder", 16)):
        if root + name in members and members[root + name].file_size > most:
            raise CheckpointError(f"refused: its {name} is larger than that of any model")
    return root, members


def places_of(archive: zipfile.ZipFile, handle: BinaryIO, start: str) -> dict:
    """(offset, bytes) of the members whose names begin so.

    Raises:
      CheckpointError: one reaches into what follows it.
      zipfile.BadZipFile: what stands before one is not what the directory says.
    """
    begins = sorted([*(info.header_offset for info in archive.infolist()), archive.start_dir])
    places = {}
    for info in archive.infolist():
        if not info.filename.startswith(start):
            continue
        archive.open(info).close()  # holds its own header against the directory
        # The local header's name and extra field may be longer than the directory's.
        handle.seek(info.header_offset)
        name_size, extra_size = struct.unpack("<HH", handle.read(30)[26:])
        begin = info.header_offset + 30 + name_size + extra_size
        if begin + info.file_size > begins[bisect.bisect_right(begins, info.header_offset)]:
            raise CheckpointError(f"its member {brief(info.filename)} overlaps another; PyTorch did not write it")
        places[info.filename] = (begin, info.file_size)
    return places


def read_old(handle: BinaryIO, size: int) -> tuple[Any, dict]:
    """The object of a file of PyTorch before 1.6, and (offset, bytes) of each storage in it."""
    file = Bounded(handle, size)
    load: Callable[[], Any] = lambda: SafeUnpickler(file).load()  # noqa: E731
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
            if storages.setdefault(storage.key, storage) != storage:
                raise ValueError(f"storage {brief(storage.key)} is told of in two ways")
            return storage

    state = Noting(file).load()
    keys, places = load(), {}
    if not isinstance(keys, (list, tuple)):
        raise ValueError("expected a list of storages")
    for key in map(str, map(checked_key, keys)):
        count = struct.unpack("<q", handle.read(8))[0]
        if key in places or key not in storages or count != storages[key].numbers:
            raise CheckpointError(f"storage {brief(key)} has {count} numbers, its tensors tell of another size")
        length = count * storages[key].dtype.itemsize
        places[key] = (handle.tell(), length)
        if handle.seek(length, io.SEEK_CUR) > size:
            raise CheckpointError(f"storage {brief(key)} is cut off")
    return state, places
