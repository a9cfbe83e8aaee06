"""The second half of the work: the ids of many units become one output file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt_neo import storage
from gpt_neo.dataprep import spill
from gpt_neo.dataprep.account import Account
from gpt_neo.dataprep.duplicates import mark_duplicates
from gpt_neo.dataprep.options import Job
from gpt_neo.dataprep.packing import Packing, Part, Shard
from gpt_neo.dataprep.records import encode_example, encode_rows, frame, framed_example

BLOCK = 1 << 20  # ids handled at once
ROWS = 512  # records encoded at once
WINDOW_TOKENS = 1 << 25  # ids of the records that are shuffled together
EXACT_BITS = 11  # of a document's length
UNITS = "units"  # file of the numbers of all units
BUCKET_EXTENT = 1 << 25  # ids of the documents that are shuffled together; ranges of the random keys


class Plan(NamedTuple):
    """How the documents of the units are ordered.

    Attributes:
      buckets: with shuffling, the number of ranges of keys that take the place of units; else 0.
    """

    buckets: int = 0


def shard_name(job: Job, shard: Shard) -> str:
    """File name of an output file; the last number is its record count."""
    return f"{job.options.name}_{shard.number}_{shard.records}.tfrecords"


def write_shard(job: Job, plan: Plan, shard: Shard) -> dict:
    """Write one output file, whole or not at all.

    Returns:
      shard, file, records, tokens, seal: what the ledger keeps of it.
    """
    name, written = shard_name(job, shard), 0
    with storage.writing(storage.join(job.options.output_dir, name), staging_of(job)) as handle:
        summed = spill.Summed(handle)
        if job.options.mode == "documents":
            for ids in joined_documents(job, plan, shard):
                written += len(ids)
                for part in framed_example(ids):
                    summed.write(part)
        else:
            for rows in chunk_rows(job, plan, shard):
                written += rows.size
                for start in range(0, len(rows), ROWS):
                    some = rows[start : start + ROWS]
                    if job.options.mask_filling:
                        last = written == shard.records * job.options.chunk_size and start + ROWS >= len(rows)
                        summed.write(masked_rows(some, shard.fill if last else 0))
                    else:
                        summed.write(encode_rows(some))
    seal = summed.seal
    return {"shard": shard.number, "file": name, "records": shard.records, "tokens": written, "seal": seal}


def masked_rows(rows: np.ndarray, fill: int) -> bytes:
    """Framed records with masks, one for each row of ids, of which the last `fill` are no labels."""
    mask = np.ones(rows.shape, np.int64)
    mask.reshape(-1)[mask.size - fill :] = 0
    return b"".join(frame(encode_example(ids, counts)) for ids, counts in zip(rows, mask))


def staging_of(job: Job) -> str:
    """A local folder for unfinished files, from which the output's own file system can be reached by renaming."""
    output, work = job.options.output_dir, job.work
    near = storage.is_remote(output) or work.startswith(output.rstrip("/") + "/")
    return work if near and not storage.is_remote(work) else ""


