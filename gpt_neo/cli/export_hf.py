"""`python -m gpt_neo export-hf MODEL DST`."""

from __future__ import annotations

import argparse
import os
import time
from typing import Optional

from gpt_neo.cli.import_hf import add_verify, verdict_text
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.storage import scheme_of


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo export-hf",
        description="Make a folder that AutoModelForCausalLM.from_pretrained and AutoTokenizer load, of a checkpoint "
        "of this program or of the 2021 one.",
    )
    p.add_argument(
        "model", metavar="MODEL", help="config (name or path), or a run folder with config.json, local or gs://"
    )
    p.add_argument("destination", metavar="DST", help="new folder, local or gs://")
    p.add_argument("--checkpoint", metavar="WHICH", help="latest (the default), best, or a step")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights (default: as stored)")
    p.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json (default: the one of the run, else GPT-2's)")
    p.add_argument("--shard_gb", type=float, default=5.0, metavar="GB", help="most per weight file (default: 5)")
    p.add_argument(
        "--custom_code",
        action="store_true",
        help="write a model file of ours beside the weights, for what Hugging Face has no model for (gla, "
        "linear, experts, ...); load it with trust_remote_code=True",
    )
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    add_verify(p)
    return p


def main(argv: Optional[list] = None) -> int:
    """Convert, compare, say what was made."""
    args = build_parser().parse_args(argv)
    if args.shard_gb <= 0:
        raise ConfigError(f"--shard_gb is {args.shard_gb}; expected more than 0")
    from gpt_neo.cli.job import load_run, model_folder, model_text
    from gpt_neo.cli.quiet import silence

    silence(False)
    from gpt_neo.checkpoint.convert import DTYPES, export_hf
    from gpt_neo.checkpoint.folder import find_checkpoint
    from gpt_neo.checkpoint.remote import small_files
    from gpt_neo.runtime.verify import verify

    if scheme_of(args.model):
        args.set.append(f"model_path={args.model}")
    with small_files(args.model) as beside:
        run = load_run(os.path.join(beside, "config.json") if os.path.isdir(beside) else beside, args.set)
    folder = model_folder(run, reads_only=True)
    found = find_checkpoint(folder, args.checkpoint)
    if found is None:
        raise CheckpointError(f"no checkpoint in {folder!r}")
    began = time.monotonic()
    lines: list[str] = []

    def check(staging: str) -> None:
        lines.append(f"converted in {time.monotonic() - began:.1f} s")
        lines.append(
            verdict_text(
                verify(
                    found.path, run.model, staging, args.verify, DTYPES.get(args.dtype), args.bound, args.custom_code
                )
            )
        )

    made = export_hf(
        run, found.path, args.destination, args.dtype, int(args.shard_gb * 1e9), args.tokenizer, check, args.custom_code
    )
    print(model_text(run))
    for line in (*(f"note      {note}" for note in found.notes), *lines):
        print(line)
    print(f"written   {args.destination}: {made}")
    return 0
