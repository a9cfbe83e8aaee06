"""Several machines with one exported program over the devices of all: JAX's own runtime joins their workers, and what
this file has joins the processes that drive them.

Host 0 is the chief. It reads the records, counts the steps and decides what is kept, as where it is alone. The others
do what it asks for: take their slices from a checkpoint, run a step, write their own part of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from gpt_neo.errors import AGAIN, LOST, CheckpointError, DeviceError, GptNeoError, HostLost, reason_of
from gpt_neo.runtime.watch import SIGNALS
from gpt_neo.spmd.messages import receive, send
from gpt_neo.spmd.parts import Writing, has_room, restore_parts, write_parts
from gpt_neo.spmd.process import Worker, WorkerLost

IDLE, EVERY, TIMES = 10, 5, 4  # seconds without a word, between questions, and their number, after which a host is gone
GRACE = 5.0  # seconds in which the loss of a host is heard of, once something has failed
LOOK = 1.0  # seconds between looks whether all are there
HELLO = 10.0  # seconds that a host may take from its connection to its name


@dataclasses.dataclass(frozen=True)
class Joined:
    """What this process is among others.

    addresses: of the chief, candidates as HOST:PORT. token: known to the hosts of this run alone.
    """

    rank: int
    hosts: int
    addresses: tuple
    token: str


class Host:
    """This machine's devices, and its part of what all hold. programs: number -> (description, its cores)."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.programs: dict[int, tuple[dict, list[int]]] = {}
        self.written: Callable[[], Optional[list[str]]] = list  # parts that are written, once they are

    def ask(self, header: Mapping, arrays: Mapping[str, Any]) -> tuple[dict, dict]:
        """Do what a message asks for.

        Raises:
          DeviceError: the devices refuse, or their process died.
          CheckpointError: one cannot be read, or does not fit.
        """
        if header["do"] == "sees":
            return {"sees": os.path.exists(header["path"])}, {}
        if header["do"] == "written":
            return {"parts": self.written()}, {}
        if header["do"] in ("restore", "write"):
            return self.checkpoint(header), {}
        reply, results = self.worker.ask(header, arrays)
        if header["do"] == "load":
            self.programs[header["program"]] = header["description"], reply["cores"]
        elif header["do"] == "drop":
            del self.programs[header["program"]]
        return reply, results

    def checkpoint(self, header: Mapping) -> dict:
        """Restore or write one; `beside` the devices' work where memory takes their slices."""
        description, cores = self.programs[header["program"]]

        def ask(do: str, given: Mapping[str, Any], **more: Any) -> dict:
            return self.worker.ask({"do": do, "program": header["program"], **more}, given)[1]

        if header["do"] == "restore":
            return {"notes": restore_parts(ask, description, cores, header["path"])}
        given = ask, description, cores, header["path"], header["step"]
        if header["beside"] and has_room(description, cores):
            self.written = Writing(*given).parts
        else:
            parts = write_parts(*given)
            self.written = lambda: parts
        return {}


class Link:
    """A connection to another host.

    Args:
      gone: called once it is closed from the other side. heard: called with what is no answer.
    """

    def __init__(self, connection: socket.socket, gone: Callable[[], None], heard: Callable[[dict], None]) -> None:
        keep_alive(connection)
        self.connection, self.gone, self.heard = connection, gone, heard
        self.input, self.output = connection.makefile("rb"), connection.makefile("wb")
        self.lock = threading.Lock()
        self.messages: queue.Queue = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Take messages until the connection ends; None is the last."""
        try:
            while True:
                header, arrays = receive(self.input)  # type: ignore[arg-type]
                if header.get("do") == "signal":
                    self.heard(header)
                else:
                    self.messages.put((header, arrays))
                    if "error" in header:
                        self.heard(header)
        except (EOFError, OSError, ValueError):  # ValueError: closed here
            self.gone()
            self.messages.put(None)

    def send(self, header: Mapping, arrays: Mapping[str, Any]) -> None:
        """Raises: HostLost: there is nobody."""
        try:
            with self.lock:
                send(self.output, header, arrays)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise HostLost("the connection is closed") from error

    def following(self) -> Optional[tuple[dict, dict]]:
        """The next message; None where no more will come."""
        message = self.messages.get()
        if message is None:
            self.messages.put(None)  # for whoever asks next: steps and checkpoints are asked for by two threads
        return message

    def close(self) -> None:
        """Close it."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was already
        self.connection.close()


