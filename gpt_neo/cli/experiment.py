"""`main.py --experiment NAME`: training as a supervised child, recorded by sacred."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
import time
from typing import Optional

from gpt_neo import storage
from gpt_neo.cli.args import add_tracking
from gpt_neo.cli.job import Job
from gpt_neo.config.cluster import cluster_of
from gpt_neo.config.schema import SECTIONS
from gpt_neo.errors import ConfigError
from gpt_neo.tracking.experiment import FOLDER, PACKAGE, Tracked, shown, track
from gpt_neo.tracking.metrics import Metrics, escaped, look
from gpt_neo.tracking.supervisor import Policy, Supervisor, Watched

OTHER_JOBS = ("predict", "eval", "check_dataset", "export", "auto_layout", "auto_layout_and_mesh_shape")
COMMAND = (sys.executable, "-m", "gpt_neo.cli.main")
NEW = ("--new", "--yes")
REMOTE_POLL, LOCAL_POLL = 30.0, 5.0  # seconds between looks at a run in a bucket, in a folder
LENIENCE = 120.0  # seconds that a training has to find its own stall


def run_experiment(job: Job, argv: list) -> int:
    """Train under supervision. Returns the exit status of the training.

    Raises:
      ConfigError: a flag is wrong, or an observer cannot be used.
    """
    args = job.args
    policy = make_policy(job)
    forbidden = [name for name in OTHER_JOBS if getattr(args, name)]
    if forbidden:
        raise ConfigError(
            f"--experiment goes with training, not with --{forbidden[0]}; evaluations are recorded when "
            "eval_steps is set, samples with --prompt or predict_steps"
        )
    if args.prompt == "-":
        raise ConfigError("--prompt - with --experiment: nobody is there to type; give a file or the text")
    if args.new and not args.yes:
        raise ConfigError("--new with --experiment: nobody is there to ask; add --yes to agree")
    cluster = None if args.tpu else cluster_of(os.environ)
    if cluster and not cluster.is_chief:
        return supervise_worker(job, argv, policy)
    run = SupervisedRun(job, argv, policy, restore_words(args.recreate_tpu))
    config, observers = recorded_config(job, argv), args.observer or [FOLDER]
    return track(args.experiment, config, observers, [job.run.source], run.run, run.printed, tell)


def supervise_worker(job: Job, argv: list, policy: Policy) -> int:
    """Restart a task that lends its devices to a chief elsewhere, which records the run and finds its stalls.

    How far the run has come is known there too; here an hour counts as progress.
    """
    words = [word for word in child_words(argv) if word not in NEW]
    began = time.monotonic()
    supervisor = Supervisor(
        lambda attempt: [*COMMAND, *words],
        lambda: Watched((), (int((time.monotonic() - began) / 3600),), True),
        policy,
        tell,
        environment=child_environment(job),
    )
    return supervisor.run()


def make_policy(job: Job) -> Policy:
    """The supervisor's limits. Raises: ConfigError."""
    args = job.args
    for flag, low in (("stall_minutes", 0.0), ("pause", 0.0), ("max_failures", 1)):
        if not low <= getattr(args, flag) < math.inf:
            raise ConfigError(f"--{flag} is {getattr(args, flag)}; expected at least {low:g}")
    # The training looks after its steps itself; this is for when it is too far gone to do so.
    stall = 60 * args.stall_minutes
    stall = stall + min(stall, LENIENCE) if stall else math.inf
    poll = REMOTE_POLL if storage.is_remote(job.folder) else LOCAL_POLL
    return Policy(stall=stall, failures=args.max_failures, pause=args.pause, poll=min(poll, stall / 4))


def recorded_config(job: Job, argv: list) -> dict:
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
        command=shown(shlex.join(["main.py", *map(str, argv)])),
    )
    return json.loads(json.dumps(keys))


def tell(line: str) -> None:
    """A line for the person."""
    print(f"note      {line}", flush=True)


class SupervisedRun:
    """The training of a job as a child, its metrics and files recorded."""

    def __init__(self, job: Job, argv: list, policy: Policy, restore: Optional[list]) -> None:
        self.job, self.policy, self.restore = job, policy, restore
        self.supervisor: Optional[Supervisor] = None
        self.words = child_words(argv)

    def printed(self) -> str:
        """What the child has printed."""
        return self.supervisor.output.text() if self.supervisor else ""

    def run(self, tracked: Tracked) -> int:
        """Train, then sample when that is asked for."""
        job, args = self.job, self.job.args
        self.identity = args.sacred_id or tracked.identity
        self.tracked = tracked
        self.metrics = Metrics(job.folder, self.identity, events=bool(args.tpu))
        print(f"run       {tracked.identity} of experiment {args.experiment}", flush=True)
        tracked.update(folder=job.folder, attempts=0)
        self.supervisor = Supervisor(
            self.command, self.watch, self.policy, self.say, self.restore, child_environment(job), self.tick
        )
        try:
            status = self.supervisor.run()
            if status == 0 and (args.prompt or job.run.training.predict_steps):
                status = self.sample()
        finally:
            self.supervisor.look()
            self.tick(final=True)
        return status

    def say(self, line: str) -> None:
        """A line for the person and the record."""
        tell(line)
        if self.supervisor:
            self.supervisor.output.keep(f"note      {line}\n")

    def command(self, attempt: int) -> list:
        """The training's words. --new is for the first attempt: after it there is something to lose."""
        self.tracked.update(attempts=attempt)
        words = self.words if attempt == 1 else [word for word in self.words if word not in NEW]
        return [*COMMAND, *words, "--sacred_id", self.identity]

    def sample(self) -> int:
        """Sample from the finished run as `main.py --predict` does."""
        assert self.supervisor
        words = [word for word in self.words if word not in NEW]
        self.supervisor.command = lambda attempt: [*COMMAND, *words, "--predict", "--sacred_id", self.identity]
        return self.supervisor.one_attempt()[0]

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
        folder = self.job.folder
        try:
            paths = storage.glob(storage.join(escaped(folder), f"predictions_{self.identity}_*.txt"))
        except OSError as error:
            self.say(f"{folder}: cannot be listed: {error}")
            paths = []
        if final:
            paths += [storage.join(folder, name) for name in ("train_log.jsonl", f"eval_{self.identity}.jsonl")]
        self.tracked.store(paths, final)


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


def child_words(argv: list) -> list:
    """The command line without what is the supervisor's, and with --new and --yes, if given, in full."""
    parser = argparse.ArgumentParser(add_help=False)
    add_tracking(parser)
    parser.add_argument("--sacred_id")
    for flag in NEW:
        parser.add_argument(flag, action="store_true")
    found, rest = parser.parse_known_args([str(word) for word in argv])
    return [*rest, *[flag for flag in NEW if getattr(found, flag.strip("-"))]]


def child_environment(job: Job) -> dict[str, str]:
    """Environment of the training: it finds this package, prints at once, and shows its stacks when it is aborted."""
    args = job.args
    paths = [os.path.dirname(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "GPT_NEO_TPU": args.tpu or "",
        "GPT_NEO_TPU_ZONE": args.tpu_zone or "",
        "GPT_NEO_TPU_PROJECT": args.tpu_project or "",
    }
