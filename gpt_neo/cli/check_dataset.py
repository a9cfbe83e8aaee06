"""Look at what training would read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_neo.cli.console import note
from gpt_neo.cli.job import Job
from gpt_neo.config.records import text_dataset
from gpt_neo.config.schema import RunConfig
from gpt_neo.dataprep.records import read_records
from gpt_neo.dataprep.survey import Figures
from gpt_neo.errors import DataError, counted
from gpt_neo.inputs import preflight
from gpt_neo.inputs.mixture import mixture_of
from gpt_neo.inputs.samples import other_length
from gpt_neo.inputs.sources import CHUNKS, Source, evaluation_sources, needed_text, tokens_needed, training_sources
from gpt_neo.inputs.tokenizers import check_tokenizer, dataset_tokenizer
from gpt_neo.inputs.train_input import first_samples
from gpt_neo.storage import tensorflow as files
from gpt_neo.tokenizer import Tokenizer

SHOWN, CHARACTERS, LISTED = 3, 400, 20


def check_dataset(job: Job) -> int:
    """Scan all records, held-out ones too, report counts, lengths and ids, and show the first samples of training.

    Returns the exit status: 1 where training, or an evaluation, would stop at a record.
    """
    run = job.run
    sources = training_sources(run)
    preflight.check_datasets(run)
    found = text_dataset(run)
    assert found is not None, "training_sources refuses a run without datasets"
    ref, dataset = found
    check_tokenizer(run, dataset, ref.name, remote=True, texts=True)
    tokenizer = dataset_tokenizer(dataset)
    usable = [report(run, source, scan(source), tokenizer) for source in sources]
    usable += [report(run, source, scan(source), tokenizer, "held out  ") for source in held_out(run, sources)]
    for line in preflight.notes(run, sources):
        note(line)
    if len(sources) > 1:
        report_mixture(run, sources)
    if not all(usable):
        return 1
    for sample in first_samples(run, SHOWN):
        show(run, sample, tokenizer)
    return 0


def held_out(run: RunConfig, sources: Sequence[Source]) -> list[Source]:
    """The sources of held-out records, without those whose files are all trained on.

    Raises:
      DataError: there are none, and training evaluates. Otherwise that is a note.
    """
    if not any(dataset.eval_path for _, dataset in run.datasets):
        return []
    try:
        found = evaluation_sources(run)
    except DataError as error:
        if run.training.eval_steps:
            raise
        note(str(error))
        return []
    seen = {(path, source.kind) for source in sources for path in source.paths}
    return [source for source in found if not seen.issuperset((path, source.kind) for path in source.paths)]


def scan(source: Source) -> Figures:
    """Read every record.

    Raises:
      DataError: a file is damaged, or holds another number of records than it should.
    """
    seen = Figures()
    for path, promised in zip(source.paths, source.counts):
        before = seen.records
        for ids in read_records(path, files, source.masked):
            seen.add(ids)
        if seen.records - before != promised:
            raise DataError(
                f"{path}: its name promises {counted(promised, 'record')}, it holds {seen.records - before}"
            )
    return seen


def report(run: RunConfig, source: Source, seen: Figures, tokenizer: Tokenizer, title: str = "dataset   ") -> bool:
    """Print what a source holds, under a title of ten characters; whether training, or an evaluation, could read it."""
    lengths, needed = np.array(seen.lengths), tokens_needed(run)
    reader = "training" if title.startswith("dataset") else "an evaluation"
    print(
        f"{title}{source.name}: {counted(len(lengths), 'record')} in {counted(len(source.paths), 'file')}, "
        f"{counted(int(lengths.sum()), 'token')}, read as {source.kind}"
    )
    print(f"lengths   {lengths.min()} to {lengths.max()} tokens ({needed_text(run)} make a sample)")
    print(f"ids       {seen.smallest} to {seen.largest} (n_vocab {run.model.n_vocab}, tokenizer {tokenizer.n_vocab})")
    wrong = []
    if seen.largest >= run.model.n_vocab or seen.smallest < 0:
        bad = seen.largest if seen.largest >= run.model.n_vocab else seen.smallest
        wrong.append(f"id {bad} is not below n_vocab and at least 0: {reader} would stop at it")
    if source.kind == CHUNKS and lengths.min() < needed:
        wrong.append(f"a record of {counted(int(lengths.min()), 'token')} is too short: {reader} would stop at it")
    elif source.kind == CHUNKS and (lengths != source.length).any():
        other = lengths[lengths != source.length][0]
        wrong.append(f"a record has {other}{other_length(source)}: {reader} would stop at it")
    for line in wrong:
        print(f"WARNING   {line}")
    if source.kind != CHUNKS:
        # In the order of the files; shuffled, other documents meet, of the same lengths.
        starts = np.arange(0, len(lengths), source.stitch)
        joined = np.add.reduceat(lengths, starts) + source.stitch - 1
        print(
            f"samples   {counted(source.stitch, 'document')} each, joined by id {source.eos_id}: "
            f"{joined.mean():,.0f} tokens on average; {(joined < needed).mean():.1%} are shorter than {needed} and "
            f"filled up with id {source.padding_id}, which costs no loss"
        )
    return not wrong


def report_mixture(run: RunConfig, sources: Sequence[Source]) -> None:
    """Print the share of each dataset in the samples, and how often the run goes through it."""
    total = run.training.train_steps * run.training.train_batch_size
    whole = sum(source.weight for source in sources)
    for source, count in zip(sources, mixture_of(run, sources).before(total)):
        share = count / total if total else 0.0
        print(
            f"mixture   {source.name}: weight {source.weight:g} of {whole:g} ({source.weight / whole:.2%}), gives "
            f"{count:,} of {total:,} samples ({share:.2%}), "
            f"{count * source.stitch / source.records / source.pieces:.2f} epochs"
        )


def show(run: RunConfig, sample: dict, tokenizer: Tokenizer) -> None:
    """Print a sample as the model gets it."""
    names = [f"{number} of {os.path.basename(path)}" for path, number in sample["origin"]]
    many = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    plural = "s" if len(names) > 1 else ""
    print(f"--- record{plural} {', '.join(names[:LISTED])}{many}, {len(sample['inputs'])} tokens")
    print(text_of(sample["inputs"], run, tokenizer)[:CHARACTERS])
    if run.training.mlm_training:
        hidden = np.flatnonzero(sample["weights"])
        listed = [repr(text_of(sample["labels"][i : i + 1], run, tokenizer)) for i in hidden[:LISTED]]
        print(f"to predict: {len(hidden)} of {len(sample['inputs'])} tokens: {' '.join(listed)}")


def text_of(tokens: Any, run: RunConfig, tokenizer: Tokenizer) -> str:
    """Decode ids; the mask token is shown by name, ids the tokenizer does not have by number."""
    parts: list[str] = []
    waiting: list[int] = []
    for token in [*map(int, tokens), -1]:
        if token != run.training.mlm_mask_id and 0 <= token < tokenizer.n_vocab:
            waiting.append(token)
            continue
        parts.append(tokenizer.decode(waiting))
        waiting = []
        if token >= 0:
            parts.append("[MASK]" if token == run.training.mlm_mask_id else f"[{token}]")
    return "".join(parts)
