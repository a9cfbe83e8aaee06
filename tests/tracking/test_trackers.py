"""Metrics handed on to other trackers: through their own clients, in folders; one that fails stops nothing."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import types

import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.tracking import trackers
from gpt_neo.tracking.metrics import Metrics
from gpt_neo.tracking.trackers import Follower, open_tracker, tracked
from tests.conftest import ROOT, folder_of

ROWS = [{"step": step, "loss": 5.0 - step / 10, "lr": 1e-3, "tokens_per_second": 100.0 * step} for step in (10, 20, 30)]
HELD_OUT = {"step": 20, "loss": 3.5, "perplexity": 33.1, "bits_per_byte": 1.2}
WANTED = {
    10: {"loss": 4.0, "learning_rate": 1e-3, "tokens_per_second": 1000.0},
    20: {"loss": 3.0, "learning_rate": 1e-3, "tokens_per_second": 2000.0}
    | {"eval_loss": 3.5, "perplexity": 33.1, "bits_per_byte": 1.2},
    30: {"loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": 3000.0},
}


def write_rows(folder):
    for name, rows in (("train_log.jsonl", ROWS), ("eval_x.jsonl", [HELD_OUT])):
        with open(os.path.join(folder, name), "a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in rows)


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self, breaks=False):
        self.rows, self.closed, self.breaks = [], None, breaks

    def log(self, step, values):
        if self.breaks:
            raise RuntimeError("no way to the server")
        self.rows.append((step, values))

    def close(self, failed):
        self.closed = failed


def test_rows_are_handed_on_in_order_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "POLL", 0.02)
    kept, broken, told = Kept(), Kept(breaks=True), []
    with Follower(Metrics(str(tmp_path), "x"), {"kept": kept, "broken": broken}, told.append):
        write_rows(tmp_path)
        for _ in range(200):
            if len(kept.rows) == 3:
                break
            time.sleep(0.02)
        with open(tmp_path / "train_log.jsonl", "a", encoding="utf-8") as handle:
            handle.write('{"step": 40, "loss": 1.0}\n')
    assert dict(kept.rows[:3]) == WANTED and [step for step, _ in kept.rows] == [10, 20, 30, 40]
    assert kept.closed is False and broken.closed is None
    assert told == ["--track broken failed, and gets no more of this run: no way to the server"]
    ended = Kept()
    with Follower(Metrics(str(tmp_path), "x"), {"kept": ended}, told.append) as follower:
        follower.failed = True  # by its exit status
    assert ended.closed is True
    failed = Kept()
    with pytest.raises(ValueError), Follower(Metrics(str(tmp_path), "x"), {"kept": failed}, told.append):
        raise ValueError
    assert failed.closed is True and not failed.rows, "what was there before is not this run's"


def test_what_cannot_be_tracked(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="expected wandb, mlflow, trackio"):
        open_tracker("tensorboard", "x", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"needs the package wandb: pip install -c .*\[wandb\]'"):
        open_tracker("wandb", "x", {})
    with tracked((), str(tmp_path), "x", {}, print):
        pass


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_client_is_told_of_project_run_config_and_end(tmp_path, monkeypatch, kind, failed):
    told = []
    client = types.SimpleNamespace(
        **{
            name: lambda *given, _name=name, **more: told.append((_name, *given, more))
            for name in ("init", "log", "finish")
        }
    )
    monkeypatch.setitem(sys.modules, kind, client)
    for where, project in ((kind, "gpt-neo"), (f"{kind}:mine", "mine")):
        with tracked([where], str(tmp_path), "7", {"lr": 0.5}, pytest.fail, name="night") as follower:
            follower.failed = failed
        end = {"exit_code": int(failed)} if kind == "wandb" else {}
        assert told == [("init", {"project": project, "name": "night", "config": {"lr": 0.5}}), ("finish", end)]
        told.clear()


def test_metrics_go_on_in_the_order_of_their_steps(tmp_path):
    """Evaluations are in a file of their own."""
    kept = Kept()
    follower = Follower(Metrics(str(tmp_path), "x"), {"kept": kept}, pytest.fail)
    (tmp_path / "eval_x.jsonl").write_text('{"step": 15, "loss": 1.0}\n')
    (tmp_path / "train_log.jsonl").write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.5}\n')
    follower.look()
    assert kept.rows == [(10, {"loss": 2.0}), (15, {"eval_loss": 1.0}), (20, {"loss": 1.5})]


def test_last_rows_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    """Those before the failure have been handed on; while the run goes on it is no more than a moment."""
    kept, told, metrics = Kept(), [], Metrics(str(tmp_path), "x")
    with Follower(metrics, {"kept": kept}, told.append) as follower:
        write_rows(tmp_path)
        follower.look()

        def away():
            raise OSError(5, "no answer")

        monkeypatch.setattr(metrics, "poll", away)
        assert follower.look() == "no answer" and not told
    assert told == ["--track kept: the last rows of the run cannot be read: no answer"]
    assert dict(kept.rows) == WANTED and kept.closed is False


@pytest.mark.parametrize("where", ["mlflow", "mlflow:mlruns", "mlflow:file://{}/mlruns", "MLFLOW_TRACKING_URI"])
def test_mlflow_in_a_folder(tmp_path, monkeypatch, where):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    for name in (trackers.FILES, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that it is again what it was
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    place = f"file://{tmp_path}/mlruns"
    config, failed = {"lr": 0.001, "datasets": ["a"], "long": "x" * 9000}, where == "mlflow"
    if where == "MLFLOW_TRACKING_URI":
        place = f"file://{tmp_path}/elsewhere"
        monkeypatch.setenv(where, place)
        where = "mlflow"
    with tracked([where.format(tmp_path)], str(tmp_path), "x", config, pytest.fail, name="night") as follower:
        write_rows(tmp_path)
        follower.failed = failed
    client = MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("gpt-neo").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FAILED" if failed else "FINISHED", "night")
    assert run.data.params == {"lr": "0.001", "datasets": "['a']", "long": "x" * 500}
    for name in ("loss", "learning_rate", "tokens_per_second", "eval_loss", "perplexity", "bits_per_byte"):
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        assert history == {step: values[name] for step, values in WANTED.items() if name in values}


def test_a_server_that_is_away_is_soon_told(tmp_path, monkeypatch):
    """MLflow's client asks eight times by itself, over more than four minutes."""
    pytest.importorskip("mlflow")
    asked = []

    class Away(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802  (http.server's name)
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *words):
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Away) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match="cannot be used"):
            open_tracker(f"mlflow:http://127.0.0.1:{server.server_port}", "x", {})
        server.shutdown()
    assert len(asked) == 3 and trackers.RETRIES not in os.environ


