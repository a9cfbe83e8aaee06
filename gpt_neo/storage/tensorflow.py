"""The files of a job: as `storage`, but what is remote goes through TensorFlow's file systems, as its checkpoints do.

TensorFlow serves gs:// of itself, and other schemes with packages that add them; it is imported when a path has one.
It looks into a cache before it reads, so what is written here must be read here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.errors import ConfigError
from gpt_neo.storage import local, scheme_of


def is_remote(path: str) -> bool:
    """Whether a path is of a scheme of TensorFlow's.

    Raises:
      ConfigError: TensorFlow serves no such scheme.
    """
    scheme = scheme_of(path)
    if scheme not in ("", storage.SCHEME) and scheme not in gfile().get_registered_schemes():
        raise ConfigError(
            f"{path!r}: TensorFlow neither reads nor writes {scheme}://; expected a local path, or {storage.REMOTE}..."
        )
    return bool(scheme)


def gfile() -> Any:
    """TensorFlow's file systems."""
    from gpt_neo.mtf_compat import tf

    return tf.io.gfile


@contextlib.contextmanager
def remote_errors(path: str) -> Iterator[None]:
    """Turn TensorFlow's exceptions into OSErrors."""
    from gpt_neo.mtf_compat import graph_reason, tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, graph_reason(error), path) from error
    except (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, graph_reason(error), path) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, graph_reason(error), path) from error


def exists(path: str) -> bool:
    """Whether there is such a file."""
    if not is_remote(path):
        return storage.exists(path)
    with remote_errors(path):
        return gfile().exists(path)


def size(path: str) -> int:
    """Bytes of a file. Raises: FileNotFoundError."""
    if not is_remote(path):
        return storage.size(path)
    with remote_errors(path):
        return gfile().stat(path).length


def changed(path: str) -> int:
    """When a file was written, in nanoseconds since 1970. Raises: FileNotFoundError."""
    if not is_remote(path):
        return os.stat(local(path)).st_mtime_ns
    with remote_errors(path):
        return gfile().stat(path).mtime_nsec


def is_folder(path: str) -> bool:
    """Whether there is such a folder."""
    if not is_remote(path):
        return storage.is_folder(path)
    with remote_errors(path):
        return gfile().isdir(path)


def names(folder: str) -> list[str]:
    """Files and folders in a folder, sorted. Raises: FileNotFoundError."""
    if not is_remote(folder):
        return sorted(os.listdir(local(folder)))
    with remote_errors(folder):
        return sorted(name.rstrip("/") for name in gfile().listdir(folder))


def glob(pattern: str) -> list[str]:
    """Files that match a pattern, sorted."""
    if not is_remote(pattern):
        return storage.glob(pattern)
    with remote_errors(pattern):
        return sorted(gfile().glob(pattern))


def read_bytes(path: str, offset: int = 0, count: int = -1) -> bytes:
    """The content of a file from a byte on; all of it, or as many bytes as are wanted and there."""
    if not is_remote(path):
        with storage.open_read(path) as handle:
            handle.seek(offset)
            return handle.read(count)
    with remote_errors(path), gfile().GFile(path, "rb") as handle:
        if offset:
            handle.seek(offset)
        return handle.read(count)


@contextlib.contextmanager
def open_read(path: str) -> Iterator[Any]:
    """A handle to read a file with."""
    if not is_remote(path):
        with storage.open_read(path) as handle:
            yield handle
        return
    with remote_errors(path), gfile().GFile(path, "rb") as handle:
        yield handle


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Optional[str]]:
    """A file as a local one: itself, or a copy of one in a bucket, under its name; None where there is no such file."""
    if not exists(path):
        yield None
    elif not is_remote(path):
        yield local(path)
    else:
        with tempfile.TemporaryDirectory(prefix="gpt_neo_copy_") as folder:
            copy = os.path.join(folder, path.rpartition("/")[2])
            with open(copy, "wb") as handle:
                handle.write(read_bytes(path))
            yield copy


def write_text(path: str, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part."""
    if not is_remote(path):
        storage.write_bytes(path, text.encode("utf-8"))
        return
    with remote_errors(path), gfile().GFile(path, "w") as handle:  # an object appears whole, when it is closed
        handle.write(text)


def append_text(path: str, text: str) -> None:
    """Add lines to the end of a file; a last one that was cut off, as a power loss leaves it, is ended first. Of a file
    with further names, as `cp -al` copies a run, they get nothing: this one becomes a file of its own."""
    if not is_remote(path):
        if storage.exists(path) and os.stat(local(path)).st_nlink > 1:
            storage.write_bytes(path, storage.read_bytes(path))
        with open(local(path), "ab+") as handle:
            handle.seek(max(0, handle.tell() - 1))
            cut = handle.read(1) not in (b"", b"\n")
            handle.write(b"\n" * cut + text.encode("utf-8"))
        return
    with remote_errors(path), gfile().GFile(path, "a") as handle:
        handle.write(text)


def make_folder(path: str) -> None:
    """Make a folder and those above it."""
    if not is_remote(path):
        storage.make_folder(path)
        return
    with remote_errors(path):
        gfile().makedirs(path)


def delete(path: str) -> None:
    """Delete a file, or a folder with everything in it. Raises: FileNotFoundError."""
    if not is_remote(path):
        shutil.rmtree(local(path)) if os.path.isdir(local(path)) else os.remove(local(path))
        return
    with remote_errors(path):
        gfile().rmtree(path) if gfile().isdir(path) else gfile().remove(path)
