"""pytorch_model.bin of strangers who know pickles, zip files and this reader."""

import io
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest

from gpt_neo.checkpoint.torch_file import TorchFile
from tests.checkpoint.hostile import check_data_refused, check_refused
from tests.checkpoint.test_torch_file import STORAGE, TENSOR, state, text

NUMBERS = struct.pack("<4f", 1, 2, 3, 4)
START = b"\x80\x02"
REBUILD, ORDERED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"
PARAMETER = b"ctorch._utils\n_rebuild_parameter\n"
FLOAT = b"ctorch\nFloatStorage\n"


def put(number):
    return b"r" + struct.pack("<I", number)


def get(number):
    return b"j" + struct.pack("<I", number)


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(kind=FLOAT, key=b"X\x01\x00\x00\x000", size=b"K\x04", what=b"storage"):
    return b"(" + text(what) + kind + key + text(b"cpu") + size + b"tQ"


def tensor(stored=STORAGE, offset=b"K\x00", shape=b"K\x02K\x02\x86", strides=b"K\x02K\x01\x86"):
    return REBUILD + b"(" + stored + offset + shape + strides + b"\x89NtR"


def with_a(value):
    """A sound tensor, and a value under another name."""
    return START + b"}(" + text(b"b") + TENSOR + text(b"a") + value + b"u."


def items_without_end():
    """A list of 10,000 items that 10,000 dictionaries are made of."""
    items = b"](" + b"".join(text(b"%06d" % n) + b"N\x86" for n in range(10_000)) + b"e" + put(1)
    return START + items + b"0" + ORDERED + put(2) + b"0](" + (get(2) + get(1) + b"\x85R") * 10_000 + b"e."


def arguments_without_end():
    """A function called 20,000 times with 100,000 arguments."""
    many = b"(" + b"N" * 100_000 + b"t" + put(1)
    return START + many + b"0" + PARAMETER + put(2) + b"0](" + (get(2) + get(1) + b"R") * 20_000 + b"e."


def strides_without_end():
    """10,000 tensors of two dimensions and 100,000 strides."""
    strides = b"(" + b"K\x01" * 100_000 + b"t" + put(1) + b"0"
    one = get(3) + b"(" + get(2) + b"K\x00K\x02K\x02\x86" + get(1) + b"tR"
    return START + strides + STORAGE + put(2) + b"0" + REBUILD + put(3) + b"0](" + one * 10_000 + b"e."


def one_dictionary_by_many_names():
    """20,000 names of one dictionary that has 20,000 names."""
    inner = b"}(" + b"".join(text(b"%05d" % n) + b"N" for n in range(20_000)) + b"u" + put(1) + b"0"
    return START + inner + b"}(" + b"".join(text(b"%05d" % n) + get(1) for n in range(20_000)) + b"u."


def chained():
    """A tuple in a tuple, 100,000 deep, in the place of a tensor."""
    return with_a(b")" + b"\x85" * 100_000)


def long_text(code, size):
    """An opcode that says how many bytes follow, and none do."""
    return START + b"}" + text(b"a") + code + size + b"s."


