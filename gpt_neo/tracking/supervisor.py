"""A training as a child process that is started again when it dies or stands still."""

from __future__ import annotations

import codecs
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, Callable, Optional

from gpt_neo.errors import LOST, ConfigError, InUseError, reason_of
from gpt_neo.system import PULSE, hearing

MISTAKE = 2  # exit statuses of a training: an error that is the user's to mend
IN_USE = InUseError.status  # another run is in the folder
PREEMPTED = 143  # saved after SIGTERM
STALLED = 75  # found by the training itself
PARENT = "GPT_NEO_PARENT"  # the file descriptor of a pipe whose other end the supervisor holds
CAPTURED = 32 << 20  # characters of output that are kept for the record


@dataclasses.dataclass(frozen=True)
class Policy:
    """When to start again. Times in seconds.

    stall: without a sign of life for so long, a training is ended and started again.
    failures: ends at the same step after which it is given up.
    pause, longest: before the second attempt, doubled with each failure at the same step, and its limit.
    grace: between a request to end and the end by force.
    poll: between two looks at the child.
    """

    stall: float = 1800.0
    failures: int = 5
    pause: float = 15.0
    longest: float = 600.0
    grace: float = 60.0
    poll: float = 5.0


@dataclasses.dataclass(frozen=True)
class Watched:
    """What the supervisor asks of the run. trace changes whenever there is a sign of life; reached only grows.

    step: where the run is, for people; None where that is not known here.
    finished: no sign of life is due any more: what follows the last step, such as an evaluation, writes nothing.
    """

    trace: tuple
    reached: tuple
    finished: bool
    step: Optional[int] = None


