"""This side of a worker: a process with devices of JAX, and the messages that it takes."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from gpt_neo.errors import LOST, DeviceError
from gpt_neo.spmd.environment import worker_environment
from gpt_neo.spmd.messages import receive, send
from gpt_neo.system import hearing

WORKER = Path(__file__).with_name("worker.py")
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
CHAT = "[Gloo]"  # with which what no error is begins
FATAL = re.compile(r"F\d{4} [^\]]*\] ")  # with which the line begins that says why; a stack follows it


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP, where nothing else hears them, end the program as an exception does, so that
    processes and folders that were made end with it."""

    def end(number: int, frame: Any) -> None:
        for each in SIGNALS:  # the next one ends it at once
            if signal.getsignal(each) == end:
                signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    with hearing(SIGNALS, end, lambda now: now == signal.SIG_DFL):
        yield


class WorkerLost(DeviceError):
    """The process of the devices is gone.

    Args:
      code: what it ended with. A signal's, as where memory was short, is nobody's mistake: LOST, to be started again.
    """

    def __init__(self, words: str, code: Optional[int]) -> None:
        super().__init__(f"the JAX process ended: {words}")
        self.status = LOST if code is not None and code < 0 else DeviceError.status


class Worker:
    """A process with devices of JAX, which holds programs under numbers.

    cores: devices that its programs ask for.
    """

    def __init__(self, python: str, platform: str, cores: int) -> None:
        self.numbers = itertools.count()
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # has no name, so that a kill leaves none
        self.process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=worker_environment(platform, cores),
            start_new_session=True,  # a Ctrl-C at the terminal is for this side, which still has something to save
        )

    def ask(self, header: Mapping, arrays: Mapping[str, Any]) -> tuple[dict, dict]:
        """Send a message, wait for its answer.

        Raises:
          DeviceError: the devices refuse. WorkerLost: the process died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            send(self.process.stdin, header, arrays)  # type: ignore[arg-type]
            reply, results = receive(self.process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its output ends a moment before it does
                self.process.wait(timeout=5)
            raise WorkerLost(self.last_words(), self.process.returncode) from error
        if "error" in reply:
            raise DeviceError(f"the devices refuse: {first_line(reply['error'])}")
        return reply, results

    def last_words(self) -> str:
        """What the process wrote last, or what it gave as the reason of its end."""
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip() and not line.startswith(CHAT)]
        fatal = [line[begin.end() :] for line in lines if (begin := FATAL.match(line))]
        if fatal:
            return fatal[0]
        return lines[-1] if lines else f"status {self.process.returncode}"

    def close(self) -> None:
        """End the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                try:
                    stream.close()
                except OSError:
                    pass  # a pipe to a process that is gone
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def first_line(text: str) -> str:
    """The first line of an error, without what the runtime adds."""
    return (text.strip().splitlines() or ["no reason given"])[0]
