"""Other places that a training's metrics go to: Weights & Biases, MLflow, trackio, behind one small protocol.

They are fed by the rows that training writes (`metrics.py`), by a thread beside it: training itself knows none of them,
and one that fails stops nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Callable, Optional, Protocol

from gpt_neo import storage
from gpt_neo.errors import ConfigError, reason_of
from gpt_neo.system import how_to_install
from gpt_neo.tracking.metrics import Metrics

POLL = 5.0  # seconds between looks at a run's files
PROJECT = "gpt-neo"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
FILES = "MLFLOW_ALLOW_FILE_STORE"  # without it MLflow 3 refuses folders
AT_FIRST = "2"  # of them, while a person waits for the run to begin; of 7, the client's own, the last wait minutes


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take metrics of a step; steps do not decrease."""

    def close(self, failed: bool) -> None:
        """The run has ended."""


class LogTracker:
    """Weights & Biases and trackio, which have one interface: `init`, `log` and `finish`.

    Args:
      module: wandb or trackio.
    """

    def __init__(self, module: Any, project: str, name: str, config: dict) -> None:
        self.module = module
        self.run = module.init(project=project or PROJECT, name=name, config=config)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take metrics of a step."""
        self.module.log(values, step=step)

    def close(self, failed: bool) -> None:
        """The run has ended."""
        self.module.finish()


class WandbTracker(LogTracker):
    """Weights & Biases, which is told how a run has ended."""

    def close(self, failed: bool) -> None:
        """The run has ended."""
        self.module.finish(exit_code=int(failed))


class MlflowTracker:
    """MLflow: a server's address or a folder, where the experiment is called as a project is elsewhere. Without either
    that of MLFLOW_TRACKING_URI, or the folder mlruns, where MLflow looks for one."""

    def __init__(self, module: Any, where: str, name: str, config: dict) -> None:
        from mlflow.tracking import MlflowClient

        where = where or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"
        folder = not storage.scheme_of(where) and where != "databricks"
        if folder or where.startswith("file:"):
            os.environ.setdefault(FILES, "true")
        self.client = MlflowClient(os.path.abspath(where) if folder else where)
        with few_retries():
            known = self.client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self.client.create_experiment(PROJECT)
        self.run = self.client.create_run(experiment, run_name=name).info.run_id
        for key, value in config.items():
            self.client.log_param(self.run, key, str(value)[:500])

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take metrics of a step."""
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self, failed: bool) -> None:
        """The run has ended."""
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """Context in which MLflow's client soon gives up a server that is not there, unless the environment says how."""
    given = os.environ.get(RETRIES)
    os.environ.setdefault(RETRIES, AT_FIRST)
    try:
        yield
    finally:
        if given is None:
            del os.environ[RETRIES]


# What --track begins with -> (its package, from (the package, what follows the colon, name, config) to a Tracker).
TRACKERS: dict[str, tuple[str, Callable[[Any, str, str, dict], Tracker]]] = {
    "wandb": ("wandb", WandbTracker),
    "mlflow": ("mlflow", MlflowTracker),
    "trackio": ("trackio", LogTracker),
}


def open_tracker(where: str, name: str, config: dict) -> Tracker:
    """The tracker of `wandb[:PROJECT]`, `mlflow[:ADDRESS]` or `trackio[:PROJECT]`.

    Args:
      name: of the run.
      config: what it was run with.

    Raises:
      ConfigError: there is no such one, its package is missing, or it cannot be used.
    """
    kind, _, rest = where.partition(":")
    if kind not in TRACKERS:
        raise ConfigError(f"--track {where!r}: expected {', '.join(TRACKERS)}, with a project or address after a colon")
    package, make = TRACKERS[kind]
    try:
        module = __import__(package)
    except ImportError as error:
        raise ConfigError(f"--track {where}: needs the package {package}: {how_to_install(kind)}") from error
    try:
        return make(module, rest, name, config)
    except Exception as error:  # whatever its client raises
        raise ConfigError(f"--track {where}: cannot be used: {reason_of(error)}") from error


class Follower:
    """Context in which trackers are given the metrics of a run as they are written.

    Args:
      tell: called with a line when a tracker fails, which is left alone from then on.

    failed: what trackers are told of the run at the end; an exception is a failure in any case.
    """

    def __init__(self, metrics: Metrics, trackers: dict[str, Tracker], tell: Callable[[str], None]) -> None:
        self.metrics, self.trackers, self.tell = metrics, trackers, tell
        self.failed = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def follow(self) -> None:
        """Look until the end."""
        while not self.ended.wait(POLL):
            self.look()

    def look(self) -> str:
        """Hand on what is new, step after step. Returns: why the run's files cannot be read just now; else nothing."""
        steps: dict[int, dict[str, float]] = {}
        try:
            for found in self.metrics.poll():
                steps.setdefault(found.step, {})[found.name] = found.value
        except OSError as error:  # a bucket that is out of reach for a moment
            return reason_of(error)
        for step, values in sorted(steps.items()):
            self.each(functools.partial(log_step, step=step, values=values))
        return ""

    def each(self, act: Callable[[Tracker], None]) -> None:
        """Do something with every tracker that works."""
        for where, tracker in list(self.trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever its client raises
                del self.trackers[where]
                self.tell(f"--track {where} failed, and gets no more of this run: {reason_of(error)}")

    def __enter__(self) -> Follower:
        self.thread.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Hand on the rest."""
        self.ended.set()
        self.thread.join(POLL)
        if self.thread.is_alive():
            self.tell(f"the run has ended; --track {', '.join(self.trackers)}: waiting for an answer")
            self.thread.join()
        trouble = self.look()
        if trouble and self.trackers:
            self.tell(f"--track {', '.join(self.trackers)}: the last rows of the run cannot be read: {trouble}")
        self.each(lambda tracker: tracker.close(failed=self.failed or error is not None))


def log_step(tracker: Tracker, step: int, values: dict[str, float]) -> None:
    """Give a tracker the metrics of a step."""
    tracker.log(step, values)


@contextlib.contextmanager
def tracked(
    wheres: Sequence[str],
    folder: str,
    identity: str,
    config: dict,
    tell: Callable[[str], None],
    events: bool = False,
    name: Optional[str] = None,
) -> Iterator[Optional[Follower]]:
    """Context in which a run's metrics go to every place of `wheres`; None where there is no place.

    Args:
      folder: of the run's checkpoints and logs.
      identity: names its evaluation log.
      name: of the run, for the trackers; its identity if absent.
      events: as `Metrics` takes them.

    Raises:
      ConfigError: a place is wrong; see `open_tracker`.
    """
    if not wheres:
        yield None
        return
    metrics = Metrics(folder, identity, events)
    trackers = {where: open_tracker(where, name or identity, config) for where in wheres}
    with Follower(metrics, trackers, tell) as follower:
        yield follower
