"""What watches a training run from beside it: signals that ask it to stop, steps that do not come, the lock."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

from gpt_neo.checkpoint.saver import writing_to
from gpt_neo.errors import GptNeoError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.goodput import Goodput
from gpt_neo.runtime.lock import FolderLock, age_text
from gpt_neo.storage import tensorflow as files
from gpt_neo.system import beat, is_supervised

STALLED = 75  # exit status of a stall: EX_TEMPFAIL of sysexits.h, "try again"
WATCH_LOG = "watch_log.jsonl"  # skipped batches and divergence, one line each
STALL_FILE = "stall.txt"
POLL = 1.0  # seconds between looks at the clock
LAST_WORDS = 20.0  # seconds that writing the stacks may take: the storage may be what hangs
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal came before there was anything to save. No Exception: nothing between may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Watch:
    """Context of a training run.

    The first SIGTERM, SIGINT or SIGHUP (unless that is ignored, as nohup has it) lets the step at work end, and the run
    save and stop; a second SIGINT ends it at once. What a signal raises ends the context, whatever error TensorFlow's
    compiled code made of it.
    A run that makes no step for `stall_minutes` is ended with the stacks of its threads and exit status 75.

    Args:
      folder: of checkpoints, for the logs.
      lock: of that folder; None where the caller takes care of it.
      stall_minutes: 0 waits for ever.
      skip_spikes: leave out the update of batches whose loss is a spike (spikes.py).
      notice: called with each line that a person should see.
      leave: ends the process with a status; os._exit, as the main thread is stuck.
    """

    def __init__(
        self,
        folder: str,
        lock: Optional[FolderLock] = None,
        stall_minutes: float = 0.0,
        skip_spikes: bool = False,
        notice: Callable[[str], None] = lambda line: None,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self.folder, self.lock, self.skip_spikes = folder, lock, skip_spikes
        self.stall_seconds = stall_minutes * 60
        self.notice, self.leave = notice, leave
        self.signal: Optional[int] = None
        self.raised: Optional[BaseException] = None  # by a signal
        self.step: Optional[int] = None  # the last one that ended
        self.records: dict[str, str] = {}  # that the run reads, for the records of its checkpoints
        self.running = False
        self.alive = time.monotonic()
        self.time = Goodput()
        self.ended = threading.Event()
        self.handlers: dict = {}

    def __enter__(self) -> Watch:
        self.mark()
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.handlers = {number: signal.signal(number, self.on_signal) for number in heard}
        self.ended = threading.Event()
        if self.stall_seconds or is_supervised():
            threading.Thread(target=self.wait_for_steps, args=(self.ended,), daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        self.ended.set()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.raised is not None and error not in (None, self.raised):
            raise self.raised from error

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of what takes its time between steps: signals are heard, and no stall is counted."""
        seconds, self.stall_seconds = self.stall_seconds, 0.0
        try:
            with self:
                yield
        finally:
            self.stall_seconds = seconds

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Context of evaluation and sampling between steps: their time is not the training's."""
        self.mark()
        try:
            with self.time.spending("evaluation"):
                yield
        finally:
            self.mark()

    def on_signal(self, number: int, frame: Any) -> None:
        """Ask for the end, or end what has not begun. A second SIGTERM changes nothing: the save is under way."""
        again = self.signal is not None and number == signal.SIGINT
        self.signal = self.signal or number
        if not self.running or again:
            self.raised = KeyboardInterrupt() if self.running else Stopped(number)
            raise self.raised

    def listen(self) -> None:
        """Take back what another has set since: TPUEstimator lets SIGINT kill the process, before every step."""
        for number in self.handlers:
            if signal.getsignal(number) != self.on_signal:
                signal.signal(number, self.on_signal)

    def mark(self) -> None:
        """The run is alive."""
        self.alive = time.monotonic()

    def check_lock(self) -> None:
        """Raises: CheckpointError: the folder has become another run's."""
        if self.lock:
            self.lock.check()

    def log(self, event: str, **facts: Any) -> None:
        """Append a line to the watch log."""
        path = os.path.join(self.folder, WATCH_LOG)
        with writing_to(path):
            files.append_text(path, json.dumps({"event": event, "time": round(time.time(), 3), **facts}) + "\n")

    def log_note(self, text: str) -> None:
        """Append a note to the watch log, as far as the storage lets us."""
        with contextlib.suppress(OSError, GptNeoError):
            self.log("note", text=text)

    def wait_for_steps(self, ended: threading.Event) -> None:
        """End the process when no step has come for too long, until the context ends. A supervisor hears that this is
        being looked after."""
        while not ended.wait(POLL):
            beat()
            stalled = 0 < self.stall_seconds <= time.monotonic() - self.alive
            if stalled and not ended.is_set():  # `waiting` changes the limit after an end
                self.report_stall()
                self.leave(STALLED)
                return

    def report_stall(self) -> None:
        """Show where every thread stands, on standard error and in a file of the folder."""
        after = "before the first step" if self.step is None else f"after step {self.step:,}"
        text = (
            f"error: no step for {age_text(self.stall_seconds)}, {after}. The same command goes on from the newest "
            "checkpoint"
        )
        with tempfile.TemporaryFile() as dump:
            faulthandler.dump_traceback(dump, all_threads=True)
            dump.seek(0)
            stacks = dump.read().decode("utf-8", "replace")
        print(f"\n{stacks}\n{text}; the stacks above are in {STALL_FILE} too", file=sys.stderr, flush=True)
        # In a thread of its own: the storage may be what hangs.
        writer = threading.Thread(target=self.write_stacks, args=(f"{text}\n\n{stacks}",), daemon=True)
        writer.start()
        writer.join(LAST_WORDS)

    def write_stacks(self, text: str) -> None:
        """Write the file, as far as the storage lets us."""
        files.write_text(os.path.join(self.folder, STALL_FILE), text)


class WatchHook(tf.estimator.SessionRunHook):
    """Tells the watch of every step, and stops the session for it."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.stepped = watch, False

    def after_create_session(self, session: Any, coord: Any) -> None:
        """From now on there is something to save."""
        self.watch.running = True
        self.watch.mark()

    def before_run(self, run_context: Any) -> None:
        """Signals are the watch's.

        Raises:
          Stopped: one came while the session began.
        """
        self.watch.listen()
        if self.watch.signal is not None and not self.stepped:
            raise Stopped(self.watch.signal)
        self.stepped = True

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Ask for the end of the session: what saves does so then.

        Raises:
          CheckpointError: the folder has become another run's; nothing is saved.
        """
        self.watch.mark()
        self.watch.check_lock()
        if self.watch.signal is not None:
            self.watch.notice(f"{signal.Signals(self.watch.signal).name}: saving, then stopping")
            run_context.request_stop()

    def end(self, session: Any) -> None:
        """The last save is a sign of life too."""
        self.watch.mark()
