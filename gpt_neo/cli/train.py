"""Training and evaluation from the command line."""

from __future__ import annotations

import os
import sys
import time
from typing import Optional

from gpt_neo.checkpoint.folder import BEST, find_latest
from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli.job import Job, count_text, memory_text, model_text, time_text
from gpt_neo.config.estimate import training_memory
from gpt_neo.errors import CheckpointError
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime.hooks import Progress
from gpt_neo.runtime.mesh import MeshPlan, check_visible, parse_devices, plan_mesh

CHECKPOINT_FILES = ("checkpoint", "model.ckpt-", "events.out.tfevents", "graph.pbtxt", "train_log.jsonl", "eval")


class ProgressLine:
    """One line that renews itself on a terminal; elsewhere a line every 10 seconds."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.last = 0.0
        self.first_loss: Optional[float] = None
        self.latest: Optional[Progress] = None

    def show(self, progress: Progress) -> None:
        """Show a step."""
        self.first_loss = progress.loss if self.first_loss is None else self.first_loss
        self.latest = progress
        now, done = time.monotonic(), progress.step >= progress.train_steps
        if not done and now - self.last < (0.2 if self.terminal else 10.0):
            return
        self.last = now
        speed = f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else "first step"
        left = f"  {time_text(progress.seconds_left)} left" if progress.seconds_left and not done else ""
        text = (f"step {progress.step:,}/{progress.train_steps:,}  loss {progress.loss:.4f}  "
                f"lr {progress.rate:.2e}  {speed}{left}")  # fmt: skip
        print(f"\r\x1b[K{text}" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def finish(self) -> None:
        """End the line."""
        if self.terminal and self.latest:
            print()


def device_plan(job: Job) -> MeshPlan:
    """The devices of --gpu_ids, or one."""
    devices = parse_devices(job.args.gpu_ids)
    check_visible(devices)
    return plan_mesh(job.run.mesh, devices)


def tpu_options(job: Job) -> Optional[runtime.TpuOptions]:
    """The TPU asked for."""
    args = job.args
    return runtime.TpuOptions(args.tpu, args.tpu_zone, args.tpu_project) if args.tpu else None


def device_text(job: Job, plan: MeshPlan) -> str:
    """One line on devices."""
    if job.args.tpu:
        return f"devices   TPU {job.args.tpu}"
    names = ", ".join(plan.devices) if plan.devices != ("",) else f"local, {len(os.sched_getaffinity(0))} CPU core(s)"
    return f"devices   {names}" + (f" ({plan.note})" if plan.note else "")


def train(job: Job) -> int:
    """Train to train_steps; evaluate after it when the config asks for it."""
    from gpt_neo.cli.evaluate import evaluate, job_tasks
    from gpt_neo.evaluation.documents import files_of

    run, plan = job.run, device_plan(job)
    tasks = job_tasks(job) if run.training.eval_steps else []  # a wrong one is refused here, not days later
    for task in tasks:
        files_of(task.name, task.documents)
    evaluates = run.training.eval_steps and (tasks or any(dataset.eval_path for _, dataset in run.datasets))
    if job.args.new:
        delete_checkpoints(job)
    found = find_latest(job.folder)
    start = step_of(found.path) if found else 0
    for note in found.notes if found else ():
        print(f"note      {note}")
    steps = run.training.train_steps
    print(model_text(run))
    print(memory_text(training_memory(run, plan.replicas())))
    print(f"training  {run.tokens_per_step:,} tokens per step, steps {start:,} to {steps:,}")
    print(device_text(job, plan))
    print(f"folder    {job.folder}", flush=True)
    if start >= steps:
        print(f"nothing to do: the newest checkpoint is at step {start:,}, train_steps is {steps:,}")
        return 0
    line = ProgressLine()
    estimator = runtime.make_estimator(
        run, job.folder, plan, job.args.steps_per_checkpoint, tpu_options(job), line.show
    )
    began = time.monotonic()
    try:
        runtime.train(estimator, run, plan, job.folder, tell=lambda line: print(f"note      {line}", flush=True))
    finally:
        line.finish()
    if line.latest:
        seconds = time.monotonic() - began
        tokens = (steps - start) * run.tokens_per_step
        print(f"trained   {steps - start:,} steps, {count_text(tokens)} tokens in {time_text(seconds)} "
              f"({tokens / seconds:,.0f} tokens/s), loss {line.first_loss:.4f} to {line.latest.loss:.4f}")
    return evaluate(job, limit=run.training.eval_steps) if evaluates else 0


def delete_checkpoints(job: Job) -> None:
    """Delete the checkpoints and logs of the run's folder, and nothing else, after asking.

    Raises:
      CheckpointError: the answer was no.
    """
    folder = job.folder
    if not os.path.isdir(folder):
        return
    names = [name for name in os.listdir(folder) if name.startswith(CHECKPOINT_FILES)]
    names = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    kept = os.path.join(folder, BEST)
    names += [os.path.join(BEST, name) for name in (os.listdir(kept) if os.path.isdir(kept) else [])]
    if not names:
        return
    if not job.args.yes:
        if not sys.stdin.isatty():
            raise CheckpointError(f"--new would delete {len(names)} files in {folder!r}: add --yes to agree")
        answer = input(f"delete {len(names)} files of checkpoints and logs in {folder}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise CheckpointError(f"--new: nothing deleted in {folder!r}")
    for name in names:
        os.remove(os.path.join(folder, name))
