"""Steps that are begun before the results of the one before are read."""

import types

import numpy as np
import pytest

from gpt_neo.errors import DeviceError
from gpt_neo.runtime.goodput import Goodput
from gpt_neo.spmd.steps import Steps


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


class Late:
    """Devices whose steps give their number, and fail on purpose."""

    def __init__(self):
        self.pending, self.given, self.waiting, self.fails = {}, [], True, False

    def step_ahead(self, given):
        self.given.append(given)
        before = self.settle()
        self.pending = {name: np.float32([given["step"], -1]) for name in ("loss", "rate", "more")}
        return self.waiting, before

    def settle(self):
        if self.fails:
            raise DeviceError("out of memory")
        before, self.pending = self.pending, {}
        return before


@pytest.fixture
def world():
    clock, devices = Clock(), Late()
    spent = Goodput(clock, clock)
    return types.SimpleNamespace(
        clock=clock, devices=devices, spent=spent, steps=Steps(devices, ["loss", "rate"], spent)
    )


def test_each_result_is_told_once_with_the_number_of_its_step(world):
    batch = np.zeros([2, 3], np.int32)
    for step in (7, 8, 9):
        world.steps.begin(step, {"inputs": batch})
        assert world.steps.taken() == ([] if step == 7 else [(step, {"loss": step - 1.0, "rate": step - 1.0})])
    world.steps.settle()
    world.steps.settle()
    assert world.steps.taken() == [(10, {"loss": 9.0, "rate": 9.0})] and world.steps.taken() == []
    assert [int(given["step"]) for given in world.devices.given] == [7, 8, 9]
    assert all(given["step"].dtype == np.int32 and given["inputs"] is batch for given in world.devices.given)


def test_records_are_waited_for_only_where_devices_wait(world):
    for seconds, waiting in ((2.0, True), (3.0, False), (4.0, True)):
        world.spent.wait()
        world.clock.now += seconds
        world.devices.waiting = waiting
        world.steps.begin(0, {})
    assert world.spent.spent["input"] == 6.0


def test_a_step_that_fails_is_told_when_it_is_waited_for(world):
    world.steps.begin(0, {})
    world.devices.fails = True
    with pytest.raises(DeviceError, match="out of memory"):
        world.steps.settle()
    with pytest.raises(DeviceError, match="out of memory"):
        world.steps.begin(1, {})
    assert world.steps.taken() == []
