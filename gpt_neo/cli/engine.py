"""Which engine runs a model that is sampled from or served: OpenVINO, or TensorFlow."""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.cli.console import note
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import CACHES
from gpt_neo.errors import ConfigError, counted
from gpt_neo.fast.choice import choose
from gpt_neo.system import cores

OPENVINO = f"devices   local, {counted(cores(), 'CPU core')}, by OpenVINO"


def with_openvino(job: Job, backend: str, integers: Optional[str], **flags: Any) -> bool:
    """Whether OpenVINO runs the job's model, see `choose`; its note is printed.

    Args:
      flags: see `refuse`.

    Raises:
      ConfigError: it, or a flag that it alone has, is asked for and cannot be had.
    """
    chosen, line = choose(job.run.model, backend, integers, bool(job.devices.gpu_ids))
    if line:
        note(line)
    if not chosen:
        refuse("tensorflow", **flags)
    return chosen


def refuse(backend: str, cache: str = CACHES[0], **flags: Any) -> None:
    """Refuse flags that OpenVINO alone has, where another backend computes.

    Raises:
      ConfigError: names the flag.
    """
    for name, value in {"cache": None if cache == CACHES[0] else cache, **flags}.items():
        if value:
            raise ConfigError(f"--{name} {value} goes with --backend openvino, not with --backend {backend}")
