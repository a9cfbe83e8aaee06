"""What a checkpoint holds: variables, sizes, step, config, health."""

from __future__ import annotations

import json
import os
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import find_checkpoint, prefix_of
from gpt_neo.checkpoint.health import examine
from gpt_neo.checkpoint.names import PREFIX, is_slot
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.cli import quiet
from gpt_neo.cli.console import size_text
from gpt_neo.cli.tool_options import Inspect
from gpt_neo.errors import CheckpointError, counted
from gpt_neo.storage.tensorflow import is_folder


def inspect(options: Inspect) -> int:
    """Print the table.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    path, notes = checkpoint_at(options.checkpoint)
    bundle = Bundle(path)
    reports = [examine(bundle, name) for name in bundle.names()]
    record = read_provenance(path)
    sick = [r for r in reports if r.trouble]
    weights = [r for r in reports if not is_slot(r.name) and r.name != "global_step"]
    step = int(bundle.read("global_step")) if "global_step" in bundle.entries else None
    if options.json:
        print(json.dumps({"path": path, "step": step, "record": record, "tensors": [r.__dict__ for r in reports]}))
        return 1 if sick else 0
    for note in notes:
        print(f"note       {note}")
    print_table([r for r in reports if options.slots or not is_slot(r.name) or r.trouble])
    print_summary(path, step, weights, reports, record)
    print(f"health     {len(sick)} of {len(reports)} tensors in trouble" if sick else "health     sound")
    return 1 if sick else 0


def checkpoint_at(given: str) -> tuple[str, tuple]:
    """A checkpoint by its path or its folder, and lines for the person.

    Raises:
      CheckpointError: there is none.
    """
    path = prefix_of(given)
    if storage.scheme_of(path):  # which TensorFlow reads
        quiet.silence(False)
    if is_folder(path):
        found = find_checkpoint(path)
        return found.path, tuple(found.notes)
    if not storage.scheme_of(path) and not os.path.exists(path + ".index"):
        what = f"{given} is no checkpoint" if os.path.exists(path) else f"no checkpoint {path!r}"
        raise CheckpointError(f"{what}: expected the folder of a run, or {PREFIX}STEP in one")
    return path, ()


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
