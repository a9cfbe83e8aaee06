"""What the time of a run goes into."""

import json

import pytest

from gpt_neo.runtime.goodput import KEY, Goodput, last_row, share_text

START = 1_700_000_000  # of this process, in the world's time


class Clock:
    """Of this process and of the world."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wall(self):
        return self.now + START


@pytest.fixture
def clock():
    return Clock()


def test_all_time_is_in_one_kind(clock):
    time = Goodput(clock, clock.wall)
    clock.now = 3
    with time.spending("saves"):  # the first checkpoint, and what is evaluated at it
        clock.now = 5
        with time.spending("evaluation"):
            clock.now = 9
        clock.now = 10
    clock.now = 14
    time.step_ended()
    time.wait()
    clock.now = 16
    time.add("input", time.waited())
    clock.now = 34
    time.step_ended()
    assert time.seconds() == {"steps": 18, "start": 7, "input": 2, "saves": 3, "evaluation": 4, "restarts": 0}
    assert time.share == 18 / 34
    assert share_text(time.seconds()) == "53 % steps, 21 % start, 6 % input, 9 % saves, 12 % evaluation"


def test_a_resumed_run_goes_on_with_the_seconds_of_its_log(clock, tmp_path):
    path = tmp_path / "log"
    seconds = {"start": 5, "saves": 1}
    rows = [{"step": n, KEY: {"at": START - 100 + n, "steps": n, **seconds}} for n in (10, 20, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 12}\nno row\n{"step"')
    time = Goodput(clock, clock.wall)
    clock.now = 4
    assert last_row(str(path), 30)["steps"] == 30  # the row of the very step is of it
    time.resume(str(path), 25)  # the ten steps after that of row 20 are lost, and all time until the start
    time.step_ended()
    clock.now = 24
    time.step_ended()
    assert time.seconds() == {"steps": 20 + 20, "start": 5 + 4, "input": 0, "saves": 1, "evaluation": 0, "restarts": 80}
    assert time.row() == {"at": START + 24, **time.seconds()}


@pytest.mark.parametrize("at", [25.0, START + 9e9])
def test_a_row_of_a_clock_that_was_not_set(clock, tmp_path, at):
    """Nobody knows how long the restart took; it was no 53 years."""
    path = tmp_path / "log"
    path.write_text(json.dumps({"step": 20, KEY: {"at": at, "steps": 90, "restarts": 2}}) + "\n")
    time = Goodput(clock, clock.wall)
    time.resume(str(path), 25)
    time.step_ended()
    clock.now = 8
    assert time.seconds()["restarts"] == 2 and time.share == 0.98


def test_a_log_of_an_older_program_or_none(tmp_path):
    path = tmp_path / "log"
    assert last_row(str(path), 5) is None
    path.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "time": {"at": NaN, "steps": 1}}\n[]\n{"step": 3, "time": 5}\n'
    )
    assert last_row(str(path), 5) is None
