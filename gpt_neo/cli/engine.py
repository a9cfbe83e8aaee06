"""Which engine runs a model that is sampled from or served: OpenVINO, or TensorFlow."""

from __future__ import annotations

from typing import Optional

from gpt_neo.cli.console import note
from gpt_neo.cli.job import Job
from gpt_neo.errors import counted
from gpt_neo.fast.choice import choose
from gpt_neo.system import cores

OPENVINO = f"devices   local, {counted(cores(), 'CPU core')}, by OpenVINO"


def with_openvino(job: Job, backend: str, integers: Optional[str]) -> bool:
    """Whether OpenVINO runs the job's model, see `choose`; its note is printed.

    Raises:
      ConfigError: it is asked for and cannot.
    """
    chosen, line = choose(job.run.model, backend, integers, bool(job.devices.gpu_ids))
    if line:
        note(line)
    return chosen
