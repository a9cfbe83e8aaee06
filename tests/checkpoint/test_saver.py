"""Which checkpoints stay: the newest ones, and one per two hours, whatever the clock does; what is told of failures."""

import errno
import json
import subprocess
import sys
import types

import pytest

from gpt_neo.checkpoint import saver as saver_module
from gpt_neo.checkpoint.folder import checkpoints_of
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.saver import RecordListener, RunSaver, keeping, tried, unwritten
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from tests.checkpoint.test_folder import save
from tests.conftest import ROOT

HOUR, DAY = 3600.0, 24 * 3600.0


@pytest.mark.parametrize(
    "jump, kept",
    [
        (0.0, [5, 9, 13, 17]),  # half an hour apart
        (30 * DAY, [5, 7, 9, 13, 17]),
        (-30 * DAY, [12, 16]),
    ],
    ids=["a clock that goes on", "set forward, or a machine that slept", "set back"],
)
def test_one_per_two_hours_stays(tmp_path, monkeypatch, jump, kept):
    now = [1.8e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    with tf.Graph().as_default(), tf.Session() as session:
        value = tf.get_variable("value", [], initializer=tf.zeros_initializer())
        saver = RunSaver([value], **keeping(2))
        session.run(value.initializer)
        for step in range(1, 21):
            now[0] += HOUR / 2 + (jump if step == 7 else 0.0)
            saver.save(session, str(tmp_path / "model.ckpt"), step)
    steps = sorted(step_of(path) for path in checkpoints_of(str(tmp_path)))
    assert steps == [*kept, 19, 20]


def test_what_is_lost_with_a_file_that_cannot_be_written(tmp_path):
    """Of a folder that was removed while a run trained, that is all."""
    path = str(tmp_path / "gone" / "model.ckpt-9")
    text = str(unwritten(path, FileNotFoundError(2, "No such file or directory")))
    assert text.endswith("No checkpoint is there; once that is mended, the same command begins anew")
    assert "Nothing is lost" not in text
    save(tmp_path, 5)
    text = str(unwritten(str(tmp_path / "model.ckpt-9"), OSError(28, "No space left on device")))
    assert "Nothing is lost: the newest whole checkpoint is that of step 5; once" in text and "goes on" in text


UNREADABLE = """
import os, sys
from gpt_neo.checkpoint.saver import RunSaver, keeping
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from tests.namespaces import drop_capabilities
drop_capabilities()
with tf.Graph().as_default(), tf.Session() as session:
    value = tf.get_variable("value", [], initializer=tf.zeros_initializer())
    session.run(value.initializer)
    saver = RunSaver([value], **keeping(2))
    path = saver.save(session, sys.argv[1], 1)
    os.chmod(path + ".data-00000-of-00001", 0)
    try:
        saver.restore(session, path)
    except CheckpointError as error:
        print(error)
"""


def test_a_checkpoint_of_another_user(tmp_path):
    path = str(tmp_path / "model.ckpt")
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(f"{path}-1: cannot be read: ") and "Permission denied" in done.stdout, done.stderr


def disk_error(*given, **options):
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    "fails, said",
    [
        ("gpt_neo.storage.sync", r"run/\*\.jsonl: cannot be written: Input/output error"),
        ("gpt_neo.checkpoint.provenance.files.names", r"run/model\.ckpt-\*\.json: cannot be listed or deleted: Input"),
    ],
)
def test_what_fails_beside_a_save_is_told_with_the_checkpoint_that_is_there(tmp_path, monkeypatch, fails, said):
    """And nothing of the folder above is touched, which may be another run's."""
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder, 1)
    (tmp_path / "model.ckpt-3.json").write_text("{}")
    (folder / "train_log.jsonl").write_text("{}\n")
    listener = RecordListener(str(folder), lambda step: {}, RunSaver([tf.Variable(0.0)]))
    monkeypatch.setattr(fails, disk_error)
    with pytest.raises(CheckpointError, match=said + ".* is that of step 1; once that is mended"):
        listener.before_save(None, 2)
        listener.after_save(None, 2)
    assert (tmp_path / "model.ckpt-3.json").exists()


