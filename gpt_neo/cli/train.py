"""Training from the command line."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.checkpoint.best import BEST_FILE, forget_after, read_best
from gpt_neo.checkpoint.fit import check_scale
from gpt_neo.checkpoint.folder import BEST, Found, latest_checkpoint, settle_state, strangers
from gpt_neo.checkpoint.initial import check_initial, write_initial
from gpt_neo.checkpoint.leftovers import remove_leftovers
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.provenance import config_keys, read_provenance
from gpt_neo.cli.console import ProgressLine, count_text, memory_text, model_text, note, say, time_text
from gpt_neo.cli.devices import device_plan, device_text, tpu_options
from gpt_neo.cli.during import (
    DuringTraining,
    SessionsBeside,
    at_checkpoints,
    checked_held_out,
    ended_early,
    evaluates,
    sample_missed,
    starts_from_weights,
)
from gpt_neo.cli.evaluate import evaluate, evaluate_records, give_up_later, load_job_tasks
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import SamplingOptions, TrainingOptions
from gpt_neo.cli.output import tell_of_lost_output
from gpt_neo.config import load_config
from gpt_neo.config.estimate import training_memory
from gpt_neo.config.network import matches, variables_of
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError, ConfigError, counted
from gpt_neo.evaluation.documents import files_of
from gpt_neo.inputs.sources import evaluation_sources
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime.access import check_writable
from gpt_neo.runtime.goodput import share_text
from gpt_neo.runtime.held_out import held_out_identity
from gpt_neo.runtime.hooks import Progress
from gpt_neo.runtime.lock import FolderLock
from gpt_neo.runtime.mesh import MeshPlan, sees_gpu
from gpt_neo.runtime.profile import parse_span, session_profile
from gpt_neo.runtime.speed import SLOW, SLOWEST, expected_seconds, processor_speed, slow_step_text
from gpt_neo.runtime.tensorboard import EVENTS
from gpt_neo.runtime.watch import STALL_FILE, WATCH_LOG, Stopped, Watch
from gpt_neo.storage import check_fence, is_pattern
from gpt_neo.storage import tensorflow as files
from gpt_neo.tracking.metrics import TRAIN_LOG, json_rows

# Names of what training writes, in its folder and in those of the best checkpoint and of TensorBoard's evaluations.
WHOLE = "|".join(map(re.escape, ("checkpoint", "graph.pbtxt", TRAIN_LOG, BEST_FILE, WATCH_LOG, STALL_FILE)))
MADE = re.compile(rf"{WHOLE}|events\.out\.tfevents\..*|{re.escape(PREFIX)}\d+(?:\..*)?")
EVALUATIONS = re.compile(r"eval_.*\.jsonl")  # also what others call theirs
SHUFFLES = "shuffle_input_filenames"
SHARES_FROM = 60.0  # seconds of a run that is told what they went into


def train(
    job: Job,
    training: TrainingOptions,
    sampling: SamplingOptions = SamplingOptions(),  # noqa: B008
    follow: Callable[[Progress], None] = lambda progress: None,
) -> int:
    """Train to train_steps, with held-out losses and samples at checkpoints where the config asks for them, and tasks
    at the end. Returns the exit status.

    On a TPU, held-out records have it in turn with training, and samples are left out.

    Args:
      follow: called with every step that `line` shows.
    """
    run, plan = job.run, device_plan(job)
    tasks = load_job_tasks(job) if run.training.eval_steps else []  # a wrong one is refused here, not days later
    for task in tasks:
        files_of(task.name, task.documents)
    tpu, here = job.devices.tpu, not job.devices.tpu and job.plan is None
    held_out = evaluates(run)
    if training.patience and (tpu or not held_out):
        raise ConfigError("--patience needs eval_steps and held-out records (eval_path), on CPUs or GPUs")
    seen: set[int] = set()
    beside, trained = SessionsBeside(run, plan), False

    def steps(line: ProgressLine, watch: Watch) -> int:
        nonlocal trained
        trained, given = True, starts_from_weights(job.folder)
        if tpu and run.training.predict_steps:
            note("no samples during training: the TPU runs one program at a time; gpt-neo sample reads the checkpoints")
        during = None if tpu else DuringTraining(job, training, sampling, beside, line, watch, given)

        def show(progress: Progress) -> None:
            line.show(progress)
            follow(progress)

        estimator = training_estimator(job, training, plan, show, watch, during)
        try:
            if tpu and held_out:
                checked_held_out(run)
                return in_turn(job, training, estimator, plan, line, watch, seen)
            return runtime.train(estimator, run, plan, job.folder, note, watch)
        finally:
            if during:
                seen.update(during.evaluated)
                during.close()

    status = train_in_folder(job, training, plan.replicas(), device_text(job, plan), steps, here)
    if status == 0 and not trained and not tpu:
        sample_missed(job, training, sampling, beside)
    records, tasks = lacks_evaluation(job, seen), tasks if latest_checkpoint(job.folder) else []
    if run.training.eval_steps and status == 0 and (records or tasks):
        return evaluate(job, limit=run.training.eval_steps, keep=True, records=records)
    return status


def training_estimator(
    job: Job,
    training: TrainingOptions,
    plan: MeshPlan,
    report: Callable[[Progress], None],
    watch: Watch,
    during: Optional[DuringTraining],
) -> Any:
    """The estimator of a training. report: called with every step that ends; during: with every checkpoint."""
    return runtime.make_estimator(
        job.run,
        job.folder,
        plan,
        training.steps_per_checkpoint,
        tpu_options(job),
        report,
        watch=watch,
        steps_per_log=training.steps_per_log,
        save_minutes=training.save_minutes,
        at_checkpoint=at_checkpoints(during) if during else None,
        profile=session_profile(training.profile, job.folder) if training.profile else None,
    )


def in_turn(
    job: Job,
    training: TrainingOptions,
    estimator: Any,
    plan: MeshPlan,
    line: ProgressLine,
    watch: Watch,
    seen: set[int],
) -> int:
    """Train to every multiple of steps_per_checkpoint, and evaluate there: a TPU runs one program at a time.

    Args:
      seen: the steps that are evaluated are added.

    Returns:
      the step reached; the last one, unless a signal came.
    """
    last, every, tell = job.run.training.train_steps, training.steps_per_checkpoint, note

    def evaluate_at(step: int) -> None:
        line.finish()
        with watch.waiting():
            evaluate_records(job, job.run.training.eval_steps, keep=True)
        seen.add(step)

    step = runtime.current_step(job.folder)
    if 0 < step < last and step % every == 0 and not was_evaluated(job, step):
        evaluate_at(step)  # a kill came before it
    while step < last and watch.signal is None:
        until = min(last, (step // every + 1) * every)
        step = runtime.train(estimator, job.run, plan, job.folder, tell, watch, until)
        tell = silent  # once is enough
        if watch.signal is None:
            evaluate_at(step)
    return step


def silent(line: str) -> None:
    """Nothing."""


def lacks_evaluation(job: Job, seen: set[int], batch_size: Optional[int] = None) -> bool:
    """Whether a training evaluates held-out records, and its newest checkpoint is still to come.

    Args:
      seen: steps that this command has evaluated.
      batch_size: of an evaluation, where it is not the config's.
    """
    if latest_checkpoint(job.folder) is None:  # train_steps is 0
        return False
    last = runtime.current_step(job.folder)
    return evaluates(job.run) and last not in seen and not was_evaluated(job, last, batch_size)


def was_evaluated(job: Job, step: int, batch_size: Optional[int] = None) -> bool:
    """Whether best/ knows of an evaluation of that step on the held-out records of now."""
    run, best = job.run, read_best(job.folder)
    if best is None:
        return False
    size = batch_size or runtime.eval_batch_size(run)
    return best.knows(step, held_out_identity(run, evaluation_sources(run), run.training.eval_steps, size))


def train_in_folder(
    job: Job,
    training: TrainingOptions,
    replicas: int,
    devices: str,
    steps: Callable[[ProgressLine, Watch], int],
    here: bool = True,
) -> int:
    """Train, as the only run in the folder, from the newest checkpoint on. Returns the exit status.

    Args:
      replicas: of the model, for the estimate of memory.
      devices: one line on them.
      steps: trains to train_steps, or to a signal; returns the step reached, and may raise `Stopped`.
      here: this machine's processor computes, unless it has an accelerator.

    Raises:
      CheckpointError: the folder cannot be written, or has a name that TensorFlow takes for a pattern.
    """
    if is_pattern(job.folder):
        raise CheckpointError(
            f"model_path {job.folder!r}: TensorFlow takes *, ?, [ and \\ in a path for a pattern, and would find no "
            "checkpoint to go on from or to delete; give the folder another name"
        )
    check_writable(job.folder)
    with FolderLock(job.folder, tell=note) as lock:
        return train_alone(job, training, lock, replicas, devices, steps, here)


def train_alone(
    job: Job,
    training: TrainingOptions,
    lock: FolderLock,
    replicas: int,
    devices: str,
    steps: Callable[[ProgressLine, Watch], int],
    here: bool,
) -> int:
    """As `train_in_folder`, with the folder's lock."""
    if training.profile:
        parse_span(training.profile)  # a wrong flag is told before --new deletes anything
    if training.new:
        check_beginning(job, training.init_from, checkpoint_paths(job.folder))
        delete_checkpoints(job.folder, training.yes)
    remove_leftovers(job.folder)
    found = settle_state(job.folder, verify=True)
    if found is None and training.init_from:
        for text in write_initial(training.init_from, job.folder, job.run):
            note(text)
        found = settle_state(job.folder)
    if found:
        check_scale(found.path, job.run.model)
    start = step_of(found.path) if found else 0
    if evaluates(job.run):
        forget_after(job.folder, start)
    if found:
        give_up_later(job.folder, start)
    show_opening(job, found, replicas, devices)
    if is_complete(job, training, found):
        return 0
    line = ProgressLine()
    stall = stall_minutes(job, training) if here else training.stall_minutes
    watch = Watch(job.folder, lock, stall, training.skip_spikes, notice=line.note)
    tell_of_lost_output(watch.log_note)
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
        tokens = (reached - start) * job.run.tokens_per_step
        say(
            f"trained   {counted(reached - start, 'step')}, {count_text(tokens)} tokens in {time_text(seconds)} "
            f"({tokens / seconds:,.0f} tokens/s), loss {line.first_loss:.4f} to {line.last_loss:.4f}"
        )
        if seconds > SHARES_FROM:
            say(f"time      {share_text(watch.time.seconds())}")
        print(next_text(job))
    return 0


