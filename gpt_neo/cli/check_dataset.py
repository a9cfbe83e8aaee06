"""`--check_dataset`: look at what training would read."""

from __future__ import annotations

import os

from gpt_neo.cli.job import Job
from gpt_neo.dataprep.records import read_records
from gpt_neo.errors import DataError
from gpt_neo.inputs import preflight
from gpt_neo.inputs.train_input import only_dataset, training_records

SHOWN, CHARACTERS = 3, 400


def check_dataset(job: Job) -> int:
    """Decode some samples, and report counts, lengths and ids of all records."""
    run = job.run
    name, dataset = only_dataset(run)
    paths, counts = training_records(run)
    preflight.check_tokenizer(run, dataset, name)
    tokenizer = preflight.dataset_tokenizer(dataset)
    records = tokens = 0
    shortest, longest, smallest, largest = 1 << 60, 0, 1 << 60, -1
    for path, promised in zip(paths, counts):
        before = records
        if not os.path.exists(path):
            raise DataError(f"{path}: --check_dataset reads local files; copy it here first")
        for row in read_records(path):
            if records < SHOWN:
                usable = [i for i in row[: run.model.n_ctx] if 0 <= i < tokenizer.n_vocab]
                print(f"--- record {records} of {os.path.basename(path)}, {len(row)} tokens\n"
                      f"{tokenizer.decode(usable)[:CHARACTERS]}")
            records, tokens = records + 1, tokens + len(row)
            shortest, longest = min(shortest, len(row)), max(longest, len(row))
            smallest, largest = min(smallest, int(row.min())), max(largest, int(row.max()))
        if records - before != promised:
            raise DataError(f"{path}: its name promises {promised} records, it holds {records - before}")
    print("---")
    print(f"dataset   {name}: {records:,} records in {len(paths)} file(s), {tokens:,} tokens")
    print(f"lengths   {shortest} to {longest} tokens (n_ctx + 1 = {run.model.n_ctx + 1} are used)")
    print(f"ids       {smallest} to {largest} (n_vocab {run.model.n_vocab}, tokenizer {tokenizer.n_vocab})")
    if largest >= run.model.n_vocab:
        print(f"WARNING   id {largest} reaches n_vocab {run.model.n_vocab}: training would stop at it")
    if shortest < run.model.n_ctx + 1:
        print(f"WARNING   a record of {shortest} tokens is too short: training would stop at it")
    return 0
