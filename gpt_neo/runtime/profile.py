"""`--profile FROM:TO`: a trace of some steps, for TensorBoard's profiler and for Perfetto."""

from __future__ import annotations

import dataclasses
import glob
import gzip
import os
from typing import Any, Callable

import tensorflow as tf2

from gpt_neo.errors import ConfigError
from gpt_neo.mtf_compat import tf, trace_json
from gpt_neo.storage import tensorflow as files

PLACE = os.path.join("plugins", "profile")  # below a run's folder, where TensorBoard looks


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps that are traced, the first of a run being 1, and what begins and ends a trace.

    start: called with the folder that the trace goes to.
    """

    first: int
    last: int
    folder: str
    start: Callable[[str], Any]
    stop: Callable[[], Any]


def parse_span(text: str) -> tuple[int, int]:
    """FROM:TO as two steps.

    Raises:
      ConfigError: it is something else.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile {text!r}: expected FROM:TO, two steps, such as 10:12")
    return int(first), int(last)


def session_profile(text: str, folder: str) -> Profile:
    """Traces of TensorFlow's own sessions. Raises: ConfigError: as `parse_span`."""
    first, last = parse_span(text)

    def stop() -> None:
        tf2.profiler.experimental.stop()
        if not files.is_remote(folder):
            # A place is named by its time: the last one is this trace's.
            path = max(glob.glob(os.path.join(glob.escape(folder), PLACE, "*", "*.xplane.pb")))
            with gzip.open(path.replace(".xplane.pb", ".trace.json.gz"), "wb") as handle:
                handle.write(trace_json(path))

    return Profile(first, last, folder, tf2.profiler.experimental.start, stop)


class ProfileHook(tf.estimator.SessionRunHook):
    """Traces the steps of a profile, in a session each of whose runs is a step.

    Args:
      tell: called with a line where the trace is written, or none will be.
    """

    def __init__(self, profile: Profile, tell: Callable[[str], None]) -> None:
        self.profile, self.tell = profile, tell
        self.step, self.on = 0, False

    def begin(self) -> None:
        """Find the step counter."""
        self.counter = tf.train.get_global_step()

    def after_create_session(self, session: tf.Session, coord: tf.train.Coordinator) -> None:
        """See where the run stands."""
        self.step = int(session.run(self.counter))
        if self.step >= self.profile.last:
            self.tell(f"--profile: the run is past step {self.profile.last:,}; nothing is traced")

    def before_run(self, run_context: tf.train.SessionRunContext) -> None:
        """Begin before the first of the steps."""
        if not self.on and self.profile.first <= self.step + 1 <= self.profile.last:
            self.profile.start(self.profile.folder)
            self.on = True

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """End after the last."""
        self.step += 1
        if self.on and self.step >= self.profile.last:
            self.finish()

    def end(self, session: tf.Session) -> None:
        """The run ends earlier."""
        if self.on:
            self.finish()
        elif self.step < self.profile.first:
            self.tell(f"--profile: the run ended before step {self.profile.first:,}; nothing is traced")

    def finish(self) -> None:
        """Write the trace."""
        self.on = False
        self.profile.stop()
        self.tell(f"the trace up to step {self.step:,} is in {os.path.join(self.profile.folder, PLACE)}")
