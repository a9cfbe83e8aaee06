"""Training from the command line."""

from __future__ import annotations

import os
import shlex
import signal
import time
from typing import Callable

from gpt_neo.checkpoint.folder import BEST, find_latest
from gpt_neo.checkpoint.leftovers import remove_leftovers
from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli.console import ProgressLine, count_text, memory_text, model_text, note, time_text
from gpt_neo.cli.devices import device_plan, device_text, tpu_options
from gpt_neo.cli.evaluate import evaluate, load_job_tasks
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import ModelOptions, TrainingOptions
from gpt_neo.config.estimate import training_memory
from gpt_neo.errors import CheckpointError
from gpt_neo.evaluation.documents import files_of
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime.access import check_writable
from gpt_neo.runtime.hooks import Progress
from gpt_neo.runtime.lock import FolderLock
from gpt_neo.runtime.watch import STALL_FILE, WATCH_LOG, Stopped, Watch
from gpt_neo.storage import check_fence
from gpt_neo.storage import tensorflow as files

CHECKPOINT_FILES = (
    "checkpoint",
    "model.ckpt-",
    "events.out.tfevents",
    "graph.pbtxt",
    "train_log.jsonl",
    "eval",
    WATCH_LOG,
    STALL_FILE,
)


def train(job: Job, training: TrainingOptions, follow: Callable[[Progress], None] = lambda progress: None) -> int:
    """Train to train_steps; evaluate after it when the config asks for it. Returns the exit status.

    Args:
      follow: called with every step that `line` shows.
    """
    run, plan = job.run, device_plan(job)
    tasks = load_job_tasks(job) if run.training.eval_steps else []  # a wrong one is refused here, not days later
    for task in tasks:
        files_of(task.name, task.documents)
    evaluates = run.training.eval_steps and (tasks or any(dataset.eval_path for _, dataset in run.datasets))

    def steps(line: ProgressLine, watch: Watch) -> int:
        def show(progress: Progress) -> None:
            line.show(progress)
            follow(progress)

        estimator = runtime.make_estimator(
            run,
            job.folder,
            plan,
            training.steps_per_checkpoint,
            tpu_options(job),
            show,
            watch=watch,
            steps_per_log=training.steps_per_log,
        )
        return runtime.train(estimator, run, plan, job.folder, note, watch)

    status = train_in_folder(job, training, plan.replicas(), device_text(job, plan), steps)
    return evaluate(job, limit=run.training.eval_steps) if evaluates and status == 0 else status


def train_in_folder(
    job: Job, training: TrainingOptions, replicas: int, devices: str, steps: Callable[[ProgressLine, Watch], int]
) -> int:
    """Train, as the only run in the folder, from the newest checkpoint on. Returns the exit status.

    Args:
      replicas: of the model, for the estimate of memory.
      devices: one line on them.
      steps: trains to train_steps, or to a signal; returns the step reached, and may raise `Stopped`.
    """
    check_writable(job.folder)
    with FolderLock(job.folder, tell=note) as lock:
        return train_alone(job, training, lock, replicas, devices, steps)


def train_alone(
    job: Job,
    training: TrainingOptions,
    lock: FolderLock,
    replicas: int,
    devices: str,
    steps: Callable[[ProgressLine, Watch], int],
) -> int:
    """As `train_in_folder`, with the folder's lock."""
    run = job.run
    if training.new:
        delete_checkpoints(job.folder, training.yes)
    remove_leftovers(job.folder)
    found = find_latest(job.folder)
    start = step_of(found.path) if found else 0
    for line in found.notes if found else ():
        note(line)
    last = run.training.train_steps
    print(model_text(run))
    print(memory_text(training_memory(run, replicas)))
    print(f"training  {run.tokens_per_step:,} tokens per step, steps {start:,} to {last:,}")
    print(devices)
    print(f"folder    {job.folder}", flush=True)
    if start >= last:
        print(f"nothing to do: the newest checkpoint is at step {start:,}, train_steps is {last:,}")
        return 0
    line = ProgressLine()
    watch = Watch(job.folder, lock, training.stall_minutes, training.skip_spikes, notice=line.note)
    began = time.monotonic()
    try:
        reached = steps(line, watch)
    except Stopped as stopped:
        return stop_status(stopped.number, "before the first step; nothing is to be saved")
    finally:
        line.finish()
    if watch.signal is not None:
        return stop_status(watch.signal, f"step {reached:,} is saved")
    if line.latest:
        seconds = time.monotonic() - began
        tokens = (last - start) * run.tokens_per_step
        print(
            f"trained   {last - start:,} steps, {count_text(tokens)} tokens in {time_text(seconds)} "
            f"({tokens / seconds:,.0f} tokens/s), loss {line.first_loss:.4f} to {line.latest.loss:.4f}"
        )
        print(next_text(job.model))
    return 0


def next_text(model: ModelOptions) -> str:
    """What to do with a trained model: the commands."""
    words = " ".join(shlex.quote(word) for word in [model.model, *(f"--set={text}" for text in model.set)])
    return f'next      gpt-neo sample {words} "Once upon a time"'


def stop_status(number: int, what: str) -> int:
    """Say how a run that a signal ended goes on; the exit status that shells give to that signal."""
    print(f"stopped   by {signal.Signals(number).name}: {what}. The same command goes on from there", flush=True)
    return 128 + number


def delete_checkpoints(folder: str, agreed: bool) -> None:
    """Delete the checkpoints and logs of a run's folder, and nothing else, after asking unless it is `agreed`.

    Raises:
      CheckpointError: the answer was no.
    """
    paths = checkpoint_paths(folder)
    if not paths:
        return
    try:
        for path in paths:
            check_fence(path, folder)
    except ValueError as error:
        raise CheckpointError(f"--new: model_path {folder!r} is a whole bucket or disk; nothing is deleted") from error
    if not agreed:
        try:
            answer = input(f"delete {len(paths)} files of checkpoints and logs in {folder}? [y/N] ")
        except EOFError:
            raise CheckpointError(f"--new would delete {len(paths)} files in {folder!r}: add --yes to agree") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise CheckpointError(f"--new: nothing deleted in {folder!r}")
    for path in paths:
        files.delete(path)


def checkpoint_paths(folder: str) -> list[str]:
    """Files of a run's folder, local or remote, that training made: checkpoints, the best one, and logs."""
    found = []
    for place, prefixes in ((folder, CHECKPOINT_FILES), (os.path.join(folder, BEST), ("",))):
        names = files.names(place) if files.is_folder(place) else []
        paths = [os.path.join(place, name) for name in names if name.startswith(prefixes)]
        found += [path for path in paths if not files.is_folder(path)]
    return found
