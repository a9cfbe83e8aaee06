"""Checks before anything is built, and the place of damage once a reader has met it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any, Optional

from gpt_neo.config.schema import RunConfig
from gpt_neo.dataprep.records import count_from_name, count_records, read_records, records_only
from gpt_neo.errors import ConfigError, DataError, counted
from gpt_neo.inputs.mixture import mixture_of
from gpt_neo.inputs.position import locate
from gpt_neo.inputs.samples import other_length
from gpt_neo.inputs.sources import CHUNKS, FIXED, Source, count_remote, needed_text, reads_in_turn, tokens_needed
from gpt_neo.inputs.tokenizers import check_tokenizer, dataset_tokenizer
from gpt_neo.mtf_compat import graph_reason, tf
from gpt_neo.storage import tensorflow as files

FIRST_RECORDS = 64  # looked at before a run; every later one is checked as it is read


def check_datasets(run: RunConfig) -> None:
    """Hold the tokenizers of all datasets against the model, their records, and one another.

    Raises:
      DataError: one does not fit.
    """
    seen: dict = {}
    for ref, dataset in run.datasets:
        check_tokenizer(run, dataset, ref.name, remote=True)
        if dataset.tokenizer_path:
            seen.setdefault(dataset_tokenizer(dataset).fingerprint, ref.name)
    if len(seen) > 1:
        raise DataError(f"datasets {', '.join(map(repr, seen.values()))} have different tokenizers: ids would clash")


def check_records(run: RunConfig, sources: Sequence[Source]) -> None:
    """Read the first local records of each source and check lengths and ids.

    Raises:
      DataError: names the file and the record.
    """
    for source in sources:
        for path in source.paths[:2]:
            if os.path.exists(path):
                check_file(path, run, source, FIRST_RECORDS)


def notes(run: RunConfig, sources: Sequence[Source]) -> list[str]:
    """What a person should know about how the records will be read, one line each."""
    found = []
    in_turn = reads_in_turn(run)
    for ref, dataset in run.datasets:
        if dataset.n_vocab and dataset.n_vocab > run.model.n_vocab:
            found.append(
                f"dataset {ref.name!r} has n_vocab {dataset.n_vocab}, the model {run.model.n_vocab}: an id of "
                f"{run.model.n_vocab} or more in its records ends a run"
            )
        if ref.datatype not in (None, CHUNKS) and in_turn:
            found.append(f"input_fn sequential_input reads {ref.name!r} in chunks; its entry says {ref.datatype}")
        elif ref.datatype in (None, CHUNKS) and ref.stitch is not None:
            found.append(f"stitch {ref.stitch} of {ref.name!r} does nothing: its records are read in chunks")
    found += chunks_as_documents(run, sources)
    held_out = {path for _, dataset in run.datasets for path in listed(dataset.eval_path)}
    both = sorted(held_out & {path for source in sources for path in source.paths})
    if both:
        many = f"{counted(len(both), 'file')} of held-out records {'is' if len(both) == 1 else 'are'}"
        found.append(f"{many} among those trained on, first {both[0]}: held-out losses will look better than they are")
    return found


def chunks_as_documents(run: RunConfig, sources: Sequence[Source]) -> list[str]:
    """Notes on records that are read as documents and look like chunks."""
    found = []
    for source in sources:
        local = [path for path in source.paths[:1] if source.kind != CHUNKS and os.path.exists(path)]
        lengths = {len(row) for path in local for row in itertools.islice(read_records(path), FIRST_RECORDS)}
        if lengths == {run.model.n_ctx + 1} and run.training.input_fn is None:
            found.append(
                f"the records of {source.name!r} look like chunks of n_ctx + 1 tokens and are read as {source.kind}; "
                "the 2021 program read them in turn: --set input_fn=sequential_input does (generic_text ends this note)"
            )
    return found


def held_out_notes(run: RunConfig, sources: Sequence[Source]) -> list[str]:
    """How much of held-out records is scored that are read as documents, one line each."""
    found = chunks_as_documents(run, sources)
    for source in sources:
        share = share_in_windows(run, source) if source.kind != CHUNKS else 1.0
        if share < 0.9995:
            joined = f"of each {source.stitch} joined" if source.stitch > 1 else "of each"
            found.append(
                f"the held-out records of {source.name!r} are read as {source.kind}: {needed_text(run)} tokens "
                f"{joined} are scored, {share:.3f} of all"
            )
    return found


def listed(pattern: Optional[str]) -> list[str]:
    """Files that a pattern of records matches; none where that cannot be told."""
    with contextlib.suppress(OSError, ConfigError):
        return records_only(files.glob(pattern)) if pattern else []
    return []


def account(run: RunConfig, sources: Sequence[Source]) -> list[str]:
    """How much of the text training reads, one line for each source: tokens that an epoch reads / tokens there are."""
    share = sum(source.weight for source in sources)
    lines = []
    for source in sources:
        taken = run.training.train_steps * run.training.train_batch_size * source.weight / share
        size = f" of {source.length:,} tokens" if source.length else ""
        lines.append(
            f"{source.name}: {counted(source.records, 'record')}{size}, {counted(source.samples, 'sample')} an epoch, "
            f"tokens read / tokens in the records {share_read(run, source):.3f}; {taken / source.samples:,.2f} epochs "
            f"to step {run.training.train_steps:,}"
        )
    return lines


def records_of(sources: Sequence[Source]) -> dict[str, str]:
    """The records of every source in words, as those of a checkpoint keep them."""
    return {
        source.name: f"{counted(source.records, 'record')} in {counted(len(source.counts), 'file')}"
        for source in sources
    }


def changes(step: int, known: Any, sources: Sequence[Source]) -> list[str]:
    """A line for each source whose records are others than those that a run has read so far: where it reads on is what
    the records of now give for the step.

    Args:
      step: that the run goes on from. known: what `records_of` gave then, if anything.
    """
    before = known if isinstance(known, dict) and step else {}
    return [
        f"{name} had {before[name]} at step {step:,} and has {text}: reading goes on where step {step:,} is in the "
        "order of now: some samples are read again, others passed over"
        for name, text in records_of(sources).items()
        if before.get(name, text) != text
    ]


def share_read(run: RunConfig, source: Source) -> float:
    """The share of a source's tokens that some epoch reads: all, but for `documents_fixed`, which reads the beginnings
    of documents (reckoned from the first records of local files), and masked models, see `pieces_of`."""
    if source.kind == CHUNKS and source.pieces == 1:
        return min(1.0, tokens_needed(run) / max(1, source.length))
    return share_in_windows(run, source) if source.kind == FIXED else 1.0


def share_in_windows(run: RunConfig, source: Source) -> float:
    """The share of the tokens of documents that one pass reads: a sample is one window of what is joined, with eos_id
    between documents. 1 where that is not known."""
    local = itertools.chain.from_iterable(read_records(path) for path in source.paths if os.path.exists(path))
    lengths = [len(row) for row in itertools.islice(local, FIRST_RECORDS * source.stitch)]
    if not lengths:
        return 1.0
    taken = 0
    for first in range(0, len(lengths), source.stitch):
        left = tokens_needed(run)
        for length in lengths[first : first + source.stitch]:
            taken += min(length, left)
            left = max(0, left - length - 1)
    return taken / max(1, sum(lengths))


def check_file(path: str, run: RunConfig, source: Source, limit: Optional[int]) -> None:
    """Check the first `limit` records of a local file."""
    needed, n_vocab = tokens_needed(run), run.model.n_vocab
    for number, tokens in enumerate(itertools.islice(read_records(path), limit)):
        if source.kind == CHUNKS and len(tokens) < needed:
            size = counted(len(tokens), "token")
            raise DataError(f"{path}: record {number} has {size}; {needed_text(run)} are needed")
        if source.kind == CHUNKS and len(tokens) != (source.length or len(tokens)):
            raise DataError(f"{path}: record {number} has {len(tokens)}{other_length(source)}")
        if len(tokens) and (tokens.max() >= n_vocab or tokens.min() < 0):
            bad = int(tokens.max() if tokens.max() >= n_vocab else tokens.min())
            raise DataError(f"{path}: record {number} has token id {bad}; n_vocab is {n_vocab}")


def explain_damage(error: Any, run: RunConfig, sources: Sequence[Source], step: int, batch_size: int) -> DataError:
    """What TensorFlow's error says about the records, with file and record or byte.

    Args:
      error: a tf.errors.OpError that the input pipeline raised.
      step: where reading began; damage before it is none of this error's.
    """
    refused = re.search(r"assertion failed: \[(.+?: record \d+ has .+?)\]", error.message)
    if refused:
        return DataError(refused.group(1))
    if "Input dataset was expected to contain" in error.message:
        for path, wanted in ((p, n) for source in sources for p, n in zip(source.paths, source.counts)):
            if os.path.exists(path) and count_records(path) != wanted:
                promise = "its name promises" if count_from_name(path) == wanted else "it held at the start"
                return DataError(f"{path}: {promise} {counted(wanted, 'record')}, it holds {count_records(path)}")
    if isinstance(error, (tf.errors.DataLossError, tf.errors.InvalidArgumentError)):
        for source, sample in zip(sources, mixture_of(run, sources).before(step * batch_size)):
            first, _ = locate(sample // source.pieces * source.stitch, source.counts)
            for path in [*source.paths[first:], *source.paths[:first]]:
                found = damage_of(path, run, source)
                if found:
                    return found
    return DataError(f"records cannot be read: {graph_reason(error)}")


def damage_of(path: str, run: RunConfig, source: Source) -> Optional[DataError]:
    """Read a whole file; what is wrong with it, or None."""
    try:
        if os.path.exists(path):
            check_file(path, run, source, None)
        else:
            list(count_remote([path]))
    except DataError as damage:
        return damage
    return None
