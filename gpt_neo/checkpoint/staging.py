"""Writing a folder as a whole: beside its place under another name, renamed once it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator

from gpt_neo import storage
from gpt_neo.checkpoint.remote import uploaded_folder
from gpt_neo.errors import CheckpointError, InUseError, reason_of
from gpt_neo.system import is_running

LEFT = 24 * 3600  # seconds


@contextlib.contextmanager
def staged_folder(destination: str) -> Iterator[str]:
    """A folder to write into, which becomes `destination` when the block ends without an error.

    After an error, or a kill, `destination` is as it was: absent, or empty. What a killed run has left behind under
    the other name is removed by the next one. For a folder in a bucket see `uploaded_folder`.

    Raises:
      CheckpointError: the destination holds something, or the disk does not take what is written.
      InUseError: another command has written the same folder meanwhile.
    """
    if storage.is_remote(destination):
        with uploaded_folder(destination) as staging:
            yield staging
        return
    destination = check_empty(destination)
    parent, name = os.path.split(destination)
    staging = os.path.join(parent, f".{name}.{machine()}.{os.getpid()}-{os.urandom(4).hex()}.partial")
    rest = "nothing is there"
    try:
        storage.make_folder(parent)
        remove_stale(parent, name)
        os.mkdir(staging)
        yield staging
        storage.sync(*(os.path.join(top, name) for top, _, names in os.walk(staging) for name in names))
        take_place(staging, destination)
        rest = "what is there may not outlast a power cut"
        storage.sync(destination)
    except OSError as error:
        elsewhere = error.filename and not str(error.filename).startswith(parent)
        reason = f"{error.filename}: {reason_of(error)}" if elsewhere else reason_of(error)
        raise CheckpointError(f"{destination}: cannot be written: {reason}; {rest}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_empty(destination: str) -> str:
    """The whole path of a local folder that is absent, or empty.

    Raises:
      CheckpointError: it holds something.
    """
    destination = storage.absolute(destination)
    if os.path.lexists(destination) and not (os.path.isdir(destination) and not os.listdir(destination)):
        raise CheckpointError(f"{destination}: exists and is not an empty folder; choose another, or remove it")
    return destination


def take_place(staging: str, destination: str) -> None:
    """Rename a finished folder to one that is absent or empty.

    Raises:
      InUseError: it is neither any longer.
      OSError: the disk does not take it.
    """
    try:
        if os.path.isdir(destination):
            os.rmdir(destination)
        os.rename(staging, destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise InUseError(f"{destination}: another command has written it meanwhile, and it stays as it is") from error


def remove_stale(parent: str, name: str) -> None:
    """Remove what runs of this machine that are no longer alive have left; of another, or of a container that is gone,
    what nobody has written to for a day, as they cannot be asked."""
    for entry in os.listdir(parent):
        match = re.fullmatch(re.escape(f".{name}.") + r"([\w-]+)\.(\d+)-[0-9a-f]{8}\.partial", entry)
        path = os.path.join(parent, entry)
        if match and (not is_running(int(match[2])) if match[1] == machine() else is_left(path)):
            shutil.rmtree(path, ignore_errors=True)


def is_left(folder: str) -> bool:
    """Whether nothing of a folder has changed for a day."""
    inside = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    with contextlib.suppress(OSError):  # it has just been renamed, or a file of it
        return time.time() - max(map(os.path.getmtime, [folder, *inside])) > LEFT
    return False


def machine() -> str:
    """Name for a part of a file's name of what process numbers are unique within: this machine, and this container of
    it. Containers may share a host's name, and all have a process 1."""
    space = ""
    with contextlib.suppress(OSError):
        space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:64] + f"-{space}"
