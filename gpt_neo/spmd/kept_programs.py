"""Compiled programs on disk, by content: a run that starts again does not wait for the compiler. For `worker.py`.

Loading one can run any code, as JAX says of its own format: the folder is this user's alone, and a file that does not
have the checksum it was written with is not loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from typing import Any, Callable, Optional

VARIABLE = "GPT_NEO_SPMD_PROGRAMS"  # folder; empty: nothing is kept
ROOM = 8 << 30  # bytes; the ones that were used longest ago make room
DIGEST = 32  # bytes of a checksum


def own_folder() -> str:
    """The folder below the user's; empty where the user has none. `gpt_neo.system.cache_folder`, which is not there in
    the environment that this runs in."""
    home = os.path.expanduser("~")
    return os.path.join(home, ".cache", "gpt_neo", "programs") if os.path.isabs(home) else ""


class KeptPrograms:
    """A folder of serialised executables."""

    def __init__(self, folder: Optional[str] = None) -> None:
        self.folder = folder if folder is not None else os.environ.get(VARIABLE, own_folder())

    def path(self, *facts: str) -> str:
        """The file of a program with all that decides what is compiled of it."""
        key = hashlib.sha256("\0".join((*facts, *machine())).encode()).hexdigest()
        return os.path.join(self.folder, key[:40])

    def load(self, path: str, restored: Callable[[bytes], Any]) -> Any:
        """What `restored` makes of a file's bytes; None where there is none, or none that is sound."""
        if not self.folder:
            return None
        try:
            with open(path, "rb") as handle:
                digest, data = handle.read(DIGEST), handle.read()
            if hashlib.sha256(data).digest() != digest:
                return None
            found = restored(data)
            os.utime(path)
            return found
        except Exception:  # of whatever type: what cannot be loaded is compiled
            return None

    def keep(self, path: str, data: Callable[[], bytes]) -> None:
        """Write a file, as far as the disk lets us; the oldest ones make room."""
        if not self.folder:
            return
        with contextlib.suppress(Exception):  # not every platform can write what it has compiled
            made = data()
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(made).digest() + made)
                os.replace(unfinished, path)
            except BaseException:
                os.remove(unfinished)
                raise
            self.make_room()

    def make_room(self) -> None:
        """Remove the files that were used longest ago, until the others have room."""
        entries = sorted(os.scandir(self.folder), key=lambda entry: -entry.stat().st_mtime)
        held = 0
        for entry in entries:
            held += entry.stat().st_size
            if held > ROOM:
                os.remove(entry.path)


def machine() -> tuple[str, ...]:
    """What a program for the processor depends on: its instructions. Flags change the compiler's work."""
    features = ""
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            features = next((line for line in handle if line.startswith(("flags", "Features"))), "")
    return features, os.environ.get("XLA_FLAGS", ""), os.environ.get("LIBTPU_INIT_ARGS", "")
