"""What the time of a run goes into, from its first start on: steps, and all that is none."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Callable, Optional

from gpt_neo.storage import tensorflow as files

# start: until the first step of a process has ended. restarts: from the row of the log that a resumed run goes on from
# to its start, with the steps that were lost. input: devices waited for records, where that can be told from steps.
OTHERS = ("start", "input", "saves", "evaluation", "restarts")
SET = 1.6e9  # seconds since 1970, in 2020: a clock that is behind it was not set when the row was written
KEY = "time"  # of a row of the log: seconds of each kind, and `at`, the time of the row


class Goodput:
    """Seconds by what they went into.

    Args:
      clock: seconds that never go back. wall: those since 1970, which other processes share.
    """

    def __init__(self, clock: Optional[Callable[[], float]] = None, wall: Optional[Callable[[], float]] = None) -> None:
        self.clock, self.wall = clock or time.monotonic, wall or time.time
        self.began = self.clock()
        self.spent = dict.fromkeys(OTHERS, 0.0)  # by this process
        self.earlier = dict.fromkeys(("steps", *OTHERS), 0.0)  # by those before it
        self.stepping, self.waits_since = False, self.began

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Context of what is of a kind, but for what is told of inside."""
        began, before = self.clock(), sum(self.spent.values())
        try:
            yield
        finally:
            inside = sum(self.spent.values()) - before
            self.spent[kind] += self.clock() - began - inside

    def wait(self) -> None:
        """Something is waited for from now on, until `waited`."""
        self.waits_since = self.clock()

    def waited(self) -> float:
        """Seconds since then."""
        return self.clock() - self.waits_since

    def add(self, kind: str, seconds: float) -> None:
        """So long something of a kind was done."""
        self.spent[kind] += seconds

    def step_ended(self) -> None:
        """All up to the first one is the start, but for what was told of."""
        if not self.stepping:
            self.stepping = True
            self.spent["start"] += self.here() - sum(self.spent.values())

    def here(self) -> float:
        """Seconds of this process."""
        return self.clock() - self.began

    def resume(self, path: str, step: int) -> None:
        """Go on with the seconds of a log up to a step; what lies between is lost to the restart. It is not known of a
        row from before the clock was set: a machine without one of its own starts in 1970."""
        row = last_row(path, step)
        if row is not None:
            self.earlier = {kind: row.get(kind, 0.0) for kind in self.earlier}
            if row["at"] > SET:
                self.earlier["restarts"] += max(0.0, self.wall() - self.here() - row["at"])

    def seconds(self) -> dict[str, float]:
        """Of every kind, those of steps first."""
        own = {"steps": max(0.0, self.here() - sum(self.spent.values())), **self.spent}
        return {kind: own[kind] + before for kind, before in self.earlier.items()}

    def row(self) -> dict[str, float]:
        """For the log."""
        return {"at": round(self.wall(), 1), **{kind: round(value, 3) for kind, value in self.seconds().items()}}

    @property
    def share(self) -> float:
        """Of all time, what went into steps."""
        seconds = self.seconds()
        return seconds["steps"] / max(sum(seconds.values()), 1e-9)


def last_row(path: str, step: int) -> Optional[dict]:
    """The seconds in the last row of a log up to a step; None where there are none."""
    try:
        lines = files.read_bytes(path).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            row = json.loads(line)
            found = row[KEY]
            if row["step"] <= step and all(math.isfinite(float(found[kind])) for kind in ("at", "steps")):
                return {kind: float(value) for kind, value in found.items()}
    return None


def share_text(seconds: dict[str, float]) -> str:
    """What time went into, in whole per cent: 93 % steps, 4 % saves, 3 % start."""
    total = max(sum(seconds.values()), 1e-9)
    parts = {kind: round(100 * value / total) for kind, value in seconds.items()}
    return ", ".join(f"{part} % {kind}" for kind, part in parts.items() if part or kind == "steps")
