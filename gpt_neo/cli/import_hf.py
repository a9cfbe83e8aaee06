"""`python -m gpt_neo import-hf SRC DST`."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any, Optional

from gpt_neo.config import load_config
from gpt_neo.config.loader import parse_override
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo import-hf",
        description="Make a run folder (config.json, checkpoint, tokenizer) of a Hugging Face folder of GPT-Neo, "
        "GPT-J, GPT-NeoX or GPT-2, or of one that export-hf --custom_code wrote: safetensors or pytorch_model.bin, in "
        "one file or several.",
    )
    p.add_argument("source", metavar="SRC", help="folder with config.json and weights, local or gs://")
    p.add_argument("destination", metavar="DST", help="new folder, local or gs://, with config.json")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights (default: as in SRC)")
    p.add_argument("--step", type=int, default=0, metavar="N", help="global step; the data position follows from it")
    p.add_argument(
        "--slots",
        choices=("fresh", "zero"),
        default="fresh",
        help="fresh: no optimizer slots, they start at 0; zero: write them (default: %(default)s)",
    )
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="key of the config that is written")
    add_verify(p)
    return p


def add_verify(p: argparse.ArgumentParser) -> None:
    """The flags of the comparison that ends a conversion."""
    p.add_argument(
        "--verify",
        choices=("auto", "torch", "numpy", "none"),
        default="auto",
        help="how the logits of both sides are compared: transformers and our network, or NumPy layer by "
        "layer; auto takes torch where it is installed and memory allows (default: %(default)s)",
    )
    p.add_argument(
        "--bound",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest difference, relative to the largest logit if that is above 1 (default: %(default)s)",
    )


def verdict_text(verdict: Any) -> str:
    """One line on the comparison (a `Verdict`, or None)."""
    if verdict is None:
        return "verified  no (--verify none)"
    return (
        f"verified  logits differ by at most {verdict.difference:.2e} over {verdict.length} tokens, "
        f"allowed {verdict.bound:.1e} ({verdict.ways})"
    )


def main(argv: Optional[list] = None) -> int:
    """Convert, compare, say what was made."""
    args = build_parser().parse_args(argv)
    if args.step < 0:
        raise ConfigError(f"--step is {args.step}; expected at least 0")
    from gpt_neo.cli.job import model_text
    from gpt_neo.cli.quiet import silence

    silence(False)
    from gpt_neo.checkpoint.remote import source_folder
    from gpt_neo.storage import is_remote

    with source_folder(args.source) as source:
        run, lines = convert(args, source)
    print(model_text(run))
    for line in lines:
        print(line)
    config = os.path.join(args.destination, "config.json")
    if is_remote(args.destination):
        config = f"a copy of its config.json --set model_path={args.destination}"
    print(f"written   {args.destination}: main.py --model {config} --predict")
    return 0


def convert(args: argparse.Namespace, source: str) -> tuple[RunConfig, list[str]]:
    """Convert and compare. Returns the run and lines for the person."""
    from gpt_neo.checkpoint.convert import DTYPES, import_hf
    from gpt_neo.checkpoint.custom import code_note
    from gpt_neo.runtime.verify import verify

    began = time.monotonic()
    lines: list[str] = []

    def check(folder: str) -> None:
        run = load_config(os.path.join(folder, "config.json"))
        lines.append(f"converted in {time.monotonic() - began:.1f} s")
        checkpoint = os.path.join(folder, f"model.ckpt-{args.step}")
        lines.append(
            verdict_text(verify(checkpoint, run.model, source, args.verify, DTYPES[run.model.precision], args.bound))
        )

    run = import_hf(
        source,
        args.destination,
        args.dtype,
        args.step,
        args.slots == "zero",
        dict(parse_override(text) for text in args.set),
        check,
    )
    return run, [*(f"note      {note}" for note in (*code_note(source), *run.notes)), *lines]
