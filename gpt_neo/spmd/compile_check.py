"""Does a run fit a TPU, and how fast would it be: asked of the TPU compiler itself, with no TPU present."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Callable, Optional

from gpt_neo.checkpoint.names import is_slot
from gpt_neo.config.estimate import count_parameters, microbatches, step_flops
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import DeviceError
from gpt_neo.spmd.environment import last_line, worker_python
from gpt_neo.spmd.figures import loop_share, work_of
from gpt_neo.spmd.program import Program, export_train_step
from gpt_neo.spmd.topologies import Slice, find_slice

COMPILER = Path(__file__).with_name("tpu_compiler.py")


class OutOfTime(DeviceError):
    """The compiler was stopped before it had an answer."""


def check(
    run: RunConfig, name: str, tell: Callable[[str], None] = lambda line: None, seconds: Optional[float] = None
) -> dict:
    """Compile the training step of a run for a slice, such as v3-256.

    Args:
      tell: called with lines for the person.
      seconds: that the compiler may take; None waits.

    Returns:
      fits; used_bytes and usable_bytes per device (usable: None where it fits, as the compiler tells it only of what
      does not); and, where it fits, the figures of `figures_of`.

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
            f"mesh_shape multiplies to {cores}, {slice_.name} has {slice_.devices} devices: set --set mesh_shape=..."
        )
    python = worker_python(tell)
    program = export_train_step(run)
    with tempfile.TemporaryDirectory(prefix="gpt_neo_compile_") as folder:
        output = os.path.join(folder, "optimised.hlo")
        left = None if seconds is None else max(0.0, seconds - (time.monotonic() - began))
        report = compile_program(program, slice_, python, folder, output, left)
        return {
            **about(run, slice_),
            **report,
            **(figures_of(run, slice_, program, report, output) if report["fits"] else {}),
        }


def about(run: RunConfig, slice_: Slice) -> dict:
    """What was asked."""
    replicas = math.prod(dict(run.mesh.mesh_shape)[axis] for name, axis in run.mesh.layout if name == "batch")
    batch = run.training.train_batch_size
    return {
        "model": run.name,
        "slice": slice_.name,
        "parameters": count_parameters(run.model),
        "mesh_shape": [list(pair) for pair in run.mesh.mesh_shape],
        "layout": [list(pair) for pair in run.mesh.layout],
        "microbatches": microbatches(run.mesh, run.model.n_ctx, batch // replicas),
        "train_batch_size": batch,
    }


def compile_program(
    program: Program, slice_: Slice, python: str, folder: str, output: str, seconds: Optional[float] = None
) -> dict:
    """The compiler's report, with used_bytes in any case.

    Raises:
      DeviceError: it fails for another reason than memory.
      OutOfTime: it takes longer than it may.
    """
    module = os.path.join(folder, "program.mlir")
    Path(module).write_text(program.stablehlo, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    # No TPU is opened, so others may compile at the same time; nothing is asked of a cloud machine's metadata.
    environment = {**kept, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [python, str(COMPILER), module, slice_.topology, str(slice_.devices), output]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise OutOfTime("the TPU compiler was stopped: it took longer than it may") from error
    if done.returncode == -signal.SIGKILL:
        raise DeviceError("the TPU compiler was killed: this machine has too little memory for a program of this size")
    if done.returncode:
        raise DeviceError(f"the TPU compiler cannot be run: {last_line(done.stderr)}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in report:
        raise DeviceError(f"the TPU compiler refuses the program: {report['error']}")
    if report["fits"]:
        new = report["output_bytes"] - report["alias_bytes"]
        report["used_bytes"] = report["argument_bytes"] + new + report["temporary_bytes"] + report["code_bytes"]
    return report


def figures_of(run: RunConfig, slice_: Slice, program: Program, report: dict, output: str) -> dict:
    """Sizes and work of one device and step.

    weights, slots, batch, temporary: bytes. flops: of matrix products, recomputation included. bytes and seconds: the
    compiler's, which counts a loop once; its share of the cycles is taken for what repeats. model_flops: of the whole
    step on all devices, 6 per parameter and token and 12 n_embd per pair of tokens that attend, recomputation left out.
    utilisation: model_flops over seconds, devices and peak. least_seconds: flops at the peak. seconds, utilisation and
    tokens_per_second are None for chips that the compiler has no estimate for.
    """
    trips = about(run, slice_)["microbatches"]
    work, compiled = work_of(program.stablehlo, trips), Path(output).read_text(encoding="utf-8")
    if compiled:
        repeated = 1 + (trips - 1) * loop_share(compiled)
    else:  # no text of the compiled program: what the loop adds to the matrix products is taken instead
        repeated = work.flops / work_of(program.stablehlo, 1).flops
    flops = step_flops(run)
    # For v4 and v5e this compiler's estimate comes out below 0: then there is none.
    seconds = report["seconds_once"] * repeated if report["seconds_once"] > 0 else None
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
        "flops": work.flops,
        "bytes": report["bytes_once"] * repeated,
        "seconds": seconds,
        "model_flops": flops,
        "peak_flops": slice_.peak,
        "least_seconds": work.flops / slice_.peak,
        "utilisation": flops / (seconds * slice_.devices * slice_.peak) if seconds else None,
        "tokens_per_second": run.tokens_per_step / seconds if seconds else None,
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in work.collectives.items()},
    }
