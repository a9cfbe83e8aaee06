"""Restarts: when, how often, and what is said about it. The children are small scripts."""

import contextlib
import os
import signal
import sys
import threading
import time

import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.tracking.metrics import Metrics, look
from gpt_neo.tracking.supervisor import CAPTURED, Output, Policy, Supervisor, Watched
from tests.conftest import ROOT

# Logs the steps from `first` on, as training does, then does as told.
CHILD = """
import json, os, signal, sys, time
folder, attempt, first, last = sys.argv[1], *map(int, sys.argv[2:5])
for step in range(first, last + 1):
    with open(os.path.join(folder, "train_log.jsonl"), "a") as log:
        log.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
print("attempt", attempt, flush=True)
"""


class Harness:
    """A folder, and children that act out a list of scenes (first step, last step, what then)."""

    def __init__(self, folder):
        self.folder, self.told, self.scenes = str(folder), [], []

    def supervise(self, *scenes, train_steps=100, **changes):
        policy = Policy(**{"stall": 30, "pause": 0.01, "grace": 0.2, "poll": 0.05, **changes.pop("policy", {})})
        self.metrics = Metrics(self.folder, "1")

        def command(attempt):
            first, last, then = scenes[min(attempt, len(scenes)) - 1]
            return [sys.executable, "-S", "-c", CHILD + then, self.folder, str(attempt), str(first), str(last)]

        def watch():
            self.metrics.poll()
            life, step = look(self.folder), self.metrics.step
            return Watched(life.trace, (step, life.checkpoint), step >= train_steps, step)

        self.supervisor = Supervisor(command, watch, policy, self.told.append, **changes)
        wait = self.supervisor.stop.wait  # what is told is not waited for
        self.supervisor.stop.wait = lambda seconds: wait(min(seconds, 0.05))
        return self.supervisor.run()


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


def test_dead_runs_start_again_with_growing_pauses(harness):
    killed = "os.kill(os.getpid(), signal.SIGKILL)"
    scenes = [
        (1, 3, killed),
        (2, 3, "sys.exit(1)"),
        (2, 3, "sys.exit(75)"),
        (2, 3, "sys.exit(69)"),
        (2, 9, "sys.exit(143)"),
        (9, 20, ""),
    ]
    assert harness.supervise(*scenes, policy={"pause": 15, "longest": 100, "failures": 6}) == 0
    assert harness.told == [
        "the training was ended by SIGKILL at step 3; attempt 2 in 15 s",
        "the training ended with status 1 at step 3; attempt 3 in 30 s",
        "the training stood still at step 3; attempt 4 in 60 s",
        "the training has lost a machine or its devices at step 3; attempt 5 in 100 s",
        "the training was preempted at step 9; attempt 6 in 15 s",
    ]
    assert harness.metrics.step == 20 and harness.supervisor.output.text().count("attempt") == 6


def test_a_repeated_failure_at_the_same_step_ends_it(harness):
    assert harness.supervise((1, 4, "sys.exit(1)"), (3, 4, "sys.exit(1)"), policy={"failures": 3}) == 1
    assert harness.supervisor.attempt == 3
    assert harness.told[-1] == "the training ended with status 1 at step 4, 3 times now: given up"


def test_a_mistake_is_not_repeated(harness):
    assert harness.supervise((1, 0, "sys.exit(2)")) == 2
    assert harness.supervisor.attempt == 1 and not harness.told


def test_a_folder_in_use_is_tried_again(harness):
    assert harness.supervise((1, 0, "sys.exit(73)"), (1, 3, "")) == 0
    assert harness.told == ["another run is in the folder at step 0; attempt 2 in 0 s"]


def test_the_child_ends_with_its_supervisor(harness, tmp_path):
    """However that goes; it gets the signal that lets a training save."""
    scene = f"""
sys.path.insert(0, {ROOT!r})
from gpt_neo.tracking.supervisor import end_with_parent
def hear(number, frame):
    open(os.path.join(folder, "heard"), "w").write(str(number))
    os._exit(0)
signal.signal(signal.SIGTERM, hear)
end_with_parent()
open(os.path.join(folder, "ready"), "w").close()
time.sleep(60)
"""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            harness.supervise((1, 2, scene))
        os._exit(0)
    wait_for(tmp_path / "ready")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(tmp_path / "heard")
    assert (tmp_path / "heard").read_text() == str(int(signal.SIGTERM))


def wait_for(path):
    for _ in range(1000):
        if path.exists() and (path.name == "ready" or path.read_text()):
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} does not appear")


def test_an_error_in_the_middle_is_tried_again(harness):
    assert harness.supervise((1, 4, "sys.exit(2)"), (3, 8, "")) == 0