def keep_alive(connection: socket.socket) -> None:
    """Have the system ask whether the other side is there: a machine without power closes nothing."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", IDLE), ("TCP_KEEPINTVL", EVERY), ("TCP_KEEPCNT", TIMES)):
        if hasattr(socket, name):  # macOS has other names
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # what was sent and is not taken
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (IDLE + EVERY * TIMES))


class Hosts:
    """All hosts of a run, as their chief sees them; of one machine, that one. links: to the others, by their ranks."""

    def __init__(self, own: Host) -> None:
        self.own = own
        self.links: list[Link] = []
        self.lost: Optional[str] = None  # which host is gone
        self.missed = threading.Event()  # one is
        self.failure: Optional[DeviceError] = None  # what another host said
        self.over = self.killed = False
        self.asking = threading.Lock()  # a checkpoint is written by a thread of its own

    def ask_each(self, header: Mapping, arrays: Sequence[Mapping[str, Any]]) -> list[tuple[dict, dict]]:
        """Ask all for the same, each with its own arrays. Returns their answers.

        Raises:
          DeviceError: some devices refuse. HostLost: one is gone. CheckpointError: this host cannot read or write it.
        """
        with self.asking:
            return self.asked(header, arrays)

    def asked(self, header: Mapping, arrays: Sequence[Mapping[str, Any]]) -> list[tuple[dict, dict]]:
        """As `ask_each`, one at a time."""
        try:
            for link, given in zip(self.links, arrays[1:]):
                link.send(header, given)
            answers = [self.own.ask(header, arrays[0])]
        except DeviceError as error:
            raise self.reason(error) from error
        except CheckpointError:
            for link in self.links:
                link.following()  # what is asked next is not to get the answers to this
            raise
        for rank, link in enumerate(self.links, 1):
            answer = link.following()
            if answer is None:
                raise self.reason(DeviceError(f"host {rank} is gone"))
            if "error" in answer[0]:
                raise self.reason(DeviceError(f"host {rank}: {answer[0]['error']}"))
            answers.append(answer)
        return answers

    def reason(self, error: DeviceError) -> DeviceError:
        """What lies behind an error: the loss of a host makes others fail as well, and they may be heard first."""
        if not self.links:
            return error
        if isinstance(error, WorkerLost) and not self.killed:
            self.lost = self.lost or str(error)
        if not self.lost:
            self.missed.wait(GRACE)
        if self.lost:
            return HostLost(f"{self.lost}: the run ends. {AGAIN}")
        return self.failure or error

    def ask_all(self, header: Mapping, arrays: Mapping[str, Any]) -> list[tuple[dict, dict]]:
        """Ask all for the same with the same arrays."""
        return self.ask_each(header, [arrays] * self.count)

    @property
    def count(self) -> int:
        """Hosts."""
        return 1 + len(self.links)

    def kill(self) -> None:
        """End the process of this machine's devices: what waits for it hears of it."""
        self.killed = True
        self.own.worker.process.kill()

    def close(self, status: int = 0) -> None:
        """Let all go. status: that the others end with."""
        self.over = True
        for link in self.links:
            try:
                link.send({"do": "end", "status": status}, {})
            except HostLost:
                pass  # it needs no word any more
        self.own.worker.close()
        for link in self.links:
            link.close()


