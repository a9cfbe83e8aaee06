"""The table of commands: `gpt-neo COMMAND ...`, the same as `python -m gpt_neo COMMAND ...`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Optional

import gpt_neo
from gpt_neo.cli import options, tool_options
from gpt_neo.cli.common import complain, run_command
from gpt_neo.cli.parser import parse


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      options: dataclass of its flags.
      function: module:name of what takes them and returns the exit status; imported when it is called, so that help
        and mistakes in flags need no TensorFlow.
      text: what it does, in the list of commands.
    """

    options: type
    function: str
    text: str


COMMANDS = {
    "train": Command(options.Train, "gpt_neo.cli.jobs:train", "train, or go on training"),
    "finetune": Command(
        tool_options.Finetune, "gpt_neo.cli.finetune:finetune", "from a model and texts to a fine-tuned model"
    ),
    "eval": Command(options.Evaluate, "gpt_neo.cli.jobs:evaluate", "loss of held-out records, scores of tasks"),
    "sample": Command(options.Sample, "gpt_neo.cli.jobs:sample", "text from a checkpoint"),
    "plan": Command(options.Plan, "gpt_neo.cli.plan:show_plan", "parameters, memory, steps; does it fit that TPU"),
    "layout": Command(options.FindLayout, "gpt_neo.cli.auto_layout:find_layout", "look for a layout, and a mesh"),
    "check-data": Command(options.CheckData, "gpt_neo.cli.jobs:check_data", "look at what training would read"),
    "prepare": Command(tool_options.Prepare, "gpt_neo.cli.prepare:prepare_records", "from text to records"),
    "train-tokenizer": Command(
        tool_options.TrainTokenizer, "gpt_neo.cli.train_tokenizer:train_tokenizer", "a tokenizer of your texts"
    ),
    "inspect-data": Command(
        tool_options.InspectData, "gpt_neo.cli.inspect_data:inspect_data", "what records hold: counts, lengths, samples"
    ),
    "inspect": Command(
        tool_options.Inspect, "gpt_neo.cli.inspect:inspect", "what a checkpoint holds, and whether it is sound"
    ),
    "average": Command(tool_options.Average, "gpt_neo.cli.average:average", "the mean of several checkpoints"),
    "export": Command(options.Export, "gpt_neo.cli.jobs:export", "a SavedModel of a checkpoint"),
    "quantize": Command(
        tool_options.Quantize, "gpt_neo.cli.quantize:quantize", "int8 or int4 weights, and what they cost in perplexity"
    ),
    "import-hf": Command(
        tool_options.ImportHf, "gpt_neo.cli.import_hf:import_folder", "make a run folder of a Hugging Face model"
    ),
    "export-hf": Command(
        tool_options.ExportHf, "gpt_neo.cli.export_hf:export_folder", "make a Hugging Face model of a checkpoint"
    ),
    "serve": Command(options.Serve, "gpt_neo.cli.serve:serve", "OpenAI's completions API over HTTP, and a page"),
    "harness": Command(
        options.Harness, "gpt_neo.cli.harness:harness", "score a checkpoint on tasks of lm-evaluation-harness"
    ),
    "doctor": Command(
        tool_options.Doctor, "gpt_neo.cli.doctor:doctor", "can this machine run a config, and what to do if not"
    ),
    "runs": Command(tool_options.Runs, "gpt_neo.cli.runs:list_runs", "recorded runs, and their losses side by side"),
    "completion": Command(
        tool_options.Completion, "gpt_neo.cli.completion:completion", "completion of these commands by a shell"
    ),
    "spmd-run": Command(options.SpmdRun, "gpt_neo.cli.spmd_run:spmd_run", "older name of --backend xla"),
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}s}  {command.text}" for name, command in COMMANDS.items()]
    return "usage: gpt-neo COMMAND ...\n\n" + "\n".join(lines) + "\n\ngpt-neo COMMAND --help tells more."


def call(name: str, given: Any) -> int:
    """Run a command with its options; return its exit status.

    Raises:
      GptNeoError: a mistake of the user.
    """
    module, _, function = COMMANDS[name].function.partition(":")
    return getattr(importlib.import_module(module), function)(given)


def script(name: str, prog: str, argv: Optional[Sequence[str]] = None) -> int:
    """Run a command under its name of 2021, whose flags are the same; return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: call(name, parse(COMMANDS[name].options, words, prog, words=False)))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Find the command and run it; return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        return run_command(print, usage())
    if words[0] == "--version":
        return run_command(print, f"gpt-neo {gpt_neo.__version__} on Python {sys.version.split()[0]}")
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"\n{usage()}"
        complain(f"error: no command {name!r}{hint}")
        return 2
    return run_command(lambda: call(name, parse(COMMANDS[name].options, rest, f"gpt-neo {name}")))
