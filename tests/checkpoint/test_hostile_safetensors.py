"""Safetensors files of strangers who know the format."""

import json
import struct

import numpy as np
import pytest

from gpt_neo.checkpoint.safetensors import SafetensorsFile
from tests.checkpoint.hostile import check_data_refused, check_refused

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {**A, "data_offsets": [24, 48]}


def header(**entries):
    return json.dumps(entries).encode()


def changed(**changes):
    """Tensor b of two with something changed."""
    return header(a=A, b={**B, **changes})


def file_of(text, data=48, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


SOUND = header(a=A, b=B)
FILES = {  # what they are: (their bytes, what is said)
    "overlap": (file_of(changed(data_offsets=[20, 44]), 44), "overlaps"),
    "the same bytes twice": (file_of(changed(data_offsets=[0, 24]), 24), "overlaps"),
    "a hole": (file_of(changed(data_offsets=[28, 52]), 52), "hole"),
    "bytes of no tensor": (file_of(SOUND, 64), "no tensor's"),
    "begin after end": (file_of(changed(data_offsets=[48, 24])), "do not make"),
    "one offset": (file_of(changed(data_offsets=[24])), "damaged"),
    "three offsets": (file_of(changed(data_offsets=[24, 48, 72])), "damaged"),
    "offsets in a text": (file_of(changed(data_offsets="ab")), "impossible sizes"),
    "a float as offset": (file_of(changed(data_offsets=[24.0, 48.0])), "impossible sizes"),
    "an offset without end": (file_of(SOUND.replace(b"[24, 48]", b"[24, Infinity]")), "impossible sizes"),
    "a negative offset": (file_of(changed(data_offsets=[-24, 0])), "impossible sizes"),
    "NaN as size": (file_of(SOUND.replace(b"[2, 3]", b"[2, NaN]")), "impossible sizes"),
    "true as size": (file_of(changed(shape=[True, 6])), "impossible sizes"),
    "a list as size": (file_of(changed(shape=[[2], 3])), "impossible sizes"),
    "sizes in a text": (file_of(header(a={"dtype": "F32", "shape": "", "data_offsets": [0, 4]}), 4), "no list"),
    "sizes by name": (file_of(header(a={"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}), 4), "no list"),
    "a product of 2^64": (file_of(changed(shape=[1 << 32, 1 << 32], data_offsets=[24, 24])), "impossible sizes"),
    "a product of 0 and 2^94": (
        file_of(changed(shape=[0, 1 << 47, 1 << 47], data_offsets=[24, 24]), 24),
        "impossible sizes",
    ),
    "a hundred dimensions": (file_of(changed(shape=[1] * 99 + [6])), "impossible sizes"),
    "an unknown type": (file_of(changed(dtype="F8_E4M3")), "has type F8_E4M3; known: F64"),
    "a long type": (file_of(changed(dtype="F" * 1_000_000)), "has type F"),
    "a type of two lines": (file_of(changed(dtype="F32\nerror: none\x1b[2J")), "has type F32"),
    "a type that is a list": (file_of(changed(dtype=["F32"])), "damaged"),
    "no type": (file_of(header(a={"shape": [], "data_offsets": [0, 4]}), 4), "has no dtype"),
    "null in place of a tensor": (file_of(header(a=A, b=None), 24), "has no dtype"),
    "a name of two lines": (file_of(header(**{"a\nerror: none": A}), 24), "impossible name"),
    "a name that clears the screen": (file_of(header(**{"\x1b[2Ja": A}), 24), "impossible name"),
    "a name of a megabyte": (file_of(header(**{"a" * (1 << 20): A}), 24), "impossible name"),
    "a name twice": (file_of(SOUND.replace(b'"b"', b'"a"')), "stands twice"),
    "a long name twice": (
        file_of(b"{" + b",".join([b'"%s":1' % (b"a" * (1 << 20))] * 2) + b"}"),
        "key 'aaaa.*stands twice|damaged",
    ),
    "a key of an entry twice": (file_of(SOUND.replace(b'"dtype"', b'"shape": [1], "dtype"')), "stands twice"),
    "no UTF-8": (file_of(SOUND.replace(b'"b"', b'"\xff"')), "damaged"),
    "UTF-16": (file_of(SOUND.decode().encode("utf-16-le")), "expected a JSON object"),
    "a list": (file_of(b"[" + SOUND + b"]"), "expected a JSON object"),
    "notes that nest": (file_of(b'{"__metadata__": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0), "nested too deeply"),
    "notes that are numbers": (file_of(header(__metadata__={"a": 1}), 0), "__metadata__"),
    "notes of NaN": (file_of(b'{"__metadata__": {"a": NaN}}', 0), "__metadata__"),
    "a number of 100,000 digits": (file_of(SOUND.replace(b"[24, 48]", b"[24, %s]" % (b"9" * 100_000))), "digits"),
    "a million lists": (file_of(b'{"a": [' + b"[]," * 1_000_000 + b"[]]}", 0), "more parts"),
    "a million objects": (file_of(b'{"a": [' + b"{}," * 1_000_000 + b"{}]}", 0), "more parts"),
    "a header that breaks off": (file_of(SOUND[:-9]), "damaged"),
    "two headers": (file_of(SOUND + SOUND), "damaged"),
    "a header without end": (file_of(SOUND, length=(1 << 64) - 1), "cut off in its header"),
    "a header past the file": (file_of(SOUND, length=len(SOUND) + 49), "cut off in its header"),
    "a header of nothing": (file_of(b""), "not a safetensors file"),
    "seven bytes": (bytes(7), "not a safetensors file"),
}


@pytest.mark.parametrize("name", FILES)
def test_ends_in_one_line(tmp_path, name):
    data, match = FILES[name]
    check_data_refused(SafetensorsFile, tmp_path / "model.safetensors", data, match)


@pytest.mark.parametrize("length", [(1 << 24) + 1, 1 << 24, 1 << 32])
def test_a_header_that_takes_no_disk(tmp_path, length):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", length))
        handle.truncate(1 << 33)
    check_refused(SafetensorsFile, str(path), "cut off in its header|expected a JSON object")


def test_the_file_that_they_are_made_of(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(SOUND))
    np.testing.assert_array_equal(SafetensorsFile(str(path)).read("b"), np.zeros((2, 3)))
