"""Reading files made to break a reader: each ends in one line, soon, and in little memory."""

import time
import tracemalloc

import pytest

from gpt_neo.errors import CheckpointError

SECONDS, BYTES = 1.0, 64 << 20
QUICK = 0.005  # seconds of `pace` on the processors that SECONDS are meant for


def read_all(kind, path):
    """Every tensor of a file."""
    source = kind(path)
    for name in source.names():
        source.read(name)


def pace():
    """Seconds that this processor takes now, with what runs beside, for a loop in Python."""
    began, total = time.thread_time(), 0
    for number in range(100_000):
        total += number
    return time.thread_time() - began


def check_data_refused(kind, path, data, match=""):
    """See `check_refused`, of a file with these bytes."""
    path.write_bytes(data)
    check_refused(kind, str(path), match)


def check_refused(kind, path, match=""):
    """Reading ends in one line of our own that names the file, within limits of the processor's time and of memory."""
    slower = max(1.0, pace() / QUICK)
    with pytest.raises(CheckpointError, match=match) as caught:
        began = time.thread_time()
        read_all(kind, path)
    assert time.thread_time() - began < SECONDS * slower
    said = str(caught.value)
    assert path in said and said.replace(path, "").isprintable() and len(said) < len(path) + 800, said
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_all(kind, path)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
