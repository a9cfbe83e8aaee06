"""TF_CONFIG: the machines of a run, and which of them this process is. No TensorFlow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Optional

from gpt_neo.errors import DeviceError

JOBS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Task:
    """One process of a cluster."""

    job: str
    index: int
    address: str

    @property
    def device(self) -> str:
        """TensorFlow's name of the task."""
        return f"/job:{self.job}/task:{self.index}"

    def __str__(self) -> str:
        return f"{self.job} {self.index} ({self.address})"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The tasks of a TF_CONFIG, the chief first, and which of them this process is."""

    tasks: tuple
    own: Task

    @property
    def chief(self) -> Task:
        """The task that builds the graph and writes the checkpoints."""
        return self.tasks[0]

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief."""
        return self.own == self.chief

    @property
    def others(self) -> tuple:
        """Every task but the chief."""
        return self.tasks[1:]


def cluster_of(environment: Mapping[str, str]) -> Optional[Cluster]:
    """The cluster that TF_CONFIG names: one `chief` and any number of `worker`, or workers of which the first leads.

    Returns:
      None where TF_CONFIG names fewer than two tasks.

    Raises:
      DeviceError: TF_CONFIG is wrong.
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        value: Any = json.loads(text)
        jobs, own = value.get("cluster", {}), value.get("task", {})
        if not isinstance(own, dict) or not all(isinstance(addresses, list) for addresses in jobs.values()):
            raise TypeError("its task is an object, and each job of its cluster a list")
        tasks = [Task(job, i, str(a)) for job in JOBS for i, a in enumerate(jobs.get(job, []))]
        unknown = sorted(set(jobs) - set(JOBS))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DeviceError(f"TF_CONFIG is no JSON object with a cluster and a task: {error}") from error
    if unknown:
        raise DeviceError(f"TF_CONFIG has the job {unknown[0]!r}; one mesh is made of {' and '.join(JOBS)} tasks only")
    if len(jobs.get("chief", [])) > 1:
        raise DeviceError(f"TF_CONFIG has {len(jobs['chief'])} chiefs; expected one, or workers only")
    at: dict[str, Task] = {}
    for task in tasks:
        host, _, port = task.address.rpartition(":")
        if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
            raise DeviceError(
                f"TF_CONFIG has {task.job} {task.index} at {task.address!r}; expected host:port, a port from 1 to 65535"
            )
        if task.address in at:
            twice = at[task.address]
            raise DeviceError(
                f"TF_CONFIG has {twice.job} {twice.index} and {task.job} {task.index} at {task.address}; each process "
                "has an address of its own, and on one machine a port"
            )
        at[task.address] = task
    if len(tasks) < 2:
        return None
    mine = [task for task in tasks if (task.job, task.index) == (own.get("type"), own.get("index"))]
    if not mine:
        known = ", ".join(f"{task.job} {task.index}" for task in tasks)
        raise DeviceError(f"TF_CONFIG has the task {json.dumps(own)}; its cluster has {known}")
    return Cluster(tuple(tasks), mine[0])
