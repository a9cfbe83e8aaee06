"""Recorded runs read back: from a folder of sacred's, a database, or the folder of one training."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from typing import Any, Callable, Optional

from gpt_neo import storage
from gpt_neo.errors import DataError, brief, reason_of
from gpt_neo.system import how_to_install
from gpt_neo.tracking.experiment import database_of, first_line, shown
from gpt_neo.tracking.metrics import (
    TRAIN_LOG,
    TRAIN_NAMES,
    Measurement,
    escaped,
    evaluation_points,
    event_files,
    json_rows,
    measurements,
    trained,
)

LONGEST = 1000  # characters of a name that is shown
DEAD = 120.0  # seconds without a heartbeat after which a run that says it runs does not


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run for comparison.

    metrics: name -> [(step, value), ...] in the order of steps.
    times: UTC; None where unknown.
    """

    identity: str
    experiment: str
    status: str
    started: Optional[datetime.datetime]
    ended: Optional[datetime.datetime]
    host: str
    folder: str
    config: dict
    metrics: dict

    @property
    def label(self) -> str:
        """A short name that tells runs apart, in one line that can be shown anywhere."""
        return brief(f"{self.experiment} {self.identity}".strip(), LONGEST)

    @property
    def step(self) -> int:
        """The last step of any metric."""
        return max((points[-1][0] for points in self.metrics.values() if points), default=0)

    def last(self, name: str) -> Optional[float]:
        """The last value of a metric."""
        points = self.metrics.get(name)
        return points[-1][1] if points else None


def load_runs(where: str, tell: Callable[[str], None] = lambda line: None) -> list[TrackedRun]:
    """The runs of a folder (sacred's or that of a training), or of a database, in the order of their ids.

    Args:
      tell: called with a line on every run of a folder whose record is damaged; the others are there all the same.

    Raises:
      DataError: there are none, or it cannot be read.
    """
    if storage.scheme_of(where) in ("", storage.SCHEME):
        found = training_folder(where) if is_trained(where) else sacred_folder(where, tell)
    elif where.startswith("mongodb"):
        found = mongo_runs(where)
    else:
        found = sql_runs(where)
    if not found:
        raise DataError(f"{shown(where)}: no runs; expected what --observer was given, or a model_path")
    return found


def is_trained(folder: str) -> bool:
    """Whether a training has written into a folder. Raises: DataError: it cannot be read."""
    try:
        return storage.exists(storage.join(folder, TRAIN_LOG)) or bool(event_files(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason_of(error)}") from error


def training_folder(folder: str) -> list[TrackedRun]:
    """The run of a model_path, whether it was tracked or not."""
    name = os.path.basename(folder.rstrip("/"))
    return [TrackedRun("", name, "", None, None, "", folder, {}, folder_metrics(folder))]


def folder_metrics(folder: str) -> dict:
    """Metrics in the logs of a training's folder."""
    pattern = storage.join(escaped(folder), "eval_*.jsonl")
    try:
        metrics = curves(trained(folder))
        for path in storage.glob(pattern):
            add_points(metrics, evaluation_points(storage.read_bytes(path)))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason_of(error)}") from error
    return metrics


def curves(measured: list[Measurement]) -> dict:
    """Metrics of a log that was written in this order. Where steps come again, a run has gone on from an earlier
    checkpoint: what was measured from there on is none of its course."""
    metrics: dict = {}
    for m in measured:
        points = metrics.setdefault(m.name, [])
        while points and points[-1][0] >= m.step:
            points.pop()
        points.append((m.step, m.value))
    return metrics


def add_points(metrics: dict, points: list) -> None:
    """Add (name, step, value); of several at a step the last counts."""
    for name, step, value in points:
        kept = dict(metrics.get(name, []))
        kept[step] = value
        metrics[name] = sorted(kept.items())