def test_the_record_of_a_checkpoint_that_a_listing_has_not_yet_stays(tmp_path, monkeypatch):
    save(tmp_path, 1)
    for step in (0, 1, 2):
        (tmp_path / f"model.ckpt-{step}.json").write_text("{}")
    RecordListener(str(tmp_path), lambda step: {}, RunSaver([tf.Variable(0.0)])).after_save(None, 2)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["model.ckpt-1.json", "model.ckpt-2.json"]


@pytest.mark.parametrize(
    "path, error, failures, pauses",
    [
        ("gs://b/model.ckpt", tf.errors.UnavailableError, 2, [10.0, 20.0]),
        ("gs://b/model.ckpt", tf.errors.UnknownError, 9, [10.0, 20.0, 40.0]),
        ("gs://b/model.ckpt", tf.errors.PermissionDeniedError, 1, []),
        ("/disk/model.ckpt", tf.errors.UnavailableError, 1, []),
    ],
)
def test_a_save_to_a_bucket_is_tried_four_times(monkeypatch, path, error, failures, pauses):
    """Where it may pass; with a pause that doubles."""
    slept, left = [], [error(None, None, "no")] * failures

    def write():
        if left:
            raise left.pop()
        return "written"

    monkeypatch.setattr(saver_module, "time", types.SimpleNamespace(sleep=slept.append))
    if len(pauses) == failures:
        assert tried(path, write) == "written"
    else:
        with pytest.raises(error):
            tried(path, write)
        assert failures - len(left) == len(pauses) + 1
    assert slept == pauses


def test_a_checkpoint_is_on_the_disk_data_first_before_the_state_file_names_it(tmp_path, monkeypatch):
    synced, sync = [], saver_module.storage.sync

    def noted(*paths):
        synced.append(([path.rpartition(".")[2] for path in paths], (tmp_path / "checkpoint").exists()))
        sync(*paths)

    monkeypatch.setattr(saver_module.storage, "sync", noted)
    with tf.Graph().as_default(), tf.Session() as session:
        value = tf.get_variable("value", [], initializer=tf.zeros_initializer())
        session.run(value.initializer)
        RunSaver([value], **keeping(2)).save(session, str(tmp_path / "model.ckpt"), 1, write_meta_graph=False)
    assert synced[0] == (["data-00000-of-00001", "index"], False) and synced[1][1]


def test_the_record_of_what_was_restored_is_its_own_unless_it_has_none(tmp_path):
    saver = RunSaver([tf.Variable(0.0)])
    saver.restored = "model.ckpt-5"
    listener = RecordListener(str(tmp_path), lambda step: {"step": step, "made": "now"}, saver)
    (tmp_path / "model.ckpt-5.json").write_text('{"made": "before"}')
    for step in (5, 6):
        listener.before_save(None, step)
    assert json.loads((tmp_path / "model.ckpt-5.json").read_text()) == {"made": "before"}
    assert json.loads((tmp_path / "model.ckpt-6.json").read_text())["made"] == "now"
    (tmp_path / "model.ckpt-5.json").unlink()
    listener.before_save(None, 5)
    assert json.loads((tmp_path / "model.ckpt-5.json").read_text())["made"] == "now"


@pytest.mark.parametrize("name", ["run", "run[1]"])
def test_a_checkpoint_is_restored_whatever_its_folder_is_called(tmp_path, monkeypatch, name):
    """TensorFlow takes some names for patterns. What it says of files that have just gone is one line."""
    (tmp_path / name).mkdir()
    path = save(tmp_path / name, 5, 2.5)
    with tf.Graph().as_default(), tf.Session() as session:
        value = tf.get_variable("gpt2/wte", [4, 4])
        saver = RunSaver([value])
        saver.restore(session, path)
        assert (session.run(value) == 2.5).all() and saver.restored == "model.ckpt-5"
        if name == "run":
            for error in (
                ValueError("no valid checkpoint"),
                tf.errors.NotFoundError(None, None, "no valid checkpoint"),
            ):
                monkeypatch.setattr(tf.train.Saver, "restore", raiser(error))
                with pytest.raises(CheckpointError, match="model.ckpt-5: cannot be read: no valid checkpoint"):
                    saver.restore(session, path)
            monkeypatch.setattr(tf.train.Saver, "restore", raiser(tf.errors.DataLossError(None, None, "bad bytes")))
            with pytest.raises(CheckpointError, match="model.ckpt-5: damaged: bad bytes; nothing was loaded"):
                saver.restore(session, path)


def raiser(error):
    def fail(*given):
        raise error

    return fail
