"""HTTP connections that end when their client does not go on, and are never more than the process has descriptors for.

uvicorn waits for its clients: its one limit of time, for idle connections that had an answer, ends with the first byte
of a request. Here a client that sends nothing, that sends a header byte by byte, or that does not read is cut off.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import resource
from typing import Any, Optional

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 2000  # connections, whatever the descriptors


@dataclasses.dataclass(frozen=True)
class Patience:
    """What a client gets.

    idle: seconds until a request with its headers is there, from the connection's begin or the last answer's end.
    send: seconds to take what waits to be sent (more than 64 KiB), and as many again per `share` bytes of it.
    connections: at once; None for as many as half of the process's descriptors.
    """

    idle: float = 30.0
    send: float = 20.0
    share: int = 1 << 20
    connections: Optional[int] = None

    def most(self) -> int:
        """Connections at once. The other half of the descriptors is for files, and for connections that were accepted
        in the same moment and are closed in the next."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self.connections or (MOST if descriptors == resource.RLIM_INFINITY else min(MOST, descriptors // 2))


class Connection(H11Protocol):
    """A connection with deadlines.

    waiting: connections of the server from which a request is due, in the order since when; some have begun one.
    """

    def __init__(self, *args: Any, patience: Patience, waiting: dict[Connection, None], **more: Any) -> None:
        super().__init__(*args, **more)
        self.patience, self.waiting = patience, waiting
        self.deadlines: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; where there are too many, the one that has waited longest for a request makes room."""
        super().connection_made(transport)
        self.wait_for_request()
        while self.waiting and len(self.connections) > self.patience.most():
            first = next(iter(self.waiting))
            del self.waiting[first]
            if first.idle:
                first.cut()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """End."""
        for deadline in self.deadlines.values():
            deadline.cancel()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def wait_for_request(self) -> None:
        """A request has to come now, or was never there: what is left of an answer counts as idle, too."""
        self.waiting.pop(self, None)
        self.waiting[self] = None
        self.set_deadline("request", self.patience.idle, lambda: self.cut() if self.idle else None)

    def on_response_complete(self) -> None:
        """The answer has been handed over."""
        self.wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """More waits to be sent than may: the client has to read."""
        super().pause_writing()
        parts = 1 + self.transport.get_write_buffer_size() / self.patience.share
        self.set_deadline("send", self.patience.send * parts, self.cut)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self.deadlines.pop("send").cancel()

    def set_deadline(self, name: str, seconds: float, end: Any) -> None:
        """Call `end` then, unless another deadline of the name comes before."""
        if name in self.deadlines:
            self.deadlines[name].cancel()
        self.deadlines[name] = self.loop.call_later(seconds, end)

    def cut(self) -> None:
        """Close without waiting for the client; what it is owed is dropped."""
        self.connections.discard(self)
        self.transport.abort()


class Sparing(logging.Filter):
    """Lets so many records through in a minute, so that no client can fill a disk with them."""

    def __init__(self, records: int = 30) -> None:
        super().__init__()
        self.records, self.minute, self.seen = records, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; the first of a minute says how many were not."""
        minute = int(record.created // 60)
        if minute != self.minute:
            left_out, self.minute, self.seen = self.seen - self.records, minute, 0
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} messages before this were left out)"
                record.args = ()
        self.seen += 1
        return self.seen <= self.records
