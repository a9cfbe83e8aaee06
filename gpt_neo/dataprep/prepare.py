"""Documents to TFRecords on one machine: workers tokenize units of text and write output files, a ledger notes both."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Optional, Protocol

from gpt_neo import storage
from gpt_neo.dataprep import spill
from gpt_neo.dataprep.account import Totals
from gpt_neo.dataprep.documents import with_lines
from gpt_neo.dataprep.encoder import Encoder
from gpt_neo.dataprep.ledger import FILE, Ledger, listed_files
from gpt_neo.dataprep.manifest import MANIFEST, build_manifest, refuse_mixing, write_manifest
from gpt_neo.dataprep.options import Job, PrepareOptions, separator_of
from gpt_neo.dataprep.packing import Packing, Shard
from gpt_neo.dataprep.pool import AHEAD, workers
from gpt_neo.dataprep.readers import Bad, InputFile, find_sources
from gpt_neo.dataprep.shards import Plan, document_lengths, extent_of, lay_out, write_shard
from gpt_neo.dataprep.tokenizing import tokenize_unit
from gpt_neo.dataprep.units import groups_of, units_of
from gpt_neo.errors import DataError, counted, reason_of
from gpt_neo.tokenizer import Tokenizer, load_tokenizer


class Progress(Protocol):
    """Told what has been done."""

    def __call__(self, stored: int, text: int, tokens: int, total: Optional[int] = None, before: bool = False) -> None:
        """Bytes of the inputs as they are stored, bytes of text, and tokens, all since the last call.

        Args:
          total: bytes of all inputs as they are stored, once; None if it is not known.
          before: an earlier run, which this one goes on from, has done it.
        """


MOST_LISTED = 20  # inputs that an error names
FORMAT = 3  # of the spill and ledger; work in another one is not resumed


def prepare(options: PrepareOptions, progress: Progress, restart: bool = False) -> dict:
    """Write the records and the manifest; return the manifest.

    A run that was killed goes on where it stopped, and ends with the same bytes.

    Args:
      restart: throw away the unfinished work of an earlier run first.

    Raises:
      DataError: no input, unreadable input, no record, or output that cannot be written.
    """
    work = work_folder(options)
    try:
        return prepared(options, work, progress, restart)
    except OSError as error:
        raise DataError(
            f"{error.filename or work}: {reason_of(error)}; the same command goes on where this one stopped"
        ) from error


def prepared(options: PrepareOptions, work: str, progress: Progress, restart: bool) -> dict:
    """As `prepare`; may raise the OSErrors of a failing disk."""
    tokenizer = load_tokenizer(options.encoder_path)
    job = job_of(options, tokenizer, work)
    sources, bad = inputs_of(options)
    if restart:
        discard(job)
    refuse_mixing(options, os.path.join(work, FILE))
    ledger = Ledger(job.work, header_of(job, tokenizer, sources, bad))
    try:
        check_left_out(options, ledger)
        distrust(job, ledger)
        if ledger.manifest is None:
            run = Run(job, ledger, progress)
            run.totals.add_bad(bad)
            progress(0, 0, 0, sum(source.size for source in sources) or None)
            with workers(options.processes) as pool:
                run.tokenize(pool, sources)
                run.write(pool)
            ledger.add_manifest(run.manifest(tokenizer))
        manifest = ledger.manifest
        assert manifest is not None
        write_manifest(options, manifest)
        clear(job)
    finally:
        ledger.close()
    return manifest


def job_of(options: PrepareOptions, tokenizer: Tokenizer, work: str) -> Job:
    """The options with what is to be found out about the tokenizer."""
    separator, fast = separator_of(options, tokenizer), Encoder(tokenizer).fast
    return Job(options, separator, fast, wide=tokenizer.n_vocab > 1 << 16, work=work)


def inputs_of(options: PrepareOptions) -> tuple[list[InputFile], list[Bad]]:
    """Input files, and those that are skipped because of their extension.

    Records and manifests in the output folder are no inputs: it may be that of the texts, and a run that goes on has
    the inputs that it began with.

    Raises:
      DataError: there are none, or there is one to skip and nothing is to be skipped.
    """
    found, bad = find_sources(options.inputs, options.stdin_format)
    output = storage.absolute(options.output_dir).rstrip("/")

    def written(path: str) -> bool:
        folder, _, name = storage.absolute(path).rpartition("/")
        return folder == output and name.endswith((".tfrecords", MANIFEST))

    sources = [source for source in found if not written(source.path)]
    bad = [one for one in bad if not written(one.path)]
    if bad and not options.skip_bad:
        raise DataError(refusal(bad))
    return sources, bad


def refusal(bad: Sequence[Bad]) -> str:
    """One message about all that was found unreadable so far, with what to do."""
    if len(bad) == 1:
        return f"{bad[0]} (--bad skip leaves it out and counts it, --bad report lists all that there are)"
    listed = "".join(f"\n  {found}" for found in bad[:MOST_LISTED])
    more = f"\n  and {len(bad) - MOST_LISTED:,} more" if len(bad) > MOST_LISTED else ""
    return (
        f"{len(bad):,} inputs cannot be read:{listed}{more}\n--bad skip leaves them out and counts them, --bad report "
        "lists all that there are"
    )


def report(options: PrepareOptions, progress: Progress) -> Totals:
    """Read and tokenize everything and write nothing; what was found.

    Raises:
      DataError: there are no inputs.
    """
    job = job_of(options, load_tokenizer(options.encoder_path), "")
    sources, bad = inputs_of(options)
    totals = Totals()
    totals.add_bad(bad)
    progress(0, 0, 0, sum(source.size for source in sources) or None)
    with workers(options.processes) as pool:
        for line in tokenized(pool, job, sources):
            totals.add(line)
            progress(line["stored"], line["account"].get("bytes_in", 0), line["account"].get("tokens_in", 0))
    totals.bad = with_lines(totals.bad)
    return totals


def tokenized(pool: Any, job: Job, sources: list[InputFile], start: tuple[int, int] = (0, 0)) -> Iterator[dict]:
    """The lines of all units from one on, in order; some are worked on ahead."""
    pending: collections.deque = collections.deque()
    for unit in units_of(groups_of(sources), job.rules, start):
        pending.append(pool.submit(tokenize_unit, job, unit))
        if len(pending) >= max(1, AHEAD * job.options.processes):
            yield result_of(pending.popleft(), job.work)
    while pending:
        yield result_of(pending.popleft(), job.work)


def check_left_out(options: PrepareOptions, ledger: Ledger) -> None:
    """Refuse to go on, with inputs that stop the run, from work that has left some out.

    Raises:
      DataError: there is such work.
    """
    count = sum(line["account"].get("documents_dropped_bad", 0) for line in ledger.units)
    if count and not options.skip_bad:
        raise DataError(
            f"{ledger.path}: the unfinished work of a run with --bad skip, which left out "
            f"{counted(count, 'document')}: go on with it, or throw that work away with --restart"
        )


def distrust(job: Job, ledger: Ledger) -> None:
    """Hold what the ledger says is written against the disk; what is gone or different is forgotten, and made again."""
    folder = job.options.output_dir
    shards = [
        n for n, line in ledger.shards.items() if not spill.is_sound(storage.join(folder, line["file"]), line["seal"])
    ]
    gone = {
        line["unit"]
        for line in ledger.units
        for kind, seal in line["seals"].items()
        if not spill.is_sound(spill.spill_path(job, line["unit"], kind), seal)
    }
    if job.options.whole_set:
        needed = gone if ledger.manifest is None or shards else set()
    else:  # the units of files that are not there; those of the others may be gone
        packing = Packing(job.options.record, job.options.files_per)
        files = [shard for line in ledger.units for shard in packing.add(line["unit"], extent_of(job, line))]
        open_parts, rest = list(packing.parts), packing.finish()
        wanted = [shard.parts for shard in (*files, *rest) if shard.number in shards]
        wanted += [shard.parts for shard in files if shard.number not in ledger.shards]
        if rest and rest[0].number not in ledger.shards:
            wanted.append(tuple(open_parts))
        needed = gone & {part.unit for parts in wanted for part in parts}
    if shards or needed:
        ledger.forget(min(needed, default=None), shards)


def work_folder(options: PrepareOptions) -> str:
    """Where unfinished work is kept: a folder of its own, which is deleted in the end, in the one that is asked for,
    else in a local output, else in the temporary folder."""
    place = options.work_dir or options.output_dir
    if not storage.is_remote(place):
        return os.path.join(place, f".{options.name}_work")
    target = hashlib.sha256(f"{options.output_dir.rstrip('/')}/{options.name}".encode()).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f"gpt_neo_work_{target}")


def header_of(job: Job, tokenizer: Tokenizer, sources: list[InputFile], bad: list[Bad]) -> dict:
    """First line of the ledger: runs with the same one have the same output."""
    inputs = json.dumps([sources, [found.path for found in bad]])
    # The whole of it: with the same vocabulary other merges, splitting or normalization give other ids.
    whole = hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest()
    return {
        "version": FORMAT,
        "options": job.options.fingerprint(),
        "tokenizer": whole + "".join(f"-{i}" for i in job.separator) + ("-fast" if job.fast else ""),
        "inputs": hashlib.sha256(inputs.encode()).hexdigest(),
    }


def discard(job: Job) -> None:
    """Delete the unfinished work of an earlier run, and the output files that its ledger names."""
    for name in listed_files(job.work):
        storage.delete(storage.join(job.options.output_dir, name), within=job.options.output_dir)
    clear(job)


def clear(job: Job) -> None:
    """Delete half-written files that a kill has left, and the folder of unfinished work; the ledger last of all.

    Until that is gone the same command tidies up again; from then on nothing may fail any more.
    """
    if not storage.is_remote(job.options.output_dir):
        folder, name = glob.escape(job.options.output_dir), glob.escape(job.options.name)
        for left in storage.glob(os.path.join(folder, f".{name}_*.writing")):
            storage.delete(left, within=job.options.output_dir)
    for file in os.listdir(job.work) if os.path.isdir(job.work) else ():
        if file != FILE:
            storage.delete(os.path.join(job.work, file), within=job.work)
    storage.delete(os.path.join(job.work, FILE), within=job.work)
    with contextlib.suppress(OSError):
        os.rmdir(job.work)


class Run:
    """One preparation, from where the ledger says."""

    def __init__(self, job: Job, ledger: Ledger, progress: Progress) -> None:
        self.job, self.ledger, self.progress = job, ledger, progress
        self.totals = Totals()
        self.packing = Packing(job.options.record, job.options.files_per)
        self.writing: collections.deque = collections.deque()
        self.spilled: collections.deque[int] = collections.deque()  # units whose spill is still there

    def tokenize(self, pool: Any, sources: list[InputFile]) -> None:
        """Tokenize all units; in the order of the units, note each and begin the files that become complete."""
        for line in self.ledger.units:
            self.take_unit(pool, line, before=True)
        start = (0, 0)
        if self.ledger.units:
            last = self.ledger.units[-1]
            start = (last["group"] + 1, 0) if last["last"] else (last["group"], last["part"] + 1)
        for line in tokenized(pool, self.job, sources, start):
            self.note_unit(pool, line)

    def note_unit(self, pool: Any, line: dict) -> None:
        """Enter a finished unit.

        Raises:
          DataError: it has something that cannot be read.
        """
        stop_at_bad(line)
        self.ledger.add_unit(line)
        self.take_unit(pool, line)

    def take_unit(self, pool: Any, line: dict, before: bool = False) -> None:
        """Count a unit that the ledger has, and lay out its tokens. before: an earlier run has done it."""
        self.totals.add(line)
        account = line["account"]
        self.progress(line["stored"], account.get("bytes_in", 0), account.get("tokens_in", 0), None, before)
        if not self.job.options.whole_set:
            self.spilled.append(line["unit"])
            for shard in self.packing.add(line["unit"], extent_of(self.job, line)):
                self.begin_shard(pool, Plan(), shard)
            self.note_shards(wait=False)

    def write(self, pool: Any) -> None:
        """Write the files that are still to be written."""
        plan = Plan()
        if self.job.options.whole_set:
            plan, shards, change = lay_out(self.job, self.ledger.units)
            self.totals.account.add(change.counts())
            self.totals.lengths = document_lengths(self.job, self.ledger.units)
        else:
            shards = self.packing.finish()
            self.totals.account.fill_tokens += sum(shard.fill for shard in shards)
        for shard in shards:
            self.begin_shard(pool, plan, shard)
        self.note_shards(wait=True)

    def begin_shard(self, pool: Any, plan: Plan, shard: Shard) -> None:
        """Write an output file, unless the ledger has it."""
        if shard.number in self.ledger.shards:
            self.writing.append((shard, None))
        else:
            self.writing.append((shard, pool.submit(write_shard, self.job, plan, shard)))

    def note_shards(self, wait: bool) -> None:
        """Enter output files that are finished, in order, and delete the spills that nothing needs any more."""
        while self.writing and (wait or self.writing[0][1] is None or self.writing[0][1].done()):
            _, future = self.writing.popleft()
            if future is not None:
                self.ledger.add_shard(result_of(future, self.job.options.output_dir))
            needed = self.writing[0][0].parts[0].unit if self.writing else self.packing.first_needed()
            while self.spilled and (needed is None or self.spilled[0] < needed):
                spill.delete_spill(self.job, self.spilled.popleft())

    def manifest(self, tokenizer: Tokenizer) -> dict:
        """The manifest of the finished run.

        Raises:
          DataError: there is no record.
        """
        files = [self.ledger.shards[number] for number in sorted(self.ledger.shards)]
        try:
            return build_manifest(self.job.options, tokenizer, self.job.separator, files, self.totals)
        except DataError:
            clear(self.job)  # there is nothing to go on with
            raise


def stop_at_bad(line: dict) -> None:
    """Stop at what a unit could not read.

    Raises:
      DataError: names it.
    """
    if "failed" in line:
        raise DataError(refusal(with_lines([Bad(*bad) for bad in line["failed"]])))


def result_of(future: concurrent.futures.Future, folder: str) -> dict:
    """What a worker returned.

    Raises:
      DataError: it could not write to the folder.
    """
    try:
        return future.result()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {reason_of(error)}") from error
