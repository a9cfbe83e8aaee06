"""A file system that fails at one call: of Python's, for paths below a folder."""

import builtins
import errno
import os

KINDS = (errno.EIO, errno.ENOSPC, errno.EINTR, "short")
CALLS = ("open", "fsync", "replace", "rename", "remove", "unlink", "mkdir", "rmdir", "link", "truncate", "listdir")


class Faults:
    """Counts the calls below `folder` while it is the context; the one of number `at` fails.

    kind: an errno, or "short": a read gives half of what is there, and other calls do as they should.
    """

    def __init__(self, monkeypatch, folder, at=0, kind=errno.EIO):
        self.patch, self.folder, self.at, self.kind, self.count = monkeypatch, str(folder), at, kind, 0

    def __enter__(self):
        self.context = self.patch.context()
        patch = self.context.__enter__()
        for name in CALLS:
            patch.setattr(os, name, self.failing(getattr(os, name)))
        patch.setattr(builtins, "open", self.opened(builtins.open))
        return self

    def __exit__(self, *error):
        self.context.__exit__(*error)

    def concerns(self, path):
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return os.path.abspath(os.fspath(path)).startswith(self.folder)

    def tick(self, read=False):
        """Count a call, and fail if it is the one. Returns whether a read is to be short."""
        self.count += 1
        if self.count != self.at:
            return False
        if self.kind != "short":
            raise OSError(self.kind, os.strerror(self.kind))
        return read

    def failing(self, function):
        def call(path=".", *args, **options):
            if self.concerns(path):
                self.tick()
            return function(path, *args, **options)

        return call

    def opened(self, function):
        def call(path, *args, **options):
            if not self.concerns(path):
                return function(path, *args, **options)
            self.tick()
            return File(function(path, *args, **options), self)

        return call


class File:
    """An open file whose reads and writes may fail."""

    def __init__(self, handle, faults):
        self.handle, self.faults = handle, faults

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.close()

    def __iter__(self):
        return iter(self.handle)

    def write(self, data):
        self.faults.tick()
        return self.handle.write(data)

    def flush(self):
        self.faults.tick()
        self.handle.flush()

    def read(self, *size):
        short = self.faults.tick(read=True)
        data = self.handle.read(*size)
        return data[: len(data) // 2] if short else data


def moments(count, most):
    """At most so many of the calls 1 to `count`, evenly."""
    return range(1, count + 1, max(1, -(-count // most)))