U64, U32 = struct.pack("<Q", 1 << 62), struct.pack("<I", 0xFFFFFFFF)
PICKLES = {  # what they are: (the pickle, what is said)
    "a call of something foreign": (with_a(b"cos\nsystem\n(" + text(b"true") + b"tR"), "asks for os.system"),
    "a foreign name by its parts": (with_a(b"\x8c\x02os\x8c\x06system\x93)R"), "asks for os.system"),
    "a name within an allowed one": (with_a(b"\x8c\x05torch\x8c\x16FloatStorage.__class__\x93"), "asks for torch.Flo"),
    "a name of two lines": (with_a(text(b"os\nerror: none\x1b[2J") + text(b"x") + b"\x93"), r"asks for os\\nerror"),
    "a name of a megabyte": (with_a(text(b"o" * (1 << 20)) + text(b"x") + b"\x93"), "asks for ooo"),
    "a module that is a number": (with_a(b"K\x01" + text(b"x") + b"\x93"), "damaged"),
    "INST": (with_a(b"(ios\nsystem\n"), "does what no tensor needs"),
    "OBJ": (with_a(b"(" + FLOAT + b"o"), "does what no tensor needs"),
    "NEWOBJ_EX": (with_a(FLOAT + b")}\x92"), "does what no tensor needs"),
    "EXT1": (with_a(b"\x82\x01"), "does what no tensor needs"),
    "a call of a tensor": (with_a(TENSOR + b")R"), "does what no tensor needs"),
    "a call with a list": (with_a(ORDERED + b"]R"), "does what no tensor needs"),
    "a call without arguments": (with_a(REBUILD + b")R"), "missing"),
    "a state for a list": (with_a(b"]}b"), "does what no tensor needs"),
    "items for a type": (with_a(FLOAT + b"(" + text(b"dtype") + text(b"O8") + b"u"), "does what no tensor needs"),
    "a dictionary of odd items": (with_a(b"(" + text(b"a") + b"d"), "does what no tensor needs"),
    "an ordered dictionary of texts": (with_a(ORDERED + text(b"abc") + b"\x85R"), "dictionary of something else"),
    "an ordered dictionary of threes": (with_a(ORDERED + b"]NNN\x87a\x85R"), "too many values"),
    "a key that is a float": (with_a(b"}G" + bytes(8) + b"Ns"), "key of type float"),
    "a key that is true": (with_a(b"}\x88Ns"), "key of type bool"),
    "a tensor by another name of two lines": (state(TENSOR, text(b"a\nerror: none")), "impossible name"),
    "a tensor by a name of a megabyte": (state(TENSOR, text(b"a" * (1 << 20))), "impossible name"),
    "keys of two lines": (START + b"}" + text(b"a\n\x1b[2J") + b"Ns.", "holds no named tensors"),
    "a million empty lists": (START + b"](" + b"]" * 1_000_000 + b"e.", "does more"),
    "a million notes in its memo": (START + b"N" + b"".join(map(put, range(1_000_000))) + b".", "does more"),
    "a dictionary that is copied without end": (items_without_end(), "does more"),
    "calls of 100,000 arguments": (arguments_without_end(), "does more"),
    "tensors of 100,000 strides": (strides_without_end(), "impossible strides|does more"),
    "one dictionary by many names": (one_dictionary_by_many_names(), "holds no named tensors"),
    "a tuple that is 100,000 deep": (START + b")" + b"\x85" * 100_000 + b".", "holds tuple"),
    "a deep tuple as a size": (with_a(tensor(shape=b")" + b"\x85" * 100_000)), "impossible sizes"),
    "a deep tuple as a storage": (with_a(b")" + b"\x85" * 100_000 + b"Q"), "no storage"),
    "LONG4 without end": (long_text(b"\x8b", struct.pack("<i", (1 << 31) - 1)), "does what no tensor needs"),
    "a decimal number without end": (START + b"I" + b"9" * 100_000 + b"\n.", "does what no tensor needs"),
    "a text of 2^32 bytes": (long_text(b"X", U32), "more than the file holds"),
    "bytes of 2^62": (long_text(b"\x8e", U64), "does what no tensor needs"),
    "a byte array of 2^62": (long_text(b"\x96", U64), "does what no tensor needs"),
    "a text of -1 bytes": (long_text(b"T", struct.pack("<i", -1)), "damaged"),
    "a frame of 2^62": (b"\x80\x04\x95" + U64 + b"}.", "damaged"),
    "a frame that ends early": (b"\x80\x04\x95" + struct.pack("<Q", 3) + state(TENSOR)[2:], "damaged"),
    "protocol 255": (b"\x80\xff}.", "protocol"),
    "what was never noted": (with_a(get(77)), "Memo|damaged"),
    "an end without a beginning": (START + b".", "damaged"),
    "a tuple without a mark": (START + b"t.", "damaged"),
    "no end": (state(TENSOR)[:-1], "damaged"),
    "a storage by a text": (with_a(text(b"0") + b"Q"), "no storage"),
    "a storage of another type": (with_a(storage(kind=text(b"FloatStorage"))), "no storage"),
    "a storage of a type that is a list": (with_a(storage(kind=b"]")), "no storage"),
    "a module in place of a storage": (with_a(storage(what=b"module")), "no storage"),
    "a storage whose name is a tuple": (with_a(storage(key=b")")), "key of type tuple"),
    "a storage of -1 numbers": (with_a(storage(size=number(-1))), "impossible sizes"),
    "a storage of 2^62 numbers": (with_a(storage(size=number(1 << 62))), "impossible sizes"),
    "a storage of 4.0 numbers": (with_a(storage(size=b"G" + struct.pack(">d", 4))), "impossible sizes"),
    "a storage of true numbers": (with_a(storage(size=b"\x88")), "impossible sizes"),
    "a storage that is larger than its member": (with_a(tensor(storage(size=b"K\x05"))), "cut off"),
    "a storage outside of the file": (with_a(tensor(storage(key=text(b"../../../etc/passwd")))), "is missing"),
    "a storage by a name of a megabyte": (with_a(tensor(storage(key=text(b"0" * (1 << 20))))), "is missing"),
    "a storage by a name of two lines": (with_a(tensor(storage(key=text(b"0\n\x1b[2J")))), r"0\\n.* is missing"),
    "a negative offset": (with_a(tensor(offset=number(-1))), "impossible sizes"),
    "an offset of 2^62": (with_a(tensor(offset=number(1 << 62))), "impossible sizes"),
    "an offset past the storage": (with_a(tensor(offset=b"K\x01")), "reaches past"),
    "a negative stride": (with_a(tensor(strides=number(-1) + b"K\x01\x86")), "impossible sizes"),
    "a stride of 2^62": (with_a(tensor(strides=number(1 << 62) + b"K\x01\x86")), "impossible sizes"),
    "sizes whose product is 2^64": (
        with_a(tensor(shape=number(1 << 32) + number(1 << 32) + b"\x86")),
        "impossible sizes",
    ),
    "sizes of 0 and 2^94": (with_a(tensor(shape=b"K\x00" + number(1 << 47) * 2 + b"\x87")), "impossible sizes"),
    "a size of 2^2000": (with_a(tensor(shape=b"K\x01\x8a\xfa" + b"\x7f" * 250 + b"\x86")), "impossible sizes"),
    "a tensor as sizes": (with_a(REBUILD + b"(" + STORAGE + b"K\x00" + TENSOR + TENSOR + b"tR"), "impossible sizes"),
    "sizes in a list": (with_a(tensor(shape=b"]K\x02aK\x02a")), "without sizes"),
}


