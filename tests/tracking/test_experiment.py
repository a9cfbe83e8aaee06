"""What sacred records of a run: in a folder, in SQLite, in a (pretended) MongoDB; and how runs end."""

import json
import os

import pytest

from gpt_neo.cli.experiment import without_secrets
from gpt_neo.cli.options import Train
from gpt_neo.cli.parser import parse, words_of
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.tracking.experiment import make_observer, shown, track
from gpt_neo.tracking.metrics import Measurement
from gpt_neo.tracking.runs import load_runs

CONFIG = {"n_layer": 2, "seed": 7, "datasets": [{"path": "a.*", "weight": None}], "command": "main.py"}


class Work:
    """Pretends to train: three steps, a log, a sample, some output; ends with a status."""

    def __init__(self, folder, status=0):
        self.folder, self.status, self.notes, self.output = folder, status, [], ""
        folder.mkdir(exist_ok=True)

    def __call__(self, tracked):
        self.identity = tracked.identity
        tracked.update(folder=str(self.folder))
        with open(self.folder / "train_log.jsonl", "w") as log:
            for step in (1, 2, 3):
                tracked.measure(Measurement("loss", step, 6.0 / step))
                log.write(json.dumps({"step": step, "loss": 6.0 / step}) + "\n")
        sample = self.folder / f"predictions_{tracked.identity}_3.txt"
        sample.write_text("once upon a time")
        self.output = "step 3 of 3\n"
        tracked.store([str(sample)])  # just written: it may not be whole
        assert not tracked.stored
        tracked.store([str(sample)])
        assert list(tracked.stored) == [str(sample)]
        tracked.store([str(sample), str(self.folder / "train_log.jsonl"), str(self.folder / "none")], final=True)
        tracked.tick()
        return self.status

    def run(self, *observers, name="trial"):
        resource = self.folder / "config.json"
        resource.write_text("{}")
        return track(
            name, CONFIG, [str(o) for o in observers], [str(resource)], self, lambda: self.output, self.notes.append
        )


def test_a_folder_holds_all_of_a_run(tmp_path):
    work, place = Work(tmp_path / "model"), tmp_path / "experiments"
    assert work.run(place) == 0 and not work.notes
    folder = place / work.identity
    config, run, metrics, info = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "run", "metrics", "info")
    )
    assert config == CONFIG
    assert metrics["loss"]["steps"] == [1, 2, 3] and metrics["loss"]["values"] == [6.0, 3.0, 2.0]
    assert (folder / f"predictions_{work.identity}_3.txt").read_text() == "once upon a time"
    assert (folder / "cout.txt").read_text() == "step 3 of 3\n"
    assert run["status"] == "COMPLETED" and run["host"]["hostname"] and info["folder"] == str(tmp_path / "model")
    experiment = run["experiment"]
    assert "tensorflow==2.15.1" in experiment["dependencies"] and experiment["name"] == "trial"
    sources = dict(experiment["sources"])
    import gpt_neo.runtime.mesh as module

    kept = os.path.join(place, sources["gpt_neo/runtime/mesh.py"])
    assert open(kept).read() == open(module.__file__).read()
    assert len(experiment["repositories"]) <= 1 and run["resources"][0][0].endswith("config.json")


def test_sqlite_and_a_folder_agree_on_the_id(tmp_path):
    place, url = tmp_path / "experiments", f"sqlite:///{tmp_path}/runs.db"
    assert Work(tmp_path / "first").run(place) == 0
    work = Work(tmp_path / "second")
    assert work.run(place, url) == 0 and not work.notes
    (stored,) = load_runs(url)
    in_folder = load_runs(str(place))[-1]
    assert work.identity == stored.identity == in_folder.identity == "2"
    for run in (stored, in_folder):
        assert run.metrics["loss"] == [(1, 6.0), (2, 3.0), (3, 2.0)]
        assert (run.experiment, run.status, run.step, run.config) == ("trial", "COMPLETED", 3, CONFIG)
        assert run.started <= run.ended and run.folder == str(tmp_path / "second")
    import sqlite3

    with sqlite3.connect(tmp_path / "runs.db") as database:
        assert database.execute("SELECT captured_out FROM run").fetchall() == [("step 3 of 3\n",)]
        names = {name for (name,) in database.execute("SELECT filename FROM artifact")}
    assert names == {"predictions_2_3.txt", "train_log.jsonl"}


