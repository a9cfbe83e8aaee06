"""Checks before anything is built, and the place of damage once a reader has met it."""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections.abc import Sequence

from gpt_neo.config.schema import DatasetConfig, RunConfig
from gpt_neo.dataprep.records import read_records
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import Tokenizer, load_tokenizer

FIRST_RECORDS = 64  # looked at before a run; every later one is checked as it is read


def dataset_tokenizer(dataset: DatasetConfig) -> Tokenizer:
    """The tokenizer of a dataset; GPT-2's unless it names one."""
    return load_tokenizer(dataset.tokenizer_path, eos_id=dataset.eos_id if dataset.tokenizer_path else None)


def check_tokenizer(run: RunConfig, dataset: DatasetConfig, name: str) -> None:
    """Hold model, tokenizer and manifest of the records against one another.

    Raises:
      DataError: the tokenizer has more ids than the model, or is another than the records were made with.
    """
    if not dataset.tokenizer_path:
        return
    tokenizer = dataset_tokenizer(dataset)
    if tokenizer.n_vocab > run.model.n_vocab:
        raise DataError(
            f"tokenizer {tokenizer.name} has {tokenizer.n_vocab} ids, the model n_vocab {run.model.n_vocab}: "
            "raise n_vocab or take the tokenizer that belongs to the model"
        )
    for path in glob.glob(os.path.join(os.path.dirname(dataset.path), "*_manifest.json")):
        with open(path, encoding="utf-8") as handle:
            made_with = json.load(handle).get("tokenizer", {})
        if made_with.get("fingerprint") not in (None, tokenizer.fingerprint):
            raise DataError(
                f"dataset {name!r}: {path} says its records were made with {made_with.get('path')}, "
                f"which differs from tokenizer_path {tokenizer.name}"
            )


def check_records(paths: Sequence[str], n_ctx: int, n_vocab: int) -> None:
    """Read the first local records and check length and ids.

    Raises:
      DataError: names the file and the record.
    """
    for path in paths[:2]:
        if os.path.exists(path):
            check_file(path, n_ctx, n_vocab, FIRST_RECORDS)


def find_damage(paths: Sequence[str], n_ctx: int, n_vocab: int) -> None:
    """Read every local record until one is damaged.

    Raises:
      DataError: names the file and the record or byte.
    """
    for path in paths:
        if os.path.exists(path):
            check_file(path, n_ctx, n_vocab, None)


def check_file(path: str, n_ctx: int, n_vocab: int, limit: int | None) -> None:
    """Check the first `limit` records of a file."""
    for number, tokens in enumerate(itertools.islice(read_records(path), limit)):
        if len(tokens) < n_ctx + 1:
            raise DataError(f"{path}: record {number} has {len(tokens)} tokens; n_ctx + 1 = {n_ctx + 1} are needed")
        worst = tokens[: n_ctx + 1]
        if worst.max() >= n_vocab or worst.min() < 0:
            bad = int(worst.max() if worst.max() >= n_vocab else worst.min())
            raise DataError(f"{path}: record {number} has token id {bad}; n_vocab is {n_vocab}")
