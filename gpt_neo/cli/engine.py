"""Which engine runs a model that is sampled from or served: OpenVINO, or TensorFlow."""

from __future__ import annotations

from typing import Optional, Union

from gpt_neo.cli.console import note
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import EngineOptions, Serve
from gpt_neo.errors import ConfigError, counted
from gpt_neo.fast.choice import choose
from gpt_neo.system import cores

OPENVINO = f"devices   local, {counted(cores(), 'CPU core')}, by OpenVINO"


def with_openvino(job: Job, options: Union[EngineOptions, Serve], integers: Optional[str]) -> bool:
    """Whether OpenVINO runs the job's model, see `choose`; its note is printed.

    Raises:
      ConfigError: it, or a flag that it alone has, is asked for and cannot be had.
    """
    chosen, line = choose(job.run.model, options.backend, integers, bool(job.devices.gpu_ids))
    if line:
        note(line)
    if not chosen:
        refuse_own("tensorflow", options)
    return chosen


def refuse_own(backend: str, options: Union[EngineOptions, Serve], integers: Optional[str] = None) -> None:
    """Refuse flags that OpenVINO alone has, where another backend computes.

    Raises:
      ConfigError: names the flag.
    """
    own = {name: getattr(options, name) for name in options.given() if name in ("cache", "draft")}
    for name, value in {"dtype": integers, **own}.items():
        if value:
            raise ConfigError(f"--{name} {value} goes with --backend openvino, not with --backend {backend}")