def show_opening(job: Job, found: Optional[Found], replicas: int, devices: str) -> None:
    """The lines that a training begins with."""
    run, start = job.run, step_of(found.path) if found else 0
    for line in found.notes if found else strangers(job.folder):
        note(line)
    say(model_text(run))
    say(memory_text(training_memory(run, replicas)))
    say(f"training  {run.tokens_per_step:,} tokens per step, steps {start:,} to {run.training.train_steps:,}")
    say(devices)
    for pattern in run.optimizer.freeze:
        if not any(matches(pattern, name) for name in variables_of(run.model)):
            note(f"freeze: {pattern!r} matches no variable, and freezes none")
    say(weights_text(job, found))
    record = read_provenance(found.path) or {} if found else {}
    for line in (*position_notes(start, record, run.training.train_batch_size), *order_notes(start, record, run)):
        note(line)
    say(f"folder    {job.folder}")


def is_complete(job: Job, training: TrainingOptions, found: Optional[Found]) -> bool:
    """Whether there is nothing to train; says so."""
    start, last, best = step_of(found.path) if found else 0, job.run.training.train_steps, ended_early(job, training)
    if found is None and not last:
        say("nothing to do: train_steps is 0, and there is no checkpoint")
    elif start >= last:
        say(f"nothing to do: the newest checkpoint is at step {start:,}, train_steps is {last:,}")
    elif best:
        say(
            f"nothing to do: --patience {training.patience} ended the run after step {best.step:,}, its best; a larger "
            "one goes on"
        )
    return start >= last or best is not None


