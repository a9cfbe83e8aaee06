"""Steps of a training on devices of another process, each begun before what the one before it gave is read.

So the devices have the next batch when they are done with one, and do not wait for the host that reads records, logs
and answers signals. What a step gives is therefore known one step later, or when it is waited for: before a checkpoint
is written, and at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.goodput import Goodput
from gpt_neo.runtime.hooks import ProgressHook
from gpt_neo.runtime.model_fn import TrainingSetup

TAGS = {"loss": "loss", "rate": "learning_rate", "norm": "gradient_norm"}  # of results in TensorBoard


class Steps:
    """The steps of a program.

    Args:
      devices: as `Devices`.
      wanted: names of results.
      spent: told of the time in which devices waited for a batch.
    """

    def __init__(self, devices: Any, wanted: Sequence[str], spent: Goodput) -> None:
        self.devices, self.wanted, self.spent = devices, wanted, spent
        self.last = 0  # step that was begun, 1 for the first
        self.ended: list[tuple[int, dict[str, float]]] = []

    def begin(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Begin a step, once the one before the last has ended.

        Args:
          step: the number of steps before it.

        Raises:
          DeviceError: the devices refuse.
        """
        seconds = self.spent.waited()
        idle, results = self.devices.step_ahead({"step": np.int32(step), **batch})
        if idle:
            self.spent.add("input", seconds)
        self.keep(results)
        self.last = step + 1

    def settle(self) -> None:
        """Wait for the last one. Raises: DeviceError: it failed."""
        self.keep(self.devices.settle())

    def keep(self, results: Mapping[str, np.ndarray]) -> None:
        """What the last step gave, if there was one whose results nobody has: all cores have the same."""
        if results:
            self.ended.append((self.last, {name: float(results[name][0]) for name in self.wanted}))

    def taken(self) -> list[tuple[int, dict[str, float]]]:
        """Those that ended since the last call, with what they gave."""
        found, self.ended = self.ended, []
        return found


class StepsHook(ProgressHook):
    """As ProgressHook, of steps as they end."""

    def __init__(self, steps: Steps, setup: TrainingSetup) -> None:
        super().__init__(None, None, setup.progress_log(setup.steps_per_log), setup.report, setup.watch)
        self.steps = steps

    def before_run(self, run_context: tf.train.SessionRunContext) -> None:
        """From now on the batch is waited for."""
        self.watch.time.wait()

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """Report."""
        self.tell_ended()

    def tell_ended(self) -> None:
        """Report the steps that have ended since. Raises: Diverged."""
        for step, found in self.steps.taken():
            self.tell(step, found["loss"], found["rate"], {TAGS[name]: value for name, value in found.items()})

    def settle(self) -> None:
        """Wait for the last step, and report it. Raises: as `Steps.settle`, and Diverged."""
        self.steps.settle()
        self.tell_ended()

    def end(self, session: tf.Session) -> None:
        """No step is left unreported."""
        self.settle()


def counted(steps: Steps, batch: dict, noting: Callable[[Callable[[], None]], None]) -> Any:
    """The operation of a session that begins a step with its batch, and counts it."""
    counter, names = tf.train.get_or_create_global_step(), list(batch)

    def call(step: np.ndarray, *arrays: np.ndarray) -> np.int64:
        noting(lambda: steps.begin(int(step), dict(zip(names, arrays))))
        return np.int64(step + 1)

    count = tf.numpy_function(call, [counter, *batch.values()], tf.int64, name="devices")
    count.set_shape([])
    return tf.assign(counter, count).op
