"""The devices that a job's flags name."""

from __future__ import annotations

from typing import Optional

from gpt_neo.cli.job import Job
from gpt_neo.config.devices import parse_devices
from gpt_neo.errors import counted
from gpt_neo.runtime.mesh import MeshPlan, check_visible, plan_mesh, whole_mesh
from gpt_neo.runtime.tpu import TpuOptions
from gpt_neo.system import cores


def device_plan(job: Job) -> MeshPlan:
    """The cores of a TPU, the devices of a cluster, of --gpu_ids, or one."""
    if job.plan is not None:
        return job.plan
    if job.devices.tpu:
        return whole_mesh(job.run.mesh)
    devices = parse_devices(job.devices.gpu_ids)
    check_visible(devices)
    return plan_mesh(job.run.mesh, devices)


def tpu_options(job: Job) -> Optional[TpuOptions]:
    """The TPU asked for."""
    devices = job.devices
    return TpuOptions(devices.tpu, devices.tpu_zone, devices.tpu_project) if devices.tpu else None


def device_text(job: Job, plan: MeshPlan) -> str:
    """One line on devices."""
    if job.devices.tpu:
        return f"devices   TPU {job.devices.tpu}"
    names = ", ".join(plan.devices) if plan.devices != ("",) else f"local, {counted(cores(), 'CPU core')}"
    return f"devices   {names}" + (f" ({plan.note})" if plan.note else "")