def weights_text(job: Job, found: Optional[Found]) -> str:
    """One line on what the weights start from."""
    if found is None:
        return f"weights   random, from seed {job.run.training.seed or 1}"
    record = read_provenance(found.path) or {}
    source = f" ({record['source']})" if record.get("source") else ""
    return f"weights   those of step {step_of(found.path):,} in the folder{source}"


def position_notes(step: int, record: dict, batch: int) -> list[str]:
    """A line on samples that a run misses or reads again, as it goes on with another train_batch_size: where it reads
    is step * train_batch_size, whatever was read before.

    Args:
      record: of the checkpoint of that step; empty where it has none.
    """
    before = (record.get("data") or {}).get("train_batch_size", batch)
    if before == batch or not step:
        return []
    change = step * (batch - before)
    samples = f"{counted(abs(change), 'sample')} {'is' if abs(change) == 1 else 'are'}"
    what = f"{samples} passed over" if change > 0 else f"{samples} read a second time"
    return [
        f"train_batch_size was {before} and is {batch}: reading goes on at sample {step:,} * {batch} = "
        f"{step * batch:,} in place of {step * before:,}, so that {what}"
    ]


def order_notes(step: int, record: dict, run: RunConfig) -> list[str]:
    """A line on samples that a run misses or reads again, as it goes on with other datasets, weights or another order:
    where each dataset is read on is what the config of now gives for the step, whatever was read before. Arguments as
    `position_notes`."""
    known, now = record.get("config") or {}, config_keys(run)
    if not step or "datasets" not in known:
        return []
    first, second = ([entry_text(entry) for entry in keys["datasets"]] for keys in (known, now))
    values: list[tuple[str, object, object]] = [
        ("datasets", ", ".join(first), ", ".join(second)),
        ("seed", known.get("seed") or 1, run.training.seed or 1),
        (SHUFFLES, known.get(SHUFFLES, True), run.training.shuffle_input_filenames),
    ]
    changed = [f"{key} was {before} and is {after}" for key, before, after in values if before != after]
    place = step * run.training.train_batch_size
    where = f"reading goes on at sample {place:,} of the order of now: some samples are read again, others passed over"
    return [f"{'; '.join(changed)}: {where}"] if changed else []


