"""Tokens on their way from the workers that make them to those that write the records: two files for each unit.

`<unit>.tokens` holds the ids of the unit's documents, each with its separator, 16 or 32 bits each. `<unit>.index`,
where a later stage needs single documents, holds one row for each document. With shuffling, documents lie in the order
of random keys, so that those of a range of keys lie together.
"""

from __future__ import annotations

import errno
import io
import itertools
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from gpt_neo import storage
from gpt_neo.dataprep.options import Job
from gpt_neo.wire import checksum

# Of each document: where its ids begin in the token file and how many there are, its random key (shuffling), its place
# among the unit's documents as they were read, and a hash of its text (deduplication).
INDEX = np.dtype([("offset", "<i8"), ("length", "<i8"), ("key", "<u8"), ("place", "<i8"), ("digest", "<u8", (2,))])


class Summed:
    """A handle that is written to, with the length and CRC-32C of what was written."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.size, self.checksum = handle, 0, 0

    def write(self, data: Any) -> None:
        """Write bytes."""
        self.handle.write(data)
        self.size, self.checksum = self.size + memoryview(data).nbytes, checksum(data, self.checksum)

    @property
    def seal(self) -> list[int]:
        """Length and checksum."""
        return [self.size, self.checksum]


def is_sound(path: str, seal: Sequence[int]) -> bool:
    """Whether a file is there as it was written; of a remote object, which comes whole or not at all, the length."""
    try:
        if storage.size(path) != seal[0] or storage.is_remote(path):
            return storage.size(path) == seal[0]
        found = 0
        with storage.open_read(path) as handle:
            while block := handle.read(1 << 20):
                found = checksum(block, found)
        return found == seal[1]
    except OSError:
        return False


def token_type(job: Job) -> np.dtype:
    """The type of ids in a spill."""
    return np.dtype("<u4" if job.wide else "<u2")


def has_index(job: Job) -> bool:
    """Whether a later stage needs single documents."""
    return job.options.whole_set or job.options.mode == "documents"


def spill_path(job: Job, unit: int, kind: str) -> str:
    """Path of a spill file; kinds are tokens, index and dropped."""
    return storage.join(job.work, f"{unit:014d}.{kind}")


def keys_of(seed: int, unit: int, count: int) -> np.ndarray:
    """Random keys of a unit's documents, uint64 [count]; Philox: the same on every machine and NumPy version."""
    return np.random.Philox(key=np.array([seed, unit], np.uint64)).random_raw(count).astype(np.uint64)


def write_spill(job: Job, unit: int, documents: Sequence[Sequence[np.ndarray]], digests: Sequence[bytes]) -> dict:
    """Write the documents of a unit, each in blocks of ids, separators included; return the seals of its files."""
    index = np.zeros(len(documents), INDEX)
    index["length"] = [sum(map(len, blocks)) for blocks in documents]
    index["place"] = np.arange(len(documents))
    if digests:
        index["digest"] = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    if job.options.shuffle:
        index["key"] = keys_of(job.options.seed, unit, len(documents))
        index = index[np.argsort(index["key"], kind="stable")]
        documents = [documents[place] for place in index["place"].tolist()]
    index["offset"] = np.cumsum(index["length"]) - index["length"]
    with storage.writing(spill_path(job, unit, "tokens")) as handle:
        summed = Summed(handle)
        for block in itertools.chain.from_iterable(documents):
            summed.write(block.astype(token_type(job), copy=False).tobytes())
    return {
        "tokens": summed.seal,
        **({"index": write_array(spill_path(job, unit, "index"), index)} if has_index(job) else {}),
    }


def write_array(path: str, array: np.ndarray) -> list[int]:
    """Write an array with its type; return its seal."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    storage.write_bytes(path, buffer.getvalue())
    return [len(buffer.getvalue()), checksum(buffer.getvalue(), 0)]


def read_array(path: str) -> np.ndarray:
    """Read what write_array wrote."""
    return np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)


def read_index(job: Job, unit: int) -> np.ndarray:
    """INDEX rows of a unit's documents, in the order of its token file."""
    return read_array(spill_path(job, unit, "index"))


def kept_documents(job: Job, unit: int) -> np.ndarray:
    """As read_index, without the copies of earlier documents."""
    index = read_index(job, unit)
    return index[~read_array(spill_path(job, unit, "dropped"))] if job.options.deduplicate else index


def read_tokens(job: Job, unit: int, start: int, stop: int) -> np.ndarray:
    """The ids from `start` to `stop` of a unit."""
    kind = token_type(job)
    with storage.open_read(spill_path(job, unit, "tokens")) as handle:
        handle.seek(start * kind.itemsize)
        data = handle.read((stop - start) * kind.itemsize)
    if len(data) < (stop - start) * kind.itemsize:
        raise OSError(errno.EIO, "it is shorter than it was", spill_path(job, unit, "tokens"))
    return np.frombuffer(data, kind)


def delete_spill(job: Job, unit: int) -> None:
    """Remove a unit's files."""
    for kind in ("tokens", "index", "dropped"):
        storage.delete(spill_path(job, unit, kind), within=job.work)
