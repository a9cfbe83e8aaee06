"""From text to TFRecords for training: docs/data.md."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Optional

from tqdm import tqdm

from gpt_neo.cli.console import count_text, counted
from gpt_neo.cli.tool_options import Prepare
from gpt_neo.dataprep.manifest import dataset_config, write_json
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.prepare import prepare
from gpt_neo.errors import DataError
from gpt_neo.system import cores

BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"  # fits 80 columns
DEFAULTS = {"chunk_size": 2049, "minimum_size": 0, "ftfy": False, "wikitext_detokenize": False}
LEGACY_DEFAULTS = {"chunk_size": 2049, "minimum_size": 100, "ftfy": True, "wikitext_detokenize": True}
SAME = (
    "input_dir",
    "output_dir",
    "name",
    "encoder_path",
    "mode",
    "files_per",
    "deduplicate",
    "shuffle",
    "seed",
    "text_key",
    "stdin_format",
    "skip_bad",
    "work_dir",
)
DROPPED = {
    "short": "too short",
    "duplicate": "copies of earlier ones",
    "bad": "not readable",
    "tail": "ends of documents",
    "overwritten": "in files written over",
}


def prepare_records(options: Prepare) -> int:
    """Prepare the records and print the account.

    Raises:
      DataError: an input or a flag is wrong.
    """
    work = work_of(options)
    if options.legacy:
        from gpt_neo.dataprep.legacy import prepare_legacy

        manifest = prepare_legacy(work)
    elif options.beam is not None:
        from gpt_neo.dataprep.beam import prepare_on_beam

        manifest = prepare_on_beam(work, list(options.beam))
    else:
        manifest = prepare_with_bar(work, options.restart)
    show(manifest, work)
    if options.write_dataset_config is not None:
        path = options.write_dataset_config or os.path.join("configs", "dataset_configs", f"{work.name}.json")
        write_json(path, dataset_config(manifest, work.output_dir, options.eval_path))
        print(f"wrote {path}")
    return 0


def separator_ids(words: Sequence[str]) -> Optional[tuple[int, ...]]:
    """Ids given as `50256`, `0 1`, `0,1` or `[0]`."""
    if not words:
        return None
    try:
        return tuple(int(i) for word in words for i in word.strip("[]").split(",") if i)
    except ValueError:
        raise DataError(f"--separator is {' '.join(words)!r}; expected ids such as 50256 or 0,1") from None


def work_of(options: Prepare) -> PrepareOptions:
    """What is to be done; the legacy program's defaults with --legacy."""
    defaults = LEGACY_DEFAULTS if options.legacy else DEFAULTS
    chosen: dict[str, Any] = {key: getattr(options, key) for key in (*SAME, *defaults)}
    if options.legacy and options.chunk_size:  # the old --chunk_size was n_ctx, and one was added to it
        chosen["chunk_size"] += 1
    chosen.update({key: value for key, value in defaults.items() if chosen[key] is None})
    processes = options.processes or cores()
    return PrepareOptions(separator=separator_ids(options.separator), processes=processes, **chosen)


def prepare_with_bar(work: PrepareOptions, restart: bool) -> dict:
    """Prepare with a progress bar; return the manifest."""
    made, began = 0, time.monotonic()
    with tqdm(unit="B", unit_scale=True, desc="read", disable=None, bar_format=BAR) as bar:

        def progress(stored: int, text: int, tokens: int, total: Optional[int] = None, before: bool = False) -> None:
            nonlocal made
            if total is not None:
                bar.total = total
            if before:  # by an earlier run: no work of this one, whose speed is told
                bar.initial += stored
            else:
                made += tokens
                bar.set_postfix_str(f"{count_text(made / max(1e-9, time.monotonic() - began))} tokens/s")
            bar.update(stored)

        return prepare(work, progress, restart=restart)


def show(manifest: dict, work: PrepareOptions) -> None:
    """Print the account."""
    account = manifest["account"]
    documents = counted(account["documents_in"], "document")
    print(f"in:  {documents}, {account['bytes_in']:,} bytes, {account['tokens_in']:,} tokens")
    print(
        f"out: {counted(account['records_written'], 'record')}, {counted(account['tokens_written'], 'token')} in "
        f"{counted(len(manifest['files']), 'file')} {os.path.join(work.output_dir, work.name)}_*.tfrecords; separators "
        f"{account['separator_tokens']:,}, filling {account['fill_tokens']:,}"
    )
    for key, count in account.items():
        unit, dropped, reason = key.partition("_dropped_")
        if dropped and count:
            print(f"dropped: {count:,} {unit}, {DROPPED.get(reason, reason)}")
    for place in manifest["bad_documents"]["first"][:10]:
        print(f"  {place}")
