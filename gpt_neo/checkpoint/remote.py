"""Folders in a bucket, for conversions: copied here and back, as those map what they read and rename what they write.

Copies lie in the folder for temporary files (TMPDIR) and take its disk, never memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import read_bytes
from gpt_neo.checkpoint.hf_config import refuse_by_config
from gpt_neo.checkpoint.hf_folder import TOKENIZER_FILES, WEIGHTS
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config.loader import RECORD
from gpt_neo.errors import CheckpointError, ConfigError, reason_of
from gpt_neo.storage import tensorflow as files

# What makes a folder one is copied last, in this order.
LAST = (r".*\.index(\.json)?", r"config\.json", "checkpoint")


@contextlib.contextmanager
def temporary_copy(folder: str) -> Iterator[str]:
    """A local folder that stands for a remote one, also in what a mistake is told with; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="gpt_neo-") as copy:
        try:
            yield copy
        except (CheckpointError, ConfigError) as error:
            raise type(error)(str(error).replace(copy, folder.rstrip("/"))) from error


@contextlib.contextmanager
def source_folder(folder: str) -> Iterator[str]:
    """A Hugging Face folder as a local one: itself, or a copy of the files of one in a bucket that are read.

    Raises:
      CheckpointError: there is no access, or no room for the copy.
    """
    if not storage.is_remote(folder):
        yield folder
        return
    with temporary_copy(folder) as copy:
        try:
            names = [path[len(folder.rstrip("/")) + 1 :] for path in storage.list_files(folder)]
            fetch(folder, copy, [name for name in ("config.json", *TOKENIZER_FILES) if name in names])
            refuse_by_config(copy)
            weights = next((name for name in WEIGHTS if name in names), None)
            fetch(folder, copy, [weights] if weights else [])
            if weights and weights.endswith(".index.json"):
                fetch(folder, copy, [name for name in names if name in shards(os.path.join(copy, weights))])
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be copied: {error.strerror or error}") from error
        yield copy


def shards(index: str) -> set:
    """What an index calls its files; nothing where it is damaged, which the reader of the folder will tell."""
    with contextlib.suppress(CheckpointError, LookupError, AttributeError, TypeError):
        return set(storage.read_json(index, CheckpointError)["weight_map"].values())
    return set()


def fetch(folder: str, copy: str, names: Sequence[str]) -> None:
    """Copy files of a bucket, in pieces.

    Raises:
      CheckpointError: there is no room for them.
      OSError: they cannot be read.
    """
    paths = [storage.join(folder, name) for name in names]
    size, free = sum(map(storage.size, paths)), shutil.disk_usage(copy).free
    if size > free:
        raise CheckpointError(
            f"{folder}: its weights are copied before they are read, which takes {size / 1e9:.1f} GB "
            f"in {tempfile.gettempdir()}, where {free / 1e9:.1f} GB are free; TMPDIR names another "
            "folder"
        )
    for path, name in zip(paths, names):
        with storage.open_read(path) as source, open(os.path.join(copy, name), "wb") as target:
            shutil.copyfileobj(source, target, storage.buckets.READ_CHUNK)


@contextlib.contextmanager
def small_files(folder: str) -> Iterator[str]:
    """A run folder as a local one: itself, or a copy of the tokenizer files of a remote one and of its config, which
    is the newest checkpoint's record where a training here made the run.

    Its checkpoint is read where it lies.

    Raises:
      CheckpointError: there is no access.
    """
    if not files.is_remote(folder):
        yield folder
        return
    with temporary_copy(folder) as copy:
        there = names_in(folder)
        records = [name for name in there if RECORD.fullmatch(name)]
        newest = [] if "config.json" in there else sorted(records, key=lambda name: step_of(name[: -len(".json")]))[-1:]
        for name in ("config.json", *TOKENIZER_FILES, *newest):
            if name in there:
                with open(os.path.join(copy, name), "wb") as handle:
                    handle.write(read_bytes(storage.join(folder, name)))
        yield copy


def names_in(folder: str) -> list[str]:
    """What lies in a remote folder. Raises: CheckpointError: there is none, or no access."""
    try:
        return files.names(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {reason_of(error)}") from error


@contextlib.contextmanager
def uploaded_folder(destination: str) -> Iterator[str]:
    """A folder to write into, whose files are copied to a bucket when the block ends without an error.

    What makes the folder one, index, config and state file, is copied last. After an error nothing is left there;
    after a kill, files without an index may be.

    Raises:
      CheckpointError: there is something already, no access, or a disk is full.
    """
    if not storage.bucket_and_key(destination)[1].strip("/"):
        raise CheckpointError(f"{destination}: a whole bucket; expected gs://bucket/folder")
    sent: list[str] = []
    try:
        if storage.is_folder(destination):
            raise CheckpointError(f"{destination}: exists and is not an empty folder; choose another, or remove it")
        with temporary_copy(destination) as staging:
            yield staging
            for name in sorted(os.listdir(staging), key=rank):
                sent.append(storage.join(destination, name))
                storage.upload(os.path.join(staging, name), sent[-1])
            sent.clear()
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{destination}: cannot be written: {reason}; nothing is there") from error
    finally:
        for path in sent:
            with contextlib.suppress(OSError):
                storage.delete(path, within=destination)


def rank(name: str) -> tuple:
    """Order of copying: weights and all else first, what a reader looks for last."""
    return (next((place for place, pattern in enumerate(LAST, 1) if re.fullmatch(pattern, name)), 0), name)
