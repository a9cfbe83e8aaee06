"""One tracked run under sacred: config, code version, host, metrics, artifacts and what was printed."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
import urllib.parse
import warnings
from collections.abc import Sequence
from typing import Any, Callable

from gpt_neo import storage
from gpt_neo.checkpoint.provenance import PACKAGES, version
from gpt_neo.errors import ConfigError, GptNeoError, reason_of
from gpt_neo.system import PACKAGE, how_to_install
from gpt_neo.tracking.metrics import Measurement
from gpt_neo.tracking.sacred_import import import_sacred

FOLDER = "experiments"  # where runs are recorded when nothing else is said
REVIVE = 600.0  # seconds after which an observer that failed is tried again


class RunEndedError(Exception):
    """The tracked work ended with a status other than 0."""


def make_observer(where: str) -> Any:
    """The observer of --observer: a folder, an SQL database, or a MongoDB server.

    Raises:
      ConfigError: of no known kind, or its package is not installed.
    """
    observers = import_sacred().observers
    scheme = storage.scheme_of(where)
    if not scheme:
        return observers.FileStorageObserver(where)
    if scheme in ("mongodb", "mongodb+srv"):
        try:
            import pymongo  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"--observer {shown(where)} needs pymongo: {how_to_install('track')}") from error
        return observers.MongoObserver(url=where, db_name=database_of(where))
    try:
        import sqlalchemy
    except ImportError as error:
        raise ConfigError(f"--observer {shown(where)} needs sqlalchemy: {how_to_install('track')}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sacred declares its tables the older way
        import sacred.observers.sql_bases  # noqa: F401
    try:
        return observers.SqlObserver(where)
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise ConfigError(
            f"--observer {shown(where)}: {shown(first_line(error))}; expected a folder, a database such as "
            "sqlite:///runs.db or postgresql://user@host/name, or mongodb://host/name"
        ) from error


def database_of(url: str) -> str:
    """Name of the database in a MongoDB URL; `sacred` when there is none."""
    return urllib.parse.urlsplit(url).path.lstrip("/") or "sacred"


def shown(url: str) -> str:
    """A URL, or a text that ends in one, without what may be secret: all before the last `@`, all after `?`.

    Whatever stands in a password: `@`, `/`, spaces; and where there is only a token.
    """
    found = re.fullmatch("(.*?://)(.*)", url, re.DOTALL)
    if not found:
        return url
    rest, question, _ = found[2].partition("?")
    _, at, place = rest.rpartition("@")
    return f"{found[1]}{'...@' if at else ''}{place}{'?...' if question else ''}"


def first_line(error: BaseException) -> str:
    """The gist of an exception."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Tracked:
    """A run while it is tracked."""

    def __init__(self, run: Any, tell: Callable[[str], None]) -> None:
        self.run, self.tell = run, tell
        self.identity = str(run._id)
        self.stored: dict[str, str] = {}  # artifact -> version
        self.seen: dict[str, str] = {}
        self.revived = time.monotonic()

    def measure(self, measurement: Measurement) -> None:
        """Record a metric."""
        self.run.log_scalar(measurement.name, measurement.value, measurement.step)

    def update(self, **facts: Any) -> None:
        """Record facts about the run that change, such as its step."""
        self.run.info.update(facts)

    def tick(self) -> None:
        """What has to be done from time to time by the thread that owns the run.

        SQL sessions belong to a thread: what the heartbeat's thread sets is only written by ours. An observer that
        fails once, such as a database that was restarted, is left out by sacred for good; over weeks that is too long.
        """
        for observer in self.run.observers:
            if hasattr(observer, "session") and observer not in self.run._failed_observers:
                self.run._safe_call(observer, "save")
        if time.monotonic() - self.revived > REVIVE:
            self.revived = time.monotonic()
            self.run._failed_observers.clear()

    def store(self, paths: Sequence[str], final: bool = False) -> None:
        """Store files as artifacts, those that stand still since the last call; at the end all that have changed."""
        for path in paths:
            try:
                now = storage.version(path)
                settled = final or now == self.seen.get(path)
                self.seen[path] = now
                if settled and now != self.stored.get(path):
                    self.store_file(path)
                    self.stored[path] = now
            except FileNotFoundError:
                continue
            except OSError as error:
                self.tell(f"{path}: cannot be stored with the run: {reason_of(error)}")

    def store_file(self, path: str) -> None:
        """Store one file, which may be remote."""
        if not storage.is_remote(path):
            self.run.add_artifact(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, os.path.basename(path))
            with open(local, "wb") as handle:
                handle.write(storage.read_bytes(path))
            self.run.add_artifact(local)


