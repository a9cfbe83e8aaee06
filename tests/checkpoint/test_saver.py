"""Which checkpoints stay: the newest ones, and one per two hours, whatever the clock does."""

import pytest

from gpt_neo.checkpoint.folder import checkpoints_of
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.saver import RunSaver, keeping
from gpt_neo.mtf_compat import tf

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