def test_mongodb(tmp_path, monkeypatch):
    mongomock = pytest.importorskip("mongomock")
    import pymongo
    from mongomock.gridfs import enable_gridfs_integration

    enable_gridfs_integration()
    client = mongomock.MongoClient()
    monkeypatch.setattr(pymongo, "MongoClient", lambda *args, **options: client)
    assert Work(tmp_path / "model").run("mongodb://host/mine") == 0
    (run,) = load_runs("mongodb://host/mine")
    assert run.metrics["loss"] == [(1, 6.0), (2, 3.0), (3, 2.0)] and run.status == "COMPLETED"
    assert run.config == CONFIG and "runs" in client["mine"].list_collection_names()


@pytest.mark.parametrize("status, name", [(2, "FAILED"), (1, "FAILED"), (143, "INTERRUPTED"), (130, "INTERRUPTED")])
def test_a_status_is_kept_and_recorded(tmp_path, status, name):
    work = Work(tmp_path / "model", status)
    assert work.run(tmp_path / "experiments") == status and not work.notes
    (run,) = load_runs(str(tmp_path / "experiments"))
    assert run.status == name and run.metrics["loss"][-1] == (3, 2.0)
    entry = json.loads((tmp_path / "experiments" / "1" / "run.json").read_text())
    if name == "FAILED":
        assert f"exit status {status}\nstep 3 of 3" in "".join(entry["fail_trace"])


def test_our_errors_pass_through(tmp_path):
    work = Work(tmp_path / "model")

    def fail(tracked):
        raise DataError("a shard is damaged")

    with pytest.raises(DataError, match="a shard is damaged"):
        track("trial", CONFIG, [str(tmp_path / "experiments")], [], fail, lambda: "", work.notes.append)
    assert load_runs(str(tmp_path / "experiments"))[0].status == "FAILED"


def test_an_observer_that_fails_on_the_way_ends_nothing_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt_neo.tracking.experiment.REVIVE", -1)
    place = tmp_path / "experiments"
    notes = []

    def work(tracked):
        (observer,) = tracked.run.observers
        run_entry, observer.run_entry = observer.run_entry, None
        (tmp_path / "a.txt").write_text("a")
        tracked.store([str(tmp_path / "a.txt")], final=True)
        assert tracked.run._failed_observers
        observer.run_entry = run_entry
        tracked.tick()
        assert not tracked.run._failed_observers
        return 0

    assert track("trial", CONFIG, [str(place)], [], work, lambda: "", notes.append) == 0
    assert load_runs(str(place))[0].status == "COMPLETED" and "An error ocurred" in notes[0]


@pytest.mark.parametrize(
    "where, message",
    [
        ("nowhere://x", "Can't load plugin.*expected a folder, a database such as sqlite:///runs.db"),
        ("sqlite:////nowhere/at/all/x.db", "cannot be used: .*unable to open database file"),
        ("mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=50", "cannot be used: 127.0.0.1:1: .*refused"),
        ("/dev/null/x", "cannot be used: .*Not a directory"),
    ],
)
def test_an_observer_that_cannot_be_used_is_one_line(tmp_path, where, message):
    work = Work(tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        work.run(where)
    assert not work.output and not work.notes


def test_passwords_are_not_shown():
    for secret in ("me:secret@", "me:sec/re@t@", "secret@", "me:s ecret@", "me:secret://x@", ":secret@"):
        assert shown(f"postgresql://{secret}host:27/db") == "postgresql://...@host:27/db", secret
        with pytest.raises(ConfigError) as error:
            make_observer(f"nowhere://{secret}host/db?password=se cret&x=secret")
        assert "cret" not in str(error.value)
    assert shown("mysql://host/db?password=secret") == "mysql://host/db?..."
    assert shown("sqlite:///runs.db") == "sqlite:///runs.db" and shown("a@b") == "a@b"


def test_the_recorded_command_has_no_words_of_others():
    given = parse(
        Train,
        ["model.json", "--experiment", "x", "--observer", "mongodb://me:secret@host/db", "--observer", "runs"]
        + ["--recreate_tpu", "gcloud --token=secret up", "--new"],
        "train",
    )
    words = words_of(without_secrets(given))
    assert "secret" not in " ".join(words) and "gcloud" not in " ".join(words)
    assert {"--observer=mongodb://...@host/db", "--observer=runs", "--recreate_tpu=...", "--new"} <= set(words)
