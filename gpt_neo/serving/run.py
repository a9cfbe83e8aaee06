"""The HTTP server around the application: bind, tell where, answer until SIGTERM, drain."""

from __future__ import annotations

import ipaddress
import signal
import socket
from typing import Any

import uvicorn

from gpt_neo.errors import ConfigError


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
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(f"cannot listen on --host {host} --port {port}: {error.strerror or error}") from error


def make_server(app: Any, drain: float) -> uvicorn.Server:
    """A server of the application; after a signal it takes no more connections and ends what it has begun.

    Args:
      drain: most seconds for that.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(drain),
            server_header=False,
            timeout_keep_alive=30,
            limit_concurrency=2000,
            lifespan="off",
        )
    )


def run_server(app: Any, listener: socket.socket, drain: float) -> None:
    """Answer until SIGTERM or SIGINT."""
    # The server takes these signals while it runs, and raises them again at its end: that end is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    make_server(app, drain).run(sockets=[listener])
