"""Standard output that cannot stop a training: not by being full, not by being closed, not by nobody reading it."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

from gpt_neo.errors import reason_of

ROOM = 1 << 20  # characters that wait for a slow reader; what comes on top is dropped
PATIENCE = 2.0  # seconds that a flush waits, until it has failed once


class Unhindered(io.TextIOBase):
    """A text stream in front of another, which a thread writes to.

    `report` is called once with every new reason why text does not arrive.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.stream = stream
        self.parts: collections.deque[str] = collections.deque()
        self.size = 0  # characters on their way
        self.changed = threading.Condition()
        self.reason = ""
        self.report: Callable[[str], None] = lambda reason: None
        stream.flush()
        try:
            self.number = stream.fileno()
        except (OSError, ValueError):  # a stream in memory
            self.number = -1
        threading.Thread(target=self.copy, daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream behind."""
        return self.stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The file descriptor behind."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Hand text over."""
        with self.changed:
            if self.size + len(text) <= ROOM:
                self.parts.append(text)
                self.size += len(text)
                self.changed.notify_all()
                return len(text)
        self.fail("nobody reads it")
        return len(text)

    def flush(self) -> None:
        """Wait until everything has arrived, unless it does not."""
        with self.changed:
            arrived = bool(self.reason) or self.changed.wait_for(lambda: not self.size, PATIENCE)
        if not arrived:
            self.fail("nobody reads it")

    def copy(self) -> None:
        """The thread."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.parts)
                text = "".join(self.parts)
                self.parts.clear()
            try:
                self.put(text)
                self.reason = ""
            except (OSError, ValueError) as error:
                self.fail(reason_of(error))
            with self.changed:
                self.size -= len(text)
                self.changed.notify_all()

    def put(self, text: str) -> None:
        """Write to the stream behind; past its own buffer, which would keep what it cannot write."""
        if self.number < 0:
            self.stream.write(text)
            self.stream.flush()
            return
        data = text.encode(self.encoding, "replace")
        while data:
            data = data[os.write(self.number, data) :]

    def fail(self, reason: str) -> None:
        """Say why text does not arrive, once."""
        if reason != self.reason:
            self.reason = reason
            self.report(reason)

    def telling(self, tell: Callable[[str], None]) -> None:
        """From now on say it there."""
        self.report = tell
        if self.reason:
            tell(self.reason)


@contextlib.contextmanager
def unhindered() -> Iterator[None]:
    """Standard output and error, as long as the context lasts, are `Unhindered`."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if not isinstance(stream, Unhindered):
            setattr(sys, name, Unhindered(stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)


def tell_of_lost_output(tell: Callable[[str], None]) -> None:
    """Call `tell` with a line when standard output or error cannot be written."""
    for name, stream in (("output", sys.stdout), ("error", sys.stderr)):
        if isinstance(stream, Unhindered):
            stream.telling(functools.partial(lambda name, reason: tell(f"standard {name} is lost: {reason}"), name))