def test_at_the_end_a_tracker_that_does_not_answer_is_waited_for_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "POLL", 0.02)
    kept, told, inside = Kept(), [], threading.Event()

    def tell(line):
        told.append(line)
        inside.set()

    kept.log = lambda step, values: inside.wait(20) and kept.rows.append(step)
    with Follower(Metrics(str(tmp_path), "x"), {"slow": kept}, tell):
        write_rows(tmp_path)
        time.sleep(0.2)
    assert told == ["the run has ended; --track slow: waiting for an answer"]
    assert kept.rows == [10, 20, 30] and kept.closed is False


SCRIPT = """
import json, sys
from gpt_neo.tracking.trackers import tracked
sys.path.insert(0, {root!r})
from tests.tracking.test_trackers import write_rows
with tracked([{where!r}], {folder!r}, "x", {{"lr": 0.001}}, lambda line: sys.exit(line)):
    write_rows({folder!r})
"""


def run_script(tmp_path, where, **environment):
    """In a process of its own: these clients start threads and processes that outlive a run."""
    script = SCRIPT.format(root=ROOT, where=where, folder=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    run_script(tmp_path, "wandb:mine", WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, rows = DataStore(), {}
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows[items.pop("_step", record.history.step.num)] = {k: v for k, v in items.items() if k[0] != "_"}
    assert rows == WANTED


def test_trackio_in_a_folder(tmp_path):
    pytest.importorskip("trackio")
    import sqlite3

    run_script(tmp_path, "trackio:mine", TRACKIO_DIR=str(tmp_path / "kept"))
    (path,) = (tmp_path / "kept").glob("mine*.db")
    with sqlite3.connect(path) as database:
        rows = dict(database.execute("select step, metrics from metrics").fetchall())
    assert {step: json.loads(values) for step, values in rows.items()} == WANTED


def test_a_training_is_tracked(world, command, tmp_path, monkeypatch, capsys):
    kept = Kept()
    monkeypatch.setattr(trackers, "open_tracker", lambda where, name, config: kept)
    path = world.config("handed_on", train_steps=4, eval_steps=1, model_path=str(tmp_path / "run"))
    assert command("--model", path, "--steps_per_log", 2, "--track", "wandb") == 0
    losses = {step: values for step, values in kept.rows}
    assert list(losses) == [2, 4] and "eval_loss" in losses[4] and kept.closed is False
    assert os.path.isdir(folder_of(path))
