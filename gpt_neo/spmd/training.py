"""Training with an exported program: records in, checkpoints out, weights and slots on the devices in between."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from gpt_neo.checkpoint.bundle import BundleWriter
from gpt_neo.checkpoint.fit import STEP, fit_checkpoint
from gpt_neo.checkpoint.folder import checkpoints_of, files_of, find_latest, write_state
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.record import make_record, tokenizer_reference, write_record
from gpt_neo.checkpoint.tensors import BFLOAT16, blocks
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.inputs.samples import weighted
from gpt_neo.inputs.train_input import training_batches
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.access import check_writable
from gpt_neo.runtime.estimator import after_divergence, checked_sources, reading
from gpt_neo.runtime.hooks import Diverged, Progress, ProgressLog
from gpt_neo.runtime.lock import FolderLock
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.program import Program, export_train_step, initial_values


@dataclasses.dataclass(frozen=True)
class SpmdOptions:
    """Where and how often. python: that of the worker; platform: cpu, gpu or tpu."""

    python: str
    platform: str = "cpu"
    steps_per_checkpoint: int = 5000


def train(
    run: RunConfig, folder: str, options: SpmdOptions, report: Callable[[Progress], None],
    tell: Callable[[str], None] = lambda line: None,
) -> int:  # fmt: skip
    """Train to `train_steps`, from the newest checkpoint on. Returns the step reached.

    Args:
      report: called after every step.
      tell: called with lines for the person.

    Raises:
      GptNeoError: anything that is the user's to mend.
    """
    if "://" in folder:
        raise CheckpointError(f"model_path {folder!r}: spmd-run writes to local folders (--set model_path=...)")
    sources = checked_sources(run, tell)
    check_writable(folder)
    with FolderLock(folder, tell=tell):
        return train_alone(run, folder, options, sources, report, tell)


def train_alone(
    run: RunConfig, folder: str, options: SpmdOptions, sources: Any, report: Callable[[Progress], None],
    tell: Callable[[str], None],
) -> int:  # fmt: skip
    """Train, as the only run in the folder."""
    found = find_latest(folder)
    start = step_of(found.path) if found else 0
    if start >= run.training.train_steps:
        return start
    program = export_train_step(run, weighted=weighted(run, sources))
    with Devices(program, options.python, options.platform) as devices:
        tell(f"running on {len(devices.kinds)} x {devices.kinds[0]}")
        for name, value in starting_values(program, found.path if found else None, tell):
            devices.put(name, value)
        with after_divergence(run, folder), reading(run, sources, start, run.training.train_batch_size):
            run_steps(run, folder, options, devices, start, sources, report)
    return run.training.train_steps


def starting_values(program: Program, path: Any, tell: Callable[[str], None]) -> Iterator[tuple[str, np.ndarray]]:
    """Whole variables from a checkpoint, or drawn anew without one."""
    if path is None:
        yield from initial_values(program)
        return
    variables = program.description["variables"]
    fit = fit_checkpoint(path, {name: about["shape"] for name, about in variables.items()})
    for note in fit.notes:
        tell(note)
    for name, about in variables.items():
        yield name, fit.value(name, np_dtype(about["dtype"]))


def np_dtype(name: str) -> np.dtype:
    """NumPy's type for a name that may be bfloat16."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def run_steps(
    run: RunConfig, folder: str, options: SpmdOptions, devices: Devices, start: int, sources: Any,
    report: Callable[[Progress], None],
) -> None:  # fmt: skip
    """Steps from `start` on, with a checkpoint every so many and at the end."""
    tokenizer, last = tokenizer_reference(run), run.training.train_steps
    log = ProgressLog(last, run.tokens_per_step, folder)
    for step, batch in enumerate(batches_from(run, start, sources), start + 1):
        results = devices.step({"step": np.int32(step - 1), **batch})
        loss, rate = float(results["loss"][0]), float(results["rate"][0])
        if not math.isfinite(loss):
            raise Diverged(f"step {step:,}: the loss is {loss}", step)
        report(log.add(step, loss, rate))
        if step % options.steps_per_checkpoint == 0 or step == last:
            save(devices, folder, run, step, tokenizer)
        if step == last:
            return


def batches_from(run: RunConfig, start: int, sources: Any) -> Iterator[dict]:
    """Batches of the runtime's own pipeline as arrays, from those of a step on."""
    with tf.Graph().as_default(), tf.Session() as session:
        data = training_batches(run, run.training.train_batch_size, start, sources)
        following = tf.data.make_one_shot_iterator(data).get_next()
        while True:
            yield session.run(following)


def save(devices: Devices, folder: str, run: RunConfig, step: int, tokenizer: Any) -> str:
    """Write a checkpoint of what the devices hold, its record and the state file; delete the oldest past the limit.

    Returns:
      its path without suffix.
    """
    prefix = os.path.join(folder, f"{PREFIX}{step}")
    try:
        writer = BundleWriter(prefix)
        for name in sorted(devices.program.description["variables"]):
            value = devices.get(name)
            writer.add(name, value.shape, value.dtype, blocks(value))
        writer.add(STEP, (), np.dtype(np.int64), [np.array(step, np.int64)])
        writer.finish()  # the index comes last: without it the rest is no checkpoint
        write_record(prefix, make_record(run, step, tokenizer))
        write_state(folder, prefix)
    except OSError as error:
        raise CheckpointError(f"{prefix}: cannot be written: {error.strerror or error}") from error
    kept = sorted(checkpoints_of(folder), key=step_of)
    for old in kept[: -run.training.keep_checkpoints] if run.training.keep_checkpoints else []:
        for path in sorted(files_of(old), key=lambda path: not path.endswith(".index")):
            os.remove(path)
    return prefix
