"""Metrics followed from outside, against what was written, and against TensorFlow's own writer."""

import json

import pytest

from gpt_neo.tracking import metrics as module
from gpt_neo.tracking.events import scalars_of
from gpt_neo.tracking.metrics import Measurement, Metrics, event_measurements, look, trained


def append(path, *rows):
    with open(path, "a", encoding="utf-8") as handle:
        for row in rows:
            handle.write(row if isinstance(row, str) else json.dumps(row) + "\n")


def test_new_rows_only_and_each_step_once(tmp_path):
    log = tmp_path / "train_log.jsonl"
    append(log, {"step": 10, "loss": 9.0})
    metrics = Metrics(str(tmp_path), "7")  # what is there belongs to an earlier run
    assert metrics.poll() == []
    append(log, {"step": 20, "loss": 3.0, "lr": 0.5, "tokens_per_second": None}, '{"step": 30, "lo')
    assert metrics.poll() == [Measurement("loss", 20, 3.0), Measurement("learning_rate", 20, 0.5)]
    append(log, 'ss": 2.0}\n', {"step": 20, "loss": 3.0}, {"step": 40, "loss": 1.5})
    assert [m.step for m in metrics.poll()] == [30, 40] and metrics.step == 40
    append(tmp_path / "eval_7.jsonl", {"step": 40, "loss": 1.25, "perplexity": 3.5, "bits_per_byte": None})
    append(tmp_path / "eval_8.jsonl", {"step": 41, "loss": 1.25})
    assert metrics.poll() == [Measurement("eval_loss", 40, 1.25), Measurement("perplexity", 40, 3.5)]
    log.write_text("")  # --new
    append(log, {"step": 50, "loss": 1.0})
    assert metrics.poll() == [Measurement("loss", 50, 1.0)]


def test_a_row_that_is_written_in_two_pieces_brings_no_earlier_run_back(tmp_path):
    """Nor does a step that comes a second time count twice, and 0 is a step."""
    log = tmp_path / "train_log.jsonl"
    append(log, {"step": 30, "loss": 9.0})
    metrics = Metrics(str(tmp_path), "7")
    append(log, {"step": 0, "loss": 4.0}, {"step": 10, "loss": 3.0}, '{"step": 11, "lo')
    assert metrics.poll() == [Measurement("loss", 0, 4.0), Measurement("loss", 10, 3.0)]
    append(log, 'ss": 2.5}\n', {"step": 11, "loss": 2.5}, {"step": 12, "loss": 2.0})
    assert metrics.poll() == [Measurement("loss", 11, 2.5), Measurement("loss", 12, 2.0)]
    assert metrics.latest == {"loss": Measurement("loss", 12, 2.0)} and metrics.step == 12


def test_the_evaluation_of_the_step_that_a_run_is_taken_back_to_counts():
    rows = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}, {"step": 10, "taken_back": True}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert module.evaluation_points(data) == [("eval_loss", 10, 3.0)]


