"""From the engine's thread to the event loop: what a step tells, of all its rows, in one wake-up.

A wake-up takes a system call and the interpreter's lock from the engine, in the middle of its step; after the step the
loop has the interpreter to itself while the model computes.
"""

from __future__ import annotations

import asyncio
import collections
import threading
from typing import Any


class Mailbox:
    """What has been told and is not sent yet."""

    def __init__(self) -> None:
        self.told: collections.deque = collections.deque()
        self.sending = threading.Lock()

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, item: Any) -> None:
        """Keep an item for a queue of a loop, from any thread, until `send`."""
        self.told.append((loop, queue, item))

    def send(self) -> None:
        """Hand everything over, in its order; what is for a loop that has ended is dropped. Any thread may send."""
        with self.sending:
            waiting: dict[asyncio.AbstractEventLoop, list] = {}
            while self.told:
                loop, queue, item = self.told.popleft()
                waiting.setdefault(loop, []).append((queue, item))
            for loop, items in waiting.items():
                try:
                    loop.call_soon_threadsafe(deliver, items)
                except RuntimeError:
                    if not loop.is_closed():
                        raise


def deliver(items: list) -> None:
    """In the loop: each item into its queue."""
    for queue, item in items:
        queue.put_nowait(item)
