"""What a checkpoint holds: variables, sizes, step, config, health."""

from __future__ import annotations

import json
import os
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import prefix_of, read_checkpoint
from gpt_neo.checkpoint.health import examine
from gpt_neo.checkpoint.names import PREFIX, is_slot
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.cli import quiet
from gpt_neo.cli.console import size_text
from gpt_neo.cli.tool_options import Inspect
from gpt_neo.errors import CheckpointError, counted
from gpt_neo.storage.tensorflow import exists, is_folder


def inspect(options: Inspect) -> int:
    """Print the table.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    given, notes = prefix_of(options.checkpoint), list[str]()
    if storage.scheme_of(given):  # which TensorFlow reads
        quiet.silence(False)
    if is_folder(given):
        found = read_checkpoint(given, None, Examined, notes.append)
    elif storage.scheme_of(given) or os.path.exists(given + ".index"):
        found = Examined(given)
    else:
        what = f"{options.checkpoint} is no checkpoint" if os.path.exists(given) else f"no checkpoint {given!r}"
        raise CheckpointError(f"{what}: expected the folder of a run, or {PREFIX}STEP in one")
    path, step, reports, record = found.path, found.step, found.reports, read_provenance(found.path)
    sick = [r for r in reports if r.trouble]
    weights = [r for r in reports if not is_slot(r.name) and r.name != "global_step"]
    if options.json:
        print(json.dumps({"path": path, "step": step, "record": record, "tensors": [r.__dict__ for r in reports]}))
        return 1 if sick else 0
    for note in notes:
        print(f"note       {note}")
    print_table([r for r in reports if options.slots or not is_slot(r.name) or r.trouble])
    print_summary(path, step, weights, reports, record)
    print(f"health     {len(sick)} of {len(reports)} tensors in trouble" if sick else "health     sound")
    return 1 if sick else 0


class Examined:
    """A checkpoint with its step, None where it has none, and a report on each tensor. Raises: CheckpointError."""

    def __init__(self, path: str) -> None:
        bundle = Bundle(path)
        self.path = path
        self.reports = [examine(bundle, name) for name in bundle.names()]
        if any(r.trouble for r in self.reports) and not exists(path + ".index"):
            raise CheckpointError(f"{path}: was deleted while it was read")
        self.step = int(bundle.read("global_step")) if "global_step" in bundle.entries else None


def print_table(shown: list) -> None:
    """A line for each tensor."""
    width = max([len(r.name) for r in shown], default=0)
    for r in shown:
        print(
            f"{r.name:{width}s}  {r.dtype:9s} {'x'.join(map(str, r.shape)) or 'scalar':14s} mean {r.mean:10.3e}  "
            f"std {r.std:9.3e}  max {r.largest:9.3e}  {r.trouble}".rstrip()
        )


def print_summary(path: str, step: Optional[int], weights: list, reports: list, record: Any) -> None:
    """Totals, and what the record says."""
    count = sum(r.size // (2 if r.dtype in ("bfloat16", "float16") else 4) for r in weights)
    slots = len(reports) - len(weights) - (step is not None)
    print(
        f"checkpoint {path}: step {step if step is not None else 'unknown'}, {counted(len(weights), 'weight')} "
        f"({count:,} numbers, {size_text(sum(r.size for r in weights))}), {counted(slots, 'optimizer slot')}"
    )
    if record is None:
        print("record     none (written by another program)")
        return
    data, random, tokenizer = record["data"], record["random"], record["tokenizer"] or {}
    read = f"{counted(data['records_read'], 'record')}, {counted(data['tokens_read'], 'token')}"
    print(f"data       {read} read; seed {random['seed']}")
    print(f"tokenizer  {tokenizer.get('path')}; source {record['source'] or 'trained here'}")
    print("versions   " + ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value))
    print("config     " + json.dumps(record["config"]))
