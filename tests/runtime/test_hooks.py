"""When checkpoints are written, and what the log says of the steps between its rows."""

import json
import math
import os
import types

import pytest

from gpt_neo.checkpoint.folder import checkpoints_of
from gpt_neo.checkpoint.names import step_of
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime import goodput, hooks, watch
from gpt_neo.runtime.hooks import Diverged, ProgressLog, SaveHook, SaveTimer, SpikeHook
from gpt_neo.runtime.spikes import WINDOW, SpikeRule
from gpt_neo.runtime.watch import Watch
from tests.conftest import folder_of, set_clock


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    times = {"now": 100.0}
    for module in (hooks, watch, goodput):
        set_clock(monkeypatch, module, lambda: times["now"])
    return times


def saved(timer, clock, steps, seconds):
    """The steps after which a timer asks for a checkpoint, one a step, each of some seconds."""
    found = []
    for step in steps:
        clock["now"] += seconds
        if timer.should_trigger_for_step(step):
            timer.update_last_triggered_step(step)
            found.append(step)
    return found


def test_checkpoints_are_at_the_same_steps_after_a_resume(clock):
    assert saved(SaveTimer(10, 0.0), clock, range(0, 41), 1) == [0, 10, 20, 30, 40]
    assert saved(SaveTimer(10, 0.0), clock, range(13, 41), 1) == [13, 20, 30, 40]
    # a TPU's loop is seen every 4 steps
    assert saved(SaveTimer(10, 0.0), clock, range(0, 41, 4), 1) == [0, 12, 20, 32, 40]


def test_checkpoints_by_time(clock):
    assert saved(SaveTimer(1000, 120.0), clock, range(0, 500), 1) == [0, 120, 240, 360, 480]
    assert saved(SaveTimer(50, 120.0), clock, range(0, 101), 10) == [0, 12, 24, 36, 48, 50, 62, 74, 86, 98, 100]


def test_a_run_saves_by_time(world, command):
    path = world.config("by_time", train_steps=4, eval_steps=1, n_layer=1, attention_types="global")
    assert command("--model", path, "--save_minutes", "0.00001", "--steps_per_checkpoint", "1000") == 0
    folder = folder_of(path)
    assert sorted(map(step_of, checkpoints_of(folder))) == [0, 1, 2, 3, 4]
    with open(os.path.join(folder, "eval_by_time.jsonl"), encoding="utf-8") as handle:
        assert [json.loads(line)["step"] for line in handle] == [4], "time alone asks for no evaluation"


def test_means_between_rows(tmp_path, clock):
    log = ProgressLog(10, 1, str(tmp_path), log_every=3)
    shown = []
    with tf.Graph().as_default():  # as in a session: TensorBoard's writer asks for it
        for step, loss in enumerate([5.0, 4.0, 3.0, 8.0, math.nan, 2.0, 7.0], 1):
            clock["now"] += 1
            shown.append(log.add(step, loss, 0.1).mean_loss)
    assert shown == [5.0, 4.5, 4.0, 8.0, 8.0, 5.0, 7.0], "a batch that was skipped counts for nothing"
    rows = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"], row["mean_loss"]) for row in rows] == [(3, 3.0, 4.0), (6, 2.0, 5.0)]
    no_labels = ProgressLog(10, 1, str(tmp_path), log_every=0)
    means = [no_labels.add(step, loss, 0.1).mean_loss for step, loss in enumerate([3.0, 0.0, 5.0], 1)]
    assert means == [3.0, 3.0, 4.0], "nor does one in which no label counts"
    unlogged = ProgressLog(10, 1, str(tmp_path), log_every=0)
    assert [unlogged.add(step, float(step), 0.1).mean_loss for step in range(1, 31)][-1] == sum(range(11, 31)) / 20


def test_minutes_of_a_save_are_minutes(tmp_path):
    timer = SaveHook(str(tmp_path), None, [], 10, 2.5, goodput.Goodput())._timer
    assert (timer.steps, timer.seconds) == (10, 150.0)


def test_the_twentieth_batch_in_a_row_that_is_skipped_ends_the_run(tmp_path):
    told, watch = [], Watch(str(tmp_path), notice=lambda line: told.append(line))
    hook = SpikeHook(None, None, watch, lambda step: f"those of step {step}")
    hook.rule, watch.step = SpikeRule([2.0] * 16, skipped=18), 7
    hook.fed = hook.rule.limit
    hook.after_run(None, types.SimpleNamespace(results=2.0 * hook.fed))
    limit = f"{hook.fed:.4f}"
    assert told == [f"step 7: loss {2 * hook.fed:.4f}, limit {limit}: batch skipped (those of step 7)"]
    row = json.loads((tmp_path / "watch_log.jsonl").read_text())
    assert (row["event"], row["step"], row["loss"], row["limit"]) == ("skipped", 7, repr(2 * hook.fed), repr(hook.fed))
    with pytest.raises(Diverged, match="step 7: the loss is nan, and 20 batches in a row were skipped") as ended:
        hook.after_run(None, types.SimpleNamespace(results=math.nan))
    assert (ended.value.step, ended.value.skipping) == (7, True) and hook.state()["spikes_skipped"] == 20


def test_a_batch_without_labels_is_no_accepted_loss():
    rule = SpikeRule([2.0] * (WINDOW - 1) + [2.1])
    before = rule.limit
    for _ in range(WINDOW):
        assert not rule.judge(0.0, rule.limit)
    assert rule.limit == before > 2.1 and rule.skipped == 0


def test_how_long_a_run_still_takes_is_told_by_its_last_twenty_steps(tmp_path, clock):
    log = ProgressLog(100, 8, str(tmp_path), log_every=0)
    for step in range(1, 41):
        clock["now"] += 5 if step <= 20 else 2  # the first ones were slow
        told = log.add(step, 1.0, 0.1)
    assert (told.tokens_per_second, told.seconds_left, told.step, told.train_steps) == (4.0, 120.0, 40, 100)


def test_rows_are_at_multiples_and_at_the_end(tmp_path, clock):
    log, spent, shown = ProgressLog(7, 8, str(tmp_path), log_every=3), goodput.Goodput(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "write_progress", lambda folder, step, scalars: shown.append((folder, step, scalars)))
        for step in range(1, 8):
            clock["now"] += 2
            with spent.spending("saves"):
                clock["now"] += 0.5
            spent.step_ended()
            log.add(step, 1.0, 0.25, spent, {"loss": float(step)})
    rows = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["lr"], row["tokens_per_second"]) for row in rows] == [(n, 0.25, 3.2) for n in (3, 6, 7)]
    assert [row["goodput"] for row in rows] == [round(2 * (n - 1) / (2.5 * n), 4) for n in (3, 6, 7)]
    assert shown == [(str(tmp_path), n, {"loss": float(n), "tokens_per_second": 3.2}) for n in (3, 6, 7)]


def test_evaluation_is_no_training_time(tmp_path, clock):
    log, run = ProgressLog(10, 8, str(tmp_path), log_every=0), Watch(str(tmp_path))
    speeds = []
    for step in range(1, 7):
        clock["now"] += 2
        speeds.append(log.add(step, 1.0, 0.1, run.time).tokens_per_second)
        if step % 2 == 0:
            with run.apart():
                clock["now"] += 100
    assert speeds == [None, 4.0, 4.0, 4.0, 4.0, 4.0] and run.time.spent["evaluation"] == 300
