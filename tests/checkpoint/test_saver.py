"""Which checkpoints stay: the newest ones, and one per two hours, whatever the clock does."""

import pytest

from gpt_neo.checkpoint.folder import checkpoints_of
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.saver import RunSaver, keeping, unwritten
from gpt_neo.mtf_compat import tf
from tests.checkpoint.test_folder import save

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
