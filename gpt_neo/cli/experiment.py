"""`train --experiment NAME`: training as a supervised child, recorded by sacred."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from typing import Callable, Optional

from gpt_neo import storage
from gpt_neo.cli.console import note
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import Sample, SamplingOptions, TrackingOptions, Train
from gpt_neo.cli.output import tell_of_lost_output
from gpt_neo.cli.parser import words_of
from gpt_neo.config.cluster import cluster_of
from gpt_neo.config.schema import SECTIONS
from gpt_neo.errors import ConfigError, reason_of
from gpt_neo.system import python_path
from gpt_neo.tracking.experiment import FOLDER, Tracked, shown, track
from gpt_neo.tracking.metrics import TRAIN_LOG, Metrics, escaped, indices, look, version_of
from gpt_neo.tracking.supervisor import Policy, Supervisor, Watched

COMMAND = (sys.executable, "-m", "gpt_neo")
REMOTE_POLL, LOCAL_POLL = 30.0, 5.0  # seconds between looks at a run in a bucket, in a folder
LENIENCE = 120.0  # seconds that a training has to find its own stall


def run_experiment(job: Job, options: Train) -> int:
    """Train under supervision. Returns the exit status of the training.

    Raises:
      ConfigError: a flag is wrong, or an observer cannot be used.
    """
    policy, tracking = make_policy(job, options), options.tracking
    if options.sampling.prompt == "-":
        raise ConfigError("--prompt - with --experiment: nobody is there to type; give a file or the text")
    if options.training.new and not options.training.yes:
        raise ConfigError("--new with --experiment: nobody is there to ask; add --yes to agree")
    if not records_it(job, options):
        return supervise_worker(job, options, policy)
    run = SupervisedRun(job, options, policy, restore_words(tracking.recreate_tpu))
    config, observers = recorded_config(job, options), list(tracking.observer) or [FOLDER]
    return track(str(tracking.experiment), config, observers, [job.run.source], run.run, run.printed, note)


def records_it(job: Job, options: Train) -> bool:
    """Whether this machine is the one, of those that train together, that knows how far the run has come."""
    if options.backend.backend == "xla":
        place = options.backend.place()
        return place is None or not place.rank
    cluster = None if job.devices.tpu else cluster_of(os.environ)
    return cluster is None or cluster.is_chief


def samples_after(job: Job, options: Train, sampled: bool) -> bool:
    """Whether a training is followed by a sample of its last checkpoint.

    Args:
      sampled: there is one already, as this machine sees. Those that sample together have to agree without it.
    """
    by_training = bool(job.run.training.predict_steps)
    if options.backend.backend == "xla" and options.backend.place() is not None:
        return bool(options.sampling.prompt) and not by_training
    return (bool(options.sampling.prompt) or by_training) and not sampled


def sampling_words(options: Train) -> list[str]:
    """The command that samples from a run that was trained so."""
    return [*COMMAND, "sample", *words_of(Sample.after(options, options.sampling))]


def told_to_trackers(job: Job, options: Train, identity: str, run: Callable[[], int]) -> int:
    """The exit status of `run`, whose metrics go to --track on the machine that knows them."""
    if not options.tracking.track or not records_it(job, options):
        return run()
    from gpt_neo.checkpoint.provenance import config_keys
    from gpt_neo.tracking.trackers import tracked

    places, events = options.tracking.track, bool(job.devices.tpu)
    with tracked(places, job.folder, identity, config_keys(job.run), note, events, job.identity) as follower:
        status = run()
        assert follower is not None
        follower.failed = status != 0
        return status


def supervise_worker(job: Job, options: Train, policy: Policy) -> int:
    """Restart a task that lends its devices to a chief elsewhere, which records the run and finds its stalls; then lend
    them for the sample at the end.

    How far the run has come is known there too; here an hour counts as progress.
    """
    words = training_words(options, job, first=False)
    began = time.monotonic()
    supervisor = Supervisor(
        lambda attempt: [*COMMAND, *words],
        lambda: Watched((), (int((time.monotonic() - began) / 3600),), True),
        policy,
        note,
        environment=child_environment(job),
    )
    status = supervisor.run()
    # TensorFlow's chief samples by itself
    if status == 0 and options.backend.backend == "xla" and samples_after(job, options, sampled=False):
        status = supervisor.once(sampling_words(options))
    return status


def make_policy(job: Job, options: Train) -> Policy:
    """The supervisor's limits."""
    # The training looks after its steps itself; this is for when it is too far gone to do so.
    stall = 60 * options.training.stall_minutes
    stall = stall + min(stall, LENIENCE) if stall else math.inf
    poll = REMOTE_POLL if storage.is_remote(job.folder) else LOCAL_POLL
    return Policy(
        stall=stall, failures=options.tracking.max_failures, pause=options.tracking.pause, poll=min(poll, stall / 4)
    )


def recorded_config(job: Job, options: Train) -> dict:
    """What sacred records: every key of the run, defaults included, and how it was called."""
    run = job.run
    keys = {key: value for name in SECTIONS for key, value in dataclasses.asdict(getattr(run, name)).items()}
    datasets = [{**dataclasses.asdict(ref), **dataclasses.asdict(data)} for ref, data in run.datasets]
    # Sacred would draw a seed of its own where it finds none, and that would be a lie.
    keys.update(
        seed=run.training.seed or 1,
        datasets=datasets,
        model_path=job.folder,
        model=run.name,
        command=shlex.join(["gpt-neo", "train", *words_of(without_secrets(options))]),
    )
    return json.loads(json.dumps(keys))


