"""A server among clients of every hostile kind, beside 16 honest ones.

    python -m bench.hostile --model configs/demo.json --minutes 10

Honest clients ask for a tenth of the time alone, then for all of it among clients that never read their answers, idle
connections beyond every limit, headers and bodies that come a byte at a time, bodies that are too large or no JSON,
clients that leave, and pictures of attention without end. Status 1 if an honest answer is wrong or lost, the median
latency more than doubles, or the server's descriptors, memory or log grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Optional

from bench.serving import Client, alone, memory, requests_of

HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
LONG = {"prompt": "a", "max_tokens": 100, "temperature": 2, "n": 16, "logprobs": 20, "stop": "none of this"}
HONEST = 16
# Clients at once of each kind; `idle` of them is more than a process may have descriptors by default.
CROWD = {"unread": 5, "idle": 1500, "header": 100, "body": 100, "leave": 5, "broken": 2, "pictures": 3}


def message(path: str, body: bytes) -> bytes:
    """A whole request."""
    return HEAD.format(path, len(body)).encode() + body


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte a second, until the server has enough."""
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(1)


async def attack(kind: str, port: int) -> None:
    """One connection of a hostile client."""
    client = socket.socket()
    client.setblocking(False)
    if kind == "unread":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=client, limit=1 << 12)
    with contextlib.closing(writer):
        if kind == "unread":
            writer.write(message("/v1/completions", json.dumps({**LONG, "stream": True}).encode()))
            while not writer.transport.is_closing():  # the stream's own buffer fills, then the system's
                await asyncio.sleep(1)
                writer.write(b"x")  # which shows whether the connection is still there
        elif kind == "idle":
            await reader.read()
        elif kind == "header":
            writer.write(HEAD.format("/v1/completions", 9)[:-2].encode())
            await drip(writer)
        elif kind == "body":
            writer.write(HEAD.format("/v1/completions", 10**5).encode())
            await drip(writer)
        elif kind == "leave":
            writer.write(message("/v1/completions", json.dumps({**LONG, "stream": True}).encode()))
            await asyncio.sleep(0.5)
        elif kind == "broken":
            for body in (b"[" * 10**5, b"9" * 5000, b'{"max_tokens": %s}' % (b"9" * 4300), b" " * (1 << 21)):
                writer.write(message("/v1/completions", body))
                await reader.read(1 << 12)
                await asyncio.sleep(0.2)
            writer.write(b"no request\r\n\r\n")
            await reader.read()
        else:
            writer.write(message("/attention", json.dumps({"prompt": "a " * 100}).encode()))
            await reader.read(1 << 16)


async def crowd(port: int, kinds: list[str]) -> None:
    """Every kind at once; who is thrown out comes back."""

    async def again(kind: str) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await attack(kind, port)
            await asyncio.sleep(0.2 if kind != "idle" else 5)

    await asyncio.gather(*(again(kind) for kind in kinds for _ in range(CROWD[kind])))


class Honest:
    """Clients that ask one request after another, and hold each answer against the one it got alone."""

    def __init__(self, port: int, bodies: list[dict], texts: list) -> None:
        self.port, self.bodies, self.texts = port, bodies, texts
        self.seconds: list[float] = []
        self.wrong = self.lost = 0

    def ask(self, number: int, end: float) -> None:
        """One client; like any, it comes back where a connection that rested was closed."""
        client, count = Client(self.port), number
        while time.monotonic() < end:
            which, began, count = count % len(self.bodies), time.monotonic(), count + 1
            try:
                text, _ = client.complete(self.bodies[which])
                self.wrong += text != self.texts[which]
                self.seconds.append(time.monotonic() - began)
            except (AssertionError, OSError) as error:
                print(f"  lost: {error!r}", flush=True)
                self.lost += 1
                client = Client(self.port)

    def run(self, seconds: float) -> float:
        """Ask for so long; the median of seconds per answer."""
        self.seconds, end = [], time.monotonic() + seconds
        threads = [threading.Thread(target=self.ask, args=(i, end)) for i in range(HONEST)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return statistics.median(self.seconds)


def start(model: str, log: str) -> tuple[subprocess.Popen, int]:
    """A server of default limits, whose standard error goes to a file."""
    command = [sys.executable, "-m", "gpt_neo", "serve", "--model", model, "--port", "0"]
    with open(log, "wb") as handle:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=handle, text=True)
    assert process.stdout
    for line in process.stdout:
        port = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if port:
            return process, int(port.group(1))
    with open(log, encoding="utf-8", errors="replace") as handle:
        raise SystemExit(f"the server did not start: {handle.read().strip()}")


def watch(process: int, log: str, found: list, stop: threading.Event) -> None:
    """Descriptors, megabytes and bytes of log, once a second."""
    while not stop.wait(1):
        found.append((len(os.listdir(f"/proc/{process}/fd")), memory(process), os.path.getsize(log)))


def main(argv: Optional[list] = None) -> int:
    """Measure and judge."""
    p = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.splitlines()[0])
    p.add_argument("--model", default="configs/demo.json")
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--tokens", type=int, default=40, help="about as many new tokens per honest answer")
    p.add_argument("--kinds", nargs="+", choices=CROWD, default=list(CROWD), help="of hostile clients")
    p.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if args.attack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        asyncio.run(crowd(args.attack, args.kinds))
    log = os.path.join(tempfile.mkdtemp(), "log")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))  # a shell's default, which the server inherits
    process, port = start(args.model, log)
    held: list = []
    stop = threading.Event()
    try:
        bodies = requests_of(args.tokens)
        honest = Honest(port, bodies, alone(port, bodies)[0])
        quiet = honest.run(args.minutes * 6)
        threading.Thread(target=watch, args=(process.pid, log, held, stop)).start()
        hostile = subprocess.Popen(
            [sys.executable, "-m", "bench.hostile", "--attack", str(port), "--kinds", *args.kinds]
        )
        try:
            among = honest.run(args.minutes * 60)
        finally:
            hostile.kill()
    finally:
        stop.set()
        process.terminate()
    status = process.wait(90)
    warm, last = held[len(held) // 3], held[-1]
    print(f"latency   {quiet:.2f} s alone, {among:.2f} s among hostile clients: {among / quiet:.2f} times (median)")
    print(f"answers   {len(honest.seconds)}; {honest.wrong} wrong, {honest.lost} lost")
    for index, name in enumerate(("descriptors", "memory, MB", "log, bytes")):
        print(f"{name:12s}{warm[index]:.0f} after a third of the time, {last[index]:.0f} at the end")
    print(f"stopped   status {status} after SIGTERM")
    most = max(row[0] for row in held)
    flat = most < 1000 and last[1] < 1.05 * warm[1] and last[2] < 1 << 20
    return 0 if flat and not honest.wrong and not honest.lost and among <= 2 * quiet and status == 0 else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
