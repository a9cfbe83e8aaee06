"""Training and evaluation on several machines: the same command on each, with its TF_CONFIG."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from typing import Any, Callable

from gpt_neo.cli.common import told_of_end
from gpt_neo.cli.console import note
from gpt_neo.cli.job import Job
from gpt_neo.config.cluster import Cluster, cluster_of
from gpt_neo.config.devices import parse_devices
from gpt_neo.runtime.cluster import Lead, plan_cluster, serve, start_server, wait_for


def with_cluster(job: Job, command: Callable[[Job], int]) -> int:
    """Run a command on this machine, or on those of TF_CONFIG: as their chief, or lending the devices of this one.

    Raises:
      DeviceError: TF_CONFIG is wrong, or a machine does not answer.
    """
    if job.devices.tpu:
        return command(job)
    cluster = cluster_of(os.environ)
    # The Estimator reads it too, and would make a job of parameter servers of it.
    hidden = os.environ.pop("TF_CONFIG", None)
    try:
        if cluster is None:
            return command(job)
        return lead(job, cluster, command) if cluster.is_chief else lend(job, cluster)
    finally:
        if hidden is not None:
            os.environ["TF_CONFIG"] = hidden


def lead(job: Job, cluster: Cluster, command: Callable[[Job], int]) -> int:
    """Run the command as the chief."""
    devices = parse_devices(job.devices.gpu_ids)
    server = start_server(cluster, devices)
    wait_for(cluster.others, job.devices.cluster_wait, note)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def run() -> int:
        plan = plan_cluster(job.run.mesh, cluster, server, devices)
        return command(dataclasses.replace(job, plan=plan))

    with Lead(cluster, server, note, leave, interrupt) as context:
        return told_of_end(run, context.tell_at_end)


def lend(job: Job, cluster: Cluster) -> int:
    """Lend the devices of this machine until the run ends."""
    server = start_server(cluster, parse_devices(job.devices.gpu_ids))
    asked = threading.Event()
    before: dict = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: listen(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    print(f"lending   the devices of {cluster.own} to {cluster.chief}", flush=True)
    try:
        status = serve(cluster, server, job.devices.cluster_wait, note, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"ended     the run of {cluster.chief}, with status {status}", flush=True)
    return leave(status)


def listen(number: int, asked: threading.Event) -> Any:
    """Let a signal ask for the end; the same one once more ends this process at once."""

    def hear(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        asked.set()

    return signal.signal(number, hear)


def leave(status: int) -> int:
    """End this process at once: TensorFlow's servers cannot be stopped, and can wait for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
