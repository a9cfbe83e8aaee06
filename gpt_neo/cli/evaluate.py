"""Evaluation from the command line: held-out records, then tasks; a table, eval_<id>.jsonl and TensorBoard."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Sequence
from typing import Optional

from gpt_neo.checkpoint.folder import read_checkpoint
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.saver import writing_to
from gpt_neo.cli.console import BatchProgress, keeps_results, may_write, note, say, task_progress
from gpt_neo.cli.devices import device_plan, tpu_options
from gpt_neo.cli.job import Job
from gpt_neo.evaluation.batches import check_scorable
from gpt_neo.evaluation.run import Part, Result, run_task
from gpt_neo.evaluation.scorer import Scorer
from gpt_neo.evaluation.tasks import EvalTask, load_tasks
from gpt_neo.inputs.preflight import held_out_notes
from gpt_neo.inputs.sources import evaluation_sources
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime.intervals import Interval
from gpt_neo.runtime.mesh import check_layout
from gpt_neo.runtime.tensorboard import write_evaluation
from gpt_neo.storage import tensorflow as files
from gpt_neo.tracking.metrics import TAKEN_BACK, evaluation_points


def evaluate(
    job: Job, tasks: Sequence[str] = (), limit: Optional[int] = None, keep: bool = False, records: bool = True
) -> int:
    """Evaluate a checkpoint on the held-out records and the tasks of the config, or on these tasks alone.

    Args:
      tasks: as `eval_tasks` of a config has them.
      limit: batches of held-out records; all when None.
      keep: the checkpoint in `best/`, if it is the best of those evaluated on the same.
      records: False leaves the held-out records out.
    """
    found = load_job_tasks(job, tasks)
    held_out = any(dataset.eval_path for _, dataset in job.run.datasets)
    if records and not tasks and (held_out or not found):
        evaluate_records(job, limit, keep)
    if found:
        evaluate_tasks(job, found)
    return 0


def load_job_tasks(job: Job, tasks: Sequence[str] = ()) -> list[EvalTask]:
    """The tasks asked for, or those of the config.

    Raises:
      ConfigError: one is wrong, or the model gives texts no likelihood.
    """
    found = load_tasks(tasks or job.run.training.eval_tasks, job.run)
    if found:
        check_scorable(job.run.model)
    return found


def evaluate_records(job: Job, limit: Optional[int], keep: bool = False) -> None:
    """The held-out records, on the TPU if one is named."""
    run, plan = job.run, device_plan(job)
    sources = evaluation_sources(run)
    for line in held_out_notes(run, sources):
        note(line)
    lengths, count = runtime.text_lengths(run), len(sources)
    with tempfile.TemporaryDirectory(prefix="gpt_neo_events_") as nowhere:
        place = job.folder if may_write(job.folder) else nowhere  # of what TPUEstimator writes for TensorBoard
        estimator = runtime.make_estimator(
            run, place, plan, tpu=tpu_options(job), text_lengths=lengths, eval_sources=count
        )
        which, shown = job.model.checkpoint, BatchProgress()
        result = runtime.evaluate(estimator, run, job.folder, sources, limit, which, keep, note, shown)
    show_records(job, result)


def show_records(job: Job, result: dict) -> None:
    """Print an evaluation of held-out records, and add it to the file where the folder can be written."""
    say(f"held out  {result_text(result)}")
    for name, part in result.get("by_dataset", {}).items():
        say(f"          {name}: {loss_text(part)}")
    if keeps_results(job.folder):
        append_result(job, result)


def evaluate_tasks(job: Job, tasks: Sequence[EvalTask]) -> None:
    """The tasks, on this machine's devices; each is written as soon as it is done."""
    plan = device_plan(job)
    check_layout(job.run, plan, plan.replicas())
    tokenizer, prefix = run_tokenizer(job.run, job.folder)

    def load(checkpoint: str) -> tuple[str, Scorer]:
        return checkpoint, Scorer(job.run.model, checkpoint, plan)

    checkpoint, scorer = read_checkpoint(job.folder, job.model.checkpoint, load, note)
    for line in scorer.notes:
        note(line)
    say(f"tasks     {', '.join(task.name for task in tasks)}, checkpoint at step {step_of(checkpoint):,}")
    rows: list[Sequence[str]] = [("task", "metric", "value", "95 % interval", "examples")]
    kept = keeps_results(job.folder)
    try:
        for task in tasks:
            result = run_task(task, scorer, tokenizer, prefix, task_progress(task.name))
            if kept:
                append_result(job, {"step": step_of(checkpoint), **result.as_json()})
                write_evaluation(job.folder, step_of(checkpoint), scalars(result))
            rows += part_rows(task.name, result.overall)
            for name, part in result.sets.items():
                rows += part_rows(f"{task.name}, {name}", part)
    finally:  # what was done before a task that fails is shown
        if rows[1:]:
            print(table(rows))


