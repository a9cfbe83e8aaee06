"""The machines that run one exported program together, and which of them this one is. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

from gpt_neo.errors import ConfigError

# Variables of schedulers that start a command on many machines: processes, number of this one, of this machine.
SCHEDULERS = (
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
FLAGS = "--coordinator HOST:PORT, --hosts N and --rank R"


@dataclasses.dataclass(frozen=True)
class Place:
    """What a process knows of the group that it belongs to; None is for JAX to find.

    hosts: processes. rank: number of this one; 0 is the chief. coordinator: HOST:PORT, where JAX's processes meet.
    whole: this process has all devices of its machine, not one of several.
    """

    hosts: Optional[int] = None
    rank: Optional[int] = None
    coordinator: Optional[str] = None
    whole: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `jax.distributed.initialize`."""
        known: dict[str, Any] = {
            "coordinator_address": self.coordinator,
            "num_processes": self.hosts,
            "process_id": self.rank,
            "local_device_ids": [] if self.whole else None,  # no list would be one device per process of a scheduler
        }
        return {name: value for name, value in known.items() if value is not None}


def place_of(
    coordinator: Optional[str], hosts: Optional[int], rank: Optional[int], platform: str, environment: Mapping[str, str]
) -> Optional[Place]:
    """Where this process belongs, by its flags or by what Slurm or Open MPI say; None where it is alone.

    Raises:
      ConfigError: a flag is missing, or out of its range.
    """
    flags = {"--coordinator": coordinator, "--hosts": hosts, "--rank": rank}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) < len(flags):
        if missing:
            raise ConfigError(f"{FLAGS} go together; {missing[0]} is missing")
        assert coordinator is not None and hosts is not None and rank is not None
        name, _, port = coordinator.rpartition(":")
        if not name or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f"--coordinator {coordinator!r}: expected HOST:PORT of the host of rank 0")
        if not 0 <= rank < hosts:
            raise ConfigError(f"--rank {rank}: with --hosts {hosts} it is one of 0 to {hosts - 1}")
        return Place(hosts, rank, coordinator) if hosts > 1 else None
    for count, number, local in SCHEDULERS:
        found = [environment.get(name, "") for name in (count, number)]
        if all(text.isdecimal() for text in found) and int(found[0]) > 1:
            return Place(int(found[0]), int(found[1]), None, alone_on_machine(environment, local))
    return Place() if platform == "tpu" else None


def alone_on_machine(environment: Mapping[str, str], local: str) -> bool:
    """Whether a scheduler has started one process on each machine.

    Args:
      local: the variable with the number of this process on its machine.
    """
    if local.startswith("SLURM"):
        return environment.get("SLURM_STEP_NUM_NODES") == environment.get("SLURM_NTASKS")
    return environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
