"""Reading files made to break a reader: each ends in one line, soon, and in little memory."""

import contextlib
import sys
import time
import tracemalloc

import pytest

from gpt_neo.errors import CheckpointError

BYTES = 64 << 20
LINES = 20_000_000  # of Python, that may be run for a file; a count, as a time depends on what runs beside
SECONDS = 60.0  # of one processor's time, for work that C does


def read_all(kind, path):
    """Every tensor of a file."""
    source = kind(path)
    for name in source.names():
        source.read(name)


class TooMuchWork(BaseException):
    """No Exception, so that no reader takes it for a damaged file."""


@contextlib.contextmanager
def counted_lines():
    """TooMuchWork as soon as more lines than LINES have been run."""
    left, before = LINES, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal left
        left -= 1
        if not left:
            raise TooMuchWork(f"more than {LINES:,} lines")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def check_data_refused(kind, path, data, match=""):
    """See `check_refused`, of a file with these bytes."""
    path.write_bytes(data)
    check_refused(kind, str(path), match)


def check_refused(kind, path, match=""):
    """Reading ends in one line of our own that names the file, within limits of work and of memory."""
    began = time.thread_time()
    with pytest.raises(CheckpointError, match=match) as caught, counted_lines():
        read_all(kind, path)
    assert time.thread_time() - began < SECONDS
    said = str(caught.value)
    assert path in said and said.replace(path, "").isprintable() and len(said) < len(path) + 800, said
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_all(kind, path)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