def chunk_rows(job: Job, plan: Plan, shard: Shard) -> Iterator[np.ndarray]:
    """The records of a file in blocks, ids [records, chunk_size] each."""
    size = job.options.chunk_size
    window = max(1, (WINDOW_TOKENS if job.options.shuffle else BLOCK) // size)
    fill = np.full(shard.fill, job.separator[-1] if job.separator else 0, spill.token_type(job))
    pending: list[np.ndarray] = []
    have = number = 0
    for ids in itertools.chain(token_blocks(job, plan, shard.parts), [fill]):
        pending.append(ids)
        have += len(ids)
        if have >= window * size:
            joined = np.concatenate(pending)
            whole = have // (window * size) * window * size
            for block in joined[:whole].reshape(-1, window, size):
                yield ordered(job, shard, number, block)
                number += 1
            pending, have = [joined[whole:]], have - whole
    if have:
        yield ordered(job, shard, number, np.concatenate(pending).reshape(-1, size))


def ordered(job: Job, shard: Shard, window: int, rows: np.ndarray) -> np.ndarray:
    """The records of a window in the order they are written."""
    if not job.options.shuffle:
        return rows
    key = np.array([job.options.seed, (1 << 63) + (shard.number << 32) + window], np.uint64)
    return rows[np.argsort(np.random.Philox(key=key).random_raw(len(rows)), kind="stable")]


def token_blocks(job: Job, plan: Plan, parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """The ids of parts of units, a block at a time."""
    for part in parts:
        if not job.options.whole_set:
            for start in range(part.start, part.stop, BLOCK):
                yield spill.read_tokens(job, part.unit, start, min(start + BLOCK, part.stop))
            continue
        place = 0
        for ids in documents(job, plan, part.unit):
            begin, end = max(part.start - place, 0), min(part.stop - place, len(ids))
            for start in range(begin, end, BLOCK):
                yield ids[start : min(start + BLOCK, end)]
            place += len(ids)
            if place >= part.stop:
                break


def joined_documents(job: Job, plan: Plan, shard: Shard) -> Iterator[np.ndarray]:
    """The documents of a file, ids [tokens] each."""
    for part in shard.parts:
        for place, ids in enumerate(documents(job, plan, part.unit)):
            if part.start <= place < part.stop:
                yield ids


def documents(job: Job, plan: Plan, number: int) -> Iterator[np.ndarray]:
    """The documents of a unit, or of a bucket, in order."""
    if not plan.buckets:
        yield from read_rows(job, number, spill.kept_documents(job, number))
        return
    edges = bucket_edges(plan)
    found: list[tuple[int, int, np.ndarray]] = []
    for unit in all_units(job):
        index = spill.kept_documents(job, unit)
        begin, end = np.searchsorted(np.searchsorted(edges, index["key"], side="right"), [number, number + 1])
        rows = index[begin:end]
        found += [(key, unit, ids) for key, ids in zip(rows["key"].tolist(), read_rows(job, unit, rows))]
    found.sort(key=lambda entry: entry[:2])
    yield from (ids for _, _, ids in found)


def all_units(job: Job) -> list[int]:
    """Numbers of all units, as plan_whole_set left them for the workers."""
    return spill.read_array(storage.join(job.work, UNITS)).tolist()


def read_rows(job: Job, unit: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The documents that rows of a unit's index name."""
    if not len(rows):
        return
    start = int(rows["offset"][0])
    ids = spill.read_tokens(job, unit, start, int(rows["offset"][-1] + rows["length"][-1]))
    for offset, length in zip(rows["offset"].tolist(), rows["length"].tolist()):
        yield ids[offset - start : offset - start + length]


def bucket_edges(plan: Plan) -> np.ndarray:
    """The keys at which buckets after the first begin, uint64 [buckets - 1]."""
    return np.array([(bucket << 64) // plan.buckets for bucket in range(1, plan.buckets)], np.uint64)


def extent_of(job: Job, line: dict) -> int:
    """What a unit adds to the output: tokens, or documents."""
    return line["tokens"] if job.options.mode == "chunks" else line["documents"]


def plan_whole_set(job: Job, lines: Sequence[dict]) -> tuple[Plan, list[tuple[int, int]]]:
    """Order the documents of all units, once all are known.

    Returns:
      the plan; number and extent of its units or buckets.
    """
    units = [line["unit"] for line in lines]
    if not job.options.whole_set:
        return Plan(), [(line["unit"], extent_of(job, line)) for line in lines]
    spill.write_array(storage.join(job.work, UNITS), np.array(units, np.int64))
    total = sum(extent_of(job, line) for line in lines)
    plan = Plan(max(1, -(-total // BUCKET_EXTENT)) if job.options.shuffle else 0)
    edges, sizes = bucket_edges(plan), np.zeros(plan.buckets, np.int64)
    extents = []
    for unit in units:
        index = spill.kept_documents(job, unit)
        each = index["length"] if job.options.mode == "chunks" else np.ones(len(index), np.int64)
        extents.append((unit, int(each.sum())))
        if plan.buckets:
            np.add.at(sizes, np.searchsorted(edges, index["key"], side="right"), each)
    return plan, list(enumerate(sizes.tolist())) if plan.buckets else extents


def document_lengths(job: Job, lines: Sequence[dict]) -> dict[int, int]:
    """Documents by tokens, separators not counted, of a set whose records are shuffled: they no longer tell it.

    Lengths of more than EXACT_BITS bits are rounded down to as many, by at most one thousandth.
    """
    if not job.options.shuffle or job.options.mode != "chunks":
        return {}
    found: dict[int, int] = {}
    for line in lines:
        lengths = spill.kept_documents(job, line["unit"])["length"] - len(job.separator)
        bits = np.frexp(lengths.astype(np.float64))[1] - EXACT_BITS
        shift = np.maximum(bits, 0)
        values, counts = np.unique((lengths >> shift) << shift, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist()):
            found[value] = found.get(value, 0) + count
    return found


def lay_out(job: Job, lines: Sequence[dict]) -> tuple[Plan, list[Shard], Account]:
    """All output files, once all units are known.

    Returns:
      the plan, the files, and what the account gains by it.
    """
    change = Account()
    if job.options.deduplicate:
        documents = sum(line["documents"] for line in lines)
        change = mark_duplicates(job, [line["unit"] for line in lines], documents)
    plan, extents = plan_whole_set(job, lines)
    packing = Packing(job.options.record, job.options.files_per)
    shards = [shard for unit, extent in extents for shard in packing.add(unit, extent)] + packing.finish()
    change.fill_tokens += sum(shard.fill for shard in shards)
    return plan, shards, change
