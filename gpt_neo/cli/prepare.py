"""From text to TFRecords for training: docs/data.md."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from tqdm import tqdm

from gpt_neo import storage
from gpt_neo.cli.console import count_text, folded, note
from gpt_neo.cli.tool_options import Prepare
from gpt_neo.config import load_config
from gpt_neo.config.records import text_dataset
from gpt_neo.dataprep.encodings import WIDE
from gpt_neo.dataprep.ledger import FILE
from gpt_neo.dataprep.manifest import dataset_config, finished, manifest_path
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.prepare import Progress, inputs_of, prepare, report, work_folder
from gpt_neo.errors import ConfigError, DataError, counted, reason_of
from gpt_neo.system import cores
from gpt_neo.tokenizer import END_OF_TEXT

BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"  # fits 80 columns
DEFAULTS = {"chunk_size": 2049, "minimum_size": 0, "ftfy": False, "wikitext_detokenize": False, "seed": 0}
LEGACY_DEFAULTS = {"chunk_size": 2049, "minimum_size": 100, "ftfy": True, "wikitext_detokenize": True, "seed": 0}
SAME = (
    "input_dir",
    "output_dir",
    "name",
    "encoder_path",
    "mode",
    "files_per",
    "deduplicate",
    "shuffle",
    "text_key",
    "stdin_format",
    "split_on",
    "work_dir",
)
DROPPED = {
    "short": "too short",
    "duplicate": "with the text of an earlier one",
    "bad": "not readable",
    "tail": "ends of documents",
    "overwritten": "in files written over",
}


def prepare_records(options: Prepare) -> int:
    """Prepare the records and print the account.

    Raises:
      DataError: an input or a flag is wrong.
    """
    work = work_of(options if options.model is None else for_model(options))
    if work.bad == "report":
        return show_report(work)
    path = config_path(options, work.name)
    manifest = made_before(options, work) if path is not None else None
    if manifest is None:
        manifest = made(options, work)
        show(manifest, work)
    else:
        note(f"{manifest_path(work)}: this command has made its records before; nothing of them is made again")
    if path is not None:
        storage.write_json(path, dataset_config(manifest, work.output_dir, options.eval_path))
        print(f"wrote {path}")
    return 0


def made_before(options: Prepare, work: PrepareOptions) -> Optional[dict]:
    """The manifest of records that the same command has made, and no unfinished work is left of; None if it has not, or
    an input was changed since."""
    if "-" in work.inputs or options.restart or storage.exists(os.path.join(work_folder(work), FILE)):
        return None
    manifest = finished(work, options.legacy)
    if manifest is None or storage.is_remote(work.output_dir):
        return manifest
    paths = [source.path for source in inputs_of(work)[0]]
    when = os.path.getmtime(manifest_path(work))
    local = (path for path in paths if not storage.is_remote(path) and os.path.exists(path))
    return None if any(os.path.getmtime(path) > when for path in local) else manifest


def made(options: Prepare, work: PrepareOptions) -> dict:
    """Make the records; return the manifest."""
    if options.legacy:
        from gpt_neo.dataprep.legacy import prepare_legacy

        return prepare_legacy(work)
    if options.beam is not None:
        from gpt_neo.dataprep.beam import prepare_on_beam

        return prepare_on_beam(work, list(options.beam))
    return prepare_with_bar(work, options.restart)


def config_path(options: Prepare, name: str) -> Optional[str]:
    """Where the dataset config goes, if one is wanted.

    Raises:
      DataError: it cannot be written there, or is to name held-out records and is not wanted.
    """
    if options.write_dataset_config is None:
        if options.eval_path:
            raise DataError("--eval_path goes into the dataset config; give --write_dataset_config too")
        return None
    path = options.write_dataset_config or os.path.join("configs", "dataset_configs", f"{name}.json")
    try:
        storage.check_place(path)
    except OSError as error:
        raise DataError(f"--write_dataset_config {path}: cannot be written: {reason_of(error)}") from error
    return path


def show_report(work: PrepareOptions) -> int:
    """Print all that cannot be read, and what may not be meant as text; 1 if anything cannot be read."""
    with bar() as progress:
        totals = report(work, progress)
    account = totals.account
    for found in totals.bad:
        print(found)
    print(
        f"in:  {counted(account.documents_in, 'document')}, of which {account.documents_dropped_bad:,} cannot be read; "
        "nothing was written"
    )
    for reason, count in sorted(totals.reasons.items(), key=lambda entry: -entry[1]):
        print(f"{count:,}: {reason}")
    for line in sign_lines(totals.signs):
        note(line)
    return 1 if account.documents_dropped_bad else 0


def separator_ids(words: Sequence[str]) -> Optional[tuple[int, ...]]:
    """Ids given as `50256`, `0 1`, `0,1` or `[0]`."""
    if not words:
        return None
    try:
        return tuple(int(i) for word in words for i in word.strip("[]").split(",") if i)
    except ValueError:
        raise DataError(f"--separator is {' '.join(words)!r}; expected ids such as 50256 or 0,1") from None


def for_model(options: Prepare) -> Prepare:
    """The flags with what a model says in the place of those that are not given.

    Raises:
      ConfigError: the model is wrong, or --legacy is given, whose records have lengths of their own.
    """
    if options.legacy:
        raise ConfigError("--model and --legacy exclude each other: the 2021 program's records have its own length")
    run = load_config(str(options.model))
    beside = os.path.join(os.path.dirname(os.path.abspath(run.source)), "tokenizer.json")
    found = text_dataset(run)
    own, eos = (found[1].tokenizer_path, found[1].eos_id) if found else (None, run.model.eos_id)
    return dataclasses.replace(
        options,
        chunk_size=options.chunk_size or run.model.n_ctx + 1,
        encoder_path=options.encoder_path or own or (beside if os.path.isfile(beside) else None),
        separator=options.separator or (() if eos is None else (str(eos),)),
    )


def work_of(options: Prepare) -> PrepareOptions:
    """What is to be done; the legacy program's defaults with --legacy.

    Raises:
      DataError: a flag is wrong, or does nothing.
    """
    if options.seed is not None and not options.shuffle:
        raise DataError(f"--seed {options.seed} is that of --shuffle; give --shuffle too, or leave it out")
    defaults = LEGACY_DEFAULTS if options.legacy else DEFAULTS
    chosen: dict[str, Any] = {key: getattr(options, key) for key in (*SAME, *defaults)}
    if options.legacy and options.chunk_size:  # the old --chunk_size was n_ctx, and one was added to it
        chosen["chunk_size"] += 1
    chosen.update({key: value for key, value in defaults.items() if chosen[key] is None})
    chosen.update(bad="skip" if options.skip_bad else options.bad, encoding=options.encoding or "")
    processes = options.processes or cores()
    return PrepareOptions(separator=separator_ids(options.separator), processes=processes, **chosen)


def prepare_with_bar(work: PrepareOptions, restart: bool) -> dict:
    """Prepare with a progress bar; return the manifest."""
    with bar() as progress:
        return prepare(work, progress, restart=restart)


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """A progress bar."""
    made, began = 0, time.monotonic()
    with tqdm(unit="B", unit_scale=True, desc="read", disable=None, bar_format=BAR) as shown:

        def progress(stored: int, text: int, tokens: int, total: Optional[int] = None, before: bool = False) -> None:
            nonlocal made
            if total is not None:
                shown.total = total
            if before and not shown.disable:  # by an earlier run: no work of this one, whose speed is told
                shown.initial += stored
            if not before:
                made += tokens
                shown.set_postfix_str(f"{count_text(made / max(1e-9, time.monotonic() - began))} tokens/s")
            shown.update(stored)

        yield progress


def show(manifest: dict, work: PrepareOptions) -> None:
    """Print the account."""
    account = manifest["account"]
    documents, size, tokens = (account[f"{what}_in"] for what in ("documents", "bytes", "tokens"))
    lines = [
        f"in:  {counted(documents, 'document')}, {counted(size, 'byte')}, {counted(tokens, 'token')}",
        f"out: {counted(account['records_written'], 'record')}, {counted(account['tokens_written'], 'token')} in "
        f"{counted(len(manifest['files']), 'file')} {os.path.join(work.output_dir, work.name)}_*.tfrecords; separators "
        f"{account['separator_tokens']:,}, filling {account['fill_tokens']:,}",
    ]
    print(*(folded(line, len("in:  ")) for line in lines), sep="\n")
    for key, count in account.items():
        unit, dropped, reason = key.partition("_dropped_")
        if dropped and count:
            print(f"dropped: {counted(count, unit.removesuffix('s'))}, {DROPPED.get(reason, reason)}")
    for place in manifest["bad_documents"]["first"][:10]:
        print(f"  {place}")
    for line in sign_lines(manifest["signs"]):
        note(line)


def sign_lines(signs: dict) -> list[str]:
    """What was taken as text and may not be meant so."""
    lines = []
    if "end_of_text" in signs:
        count, place = signs["end_of_text"]
        lines.append(
            f"{END_OF_TEXT} stands in the text {counted(count, 'time')}, first in {place}, and was taken as ordinary "
            f"text; if it stands between documents, --split_on '{END_OF_TEXT}' makes them documents"
        )
    if "nul" in signs:
        count, place = signs["nul"]
        wide = [name for name, *_ in WIDE if name in signs]
        advice = (
            f"; it looks like {wide[0][:6].upper()} without a byte-order mark: --encoding {wide[0]}" if wide else ""
        )
        lines.append(f"{counted(count, 'document')} with NUL characters, first in {place}{advice}")
    return lines