def append_result(job: Job, result: dict) -> None:
    """Add a line to eval_<id>.jsonl in the folder of checkpoints, local or gs://."""
    path = log_path(job)
    with writing_to(path):
        files.append_text(path, json.dumps(result) + "\n")


def is_appended(job: Job, result: dict) -> bool:
    """Whether that line is there."""
    path = log_path(job)
    return files.exists(path) and json.dumps(result).encode() in files.read_bytes(path).splitlines()


def log_path(job: Job) -> str:
    """The log of evaluations."""
    return os.path.join(job.folder, f"eval_{job.identity}.jsonl")


def give_up_later(folder: str, step: int) -> None:
    """Of a run that goes on from a step: rows of later ones in its logs of evaluations are of a course that was given
    up. A row says so to those that read them: nothing is deleted."""
    for path in files.glob(os.path.join(glob.escape(folder), "eval_*.jsonl")):
        if any(point[1] > step for point in evaluation_points(files.read_bytes(path))):
            with writing_to(path):
                files.append_text(path, json.dumps({"step": step, TAKEN_BACK: True}) + "\n")


def scalars(result: Result) -> dict[str, float]:
    """For TensorBoard: task/metric, and task/set/metric."""
    parts = [(result.task.name, result.overall), *((f"{result.task.name}/{n}", p) for n, p in result.sets.items())]
    return {f"{tag}/{name}": found.value for tag, part in parts for name, found in part.metrics.items()}


def part_rows(label: str, part: Part) -> list[Sequence[str]]:
    """A line of the table for each metric."""
    return [
        (label, name, number_text(found.value), interval_text(found), f"{part.examples:,}")
        for name, found in part.metrics.items()
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first two are words, the others numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def number_text(value: float) -> str:
    """A number with as many digits as are worth reading."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.3e}"


def interval_text(found: Interval) -> str:
    """The ends of an interval."""
    if found.low is None or found.high is None:
        return "unknown (1 example)"
    return f"{number_text(found.low)} .. {number_text(found.high)}"


def result_text(result: dict) -> str:
    """An evaluation of records for people."""
    return f"step {result['step']:,}: {loss_text(result)}"


def loss_text(part: dict) -> str:
    """Loss and what follows from it."""
    low, high = part["intervals"]["loss"]
    margin = f" ± {(high - low) / 2:.4f}" if low is not None else ""
    where, count = f"loss {part['loss']:.4f}{margin}", f"{part['tokens']:,} tokens"
    if part["perplexity"] is None:
        return f"{where} (entmax, which has no perplexity), {count}"
    per_byte, per_character = part["bits_per_byte"], part["bits_per_character"]
    bits = (
        f"{per_byte:.4f} bits/byte, {per_character:.4f} bits/character"
        if per_byte
        else "bits/byte unknown (no tokenizer, or labels without text)"
    )
    return f"{where} nats/token, perplexity {part['perplexity']:.3f}, {bits}, {count}"
