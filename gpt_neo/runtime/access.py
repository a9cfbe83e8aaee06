"""Whether the paths of a run can be used: listed, read, written, before anything is built; through TensorFlow's own
file systems, which training uses too."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Callable

from gpt_neo import storage
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError, DataError, GptNeoError, reason_of
from gpt_neo.inputs.sources import find_records
from gpt_neo.storage import tensorflow as files

# What a bucket's policy has to grant for each thing that is done.
PERMISSIONS = {
    "list": "storage.objects.list",
    "read": "storage.objects.get",
    "write": "storage.objects.create",
    "replace": "storage.objects.delete (replacing an object needs it)",
    "delete": "storage.objects.delete",
}
DONE = {"list": "listed", "read": "read", "write": "written", "replace": "written over", "delete": "deleted from"}


@contextlib.contextmanager
def trying(what: str, path: str, where: str, kind: type[GptNeoError]) -> Iterator[None]:
    """Context in which a failure says what was tried, on which path, and for a bucket which permission it takes."""
    try:
        yield
    except OSError as error:
        advice = ""
        if storage.scheme_of(path) == storage.SCHEME:
            advice = f"; this takes the permission {PERMISSIONS[what]} on the bucket"
            if not isinstance(error, PermissionError):
                advice += ", and that the bucket is there and can be reached"
        raise kind(f"{where} {path!r} cannot be {DONE[what]}: {reason_of(error)}{advice}") from error


def check_readable(pattern: str, where: str) -> int:
    """List the files of a glob and read the first byte of the first one. Returns: how many there are.

    Raises:
      DataError: it cannot be, or there are none.
    """
    with trying("list", pattern, f"{where}:", DataError):
        files.glob(pattern)
    paths = find_records(pattern, where)
    with trying("read", paths[0], f"{where}:", DataError):
        files.read_bytes(paths[0], 0, 1)
    return len(paths)


def check_writable(folder: str, where: str = "model_path") -> None:
    """Make the folder, list it, and write, replace, read and delete one file in it.

    Raises:
      CheckpointError: one of these cannot be done.
    """
    probe = os.path.join(folder, f".writable.{os.urandom(4).hex()}")  # not that of a run that starts now as well
    if files.is_remote(folder):
        # Making a folder and writing look before they write: what they may not look at has to be found out first. By
        # glob, as listdir takes a refusal for a folder that is not there.
        with trying("list", folder, where, CheckpointError):
            files.glob(probe + "*")
        with trying("read", folder, where, CheckpointError), contextlib.suppress(FileNotFoundError):
            files.size(probe)
    with trying("write", folder, where, CheckpointError):
        files.make_folder(folder)
    with trying("list", folder, where, CheckpointError):
        files.names(folder)
    for what in ("write", "replace"):
        with trying(what, folder, where, CheckpointError):
            files.write_text(probe, "x")
    with trying("read", folder, where, CheckpointError):
        files.read_bytes(probe)
    with trying("delete", folder, where, CheckpointError):
        files.delete(probe)


def read_checks(run: RunConfig, evaluates: bool) -> list[tuple[str, str, Callable[[], int]]]:
    """(what it is, path, check) of everything a run reads. evaluates: held-out records too."""
    checks: list[tuple[str, str, Callable[[], int]]] = []
    for ref, dataset in run.datasets:
        for key in ("path", "eval_path") if evaluates else ("path",):
            pattern, where = getattr(dataset, key), f"dataset {ref.name!r}, key {key!r}"
            if pattern:
                checks.append((f"{where}:", pattern, functools.partial(check_readable, pattern, where)))
    return checks


def check_reads(run: RunConfig) -> None:
    """Try every path that training reads.

    Raises:
      DataError: names the path and, for a bucket, the permission.
    """
    for _, _, check in read_checks(run, evaluates=run.training.eval_steps > 0):
        check()
