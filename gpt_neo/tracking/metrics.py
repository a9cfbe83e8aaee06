"""What training writes into its folder, followed from outside: metrics as they come, and signs of life."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.tracking.events import scalars_of, split_records

TRAIN_LOG = "train_log.jsonl"
EVENTS = "events.out.tfevents.*"
# Keys of the rows of train_log.jsonl and eval_<id>.jsonl -> names of metrics.
TRAIN_NAMES = {"loss": "loss", "lr": "learning_rate", "tokens_per_second": "tokens_per_second", "goodput": "goodput"}
EVAL_NAMES = {"loss": "eval_loss", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"}
TAKEN_BACK = "taken_back"  # in a row of an evaluation log: later steps above it are of a course that was given up
EVENT_NAMES = {"loss": "loss", "learning_rate": "learning_rate"}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A value of a metric at a step."""

    name: str
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Life:
    """Signs of life of a training: a trace that differs after every write; the step of the newest checkpoint."""

    trace: tuple
    checkpoint: int


def look(folder: str) -> Life:
    """Look at a folder once.

    Raises:
      OSError: it cannot be read; a folder that is not there yet is empty.
    """
    paths = [storage.join(folder, TRAIN_LOG), *event_files(folder)]
    checkpoints = indices(folder)
    trace = tuple((path, version_of(path)) for path in [*paths, *list(checkpoints)[-1:]])
    return Life((*trace, len(checkpoints)), max(checkpoints.values(), default=0))


def indices(folder: str) -> dict[str, int]:
    """Index files of a folder's checkpoints, and their steps. Raises: OSError."""
    paths = storage.glob(storage.join(escaped(folder), "model.ckpt-*.index"))
    steps = {path: path[: -len(".index")].rpartition("-")[2] for path in paths}
    return {path: int(step) for path, step in steps.items() if step.isdigit()}


def escaped(folder: str) -> str:
    """A folder as part of a glob pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in folder)


def version_of(path: str) -> Optional[str]:
    """Version of a file, None without one."""
    try:
        return storage.version(path)
    except FileNotFoundError:
        return None


def json_rows(data: bytes) -> tuple[list[dict], int]:
    """Rows of the whole lines at the start of `data`, and the number of bytes that they take.

    A line cut off by a kill is no row.
    """
    end = data.rfind(b"\n") + 1
    rows = []
    for line in data[:end].splitlines():
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows, end


def measurements(row: dict, names: dict) -> Iterator[Measurement]:
    """The metrics of a row."""
    for key, name in names.items():
        value = row.get(key)
        if isinstance(value, (int, float)):
            yield Measurement(name, row["step"], float(value))


def evaluation_points(data: bytes) -> list[tuple[str, int, float]]:
    """Metrics of an evaluation log: (name, step, value), but for those of a course that a run was taken back from."""
    found: list[tuple[str, int, float]] = []
    for row in json_rows(data)[0]:
        if row.get(TAKEN_BACK):
            found = [point for point in found if point[1] <= row["step"]]
        found += [(m.name, m.step, m.value) for m in measurements(row, EVAL_NAMES)]
    return found


def trained(folder: str) -> list[Measurement]:
    """All that the trainings in a folder have measured, in the order of writing: of train_log.jsonl, or without one, as
    a TPU's run has none, of TensorBoard's files.

    Raises:
      OSError: it cannot be read.
    """
    log = storage.join(folder, TRAIN_LOG)
    if storage.exists(log):
        return [m for row in json_rows(storage.read_bytes(log))[0] for m in measurements(row, TRAIN_NAMES)]
    records = [record for path in event_files(folder) for record in split_records(storage.read_bytes(path))[0]]
    return [m for record in records for m in event_measurements(record)]


def event_files(folder: str) -> list[str]:
    """TensorBoard's files of a training, the oldest first: their names have the second."""
    return sorted(storage.glob(storage.join(escaped(folder), EVENTS)))


def event_measurements(record: bytes) -> list[Measurement]:
    """The metrics of an Event; none of a damaged one, which is no reason to end what follows them."""
    try:
        return [
            Measurement(EVENT_NAMES[tag], step, value) for tag, step, value in scalars_of(record) if tag in EVENT_NAMES
        ]
    except ValueError:
        return []


KNOWN = 64  # bytes before the place that a file is known by: rows have times in them


class Tail:
    """What was appended to a file since the last time, whole records only. A file that has been written anew, as after
    --new, is read from its beginning, however long it has become meanwhile."""

    def __init__(self, path: str, place: int = 0) -> None:
        self.path, self.place, self.seen = path, place, version_of(path) if place else None
        self.known = b""  # before the place
        if place:
            with storage.open_read(path) as handle:
                handle.seek(max(0, place - KNOWN))
                self.known = handle.read(min(place, KNOWN))

    def read(self) -> bytes:
        """Bytes behind the place. Raises: OSError."""
        version = version_of(self.path)
        if version is None or version == self.seen:
            return b""
        with storage.open_read(self.path) as handle:
            handle.seek(self.place - len(self.known))
            before, data = handle.read(len(self.known)), handle.read()
            if before != self.known:
                self.place, self.known = 0, b""
                handle.seek(0)
                data = handle.read()
        self.seen = version
        return data

    def take(self, data: bytes, count: int) -> None:
        """Go past so many of the bytes that were read."""
        self.place, self.known = self.place + count, (self.known + data[:count])[-KNOWN:]


class Metrics:
    """Metrics of a run as they are written, each step of each metric once.

    A run that goes on from a checkpoint repeats the steps behind it, with the same values.

    Args:
      identity: names the evaluation log, as --sacred_id does.
      events: read TensorBoard's files instead of train_log.jsonl, which a TPU's run does not write.
    """

    def __init__(self, folder: str, identity: str, events: bool = False) -> None:
        self.folder, self.events = folder, events
        self.reached: dict[str, int] = {}
        self.latest: dict[str, Measurement] = {}
        self.untold: list[Measurement] = []  # the storage failed after they were read
        names = {TRAIN_LOG: TRAIN_NAMES, f"eval_{identity}.jsonl": EVAL_NAMES}
        self.logs = [(self.tail_at_end(storage.join(folder, log)), known) for log, known in names.items()]
        self.event_files = {path: self.tail_at_end(path) for path in self.event_paths()}

    @staticmethod
    def tail_at_end(path: str) -> Tail:
        """A file from its present end on."""
        return Tail(path, storage.size(path) if storage.exists(path) else 0)

    def event_paths(self) -> list[str]:
        """The event files."""
        return event_files(self.folder) if self.events else []

    def poll(self) -> list[Measurement]:
        """What is new; where the storage fails, what was read before is among it the next time. Raises: OSError."""
        for tail, names in self.logs:
            data = tail.read()
            rows, taken = json_rows(data)
            tail.take(data, taken)
            self.untold += [m for row in rows for m in measurements(row, names)]
        for path in self.event_paths():
            tail = self.event_files.setdefault(path, Tail(path))
            data = tail.read()
            records, taken = split_records(data)
            tail.take(data, taken)
            self.untold += [m for record in records for m in event_measurements(record)]
        found, self.untold, new = self.untold, [], []
        for m in found:
            if m.step > self.reached.get(m.name, -1):
                self.reached[m.name] = m.step
                self.latest[m.name] = m
                new.append(m)
        return new

    @property
    def step(self) -> int:
        """The last step that training reported."""
        return self.reached.get("loss", 0)
