"""Does a run fit a TPU or GPUs, and how fast would it be: asked of their compiler itself, with no device present."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, Optional

from gpt_neo.checkpoint.names import is_slot
from gpt_neo.config.estimate import count_parameters, microbatches, step_flops
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import DeviceError, counted
from gpt_neo.spmd.attention import attention_for
from gpt_neo.spmd.environment import compiler_environment, last_line, worker_python
from gpt_neo.spmd.figures import Work, all_cycles, without_cost, work_of
from gpt_neo.spmd.hlo import Module
from gpt_neo.spmd.links import Links
from gpt_neo.spmd.process import unwinding
from gpt_neo.spmd.program import Program, built_for, export_train_step
from gpt_neo.spmd.roofline import roofline
from gpt_neo.spmd.topologies import Slice, find_slice

COMPILER = Path(__file__).with_name("compiler.py")


class OutOfTime(DeviceError):
    """The compiler was stopped before it had an answer."""


def check(
    run: RunConfig, name: str, tell: Callable[[str], None] = lambda line: None, seconds: Optional[float] = None
) -> dict:
    """Compile the training step of a run for a slice, such as v3-256 or h100-8.

    Args:
      tell: called with lines for the person.
      seconds: that the compiler may take; None waits.

    Returns:
      fits; used_bytes and usable_bytes per device (usable: not there for a TPU that it fits, as the compiler tells it
      only of what does not); and, where it fits, the figures of `figures_of`.

    Raises:
      ConfigError: no such slice, or the layout does not divide.
      DeviceError: the mesh is not of the slice's size, or the compiler cannot be had or fails.
      OutOfTime: it takes longer.
    """
    began = time.monotonic()
    slice_ = find_slice(name)
    cores = math.prod(size for _, size in run.mesh.mesh_shape)
    if cores != slice_.devices:
        raise DeviceError(
            f"mesh_shape multiplies to {cores}, {slice_.name} has {counted(slice_.devices, 'device')}: "
            "--set mesh_shape=..."
        )
    python = worker_python(tell, slice_.platform, present=False)
    attention = attention_for(slice_.attention, lambda: python, tell)
    with built_for(slice_.platform):
        program = export_train_step(run, attention=attention)
    kernels = attention.flops if attention else {}
    with unwinding(), tempfile.TemporaryDirectory(prefix="gpt_neo_compile_") as folder:
        output = os.path.join(folder, "optimised.hlo")
        left = None if seconds is None else max(0.0, seconds - (time.monotonic() - began))
        report = compile_program(program, slice_, python, folder, output, left)
        return {
            **about(run, slice_),
            **report,
            **(figures_of(run, slice_, program, report, output, kernels) if report["fits"] else {}),
        }


def about(run: RunConfig, slice_: Slice) -> dict:
    """What was asked."""
    replicas = math.prod(dict(run.mesh.mesh_shape)[axis] for name, axis in run.mesh.layout if name == "batch")
    batch = run.training.train_batch_size
    return {
        "model": run.name,
        "slice": slice_.name,
        "hosts": slice_.hosts,
        "platform": slice_.platform,
        "parameters": count_parameters(run.model),
        "mesh_shape": [list(pair) for pair in run.mesh.mesh_shape],
        "layout": [list(pair) for pair in run.mesh.layout],
        "microbatches": microbatches(run.mesh, run.model.n_ctx, batch // replicas),
        "train_batch_size": batch,
    }


def compile_program(
    program: Program, slice_: Slice, python: str, folder: str, output: str, seconds: Optional[float] = None
) -> dict:
    """The compiler's report, with used_bytes in any case. Whether GPUs hold it is said here: their compiler does not.

    Raises:
      DeviceError: it fails for another reason than memory.
      OutOfTime: it takes longer than it may.
    """
    module, target = os.path.join(folder, "program.mlir"), os.path.join(folder, "target.json")
    Path(module).write_text(program.stablehlo, encoding="utf-8")
    Path(target).write_text(json.dumps(slice_.target), encoding="utf-8")
    compiler, command = f"the {slice_.platform.upper()} compiler", [python, str(COMPILER), module, target]
    command += [str(slice_.devices), output]
    environment = compiler_environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise OutOfTime(f"{compiler} was stopped: it took longer than it may") from error
    if done.returncode == -signal.SIGKILL:
        raise DeviceError(f"{compiler} was killed: this machine has too little memory for a program of this size")
    if done.returncode:
        raise DeviceError(f"{compiler} cannot be run: {last_line(done.stderr)}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in report:
        raise DeviceError(f"{compiler} refuses the program: {report['error']}")
    if report["fits"]:
        new = report["output_bytes"] - report["alias_bytes"]
        used = report["argument_bytes"] + new + report["temporary_bytes"] + report["code_bytes"]
        report["used_bytes"] = used
        if slice_.card:
            report["usable_bytes"] = slice_.card.usable
            report["fits"] = used <= slice_.card.usable
            report["reason"] = "" if report["fits"] else f"the program takes {used:,} bytes of a GPU"
    return report


def figures_of(
    run: RunConfig, slice_: Slice, program: Program, report: dict, output: str, kernels: Mapping[str, int]
) -> dict:
    """Sizes and work of one device and step. kernels: as `work_of` takes them.

    weights, slots, batch, temporary: bytes. flops: of matrix products, recomputation included. bytes and seconds: as
    `tpu_pace` has them, for GPUs `roofline`, and what else it has. model_flops: of the whole step on all devices, as
    `step_flops` has them, recomputation left out. utilisation: model_flops over seconds, devices and peak.
    least_seconds: flops at the peak. Of TPUs the seconds have no time for the links.
    """
    trips = about(run, slice_)["microbatches"]
    work = work_of(program.stablehlo, trips, slice_.generation.devices if slice_.generation else 1, kernels)
    compiled = Path(output).read_text(encoding="utf-8")
    if slice_.card:
        pace = roofline(compiled, trips, slice_.card)
    else:
        pace = tpu_pace(program, work, report, compiled, trips, slice_)
        pace["seconds"] += attention_seconds(work, slice_, run.model.features_per_head)
    flops, seconds = step_flops(run), pace["seconds"]
    variables = program.description["variables"]
    held = {
        entry["name"]: math.prod(entry["shape"]) * (2 if entry["dtype"] == "bfloat16" else 4)
        for entry in program.description["inputs"]
    }
    weights = sum(held[name] for name in variables if not is_slot(name))
    return {
        "weights_bytes": weights,
        "slots_bytes": sum(held[name] for name in variables) - weights,
        "batch_bytes": sum(size for name, size in held.items() if name not in variables),
        **pace,
        "model_flops": flops,
        "peak_flops": slice_.peak,
        "least_seconds": pace["flops"] / slice_.peak,
        "utilisation": flops / (seconds * slice_.devices * slice_.peak),
        "tokens_per_second": run.tokens_per_step / seconds,
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in work.collectives.items()},
    }


def attention_seconds(work: Work, slice_: Slice, features: int) -> float:
    """Of kernels of attention, whose heads have so many features: their products, at the peak of what heads fill."""
    assert slice_.generation is not None  # on GPUs `roofline` counts them
    return work.attention / (slice_.peak * slice_.generation.filled(features))


def tpu_pace(program: Program, work: Work, report: dict, compiled: str, trips: int, slice_: Slice) -> dict:
    """flops; bytes and seconds by the TPU compiler, which counts a loop once: its share of the cycles is taken for what
    repeats. It has no time for kernels of attention, nor for the links.

    link_bytes: that a chip gives to its neighbours in a step. link_seconds, exposed_seconds: as `Links.times` has them;
    without a text of the compiled program, over two links, one for each way around a ring, all of it exposed.
    """
    assert slice_.generation is not None  # GPUs have `roofline`
    cores, link = slice_.generation.devices, slice_.generation.link
    once = report["seconds_once"] + (without_cost(compiled) if compiled else max(0, math.ceil(-report["seconds_once"])))
    if compiled:
        module = Module(compiled, trips)
        short, whole = all_cycles(module)
        repeated = whole / short if short else 1.0
        taken, waited = Links(cores, link, once / short if short else 0.0).times(module)
    else:  # what the loop adds to the matrix products is taken instead
        repeated = (work.flops - work.attention) / work_of(program.stablehlo, 1).flops
        taken = waited = work.crossed / (2 * link)
    pace = {"flops": work.flops, "bytes": report["bytes_once"] * repeated, "seconds": once * repeated}
    return {**pace, "link_bytes": work.crossed, "link_seconds": taken, "exposed_seconds": waited}