class Lead(Hosts):
    """The hosts of a run with several.

    Args:
      listener: that the others come to. seconds: that they may take.
      tell: called with lines for the person. interrupt: asks this process to save and end.

    Raises:
      DeviceError: some do not come.
    """

    def __init__(
        self,
        own: Host,
        joined: Joined,
        listener: socket.socket,
        seconds: float,
        tell: Callable[[str], None],
        interrupt: Callable[[], None],
    ) -> None:
        super().__init__(own)
        self.tell, self.interrupt = tell, interrupt
        found = accept_all(listener, joined, seconds, lambda: own.worker.process.poll() is None)
        self.links = [self.link(rank, connection) for rank, connection in sorted(found.items())]

    def link(self, rank: int, connection: socket.socket) -> Link:
        """The connection to a host, watched."""

        def lost(text: str) -> None:
            self.lost = self.lost or text
            self.missed.set()
            self.kill()  # what waits for that host hears of it

        def gone() -> None:
            if not self.over:
                lost(f"host {rank} is gone")

        def heard(header: dict) -> None:
            if header.get("lost"):
                return lost(f"host {rank}: {header['error']}")
            if "error" in header:
                self.failure = self.failure or DeviceError(f"host {rank}: {header['error']}")
                return self.kill()
            self.tell(f"host {rank} is asked to end, which ends the run for all")
            self.interrupt()

        return Link(connection, gone, heard)


def accept_all(
    listener: socket.socket, joined: Joined, seconds: float, alive: Callable[[], bool] = lambda: True
) -> dict[int, socket.socket]:
    """The connections of all other hosts, by rank; who does not know the token is sent away.

    Args:
      alive: whether the process of this host's devices is; JAX ends it when another one is gone.

    Raises:
      HostLost: some did not come in time, or are gone.
    """
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + seconds
    listener.settimeout(LOOK)
    while len(found) < joined.hosts - 1:
        missing = sorted(set(range(1, joined.hosts)) - set(found))
        if not alive():
            raise HostLost(f"host {missing[0]} is gone before the run has begun. Start the same commands again")
        if time.monotonic() > end:
            raise HostLost(f"no answer from host {missing[0]} in {seconds:.0f} s")
        try:
            connection, _ = listener.accept()
            token, _, rank = hello(connection).partition(" ")
        except OSError:  # nobody yet, or somebody who said nothing
            continue
        if hmac.compare_digest(token.encode(), joined.token.encode()) and rank.isdecimal():
            connection.settimeout(None)
            found[int(rank)] = connection
        else:
            connection.close()
    return found


def hello(connection: socket.socket) -> str:
    """The first line that the other side sends; what follows is left for others to read."""
    end, line = time.monotonic() + HELLO, b""
    while not line.endswith(b"\n") and len(line) < 100:
        connection.settimeout(max(0.001, end - time.monotonic()))
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line.decode("ascii", "replace").strip()


def join(
    worker: Worker, options: Mapping[str, Any], platform: str, seconds: float, alone: bool
) -> tuple[Joined, socket.socket]:
    """Join the workers of all hosts. Returns what this one is, and what listens for the others if it is the chief.

    Args:
      options: of `jax.distributed.initialize`, those that are known; JAX finds the rest.
      alone: whether a machine where JAX finds no others goes on by itself.

    Raises:
      DeviceError: they do not come together. HostLost: not in time.
    """
    if options.get("process_id") == 0 and "coordinator_address" in options:
        check_free(options["coordinator_address"])
    listener = socket.create_server(("", 0), family=socket.AF_INET, backlog=1024)
    port, token = listener.getsockname()[1], secrets.token_hex(16)
    words = json.dumps({"addresses": [f"{host}:{port}" for host in own_names(options)], "token": token})
    header = {"do": "join", "platform": platform, "seconds": int(seconds), "alone": alone, "words": words, **options}
    try:
        reply, _ = worker.ask(header, {})
    except WorkerLost as error:  # so JAX ends a wait, too
        listener.close()
        raise HostLost(
            f"the hosts do not come together within {seconds:.0f} s (--cluster_wait): each has to be started with the "
            f"same command and a --rank of its own, and to reach the port of --coordinator ({error})"
        ) from error
    except DeviceError as error:
        listener.close()
        raise DeviceError(f"the hosts do not come together: {error}") from error
    told = json.loads(reply["words"])
    return Joined(reply["rank"], reply["hosts"], tuple(told["addresses"]), told["token"]), listener


