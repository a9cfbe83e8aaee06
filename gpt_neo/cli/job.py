"""What the jobs of main.py share: the config, the folder, the opening lines."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from gpt_neo.config import load_config
from gpt_neo.config.estimate import Memory, count_parameters
from gpt_neo.config.folders import model_folder
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError, ConfigError


@dataclasses.dataclass(frozen=True)
class Job:
    """A parsed command line and its run."""

    args: argparse.Namespace
    run: RunConfig
    folder: str
    plan: Any = None  # MeshPlan of a cluster; otherwise --gpu_ids says


def load_job(args: argparse.Namespace) -> Job:
    """Load the config and settle where checkpoints live.

    Raises:
      ConfigError: the config or a flag is wrong.
    """
    check_training(args)
    # The layout in the file is beside the point when one is searched for, and need not fit an overridden mesh_shape.
    searched = ["layout="] if args.auto_layout or args.auto_layout_and_mesh_shape else []
    dtype = [f"precision={args.dtype}"] if args.dtype else []
    run = load_run(args.model, [*args.set, *dtype, *searched], quiet=bool(args.experiment))
    return Job(args, run, model_folder(run, reads_only=bool(args.predict or args.eval or args.export)))


def load_run(name_or_path: str, overrides: Sequence[str] = (), quiet: bool = False) -> RunConfig:
    """Load a config and print what was recognised as another program's; quiet: another process prints it.

    Raises:
      ConfigError: the config is wrong.
    """
    run = load_config(name_or_path, overrides)
    for line in () if quiet else run.notes:
        note(line)
    return run


def check_training(args: argparse.Namespace) -> None:
    """Check the flags of `args.add_training`.

    Raises:
      ConfigError: one is out of range.
    """
    for flag in ("steps_per_checkpoint", "steps_per_log"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag} is {getattr(args, flag)}; expected at least 1")
    if not 0 <= args.stall_minutes < float("inf"):
        raise ConfigError(f"--stall_minutes is {args.stall_minutes}; expected a number of minutes, or 0 to wait")


def job_checkpoint(job: Job) -> Any:
    """The checkpoint (`Found`) of --checkpoint, or the newest one.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    from gpt_neo.checkpoint.folder import find_checkpoint  # NumPy: --help does without

    found = find_checkpoint(job.folder, job.args.checkpoint)
    if found is None:
        raise CheckpointError(f"no checkpoint in {job.folder!r}: train first, or set model_path")
    for note in found.notes:
        print(f"note      {note}")
    return found


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit in ("B", "KB") else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def count_text(count: float) -> str:
    """A large count for people: 125.2 M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count:.0f}"


def time_text(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def model_text(run: RunConfig) -> str:
    """One line on the model."""
    model = run.model
    kinds = ", ".join(f"{model.attention_types.count(k)} {k}" for k in dict.fromkeys(model.attention_types))
    return (
        f"model     {run.name}: {count_parameters(model):,} parameters, {model.n_layer} layers ({kinds}), "
        f"n_embd {model.n_embd}, n_ctx {model.n_ctx}, {model.precision}"
    )


def memory_text(memory: Memory) -> str:
    """One line on memory."""
    parts = dataclasses.asdict(memory)
    shown = ", ".join(f"{name} {size_text(value)}" for name, value in parts.items() if value)
    return f"memory    about {size_text(memory.total)} on one device ({shown})"


def note(line: str) -> None:
    """Print a line that a person should know about, at once."""
    print(f"note      {line}", flush=True)
