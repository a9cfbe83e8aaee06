"""--backend xla on several machines: the same command on each, with its rank."""

from __future__ import annotations

import math
import os
import signal
from typing import Callable

from gpt_neo.cli.common import told_of_end
from gpt_neo.cli.console import note, say
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import BackendOptions
from gpt_neo.errors import ConfigError
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.environment import worker_python
from gpt_neo.spmd.hosts import Host, Lead, connect, join, lend
from gpt_neo.spmd.process import Worker, unwinding
from gpt_neo.spmd.program import Program

Put = Callable[[Program], Devices]  # puts a program on devices


def with_hosts(job: Job, backend: BackendOptions, command: Callable[[Put], int]) -> int:
    """Run a command on the devices of this machine, or on those of several: as their chief, or for their chief.

    Raises:
      DeviceError: the hosts do not come together, or one is lost.
    """
    with unwinding():
        return on_hosts(job, backend, command)


def on_hosts(job: Job, backend: BackendOptions, command: Callable[[Put], int]) -> int:
    """As `with_hosts`, for which a signal is an exception."""
    platform, place = backend.platform or "cpu", backend.place()
    if place is None:  # the environment of JAX is made when a program needs it, if it is not there
        return command(lambda program: Devices(program, worker_python(note, platform), platform))
    cores = math.prod(size for _, size in job.run.mesh.mesh_shape)
    if platform == "cpu" and place.hosts and cores % place.hosts:
        raise ConfigError(f"mesh_shape has {cores} cores, which {place.hosts} hosts cannot share evenly")
    if place.hosts:
        note(f"host {place.rank} of {place.hosts}: waiting for the others")
    worker = Worker(worker_python(note, platform), platform, cores // (place.hosts or 1))
    seconds = job.devices.cluster_wait
    try:
        joined, listener = join(worker, place.options, platform, seconds, alone=place.hosts is None)
    except BaseException:
        worker.close()
        raise
    host = Host(worker)
    with listener:
        if joined.rank == 0:
            try:
                lead = Lead(host, joined, listener, seconds, note, lambda: os.kill(os.getpid(), signal.SIGTERM))
            except BaseException:
                worker.close()
                raise
            return told_of_end(lambda: command(lambda program: Devices(program, hosts=lead)), lead.close)
    try:
        connection = connect(joined, seconds)
        say(f"lending   the devices of host {joined.rank} of {joined.hosts} to host 0")
        status = lend(host, connection, note)
    finally:
        worker.close()
    say(f"ended     the run of host 0, with status {status}")
    return status
