"""A Hugging Face model of a checkpoint."""

from __future__ import annotations

import dataclasses
import time

from gpt_neo.checkpoint.convert import DTYPES, export_hf
from gpt_neo.checkpoint.folder import find_checkpoint
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.remote import small_files
from gpt_neo.cli import quiet
from gpt_neo.cli.console import model_text
from gpt_neo.cli.import_hf import verdict_text
from gpt_neo.cli.job import load_run
from gpt_neo.cli.tool_options import ExportHf
from gpt_neo.config.folders import model_folder
from gpt_neo.config.loader import folder_name
from gpt_neo.errors import CheckpointError
from gpt_neo.storage import scheme_of


def export_folder(options: ExportHf) -> int:
    """Convert, compare, say what was made."""
    quiet.silence(False)
    from gpt_neo.runtime.verify import verify  # TensorFlow, which is silenced by now

    with small_files(options.model) as beside:
        if scheme_of(options.model):
            run = load_run(beside, [*options.set, f"model_path={options.model}"])
            run = dataclasses.replace(run, name=folder_name(options.model))
        else:
            run = load_run(options.model, options.set)
    folder = model_folder(run, reads_only=True)
    found = find_checkpoint(folder, options.checkpoint)
    if found is None:
        raise CheckpointError(f"no checkpoint in {folder!r}")
    began = time.monotonic()
    lines: list[str] = []
    dtype = DTYPES[options.dtype] if options.dtype else None

    def check(staging: str) -> None:
        lines.append(f"converted in {time.monotonic() - began:.1f} s")
        how, bound = options.verify.verify, options.verify.bound
        verdict = verify(found.path, run.model, staging, how, dtype, bound, options.custom_code)
        lines.append(verdict_text(verdict))

    size, code = int(options.shard_gb * 1e9), options.custom_code
    made = export_hf(run, found.path, options.destination, options.dtype, size, options.tokenizer, check, code)
    print(model_text(run))
    print(f"exported  step {step_of(found.path):,} of {folder}")
    for line in (*(f"note      {note}" for note in found.notes), *lines):
        print(line)
    print(f"written   {options.destination}: {made}")
    return 0