def write(path, pickled, storages=NUMBERS, more=()):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storages)
        for name, data in more:
            archive.writestr(name, data)
    return str(path)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_ends_in_one_line(tmp_path, name):
    pickled, match = PICKLES[name]
    check_refused(TorchFile, write(tmp_path / "pytorch_model.bin", pickled), match)


def zipped(change=None, more=()):
    """A zip file's bytes, after a change of its directory's entries of (pickle, storage, what more there is)."""
    whole = io.BytesIO()
    write(whole, state(TENSOR), more=more)
    if change is None:
        return whole.getvalue()
    data = bytearray(whole.getvalue())
    at, places = data.index(b"PK\1\2"), []
    while data[at : at + 4] == b"PK\1\2":
        places.append(at)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    change(data, places)
    return bytes(data)


def told(which, at, form, *values):
    """A change of what the directory says of a member."""
    return zipped(lambda data, places: struct.pack_into(form, data, places[which] + at, *values))


def copied(which, other, at, size):
    """A member of which the directory says what it says of another."""

    def change(data, places):
        data[places[which] + at : places[which] + at + size] = data[places[other] + at : places[other] + at + size]

    return zipped(change)


def in_its_header(at, form, *values):
    """A change of what stands before the storage itself."""
    data = bytearray(zipped())
    struct.pack_into(form, data, data.index(b"PK\3\4", 9) + at, *values)
    return bytes(data)


