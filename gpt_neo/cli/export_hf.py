"""A Hugging Face model of a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from typing import Optional

from gpt_neo.checkpoint.best import read_best
from gpt_neo.checkpoint.card import write_card
from gpt_neo.checkpoint.convert import DTYPES, export_hf
from gpt_neo.checkpoint.folder import is_hf_folder, read_checkpoint
from gpt_neo.checkpoint.hub import is_hub_name, push_folder
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.peft import adapted_family, export_adapters
from gpt_neo.checkpoint.recast import as_gpt2
from gpt_neo.checkpoint.remote import small_files
from gpt_neo.checkpoint.staging import check_empty
from gpt_neo.cli import quiet
from gpt_neo.cli.console import model_text, say
from gpt_neo.cli.import_hf import verdict_text
from gpt_neo.cli.job import load_run
from gpt_neo.cli.tool_options import ExportHf
from gpt_neo.config.folders import model_folder
from gpt_neo.config.loader import CONFIG_DIR, find_config, folder_name
from gpt_neo.config.network import merged
from gpt_neo.errors import ConfigError
from gpt_neo.storage import scheme_of


def export_folder(options: ExportHf) -> int:
    """Convert, compare, say what was made."""
    quiet.silence(False)
    from gpt_neo.runtime.verify import verify  # TensorFlow, which is silenced by now

    with small_files(options.model) as beside:
        if scheme_of(options.model):
            run = load_run(beside, [*options.set, f"model_path={options.model}"], trains=False)
            run = dataclasses.replace(run, name=folder_name(options.model))
        else:
            run = load_run(options.model, options.set, trains=False)
    if options.as_ and options.custom_code:
        raise ConfigError("--as and --custom_code: give one of them")
    adapted, run = run.model, dataclasses.replace(run, model=merged(run.model))
    recast = as_gpt2(run.model) if options.as_ else None
    folder = model_folder(run, reads_only=True)
    if options.adapters:  # before a conversion that takes minutes, and leaves DST
        adapted_family(adapted, folder)
        if not scheme_of(options.adapters):
            check_empty(options.adapters)
    if options.push and scheme_of(options.destination):
        raise ConfigError("--push uploads a local folder; copy DST here first")
    began = time.monotonic()
    lines: list[str] = []
    dtype = DTYPES[options.dtype] if options.dtype else None

    def convert(path: str) -> tuple[str, str]:
        def check(staging: str) -> None:
            best = read_best(folder)
            at_best = best if best and os.path.basename(path) == best.checkpoint else None
            write_card(staging, run, path, options.base, at_best)
            spent = time.monotonic() - began
            how, bound = options.verify.verify, options.verify.bound
            verdict = verify(path, run.model, staging, how, dtype, bound, options.custom_code)
            lines.extend([f"converted in {spent:.1f} s", verdict_text(verdict)])

        size, code = int(options.shard_gb * 1e9), options.custom_code
        return path, export_hf(
            run, path, options.destination, options.dtype, size, options.tokenizer, check, code, recast
        )

    notes: list[str] = []
    path, made = read_checkpoint(folder, options.checkpoint, convert, notes.append)
    say(model_text(run))
    say(f"exported  step {step_of(path):,} of {folder}")
    for line in (*(f"note      {note}" for note in notes), *lines):
        say(line)
    say(f"written   {options.destination}: {made}")
    if options.adapters:
        base = base_name(options.base)
        export_adapters(adapted, path, base, options.adapters)
        say(f"written   {options.adapters}: adapters for PEFT")
        if base is None:
            where = (
                f"`gpt-neo export-hf {shlex.quote(options.base)} NEW` makes it" if options.base else "--base names it"
            )
            say(f"note      they go onto the model without them: {where}; {options.destination} has them merged")
    if options.push:
        say(f"pushed    {push_folder(options.destination, options.push)}")
    return 0


def base_name(base: Optional[str]) -> Optional[str]:
    """What PEFT finds the model by that adapters are of; None where that is not known, or a run or a config of ours,
    which it cannot load."""
    if base and not (is_hub_name(base) or is_hf_folder(base)):
        with contextlib.suppress(ConfigError):
            find_config(base, CONFIG_DIR)
            return None
    return base