class Output:
    """What the child prints: passed on as it comes, and kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.parts: list[str] = []
        self.size = 0
        self.seen = 0  # characters, kept or not

    def keep(self, text: str) -> None:
        """Keep text, as far as there is room."""
        with self.lock:
            self.seen += len(text)
            if self.size < CAPTURED and self.size + len(text) >= CAPTURED:
                text = "\n[more was printed, and is not kept]\n"
                self.size = CAPTURED
            if self.size <= CAPTURED:
                self.parts.append(text)
                self.size += len(text)

    def text(self) -> str:
        """All of it."""
        with self.lock:
            self.parts = ["".join(self.parts)]
            return self.parts[0]

    def forward(self, pipe: IO[bytes], target: Any) -> threading.Thread:
        """Copy a pipe to a text stream until it ends."""

        def copy() -> None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a character
            ended = False
            while not ended:
                data = os.read(pipe.fileno(), 1 << 16)
                ended = not data
                text = decoder.decode(data, final=ended)
                self.keep(text)
                target.write(text)
                target.flush()

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        return thread


class Supervisor:
    """Runs a command until it succeeds, until it is no use, or until it is told to stop.

    Args:
      command: the child's words for attempt 1, 2, ...
      watch: looks at the run; its failures are the storage's, and no reason to end.
      tell: takes a line for the person.
      restore: words of a command that runs before each further attempt (a TPU that was preempted is made again), or
        None; it finds GPT_NEO_STATUS and GPT_NEO_STEP in its environment.
      environment: of the child and of `restore`.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        watch: Callable[[], Watched],
        policy: Policy,
        tell: Callable[[str], None],
        restore: Optional[Sequence[str]] = None,
        environment: Optional[dict[str, str]] = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.command, self.watch, self.policy, self.tell = command, watch, policy, tell
        self.restore, self.environment, self.tick = restore, dict(environment or os.environ), tick
        self.output = Output()
        self.pulse: Any = None  # a file while a child runs, which touches it: see `beat`
        self.child: Optional[subprocess.Popen] = None
        self.stop = threading.Event()
        self.signals: list[int] = []
        self.attempt = 0
        self.last: Optional[Watched] = None
        self.trouble = ""  # why the last look failed

    def run(self) -> int:
        """Supervise. Returns the exit status of the last attempt, as a shell gives it.

        Raises:
          ConfigError: `restore` cannot be run.
        """
        same, reached = 0, self.look().reached
        with self.listening(), self.touched():
            while True:
                self.attempt += 1
                status, stalled = self.one_attempt()
                now = self.look().reached
                progress = now > reached
                same, reached = (1 if progress else same + 1), max(now, reached)
                if status == 0 or self.stop.is_set():
                    return status
                if status == MISTAKE and self.attempt == 1 and not progress:
                    return status
                step = self.last.step if self.last else None
                what = ending(status, stalled) + (f" at step {step:,}" if step is not None else "")
                if same >= self.policy.failures:
                    self.tell(f"{what}, {same} times now: given up")
                    return status
                pause = min(self.policy.pause * 2 ** (same - 1), self.policy.longest)
                self.tell(f"{what}; attempt {self.attempt + 1} in {pause:.0f} s")
                if self.stop.wait(pause) or not self.restored(status, step or 0):
                    return status

    def once(self, words: Sequence[str]) -> int:
        """Run another command in the same care, but do not start it again. Returns its exit status."""
        self.command = lambda attempt: words
        with self.listening(), self.touched():
            return self.one_attempt()[0]

    def look(self) -> Watched:
        """The run as it is now, or as it was when storage last answered."""
        try:
            self.last = self.watch()
            self.trouble = ""
        except OSError as error:
            if str(error) != self.trouble:  # once, not at every look
                self.trouble = str(error)
                self.tell(f"the run's folder cannot be read just now: {reason_of(error)}")
        return self.last or Watched((), (0,), False)

    def one_attempt(self) -> tuple[int, bool]:
        """Start the child and wait for its end. Returns its exit status, and whether it had to be ended."""
        words = list(self.command(self.attempt))
        theirs, ours = os.pipe()
        # A session of its own: a signal to us reaches it once, from us, and it can be ended with what it has started.
        self.child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.environment, PARENT: str(theirs), PULSE: self.pulse.name},
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        assert self.child.stdout and self.child.stderr
        pipes = ((self.child.stdout, sys.stdout), (self.child.stderr, sys.stderr))
        threads = [self.output.forward(pipe, target) for pipe, target in pipes]
        if self.stop.is_set():
            self.pass_on(self.signals[-1])  # it came before there was a child
        try:
            stalled = self.attend()
        finally:
            self.end()  # only alive if something is wrong with us
            os.close(ours)
        status = self.child.returncode
        for thread in threads:
            thread.join(timeout=5)  # a grandchild may keep the pipe open
        self.child = None
        return (128 - status if status < 0 else status), stalled

    def attend(self) -> bool:
        """Look at the child until it has ended. Returns whether it was ended for standing still."""
        stalled = False
        trace: Optional[tuple] = None
        since = time.monotonic()
        while self.wait(self.policy.poll) is None:
            seen = self.look()
            self.tick()
            # A step is printed as soon as it is made, and logged only now and then; a long one, or an evaluation, is
            # looked after by the training itself.
            now = (seen.trace, self.output.seen, os.fstat(self.pulse.fileno()).st_mtime_ns)
            if now != trace or seen.finished or self.stop.is_set():
                trace, since = now, time.monotonic()
            elif time.monotonic() - since > self.policy.stall:
                self.tell(f"no sign of life for {self.policy.stall / 60:.3g} min: ending the training")
                stalled = True
                self.end()
        return stalled

    def wait(self, seconds: float) -> Optional[int]:
        """The child's exit status, once it has ended within the time."""
        assert self.child
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """End the child: ask, then have it show its stacks, then by force."""
        for number, seconds in ((signal.SIGTERM, self.policy.grace), (signal.SIGABRT, 5.0), (signal.SIGKILL, 60.0)):
            if not self.pass_on(number):
                return
            if self.wait(seconds) is not None:
                return

    def pass_on(self, number: int) -> bool:
        """Send a signal to the child and what it has started. Returns whether it was alive."""
        if self.child is None or self.child.poll() is not None:
            return False
        os.killpg(self.child.pid, number)
        return True

    @contextmanager
    def touched(self) -> Iterator[None]:
        """With the file that a child touches, removed at the end; a cleaner of temporary files may have been there."""
        self.pulse = tempfile.NamedTemporaryFile(prefix="gpt_neo_pulse_")
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                self.pulse.close()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM, SIGHUP and Ctrl-C go to the child, which saves and ends; the second Ctrl-C ends it by force."""

        def hear(number: int, frame: Any) -> None:
            self.signals.append(number)
            self.stop.set()
            self.pass_on(signal.SIGKILL if self.signals.count(signal.SIGINT) > 1 else number)

        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with hearing(wanted, hear, lambda now: now != signal.SIG_IGN):
            yield

    def restored(self, status: int, step: int) -> bool:
        """Run `restore` until it succeeds, with growing pauses: there may be no TPU to be had for hours.

        Returns:
          whether to go on; False when told to stop.
        """
        pause = self.policy.pause
        environment = {**self.environment, "GPT_NEO_STATUS": str(status), "GPT_NEO_STEP": str(step)}
        while self.restore:
            try:
                done = subprocess.run(self.restore, env=environment, stdin=subprocess.DEVNULL, check=False)
            except OSError as error:
                raise ConfigError(f"--recreate_tpu {self.restore[0]} ...: cannot be run: {reason_of(error)}") from error
            if done.returncode == 0:
                break
            self.tell(f"--recreate_tpu ended with status {done.returncode}; again in {pause:.0f} s")
            if self.stop.wait(pause):
                return False
            pause = min(2 * pause, self.policy.longest)
        return not self.stop.is_set()


def ending(status: int, stalled: bool) -> str:
    """How an attempt ended, for people."""
    if stalled or status == STALLED:
        return "the training stood still"
    if status == PREEMPTED:
        return "the training was preempted"
    if status == IN_USE:
        return "another run is in the folder"
    if status == LOST:
        return "the training has lost a machine or its devices"
    if status > 128:
        try:
            return f"the training was ended by {signal.Signals(status - 128).name}"
        except ValueError:
            pass
    return f"the training ended with status {status}"


def end_with_parent() -> None:
    """In a supervised training: end as for SIGTERM once the supervisor is gone, however it went."""
    number = os.environ.pop(PARENT, "")
    if not number.isdigit():
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(int(number), 1)  # nothing is ever written: this is the end of the pipe
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