def test_what_was_read_before_the_storage_failed_comes_later(tmp_path, monkeypatch):
    metrics, read = Metrics(str(tmp_path), "7"), module.storage.open_read
    append(tmp_path / "train_log.jsonl", {"step": 10, "loss": 3.0})
    append(tmp_path / "eval_7.jsonl", {"step": 10, "loss": 2.5})

    def fails(path, *more):
        if "eval_" in path:
            raise OSError(5, "no answer")
        return read(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(module.storage, "open_read", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="no answer"):
                metrics.poll()
    assert metrics.poll() == [Measurement("loss", 10, 3.0), Measurement("eval_loss", 10, 2.5)]
    assert metrics.poll() == []


def test_evaluations_of_an_earlier_run_hide_none_of_this_one(tmp_path):
    """Which goes on from a step behind them."""
    log = tmp_path / "eval_7.jsonl"
    append(log, *({"step": step, "loss": 9.0} for step in (10, 20, 30)))
    metrics = Metrics(str(tmp_path), "7")
    assert metrics.poll() == []
    append(log, {"step": 10, "taken_back": True}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 1.5})
    assert metrics.poll() == [Measurement("eval_loss", 20, 2.0), Measurement("eval_loss", 30, 1.5)]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_log_that_was_written_anew_is_read_whole(tmp_path, rows):
    """Also where it is as long as the old one, or longer, by the time that it is looked at."""
    log = tmp_path / "train_log.jsonl"
    append(log, {"step": 10, "loss": 9.0}, {"step": 20, "loss": 8.0})
    metrics = Metrics(str(tmp_path), "7")
    log.unlink()
    append(log, *({"step": 10 * (i + 1), "loss": 7.0 - i} for i in range(rows)))
    assert metrics.poll() == [Measurement("loss", 10 * (i + 1), 7.0 - i) for i in range(rows)]
    append(log, {"step": 1000, "loss": 0.5})
    assert metrics.poll() == [Measurement("loss", 1000, 0.5)]


def test_all_that_a_training_measured(tmp_path):
    append(tmp_path / "train_log.jsonl", {"step": 10, "loss": 9.0}, "no json\n", {"step": 11, "loss": 8.0})
    assert [m.value for m in trained(str(tmp_path))] == [9.0, 8.0]


def test_event_files_as_tensorflow_writes_them(tmp_path):
    import tensorflow as tf

    metrics = Metrics(str(tmp_path), "1", events=True)
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():  # as a TPU's host does
        tf.summary.scalar("loss", 2.5, step=300)
        tf.summary.scalar("other", 1.0, step=300)
    writer.flush()
    assert metrics.poll() == [Measurement("loss", 300, 2.5)]
    old = tf.compat.v1.Summary(value=[tf.compat.v1.Summary.Value(tag="learning_rate", simple_value=0.25)])
    event = tf.compat.v1.Event(step=1 << 33, summary=old).SerializeToString()
    assert list(scalars_of(event)) == [("learning_rate", 1 << 33, 0.25)]
    with writer.as_default():
        tf.summary.scalar("loss", 2.0, step=400)
    writer.close()
    assert metrics.poll() == [Measurement("loss", 400, 2.0)]
    with pytest.raises(ValueError):
        list(scalars_of(event[:-1]))
    assert event_measurements(event[:-1]) == [] and len(event_measurements(event)) == 1


def test_signs_of_life(tmp_path):
    odd = tmp_path / "run[1]"
    assert look(str(odd)).checkpoint == 0
    odd.mkdir()
    first = look(str(odd))
    append(odd / "train_log.jsonl", {"step": 1})
    second = look(str(odd))
    (odd / "model.ckpt-120.index").write_text("")
    (odd / "model.ckpt-90.index").write_text("")
    third = look(str(odd))
    assert len({first.trace, second.trace, third.trace}) == 3 and third.checkpoint == 120


def test_a_run_in_a_bucket(gcs):
    from gpt_neo import storage
    from tests.gcs import BUCKET

    folder = f"gs://{BUCKET}/run"
    metrics = Metrics(folder, "1")
    rows = [json.dumps({"step": step, "loss": float(step)}) + "\n" for step in (1, 2)]
    storage.write_bytes(f"{folder}/train_log.jsonl", rows[0].encode())
    before = look(folder)
    assert [m.step for m in metrics.poll()] == [1]
    storage.write_bytes(f"{folder}/train_log.jsonl", "".join(rows).encode())
    storage.write_bytes(f"{folder}/model.ckpt-2.index", b"")
    assert [m.step for m in metrics.poll()] == [2] and metrics.poll() == []
    assert look(folder).trace != before.trace and look(folder).checkpoint == 2


def test_names_of_metrics():
    assert set(module.TRAIN_NAMES) == {"loss", "lr", "tokens_per_second", "goodput"}
