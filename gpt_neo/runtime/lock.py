"""One run at a time in a folder of checkpoints: a lock that names its owner and tells how long ago it was alive.

The lock is the file `run.lock`. In a local folder the kernel holds it for a process (flock), and lets go of it however
that process ends. Where the kernel cannot know, on a bucket or a file system that other machines share, the owner
renews the file every few seconds: one that was not renewed for a while is nobody's any more, and an owner that finds
another name in the file stops before it writes anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import stat
import threading
import time
from typing import Any, Callable, Optional

from gpt_neo.errors import CheckpointError, InUseError, reason_of
from gpt_neo.storage import parse_json
from gpt_neo.storage import tensorflow as files
from gpt_neo.system import is_running

LOCK_FILE = "run.lock"
BEAT = 20.0  # seconds between renewals
SIZE = 500  # bytes of a local lock
LONGEST = 100_000  # bytes of one that is read
STALE = 120.0  # seconds without one after which an owner that cannot be asked counts as gone
SURE = 2 * BEAT + 5  # of them that are seen to pass here in any case: its clock may be hours from ours


def this_machine() -> dict:
    """What process numbers are unique within: host, boot and process namespace."""
    found = {"host": socket.gethostname(), "boot": "", "processes": ""}
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
            found["boot"] = handle.read().strip()
        found["processes"] = os.readlink("/proc/self/ns/pid")
    return found


def start_of(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks; "" for one that is not there."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as handle:
            return handle.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def age_text(seconds: float) -> str:
    """A duration for people."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} seconds"