def test_a_stalled_run_is_ended_with_its_stacks_and_started_again(harness, capfd):
    stuck = """
signal.signal(signal.SIGTERM, lambda *_: time.sleep(600))
import faulthandler; faulthandler.enable()
def stuck_here(): time.sleep(600)
stuck_here()
"""
    began = time.monotonic()
    assert harness.supervise((1, 2, stuck), (2, 5, ""), policy={"stall": 0.5}) == 0
    assert time.monotonic() - began < 300
    assert harness.told[0].startswith("no sign of life for 0.00833 min")
    assert harness.told[1].startswith("the training stood still at step 2; attempt 2")
    assert "stuck_here" in harness.supervisor.output.text()


def test_a_training_that_looks_after_itself_is_left_alone(harness):
    """A step, or an evaluation, that takes longer than the supervisor waits without a sign."""
    silent = "\nfor _ in range(30):\n    time.sleep(0.05); os.utime(os.environ['GPT_NEO_PULSE'])"
    assert harness.supervise((1, 2, silent), policy={"stall": 0.5}) == 0
    assert harness.told == []


def test_a_cleaner_of_temporary_files_ends_nothing(harness):
    gone = "\nos.remove(os.environ['GPT_NEO_PULSE'])\ntime.sleep(0.3)"
    assert harness.supervise((1, 2, gone)) == 0 and harness.told == []
    assert harness.supervisor.pulse.close() is None  # closed, without a word that the file is gone


def test_after_the_last_step_silence_is_no_stall(harness):
    assert harness.supervise((1, 7, "time.sleep(1.5)"), train_steps=7, policy={"stall": 0.3}) == 0


def test_what_follows_the_training_is_looked_after_as_well(harness):
    """A sample of a large model takes longer than the supervisor waits between two looks; a signal ends it."""
    assert harness.supervise((1, 2, "")) == 0
    script = "import os, time; os.utime(os.environ['GPT_NEO_PULSE']); time.sleep({}); print('sampled', flush=True)"
    words = [sys.executable, "-S", "-c"]
    assert harness.supervisor.once([*words, script.format(0.4)]) == 0
    assert harness.supervisor.output.text() == "attempt 1\nsampled\n"
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert harness.supervisor.once([*words, script.format(30)]) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number, expected", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_reach_the_child_once_and_end_it(harness, number, expected):
    scene = """
heard = []
def hear(number, frame):
    heard.append(number)
    time.sleep(0.3)
    sys.exit(128 + number if len(heard) == 1 else 1)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, hear)
print("ready", flush=True)
time.sleep(30)
"""

    def send():
        while "ready" not in harness.supervisor.output.text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    harness.supervisor = type("Early", (), {"output": Output()})
    threading.Thread(target=send, daemon=True).start()
    before = signal.getsignal(number)
    assert harness.supervise((1, 2, scene)) == expected
    assert harness.supervisor.attempt == 1 and signal.getsignal(number) is before


def test_a_preempted_tpu_is_made_again_before_each_attempt(harness, tmp_path):
    made = tmp_path / "made"
    script = f"""
import os, sys
path = {str(made)!r}
lines = open(path).read().splitlines() if os.path.exists(path) else []
open(path, "a").write(os.environ["GPT_NEO_STATUS"] + " " + os.environ["GPT_NEO_STEP"] + "\\n")
sys.exit(0 if lines else 1)  # there is none to be had at first
"""
    restore = [sys.executable, "-S", "-c", script]
    assert harness.supervise((1, 4, "sys.exit(143)"), (3, 8, "sys.exit(1)"), (8, 9, ""), restore=restore) == 0
    assert made.read_text().splitlines() == ["143 4", "143 4", "1 8"]
    assert "--recreate_tpu ended with status 1; again in 0 s" in harness.told


def test_a_command_that_cannot_be_run_is_a_mistake(harness):
    with pytest.raises(ConfigError, match="--recreate_tpu no-such-command ...: cannot be run: No such"):
        harness.supervise((1, 4, "sys.exit(143)"), restore=["no-such-command", "again"])


def test_unreadable_storage_ends_nothing(harness, monkeypatch):
    calls = []

    def watch():
        calls.append(1)
        if len(calls) < 4:
            raise OSError("503")
        return Watched((), (5,), False)

    supervisor = Supervisor(
        lambda attempt: [sys.executable, "-S", "-c", "import time; time.sleep(0.5)"],
        watch,
        Policy(poll=0.05),
        harness.told.append,
    )
    assert supervisor.run() == 0 and len(calls) > 4
    assert harness.told == ["the run's folder cannot be read just now: 503"]


def test_kept_output_has_a_limit():
    output = Output()
    for _ in range(5):
        output.keep("x" * (CAPTURED // 3))
    assert len(output.text()) < CAPTURED + 100 and output.text().endswith("[more was printed, and is not kept]\n")


def test_characters_that_come_in_pieces_are_whole(harness, capfd):
    text = "中文 é 🙂"
    pieces = f"""
for byte in {text.encode()!r}:
    os.write(1, bytes([byte]))
    time.sleep(0.02)
os.write(1, "é".encode()[:1])
"""
    assert harness.supervise((1, 3, pieces)) == 0
    assert f"{text}\ufffd" in harness.supervisor.output.text() and f"{text}\ufffd" in capfd.readouterr().out
