"""A file system that fails at one call: of Python's, for paths below a folder."""

import builtins
import errno
import io
import os

KINDS = (errno.EIO, errno.ENOSPC, errno.EINTR, "short")
CALLS = ("open", "fsync", "replace", "rename", "remove", "unlink", "mkdir", "rmdir", "link", "truncate", "listdir")


class Faults:
    """Counts the calls below `folder` while it is the context; the one of number `at` fails.

    kind: an errno, or "short": the system gives a read half of what it asks for, and other calls do as they should.
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

    def tick(self):
        """Count a call. If it is the one, fail; or return that a read is to be short."""
        self.count += 1
        if self.count == self.at and self.kind != "short":
            raise OSError(self.kind, os.strerror(self.kind))
        return self.count == self.at

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
            if args[:1] == ("rb",):
                return io.BufferedReader(Raw(path, self))
            return File(function(path, *args, **options), self)

        return call


class Raw(io.FileIO):
    """A file that is read, below Python's buffer."""

    def __init__(self, path, faults):
        super().__init__(path)
        self.faults = faults

    def readinto(self, buffer):
        short = self.faults.tick()
        return super().readinto(memoryview(buffer)[: max(1, len(buffer) // 2)] if short else buffer)

    def readall(self):
        self.faults.tick()
        return super().readall()


class File:
    """A file that is written to."""

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


def moments(count, most):
    """At most so many of the calls 1 to `count`, evenly."""
    return range(1, count + 1, max(1, -(-count // most)))