class FolderLock:
    """Context in which a folder is this process's own.

    Args:
      folder: of checkpoints; there already, if local.
      tell: called with a line for the person when the lock of a run that is gone is taken over.
      clock: seconds since 1970.

    Raises:
      InUseError: another run is at work in the folder.
      CheckpointError: the lock cannot be written.
    """

    def __init__(
        self,
        folder: str,
        tell: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = os.path.join(folder, LOCK_FILE)
        self.remote = files.is_remote(folder)
        self.tell, self.clock, self.sleep = tell, clock, sleep
        pid = os.getpid()
        self.record = {
            **this_machine(),
            "pid": pid,
            "started": start_of(pid),
            "token": os.urandom(8).hex(),
            "since": clock(),
            "alive": clock(),
        }
        self.lost: Optional[str] = None  # why the folder is no longer ours
        self.ended = threading.Event()
        self.handle: Any = None
        self.thread = threading.Thread(target=self.renew_until_the_end, daemon=True)

    def __enter__(self) -> FolderLock:
        try:
            if not self.remote:
                self.hold()
            known = self.read()
            if known:
                self.take_over(known)
            self.write()
        except OSError as error:
            self.drop()
            raise CheckpointError(f"{self.path}: the lock cannot be written: {reason_of(error)}") from error
        except CheckpointError:
            self.drop()
            raise
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        self.thread.join(5)
        with contextlib.suppress(OSError):
            if not self.lost and (self.read() or {}).get("token") == self.record["token"]:
                files.delete(self.path)
        self.drop()

    def hold(self) -> None:
        """Let the kernel hold the file for this process; what a link leads to is not ours to write."""
        if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise CheckpointError(f"{self.path}: a link, a pipe or a folder, not the lock of a run; delete it")
        while True:
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            self.handle = os.fdopen(number, "r+", encoding="utf-8")
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUseError(self.in_use(self.read() or {})) from None
            # A run that ended just now may have removed the file that was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.handle.fileno()), os.stat(self.path)):
                    return
            self.handle.close()

    def drop(self) -> None:
        """Let go of the file. What a full disk has not taken is tried once more by `close`, in vain."""
        if self.handle:
            with contextlib.suppress(OSError):
                self.handle.close()
            self.handle = None

    def read(self) -> Optional[dict]:
        """What the lock says; None where there is none, empty where it says nothing sensible."""
        if not files.exists(self.path):
            return None
        try:
            record = parse_json(files.read_bytes(self.path, count=LONGEST), once=False)
        except ValueError:
            return {}
        kinds: dict[str, Any] = {"host": str, "pid": int, "since": (int, float), "alive": (int, float)}
        sound = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
        return record if sound and all(0 <= record[key] < 1e15 for key in ("pid", "since", "alive")) else {}

    def take_over(self, known: dict) -> None:
        """Go past a lock whose owner is gone, and say so.

        Raises:
          InUseError: the owner is alive.
        """
        here = this_machine()
        silent = max(0.0, self.clock() - known["alive"])
        who = f"process {known['pid']} on {known['host']}"
        if here["boot"] and all(known.get(key) == value for key, value in here.items()):
            alive = start_of(known["pid"]) == known.get("started", "") != ""
            # A process that is there and has a local folder no longer locked has left it.
            if alive and self.remote and known["pid"] != os.getpid():
                raise InUseError(self.in_use(known))
            reason = "it has left the folder" if alive else "that process is gone"
        elif not here["boot"] and known["host"] == here["host"] and not self.remote and not is_running(known["pid"]):
            reason = "that process is gone"  # macOS says no more of a process than whether it is there
        else:
            self.wait_for_silence(known, max(STALE - silent, SURE))
            reason = f"it gave no sign of life for {age_text(max(STALE, silent))}"
        self.tell(f"the lock of {who}, held for {age_text(known['alive'] - known['since'])}, is taken over: {reason}")

    def wait_for_silence(self, known: dict, seconds: float) -> None:
        """Wait for a sign of life of an owner that cannot be asked: on another host (whose name may be this one's, as
        those of containers often are), or on this one by its former name or before it started anew.

        Raises:
          InUseError: there was one.
        """
        self.tell(
            f"process {known['pid']} on {known['host']} has the lock and cannot be asked: waiting up to "
            f"{age_text(seconds)} for its next sign of life"
        )
        for _ in range(math.ceil(seconds)):
            self.sleep(1.0)
            latest = self.read()
            if latest and latest != known:
                raise InUseError(self.in_use(latest))

    def in_use(self, known: dict) -> str:
        """The refusal."""
        folder = os.path.dirname(self.path)
        if not known:
            return f"model_path {folder!r} is in use by another run ({self.path})"
        now = self.clock()
        return (
            f"model_path {folder!r} is in use: process {known['pid']} on {known['host']} has held it for "
            f"{age_text(now - known['since'])}, last sign of life {age_text(now - known['alive'])} ago. Two runs "
            f"in one folder would overwrite each other's checkpoints: stop that one, or set another model_path."
        )

    def write(self) -> None:
        """Write the lock. The local file keeps its inode, which the kernel's lock hangs on, and its size: renewing it
        takes no room on a full disk."""
        text = json.dumps(self.record)
        if self.remote:
            files.write_text(self.path, text + "\n")
            return
        self.handle.seek(0)
        self.handle.write(f"{text:{SIZE}s}\n")
        self.handle.truncate()  # of a longer one that said nothing

    def renew_until_the_end(self) -> None:
        """Renew the lock every BEAT seconds. A failure to is none of the run's: its own writes will tell."""
        while not self.ended.wait(BEAT):
            with contextlib.suppress(OSError):
                self.renew()

    def renew(self) -> None:
        """Write the time into the lock, unless it has become another's."""
        known = self.read()
        if known is None or known.get("token", self.record["token"]) != self.record["token"]:
            owner = f"process {known['pid']} on {known['host']} has taken it" if known else "its lock was deleted"
            self.lost = (
                f"model_path {os.path.dirname(self.path)!r} is no longer this run's: {owner}. Nothing more is "
                "written; the checkpoints so far are kept"
            )
            self.ended.set()
            return
        self.record["alive"] = self.clock()
        self.write()

    def check(self) -> None:
        """Raises: CheckpointError: the folder is no longer ours."""
        if self.lost:
            raise CheckpointError(self.lost)