def without_secrets(options: Train) -> Train:
    """The options without what may hold passwords: addresses of databases, words of another command."""
    tracking = options.tracking
    observer = tuple(shown(where) for where in tracking.observer)
    restore = tracking.recreate_tpu and "..."
    return dataclasses.replace(options, tracking=dataclasses.replace(tracking, observer=observer, recreate_tpu=restore))


class SupervisedRun:
    """The training of a job as a child, its metrics and files recorded."""

    def __init__(self, job: Job, options: Train, policy: Policy, restore: Optional[list]) -> None:
        self.job, self.options, self.policy, self.restore = job, options, policy, restore
        self.supervisor: Optional[Supervisor] = None
        self.identity = job.identity
        self.doomed: dict[str, Optional[str]] = {}

    def printed(self) -> str:
        """What the child has printed."""
        return self.supervisor.output.text() if self.supervisor else ""

    def run(self, tracked: Tracked) -> int:
        """Train, then sample when that is asked for and the training has not sampled its last checkpoint itself."""
        job, options = self.job, self.options
        self.identity = options.model.sacred_id or tracked.identity
        self.options = dataclasses.replace(options, model=dataclasses.replace(options.model, sacred_id=self.identity))
        self.tracked = tracked
        self.metrics = Metrics(job.folder, self.identity, events=bool(job.devices.tpu))
        print(f"run       {tracked.identity} of experiment {options.tracking.experiment}", flush=True)
        tracked.update(folder=job.folder, attempts=0)
        self.doomed = begun(job.folder) if options.training.new else {}
        supervisor = self.supervisor = Supervisor(
            self.command, self.watch, self.policy, self.say, self.restore, child_environment(job), self.tick
        )
        tell_of_lost_output(lambda line: supervisor.output.keep(f"note      {line}\n"))
        before = self.samples()
        try:
            status = told_to_trackers(job, options, self.identity, self.supervisor.run)
            last, now = look(job.folder).checkpoint, self.samples()
            path = storage.join(job.folder, f"predictions_{self.identity}_{last}.txt")
            if status == 0 and samples_after(job, options, sampled=now.get(path) != before.get(path)):
                status = supervisor.once(sampling_words(self.options))
        finally:
            self.supervisor.look()
            self.tick(final=True)
        return status

    def say(self, line: str) -> None:
        """A line for the person and the record."""
        note(line)
        if self.supervisor:
            self.supervisor.output.keep(f"note      {line}\n")

    def command(self, attempt: int) -> list:
        """The training's words. --new is for the first attempt, and for further ones until the old run is deleted (the
        folder may have been in use, or the training killed before): after that there is something to lose."""
        self.tracked.update(attempts=attempt)
        return [*COMMAND, *training_words(self.options, self.job, first=attempt == 1 or self.is_old())]

    def is_old(self) -> bool:
        """Whether some of the run that --new is to delete is still there."""
        try:
            now = begun(self.job.folder) if self.doomed else {}
        except OSError:
            return False
        return any(now.get(path) == version for path, version in self.doomed.items())

    def samples(self) -> dict[str, Optional[str]]:
        """The files of the run's samples, and their versions; none where the folder cannot be listed."""
        try:
            paths = storage.glob(storage.join(escaped(self.job.folder), f"predictions_{escaped(self.identity)}_*.txt"))
            return {path: version_of(path) for path in paths}
        except OSError as error:
            self.say(f"{self.job.folder}: cannot be listed: {reason_of(error)}")
            return {}

    def watch(self) -> Watched:
        """Record the new metrics; tell the supervisor how the run is. Raises: OSError."""
        for measurement in self.metrics.poll():
            self.tracked.measure(measurement)
        life = look(self.job.folder)
        step = max(self.metrics.step, life.checkpoint)
        latest = {name: measurement.value for name, measurement in self.metrics.latest.items()}
        self.tracked.update(step=step, latest=latest)
        finished = step >= self.job.run.training.train_steps
        return Watched(life.trace, (self.metrics.step, life.checkpoint), finished, step)

    def tick(self, final: bool = False) -> None:
        """Store what has appeared: samples as they come, at the end the logs too."""
        self.tracked.tick()
        folder, paths = self.job.folder, list(self.samples())
        if final:
            paths += [storage.join(folder, name) for name in ("train_log.jsonl", f"eval_{self.identity}.jsonl")]
        self.tracked.store(paths, final)


def begun(folder: str) -> dict[str, Optional[str]]:
    """What a run in a folder goes on from, or adds to, and --new deletes: files and their versions. Raises: OSError."""
    found = {path: version_of(path) for path in [*indices(folder), storage.join(folder, TRAIN_LOG)]}
    return {path: version for path, version in found.items() if version is not None}


def restore_words(text: Optional[str]) -> Optional[list]:
    """Words of --recreate_tpu. Raises: ConfigError."""
    if text is None:
        return None
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--recreate_tpu {text!r}: {error}") from error
    if not words:
        raise ConfigError("--recreate_tpu is empty; expected a command")
    return words


def training_words(options: Train, job: Job, first: bool) -> list[str]:
    """The command of the training itself, without what is the supervisor's; how to sample only where it samples.

    Args:
      first: --new is still to be done.
    """
    training = options.training if first else dataclasses.replace(options.training, new=False, yes=False)
    sampling = options.sampling if job.run.training.predict_steps else SamplingOptions()
    alone = dataclasses.replace(options, training=training, tracking=TrackingOptions(), sampling=sampling)
    return ["train", *words_of(alone)]


def child_environment(job: Job) -> dict[str, str]:
    """Environment of the training: it finds this package, prints at once, and shows its stacks when it is aborted."""
    devices = job.devices
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "GPT_NEO_TPU": devices.tpu or "",
        "GPT_NEO_TPU_ZONE": devices.tpu_zone or "",
        "GPT_NEO_TPU_PROJECT": devices.tpu_project or "",
    }
