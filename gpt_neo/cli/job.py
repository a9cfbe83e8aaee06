"""A command's run: its config, the folder of its checkpoints, its devices."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from gpt_neo.cli.console import note
from gpt_neo.cli.imported import run_of
from gpt_neo.cli.options import DeviceOptions, ModelOptions, RunOptions
from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from gpt_neo.config.network import merged
from gpt_neo.config.restore import OfTraining
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError, brief

if TYPE_CHECKING:  # NumPy: plans and help do without
    from gpt_neo.checkpoint.folder import Found

Read = TypeVar("Read")
LONGEST_ID = 200  # bytes of --sacred_id: a file's name has room for 255


@dataclasses.dataclass(frozen=True)
class Job:
    """What a command works on.

    Attributes:
      model: the flags that name it.
      folder: where its checkpoints live.
      plan: the `MeshPlan` of a cluster; otherwise `devices` says.
    """

    model: ModelOptions
    run: RunConfig
    folder: str
    devices: DeviceOptions = DeviceOptions()
    plan: Any = None

    @property
    def identity(self) -> str:
        """What the files of its results are called after."""
        named = self.model.sacred_id if isinstance(self.model, RunOptions) else None
        return named or self.run.name


def load_job(
    model: ModelOptions,
    devices: DeviceOptions = DeviceOptions(),  # noqa: B008  (frozen)
    reads_only: bool = False,
    overrides: Sequence[str] = (),
    quiet: bool = False,
    needs_data: bool = True,
    reads_checkpoint: bool = True,
) -> Job:
    """Load the config and settle where checkpoints live.

    Args:
      reads_only: the command writes no checkpoint; see `model_folder`. Adapters are merged, and a model of Hugging
        Face's is taken, see `run_of`.
      overrides: `key=value` in place of the config's, besides those of `model`.
      quiet, needs_data: see `load_run`.
      reads_checkpoint: whether the command reads one, so that --checkpoint means something.

    Raises:
      ConfigError: the config is wrong, or --checkpoint says nothing.
      CheckpointError: a model of Hugging Face's cannot be had.
    """
    check_identity(model)
    if model.checkpoint is not None and not reads_checkpoint:
        raise ConfigError(f"--checkpoint {model.checkpoint}: this command reads no checkpoint; leave it out")
    if reads_only:
        model = dataclasses.replace(model, model=run_of(model.model))
    run = load_run(model.model, [*model.overrides, *overrides], quiet, needs_data, trains=not reads_only)
    if reads_only:
        if any(text.startswith("lora_alpha=") for text in model.overrides):
            raise ConfigError("--set lora_alpha: adapters are multiplied by what they were trained with; leave it out")
        run = dataclasses.replace(run, model=merged(run.model))
    return Job(model, run, model_folder(run, reads_only), devices)


def check_identity(model: ModelOptions) -> None:
    """Raises: ConfigError: --sacred_id cannot be part of a file's name; found out days later otherwise."""
    named = (model.sacred_id if isinstance(model, RunOptions) else None) or ""
    if "/" in named or "\0" in named or len(os.fsencode(named)) > LONGEST_ID:
        raise ConfigError(
            f"--sacred_id {brief(named)!r}: files are called after it (eval_<id>.jsonl); expected at most "
            f"{LONGEST_ID} bytes, without /"
        )


def load_run(
    name_or_path: str, overrides: Sequence[str] = (), quiet: bool = False, needs_data: bool = True, trains: bool = True
) -> RunConfig:
    """Load a config and print what was recognised as another program's, and which keys do nothing.

    Args:
      quiet: another process prints it, or the output is for a program.
      needs_data: refuse a dataset without a config; otherwise it is left out of the run's `datasets`.
      trains: else what is said of training alone is left out.

    Raises:
      ConfigError: the config is wrong.
    """
    run = load_config(name_or_path, overrides, needs_data=needs_data)
    for line in () if quiet else run.notes:
        if trains or not isinstance(line, OfTraining):
            note(line)
    return run


def job_checkpoint(job: Job) -> Found:
    """The checkpoint of --checkpoint, or the newest one.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    from gpt_neo.checkpoint.folder import find_checkpoint

    found = find_checkpoint(job.folder, job.model.checkpoint)
    for line in found.notes:
        note(line)
    return found


def read_job_checkpoint(job: Job, first: Found, read: Callable[[str], Read]) -> tuple[str, Read]:
    """(path of the checkpoint, what `read` makes of it), see `read_checkpoint`.

    Args:
      first: what `job_checkpoint` has found.
    """
    from gpt_neo.checkpoint.folder import read_checkpoint

    return read_checkpoint(job.folder, job.model.checkpoint, lambda path: (path, read(path)), note, first.path)
