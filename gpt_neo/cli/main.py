"""main.py, the command line of 2021: its flags say which command of `commands.py` is meant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.cli import options as new
from gpt_neo.cli.commands import call
from gpt_neo.cli.common import run_command
from gpt_neo.cli.parser import parse
from gpt_neo.errors import ConfigError


def find_layout(given: new.Main) -> new.FindLayout:
    """The search for a layout; with --plan --compile_for it is the compiler's."""
    local = new.LocalOptions(given.devices.gpu_ids)
    mesh = given.jobs.auto_layout_and_mesh_shape
    return new.FindLayout(given.model, mesh, local, given.compile, given.search)


# Flag of main.py -> (command, its options).
JOBS: dict[str, tuple[str, Callable[[new.Main], Any]]] = {
    "predict": ("sample", lambda given: new.Sample(given.model, given.sampling, given.devices)),
    "eval": ("eval", lambda given: new.Evaluate(given.model, given.scoring, given.devices)),
    "plan": ("plan", lambda given: new.Plan(given.model)),
    "check_dataset": ("check-data", lambda given: new.CheckData(given.model)),
    "export": ("export", lambda given: new.Export(given.model, str(given.jobs.export), given.jobs.int8)),
    "compile_for": ("plan", lambda given: new.Plan(given.model, given.compile)),
    "auto_layout": ("layout", find_layout),
    "auto_layout_and_mesh_shape": ("layout", find_layout),
}


def command_of(given: new.Main) -> tuple[str, Any]:
    """The command that flags of main.py mean, and its options.

    Raises:
      ConfigError: they mean two, or none.
    """
    asked = [job for job in JOBS if getattr(given.jobs, job, None) or getattr(given.compile, job, None)]
    if given.tracking.experiment and asked and asked != ["plan"]:
        raise ConfigError(
            f"--experiment goes with training, not with --{asked[0]}; evaluations are recorded when "
            "eval_steps is set, samples with --prompt or predict_steps"
        )
    if asked == ["plan", "compile_for"]:
        return "layout", find_layout(given)
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]} are two jobs; give one")
    for word, flag, job in (("int8", given.jobs.int8, "export"), ("keep_best", given.scoring.keep_best, "eval")):
        if flag and asked != [job]:
            raise ConfigError(f"--{word} goes with --{job}; give --{job} too")
    if given.scoring.eval_tasks and not given.jobs.eval:
        raise ConfigError("--eval_tasks says what --eval scores; give --eval too")
    if given.model.integers and asked != ["predict"]:
        raise ConfigError(f"--dtype {given.model.integers} goes with --predict; other jobs have bfloat16 and float32")
    if given.sampling.given() and asked and asked != ["predict"]:
        raise ConfigError(
            f"--{given.sampling.given()[0]} says what --predict samples, and --{asked[0]} samples nothing; leave it out"
        )
    if asked:
        name, made = JOBS[asked[0]]
        return name, made(given)
    return "train", new.Train(given.model, given.training, given.tracking, given.devices, sampling=given.sampling)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Do what the flags say; return the exit status.

    Raises:
      GptNeoError: a mistake of the user.
    """
    given = parse(new.Main, sys.argv[1:] if argv is None else argv, "main.py", words=False)
    return call(*command_of(given))


if __name__ == "__main__":
    sys.exit(run_command(main))
