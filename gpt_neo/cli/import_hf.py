"""A run folder of a Hugging Face model."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from typing import Any

from gpt_neo.checkpoint.convert import DTYPES, import_hf
from gpt_neo.checkpoint.custom import code_note
from gpt_neo.checkpoint.hub import model_folder_of
from gpt_neo.cli import quiet
from gpt_neo.cli.console import model_text, say
from gpt_neo.cli.tool_options import ImportHf
from gpt_neo.config import load_config
from gpt_neo.config.loader import folder_name, parse_override
from gpt_neo.config.schema import RunConfig
from gpt_neo.storage import is_remote


def import_folder(options: ImportHf) -> int:
    """Convert, compare, say what was made."""
    quiet.silence(False)
    with model_folder_of(options.source) as source:
        run, lines = convert(options, source)
    say(model_text(dataclasses.replace(run, name=folder_name(options.destination))))
    for line in lines:
        say(line)
    place = shlex.quote(options.destination)
    if is_remote(options.destination):
        place = f"a copy of its config.json --set model_path={place}"
    print(f"written   {options.destination}: gpt-neo sample {place}")
    return 0


def verdict_text(verdict: Any) -> str:
    """One line on the comparison (a `Verdict`, or None)."""
    if verdict is None:
        return "verified  no (--verify none)"
    return (
        f"verified  logits differ by at most {verdict.difference:.2e} over {verdict.length} tokens, "
        f"allowed {verdict.bound:.1e} ({verdict.ways})"
    )


def convert(options: ImportHf, source: str) -> tuple[RunConfig, list[str]]:
    """Convert and compare. Returns the run and lines for the person."""
    from gpt_neo.runtime.verify import verify  # TensorFlow, which is silenced by now

    began = time.monotonic()
    lines: list[str] = []

    def check(folder: str) -> None:
        run = load_config(os.path.join(folder, "config.json"))
        lines.append(f"converted in {time.monotonic() - began:.1f} s")
        checkpoint = os.path.join(folder, f"model.ckpt-{options.step}")
        how, bound = options.verify.verify, options.verify.bound
        verdict = verify(checkpoint, run.model, source, how, DTYPES[run.model.precision], bound)
        lines.append(verdict_text(verdict))

    run = import_hf(
        source,
        options.destination,
        options.dtype,
        options.step,
        options.slots == "zero",
        dict(parse_override(text) for text in options.set),
        check,
    )
    return run, [*(f"note      {note}" for note in (*code_note(source), *run.notes)), *lines]