def entry_text(entry: Sequence) -> str:
    """An entry of `datasets` in a record: the dataset's name, wherever its file lies, and what is said of it."""
    name, *rest = entry
    said = [str(part) for part in rest if part is not None]
    return " ".join([os.path.splitext(os.path.basename(name))[0], *said])


def stall_minutes(job: Job, training: TrainingOptions) -> float:
    """--stall_minutes, or more where steps are expected to be so slow on this machine's processor; says so."""
    if expected_seconds(job.run, SLOWEST) < SLOW or sees_gpu():
        return training.stall_minutes
    seconds = expected_seconds(job.run, processor_speed())
    if seconds < SLOW:
        return training.stall_minutes
    note(slow_step_text(job.run, seconds))
    return training.stall_minutes and max(training.stall_minutes, 5 * seconds / 60)


def next_text(job: Job) -> str:
    """What to do with a trained model: the command, with those --set alone that it needs."""
    model = job.model
    needed = list(model.set)
    for text in model.set:
        rest = [other for other in needed if other != text]
        if is_sampled_alike(job.run, model.model, rest):
            needed = rest
    words = " ".join(shlex.quote(word) for word in [model.model, *(f"--set={text}" for text in needed)])
    if not job.run.model.causal:
        return f"next      gpt-neo eval {words}"
    return f'next      gpt-neo sample {words} "Once upon a time"'


def is_sampled_alike(run: RunConfig, name_or_path: str, overrides: Sequence[str]) -> bool:
    """Whether a config with these overrides samples from the model of `run`."""
    try:
        other = load_config(name_or_path, overrides)
    except ConfigError:
        return False
    told = [(x.model, x.mesh, x.datasets, x.training.model_path) for x in (run, other)]
    return told[0] == told[1]


def stop_status(number: int, what: str) -> int:
    """Say how a run that a signal ended goes on; the exit status that shells give to that signal."""
    say(f"stopped   by {signal.Signals(number).name}: {what}. The same command goes on from there")
    return 128 + number


def check_beginning(job: Job, source: Optional[str], doomed: list[str]) -> None:
    """See that a new run can begin, where an old one is deleted for it.

    Args:
      source: of its first weights.
      doomed: the files of the old one.

    Raises:
      GptNeoError: it cannot.
    """
    if doomed and source:
        check_initial(source, job.run, doomed)
    if doomed:
        runtime.checked_sources(job.run, silent)


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
        many = counted(len(paths), "file")
        try:
            answer = input(f"delete {many} of checkpoints and logs in {folder}? [y/N] ")
        except (EOFError, OSError):  # nobody there to ask
            raise CheckpointError(f"--new would delete {many} in {folder!r}: add --yes to agree") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise CheckpointError(f"--new: nothing deleted in {folder!r}")
    for path in paths:
        files.delete(path)


def checkpoint_paths(folder: str) -> list[str]:
    """Files of a run's folder, local or remote, that training made: checkpoints, the best one, and logs."""
    found = []
    for place in (folder, os.path.join(folder, BEST), os.path.join(folder, EVENTS)):
        names = files.names(place) if files.is_folder(place) else []
        paths = [os.path.join(place, name) for name in names if MADE.fullmatch(name) or EVALUATIONS.fullmatch(name)]
        found += [path for path in paths if not files.is_folder(path) and is_ours(path)]
    return found


def is_ours(path: str) -> bool:
    """Whether a file with a name that training gives has what it writes: a log of evaluations has rows of steps."""
    return not EVALUATIONS.fullmatch(os.path.basename(path)) or bool(json_rows(files.read_bytes(path))[0])
