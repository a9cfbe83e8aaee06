"""`python -m gpt_neo COMMAND`: everything besides main.py's training, evaluation and sampling."""

from __future__ import annotations

import importlib
import sys
from typing import Optional

# Command -> (module, what it does). A module offers main(argv) and is imported when its command is called.
COMMANDS = {
    "import-hf": ("gpt_neo.cli.import_hf", "make a run folder of a Hugging Face model"),
    "export-hf": ("gpt_neo.cli.export_hf", "make a Hugging Face model of a checkpoint"),
    "serve": ("gpt_neo.cli.serve", "completions over HTTP as OpenAI's API has them, and a page"),
    "inspect": ("gpt_neo.cli.inspect", "what a checkpoint holds, and whether it is sound"),
    "doctor": ("gpt_neo.cli.doctor", "whether this machine can run a config, and what to do where it cannot"),
    "runs": ("gpt_neo.cli.runs", "list recorded runs, plot their losses side by side"),
    "harness": ("gpt_neo.cli.harness", "score a checkpoint on tasks of lm-evaluation-harness"),
    "spmd-run": ("gpt_neo.cli.spmd_run", "train, evaluate and sample on any devices of JAX"),
    "average": ("gpt_neo.cli.average", "the mean of several checkpoints"),
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}s}  {text}" for name, (_, text) in COMMANDS.items()]
    return "usage: python -m gpt_neo COMMAND ...\n\n" + "\n".join(lines) + "\n\nCOMMAND --help tells more."


def main(argv: Optional[list] = None) -> int:
    """Find the command and run it."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] not in COMMANDS:
        print(f"error: no command {words[0]!r}\n{usage()}", file=sys.stderr)
        return 2
    from gpt_neo.cli.common import run_command

    return run_command(importlib.import_module(COMMANDS[words[0]][0]).main, words[1:])


if __name__ == "__main__":
    sys.exit(main())