FLAGS, METHOD, SIZES, PLACE = 8, 10, 20, 42  # bytes into an entry of the directory
ZIPS = {  # what they are: (the file, what is said)
    "a pickle twice": (zipped(more=[("archive/data.pkl", START + b"}.")]), "two members of one name"),
    "a storage twice": (zipped(more=[("archive/data/0", bytes(16))]), "two members of one name"),
    "two folders": (zipped(more=[("other/data.pkl", START + b"}.")]), "two members of one name"),
    "a pickle under a part of a name": (zipped().replace(b"archive/data.pkl", b"archive/xata.pkl"), "without data.pkl"),
    "a storage longer than stored": (told(1, SIZES + 4, "<I", 20), "two sizes"),
    "a storage stored longer": (told(1, SIZES, "<I", 20), "two sizes"),
    "a storage into the directory": (told(1, SIZES, "<II", 40, 40), "overlap"),
    "a storage longer than the file": (told(1, SIZES, "<II", 1 << 30, 1 << 30), "damaged|not do"),
    "a pickle into the storage": (told(0, SIZES, "<II", 150, 150), "overlap|damaged|refused|CRC"),
    "a pickle of 2^32 bytes": (told(0, SIZES, "<II", 0xFFFFFFFE, 0xFFFFFFFE), "not do"),
    "a storage in the place of the pickle": (copied(1, 0, PLACE, 4), "damaged"),
    "a storage past the file": (told(1, PLACE, "<I", 0x7FFFFFFF), "damaged"),
    "a storage before the file": (told(1, PLACE, "<I", 0xFFFFFFFF), "damaged"),
    "an encrypted storage": (told(1, FLAGS, "<H", 1), "encrypted|damaged"),
    "a compressed storage": (told(1, METHOD, "<H", 8), "compressed"),
    "a method of no one": (told(1, METHOD, "<H", 77), "compressed"),
    "another name before the storage": (in_its_header(30, "<2s", b"xx"), "damaged"),
    "a name of 2^16 before the storage": (in_its_header(26, "<H", 0xFFFF), "damaged"),
    "extras of 2^16 before the storage": (in_its_header(28, "<H", 0xFFFF), "overlap"),
    "a directory that breaks off": (zipped()[:-30] + zipped()[-22:], "damaged"),
    "a big-endian machine": (zipped(more=[("archive/byteorder", b"big")]), "big-endian"),
    "a long order of bytes": (zipped(more=[("archive/byteorder", b"little" + bytes(1 << 20))]), "refused"),
    "only its end": (zipped()[-22:], "damaged|without"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_file_ends_in_one_line(tmp_path, name):
    data, match = ZIPS[name]
    check_data_refused(TorchFile, tmp_path / "pytorch_model.bin", data, match)


def old(pickled=None, keys=("0",), counts=(4,), system=None):
    """A file of PyTorch before 1.6."""
    head = [0x1950A86A20F9469CFC6C, 1001, system or {"little_endian": True}]
    pickled = pickled or state(TENSOR.replace(b"K\x04tQ", b"K\x04NtQ"))
    numbers = b"".join(struct.pack("<q", count) + NUMBERS for count in counts)
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps(keys, 2) + numbers


TWO_WAYS = START + b"](" + storage() + storage(size=b"K\x05") + b"e."
OLD = {  # what they are: (the file, what is said)
    "a storage of -1 numbers": (old(counts=(-1,)), "another size"),
    "a storage of 2^62 numbers": (old(counts=(1 << 62,)), "another size"),
    "a storage of 2^40 numbers, both times": (
        old(state(tensor(storage(size=number(1 << 40)))), counts=(1 << 40,)),
        "cut off",
    ),
    "a storage told of in two ways": (old(TWO_WAYS), "two ways"),
    "a storage twice": (old(keys=("0", "0"), counts=(4, 4)), "another size"),
    "a storage that no tensor has": (old(keys=("1",)), "another size"),
    "storages that are a number": (old(keys=5), "expected a list"),
    "storages that are lists": (old(keys=([],)), "key of type list"),
    "no storage": (old(keys=()), "is missing"),
    "a big-endian machine": (old(system={"little_endian": False}), "big-endian"),
    "another magic number": (pickle.dumps(5, 2) + old(), "not a file that PyTorch wrote"),
    "a text": (b"import os\n" * 1000, "refused"),
    "nothing": (b"", "damaged"),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_file_ends_in_one_line(tmp_path, name):
    data, match = OLD[name]
    check_data_refused(TorchFile, tmp_path / "pytorch_model.bin", data, match)


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/byteorder"])
@pytest.mark.parametrize("both", [True, False])
def test_a_member_that_takes_no_disk(tmp_path, name, both):
    """Three gigabytes that are all there, told of once or in both places."""
    members = {"archive/data.pkl": state(TENSOR), "archive/data/0": NUMBERS, "archive/byteorder": b"little"}
    whole, hole = io.BytesIO(), 3 << 30
    with zipfile.ZipFile(whole, "w") as archive:
        for member in sorted(members, key=lambda member: member == name):  # the one named is the last
            archive.writestr(member, members[member])
    data = bytearray(whole.getvalue())
    directory, last = data.index(b"PK\1\2"), data.rindex(b"PK\1\2")
    size = len(members[name])
    struct.pack_into("<II", data, last + SIZES, size + hole, size + hole if both else size)
    struct.pack_into("<I", data, len(data) - 6, directory + hole)
    path = tmp_path / "pytorch_model.bin"
    with open(path, "wb") as handle:
        handle.write(data[:directory])
        handle.seek(hole, 1)
        handle.write(data[directory:])
    check_refused(TorchFile, str(path), "larger than that" if both else "two sizes")


def test_the_files_that_they_are_made_of(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for data in (zipped(), old()):
        path.write_bytes(data)
        np.testing.assert_array_equal(TorchFile(str(path)).read("a"), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(TorchFile(write(path, with_a(tensor()))).read("a"), [[1, 2], [3, 4]])