def check_free(address: str) -> None:
    """See that this machine can listen on the port of HOST:PORT: JAX's own process dies where it cannot.

    Raises:
      DeviceError: another program does already, or the system refuses it.
    """
    try:
        socket.create_server(("", int(address.rpartition(":")[2])), family=socket.AF_INET).close()
    except OSError as error:
        raise DeviceError(f"--coordinator {address}: this machine cannot listen there: {reason_of(error)}") from error


def own_names(options: Mapping[str, Any]) -> list[str]:
    """Where other hosts may find this one, if it is the chief."""
    names = [options["coordinator_address"].rpartition(":")[0]] if "coordinator_address" in options else []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells by which address this machine goes out
            names.append(probe.getsockname()[0])
        except OSError:
            pass  # no way out: the name has to do
    return list(dict.fromkeys([*names, socket.gethostname()]))


def connect(joined: Joined, seconds: float) -> socket.socket:
    """A connection to the chief.

    Raises:
      HostLost: it cannot be reached.
    """
    for address in joined.addresses:
        host, _, port = address.rpartition(":")
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), min(seconds, 30.0))
        except OSError:
            continue
        connection.settimeout(None)
        connection.sendall(f"{joined.token} {joined.rank}\n".encode())
        return connection
    raise HostLost(f"host 0 cannot be reached at {' or '.join(joined.addresses)}")


def lend(host: Host, connection: socket.socket, tell: Callable[[str], None]) -> int:
    """Do what the chief asks for, until the run ends. Returns the exit status: the chief's own, or LOST.

    Args:
      connection: to the chief.
    """

    def gone() -> None:
        host.worker.process.kill()  # it may wait for the chief's devices

    link = Link(connection, gone, lambda header: None)
    with Asking(link, tell):
        while True:
            message = link.following()
            if message is None:
                tell(f"host 0 is gone: this one ends too. {AGAIN}")
                return LOST
            header, arrays = message
            if header["do"] == "end":
                return int(header["status"])
            try:
                reply, results = host.ask(header, arrays)
            except GptNeoError as error:
                reply, results = {"error": str(error), "lost": isinstance(error, WorkerLost)}, {}
            try:
                link.send(reply, results)
            except HostLost:
                pass  # the next message is the last


class Asking:
    """Context in which a signal asks the chief to save and end the run; the same once more ends this process."""

    def __init__(self, link: Link, tell: Callable[[str], None]) -> None:
        self.link, self.tell = link, tell
        self.handlers: dict = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.handlers = {number: signal.signal(number, self.hear) for number in heard}

    def hear(self, number: int, frame: object) -> None:
        """Pass it on; not here, as the main thread may be in the middle of a message."""
        signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=self.ask, args=(number,), daemon=True).start()

    def ask(self, number: int) -> None:
        """Tell the chief."""
        self.tell("asking host 0 to end the run")
        try:
            self.link.send({"do": "signal", "signal": number}, {})
        except HostLost:
            pass  # it is gone, which ends this process as well

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def check_shared(hosts: Hosts, path: str) -> None:
    """See that a file of the chief is there on all hosts.

    Raises:
      CheckpointError: on one it is not.
    """
    for rank, (reply, _) in enumerate(hosts.ask_all({"do": "sees", "path": path}, {})):
        if not reply["sees"]:
            raise CheckpointError(
                f"model_path: host {rank} does not see {os.path.dirname(path)} of host 0; all hosts need the same "
                "folder, on a shared disk or in gs://"
            )
