"""Load on the server: answers one by one, then 32 clients at once, then requests that are none.

    python -m bench.serving --model configs/demo.json --seconds 300

Every answer under load is held against the one that the same request got alone; any difference ends with status 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from typing import Optional

PROMPTS = (
    "def main(",
    "Help on class",
    "The ",
    "import os\n",
    "Return the number of",
    "class Server:",
    "If the file",
    "    for i in range(",
)
REQUESTS = 32  # different ones


def requests_of(tokens: int) -> list[dict]:
    """Requests of different prompts, lengths, seeds and options, so that rows join and leave at different times."""
    found = []
    for number in range(REQUESTS):
        body = {
            "prompt": PROMPTS[number % len(PROMPTS)] * (1 + number % 5),
            "seed": number,
            "max_tokens": tokens // 2 + tokens * (number % 7) // 6,
        }
        found.append({**body, **({"temperature": 0}, {"temperature": 0.8, "top_k": 40}, {}, {"n": 2})[number % 4]})
    return found


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer."""
        self.connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def complete(self, body: dict) -> tuple[list, int]:
        """Texts and new tokens of a completion."""
        status, found = self.post("/v1/completions", json.dumps(body).encode())
        assert status == 200, found
        answer = json.loads(found)
        return [choice["text"] for choice in answer["choices"]], answer["usage"]["completion_tokens"]


def memory(process: int) -> float:
    """Megabytes that a process holds."""
    with open(f"/proc/{process}/status", encoding="utf-8") as handle:
        return int(re.findall(r"VmRSS:\s+(\d+)", handle.read())[0]) / 1e3


def alone(port: int, bodies: list[dict]) -> tuple[list, float]:
    """Each request after the other: (texts, tokens per second)."""
    client, texts, count = Client(port), [], 0
    client.complete(bodies[0])
    began = time.monotonic()
    for body in bodies:
        text, tokens = client.complete(body)
        texts.append(text)
        count += tokens
    return texts, count / (time.monotonic() - began)


class Load:
    """Clients that ask one request after another until the time is over."""

    def __init__(self, port: int, bodies: list[dict], texts: list, clients: int, seconds: float) -> None:
        self.port, self.bodies, self.texts = port, bodies, texts
        self.tokens, self.answers, self.wrong, self.failed = 0, 0, 0, 0
        self.lock = threading.Lock()
        self.end = time.monotonic() + seconds
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(clients)]

    def ask(self, number: int) -> None:
        """One client."""
        client, rng = Client(self.port), random.Random(number)
        while time.monotonic() < self.end:
            which = rng.randrange(len(self.bodies))
            try:
                text, tokens = client.complete(self.bodies[which])
            except (AssertionError, OSError, http.client.HTTPException):
                with self.lock:
                    self.failed += 1
                return
            with self.lock:
                self.answers += 1
                self.tokens += tokens
                self.wrong += text != self.texts[which]

    def run(self, process: int) -> tuple[float, list[float]]:
        """(Tokens per second, the server's memory over time)."""
        began, held = time.monotonic(), []
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads):
            held.append(memory(process))
            time.sleep(1.0)
        return self.tokens / (time.monotonic() - began), held


def malformed(port: int, count: int) -> dict[int, int]:
    """Broken requests: how often each status came back."""
    client, rng, found = Client(port), random.Random(0), {}
    sound = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    for number in range(count):
        broken = (
            sound[: rng.randrange(len(sound))],
            rng.randbytes(rng.randrange(300)),
            b"[" * rng.randrange(9000),
            json.dumps({"prompt": "a", "max_tokens": rng.choice(["x", -1, [], 10**9, {}])}).encode(),
        )
        status, _ = client.post("/v1/completions", broken[number % 4])
        found[status] = found.get(status, 0) + 1
    return found


def start(model: str, rows: int) -> tuple[subprocess.Popen, int]:
    """A server on a free port."""
    command = [sys.executable, "-m", "gpt_neo", "serve", "--model", model, "--port", "0", "--rows", str(rows)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        print("  " + line, end="")
        port = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if port:
            return process, int(port.group(1))
    raise SystemExit("the server did not start")


def main(argv: Optional[list] = None) -> int:
    """Measure and judge."""
    p = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__.splitlines()[0])
    p.add_argument("--model", default="configs/demo.json")
    p.add_argument("--clients", type=int, default=32)
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--seconds", type=float, default=300.0)
    p.add_argument("--tokens", type=int, default=80, help="about as many new tokens per answer")
    p.add_argument("--malformed", type=int, default=2000)
    args = p.parse_args(argv)
    process, port = start(args.model, args.rows)
    try:
        bodies = requests_of(args.tokens)
        texts, serial = alone(port, bodies)
        print(f"alone     {serial:8.1f} tokens/s, {len(bodies)} requests one after another", flush=True)
        load = Load(port, bodies, texts, args.clients, args.seconds)
        together, held = load.run(process.pid)
        print(
            f"together  {together:8.1f} tokens/s, {args.clients} clients, {args.seconds:.0f} s: "
            f"{together / serial:.1f} times as many"
        )
        print(f"answers   {load.answers}; {load.wrong} differ from those alone, {load.failed} lost")
        # Pools and caches fill in the first part.
        warm, last = held[len(held) // 5], max(held[-5:])
        print(f"memory    {warm:.0f} MB after a fifth of the time, {last:.0f} MB at the end")
        statuses = malformed(port, args.malformed)
        print(f"malformed {args.malformed} requests, by status: {statuses}")
        again, _ = Client(port).complete(bodies[3])
    finally:
        process.terminate()
    status = process.wait(60)
    print(f"stopped   status {status} after SIGTERM")
    sound = not load.wrong and not load.failed and again == texts[3] and set(statuses) <= set(range(400, 500))
    flat = last - warm < 0.02 * warm
    return 0 if sound and flat and together >= 4 * serial and status == 0 else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