def sacred_folder(folder: str, tell: Callable[[str], None]) -> list[TrackedRun]:
    """Runs of a FileStorageObserver."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = []
    for name in sorted((name for name in names if name.isdecimal()), key=int):
        place = os.path.join(folder, name)
        if os.path.isfile(os.path.join(place, "run.json")):
            try:
                found.append(file_run(folder, name))
            except DataError as error:
                tell(f"run {name} is left out: {error}")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                tell(f"run {name} is left out: {place} holds no record of sacred's: {error!r}")
    return found


def file_run(folder: str, identity: str) -> TrackedRun:
    """One run of a FileStorageObserver. Raises: DataError."""
    entry = read_part(folder, identity, "run.json")
    saved, info = read_part(folder, identity, "metrics.json"), read_part(folder, identity, "info.json")
    metrics = {name: sorted(zip(m["steps"], m["values"])) for name, m in saved.items()}
    started, ended, beat = (parse_time(entry.get(key)) for key in ("start_time", "stop_time", "heartbeat"))
    return TrackedRun(
        identity,
        entry["experiment"]["name"],
        status_of(entry["status"], beat or started),
        started,
        ended,
        entry["host"].get("hostname", ""),
        info.get("folder", ""),
        read_part(folder, identity, "config.json"),
        metrics,
    )


def read_part(*path: str) -> dict:
    """A JSON file of a run, {} where there is none. Raises: DataError."""
    name = os.path.join(*path)
    return storage.read_json(name) if os.path.exists(name) else {}


def parse_time(value: Any) -> Optional[datetime.datetime]:
    """A time as sacred writes it, in UTC."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    return value.replace(tzinfo=datetime.timezone.utc) if value else None


def status_of(status: str, beat: Optional[datetime.datetime]) -> str:
    """The status; one that cannot be true any more is said to be dead."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return "DEAD" if status == "RUNNING" and beat and (now - beat).total_seconds() > DEAD else status


def sql_runs(url: str) -> list[TrackedRun]:
    """Runs of an SqlObserver, which has no metrics: they come from the logs, as artifacts or in the run's folder.

    Raises:
      DataError: the database cannot be read.
    """
    try:
        import sqlalchemy
    except ImportError as error:
        raise DataError(f"{shown(url)} needs sqlalchemy: {how_to_install('track')}") from error
    query = (
        "SELECT run.id, run.run_id, run.status, run.start_time, run.stop_time, run.heartbeat, run.config, run.info, "
        "host.hostname, experiment.name FROM run JOIN host ON run.host_id = host.host_id "
        "JOIN experiment ON run.experiment_id = experiment.experiment_id ORDER BY run.id"
    )
    try:
        engine = sqlalchemy.create_engine(url)
        if engine.dialect.name == "sqlite" and not os.path.exists(engine.url.database or ""):
            raise DataError(f"{shown(url)}: no such file")
        with engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(query)).mappings().all()
            return [sql_run(sqlalchemy, connection, row) for row in rows]
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise DataError(f"{shown(url)}: cannot be read: {shown(first_line(error))}") from error


def sql_run(sqlalchemy: Any, connection: Any, row: Any) -> TrackedRun:
    """One run of an SqlObserver."""
    info = json.loads(row["info"] or "{}")
    folder = info.get("folder", "")
    query = sqlalchemy.text("SELECT filename, content FROM artifact WHERE run_id = :run ORDER BY artifact_id")
    metrics: dict = {}
    for name, content in connection.execute(query, {"run": row["run_id"]}):
        if name == TRAIN_LOG:
            rows = json_rows(content)[0]
            metrics.update(curves([m for r in rows for m in measurements(r, TRAIN_NAMES)]))
        elif name.startswith("eval_"):
            add_points(metrics, evaluation_points(content))
    started, ended, beat = (parse_time(row[key]) for key in ("start_time", "stop_time", "heartbeat"))
    if not metrics and not ended and folder:  # still running: its logs are stored at its end
        metrics = folder_metrics(folder)
    return TrackedRun(
        row["run_id"],
        row["name"],
        status_of(row["status"], beat or started),
        started,
        ended,
        row["hostname"],
        folder,
        json.loads(row["config"]),
        metrics,
    )


def mongo_runs(url: str) -> list[TrackedRun]:
    """Runs of a MongoObserver. Raises: DataError."""
    try:
        import pymongo
    except ImportError as error:
        raise DataError(f"{shown(url)} needs pymongo: {how_to_install('track')}") from error
    try:
        database: Any = pymongo.MongoClient(url)[database_of(url)]
        return [mongo_run(database, entry) for entry in database["runs"].find().sort("_id")]
    except pymongo.errors.PyMongoError as error:
        raise DataError(f"{shown(url)}: cannot be read: {shown(first_line(error))}") from error


def mongo_run(database: Any, entry: dict) -> TrackedRun:
    """One run of a MongoObserver."""
    metrics = {
        m["name"]: sorted(zip(m["steps"], m["values"])) for m in database["metrics"].find({"run_id": entry["_id"]})
    }
    started, ended, beat = (parse_time(entry.get(key)) for key in ("start_time", "stop_time", "heartbeat"))
    return TrackedRun(
        str(entry["_id"]),
        entry["experiment"]["name"],
        status_of(entry["status"], beat or started),
        started,
        ended,
        entry["host"].get("hostname", ""),
        (entry.get("info") or {}).get("folder", ""),
        entry["config"],
        metrics,
    )
