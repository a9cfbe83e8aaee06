"""Traces of some steps."""

import glob
import gzip
import json
import os

import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.profile import Profile, ProfileHook, parse_span, session_profile


def run(profile, told, begin=0, steps=6):
    """Steps of a session with the hook."""
    with tf.Graph().as_default():
        counter = tf.train.get_or_create_global_step()
        product = tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64]), name="the_product")
        with tf.control_dependencies([product]):
            train = tf.assign_add(counter, 1)
        hooks = [ProfileHook(profile, told.append), tf.train.StopAtStepHook(last_step=begin + steps)]
        scaffold = tf.train.Scaffold(init_op=tf.group(counter.assign(begin)))
        with tf.train.SingularMonitoredSession(hooks, scaffold) as session:
            while not session.should_stop():
                session.run(train)


@pytest.mark.parametrize(
    "first, last, begin, traced",
    [(2, 3, 0, ["start", "stop"]), (5, 99, 0, ["start", "stop"]), (1, 3, 2, ["start", "stop"])],
)
def test_a_trace_begins_and_ends_once(first, last, begin, traced):
    seen, told = [], []
    run(Profile(first, last, "runs/x", lambda folder: seen.append("start"), lambda: seen.append("stop")), told, begin)
    assert seen == traced
    assert told == [f"the trace up to step {min(last, begin + 6)} is in runs/x/plugins/profile"]


def test_a_run_that_is_past_the_steps_traces_nothing():
    seen, told = [], []
    run(Profile(2, 4, "x", seen.append, lambda: None), told, begin=4)
    assert not seen and told == ["--profile: the run is past step 4; nothing is traced"]


def test_a_run_that_ends_before_the_steps_traces_nothing():
    seen, told = [], []
    run(Profile(7, 9, "x", seen.append, lambda: None), told)
    assert not seen and told == ["--profile: the run ended before step 7; nothing is traced"]


def test_what_a_session_does_is_in_the_trace(tmp_path):
    run(session_profile("2:3", str(tmp_path)), [])
    (place,) = glob.glob(str(tmp_path / "plugins" / "profile" / "*"))
    names = sorted(os.path.splitext(name)[1] for name in os.listdir(place))
    assert names == [".gz", ".pb"]  # TensorBoard's, and Perfetto's
    (path,) = glob.glob(os.path.join(place, "*.trace.json.gz"))
    with gzip.open(path) as handle:
        events = json.load(handle)["traceEvents"]
    assert len([event for event in events if event.get("name", "").startswith("SessionRun")]) == 2


@pytest.mark.parametrize("text", ["3", "0:2", "5:4", "a:b", "-1:2", "1:2:3", ":", "1:", "1:²"])
def test_steps_that_are_none(text):
    with pytest.raises(ConfigError, match="expected FROM:TO, two steps, such as 10:12"):
        parse_span(text)