def track(
    name: str,
    config: dict,
    observers: Sequence[str],
    resources: Sequence[str],
    work: Callable[[Tracked], int],
    printed: Callable[[], str],
    tell: Callable[[str], None],
) -> int:
    """Do some work as a run of an experiment.

    Args:
      config: what the run is made of; recorded.
      observers: where to record: folders and URLs.
      resources: files that it reads; recorded.
      work: gets the run, returns an exit status. A run is COMPLETED with status 0, INTERRUPTED with 130 and 143,
        which signals have, else FAILED.
      printed: all that the work has printed so far.

    Returns:
      the status of `work`.

    Raises:
      ConfigError: an observer cannot be used.
    """
    sacred = import_sacred()
    interrupt: Any = sacred.utils.SacredInterrupt

    class Interrupted(interrupt):
        STATUS = "INTERRUPTED"

    experiment = make_experiment(sacred, name, [make_observer(where) for where in observers], tell)
    experiment.add_config(config)
    experiment.captured_out_filter = lambda text: printed()
    status: list[int] = []

    @experiment.main
    def main(_run: Any) -> None:
        for path in resources:
            _run.add_resource(path)
        status.append(work(Tracked(_run, tell)))
        if status[0] in (130, 143):
            raise Interrupted
        if status[0]:
            raise RunEndedError("\n".join([f"exit status {status[0]}", *printed().splitlines()[-20:]]))

    try:
        run_quietly(experiment)
    except (RunEndedError, Interrupted):
        pass
    except GptNeoError:
        raise
    except Exception as error:  # whatever a database's client raises
        if started(experiment):
            raise
        raise unusable(observers, error) from error
    return status[0]


def run_quietly(experiment: Any) -> None:
    """Run an experiment whose prints are not captured, as they are known: see `track`."""
    # Several observers have to agree on an id.
    identity = {"--id": next_identity(experiment.observers)} if len(experiment.observers) > 1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sacred's use of databases and clocks
        experiment.run(options={"--capture": "no", **identity})


def unusable(observers: Sequence[str], error: Exception) -> ConfigError:
    """What to raise where none of these can be recorded at."""
    where = ", ".join(shown(url) for url in observers)
    return ConfigError(f"--observer {where}: cannot be used: {shown(first_line(error))}")


def next_identity(observers: Sequence[Any]) -> int:
    """The least id above those that any of the observers knows."""
    known = [0]
    for observer in observers:
        if hasattr(observer, "basedir"):
            names = os.listdir(observer.basedir) if os.path.isdir(observer.basedir) else []
            known += [int(name) for name in names if name.isdecimal()]
        elif hasattr(observer, "engine"):
            import sqlalchemy

            if sqlalchemy.inspect(observer.engine).has_table("run"):
                with observer.engine.connect() as connection:
                    found = connection.execute(sqlalchemy.text("SELECT run_id FROM run")).scalars()
                    known += [int(text) for text in found if text.isdecimal()]
        else:
            last = observer.runs.find_one(sort=[("_id", -1)])
            known += [last["_id"]] if last and isinstance(last["_id"], int) else []
    return max(known) + 1


def started(experiment: Any) -> bool:
    """Whether every observer has taken the run."""
    run = experiment.current_run
    return run is not None and run._heartbeat is not None


def make_experiment(sacred: Any, name: str, observers: list, tell: Callable[[str], None]) -> Any:
    """A sacred.Experiment with every source file of the package, its repository's state and the versions of others."""
    from sacred.dependencies import Source, get_digest

    # The training is another process: what is imported here says nothing about it.
    sacred.SETTINGS.DISCOVER_SOURCES = sacred.SETTINGS.DISCOVER_DEPENDENCIES = "none"
    experiment = sacred.Experiment(name, base_dir=os.path.dirname(PACKAGE), save_git_info=has_git(PACKAGE))
    experiment.observers.extend(observers)
    experiment.logger = make_logger(experiment, tell)
    for source in experiment.sources:  # this file, with the state of the repository, whose address may hold a token
        source.repo = source.repo and shown(source.repo)
    known = {source.filename for source in experiment.sources}
    for top, _, names in os.walk(PACKAGE):
        paths = [os.path.join(top, file) for file in names if file.endswith(".py")]
        more = [Source(path, get_digest(path), None, None, None) for path in paths if path not in known]
        experiment.sources.update(more)
    for package in PACKAGES:
        experiment.add_package_dependency(package, version(package))
    return experiment


def has_git(folder: str) -> bool:
    """Whether the package lies in a git repository with a commit, and git can be asked."""
    try:
        from git import Repo
        from git.exc import GitError
    except ImportError:
        return False
    try:
        return bool(Repo(folder, search_parent_directories=True).head.commit.hexsha)
    except (GitError, ValueError):
        return False


def make_logger(experiment: Any, tell: Callable[[str], None]) -> logging.Logger:
    """Sacred's warnings become notes, save for what the supervisor says itself."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().strip()
            trace = text.startswith("Traceback")
            if trace and not started(experiment):
                return  # an observer that could not start a run cannot end it either; its error is raised
            if not text.startswith(("Failed after", "Aborted after")):
                tell(f"tracking: {shown(text.splitlines()[-1 if trace else 0])}")

    logger = logging.getLogger("gpt_neo.tracking")  # not a Logger made here: sacred asks for its children
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.handlers[:] = [Notes()]
    return logger
