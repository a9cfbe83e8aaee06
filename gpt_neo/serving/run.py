"""The HTTP server around the application: bind, tell where, answer until SIGTERM, drain."""

from __future__ import annotations

import functools
import ipaddress
import logging
import signal
import socket
import sys
from typing import Any

import uvicorn

from gpt_neo.errors import ConfigError
from gpt_neo.serving.connections import Connection, Patience, Sparing

SEND_BUFFER = 1 << 18  # bytes of the system per connection: what a client that does not read may hold
SWITCH = 1e-4  # seconds that the engine waits for the interpreter while the event loop has it; by default a whole step
SPARING = Sparing()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
      ConfigError: the address is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on --host {host} --port {port}: {error.strerror or error}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return listener


def make_server(app: Any, drain: float, patience: Patience) -> uvicorn.Server:
    """A server of the application; after a signal it takes no more connections and ends what it has begun.

    Args:
      drain: most seconds for that.
    """
    for name in ("uvicorn.error", "asyncio", "gpt_neo.serving"):
        logging.getLogger(name).addFilter(SPARING)
    connection: Any = functools.partial(Connection, patience=patience, waiting={})
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=connection,
            ws="none",
            backlog=128,  # accepted in one go, before any of them can be refused
            log_level="error",  # warnings are about what clients send
            access_log=False,
            timeout_graceful_shutdown=int(drain),
            server_header=False,
            lifespan="off",
        )
    )


def run_server(app: Any, listener: socket.socket, drain: float) -> None:
    """Answer until SIGTERM or SIGINT."""
    # The server takes these signals while it runs, and raises them again at its end: that end is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    sys.setswitchinterval(SWITCH)
    make_server(app, drain, Patience()).run(sockets=[listener])
