"""What a run has finished, so that another can go on after a kill at any instant.

A file of JSON lines that only grows: a header, one line for each unit whose spill is whole, in order, and one for each
output file that is. A line is written after what it speaks of is safely stored: what a kill interrupts is done again,
with the same bytes. The last line may be cut off; it then counts as not written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import operator
import os
from typing import BinaryIO, Optional

from gpt_neo import storage
from gpt_neo.errors import DataError, reason_of

FILE = "ledger.jsonl"


class Ledger:
    """The ledger of a folder of unfinished work, held by one process at a time.

    Attributes:
      units: lines of the units, in order.
      shards: lines of the output files, by number.
      manifest: of a run that has finished all but tidying up.
      resumed: whether there was a ledger.
    """

    def __init__(self, folder: str, header: dict) -> None:
        """Open or begin it.

        Raises:
          DataError: another process holds it, or it belongs to another run (other inputs, options or tokenizer).
        """
        self.path = os.path.join(folder, FILE)
        self.units: list[dict] = []
        self.shards: dict[int, dict] = {}
        self.manifest: Optional[dict] = None
        try:
            storage.make_folder(folder)
            self.handle: BinaryIO = open(self.path, "a+b")
            storage.sync(self.path)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.handle.close()
            raise DataError(f"{folder}: another process is preparing this data set") from error
        try:
            self.resumed = self.load(header)
        except BaseException:
            self.handle.close()
            raise

    def load(self, header: dict) -> bool:
        """Read what is there; begin if nothing is."""
        self.handle.seek(0)
        whole = 0
        lines = []
        for line in self.handle:
            value = parsed(line)
            if value is None:
                break
            lines.append(value)
            whole += len(line)
        if lines[1:] == [] and lines != [header]:  # nothing is finished: nobody's work is lost
            lines, whole = [], 0
        self.handle.truncate(whole)
        if not lines:
            self.append(header)
            return False
        if lines[0] != header:
            different = [key for key in header if lines[0].get(key) != header[key]]
            raise DataError(
                f"{os.path.dirname(self.path)} holds the unfinished work of a run with other "
                f"{' and '.join(different)}: go on with the same ones, or throw that work away with --restart"
            )
        for value in lines[1:]:
            try:
                self.take(value)
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}: damaged, no line of ours: {json.dumps(value)[:100]}; throw the unfinished work away "
                    "with --restart"
                ) from error
        return True

    def take(self, value: dict) -> None:
        """Take in a line. Raises: KeyError, TypeError: it is none of ours."""
        if "forget" in value:
            self.drop(value["forget"], value["shards"])
        elif "shard" in value:
            self.shards[operator.index(value["shard"])] = value
        elif "manifest" in value:
            self.manifest = value["manifest"]
        else:
            operator.index(value["unit"])
            self.units.append(value)

    def append(self, value: dict) -> None:
        """Write a line to the disk.

        Raises:
          DataError: it cannot be written.
        """
        try:
            self.handle.write(json.dumps(value).encode() + b"\n")
            self.handle.flush()
            os.fsync(self.handle.fileno())
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written: {reason_of(error)}; the same command goes on where this one stopped"
            ) from error

    def add_unit(self, value: dict) -> None:
        """Note a finished unit."""
        self.append(value)
        self.units.append(value)

    def add_shard(self, value: dict) -> None:
        """Note a finished output file."""
        self.append(value)
        self.shards[value["shard"]] = value

    def add_manifest(self, manifest: dict) -> None:
        """Note that everything is written."""
        self.append({"manifest": manifest})
        self.manifest = manifest

    def forget(self, unit: Optional[int], shards: list[int]) -> None:
        """Note that units from one on, and some output files, are to be made again."""
        self.append({"forget": unit, "shards": shards})
        self.drop(unit, shards)

    def drop(self, unit: Optional[int], shards: list[int]) -> None:
        """Leave out what is to be made again."""
        self.units = [line for line in self.units if unit is None or line["unit"] < unit]
        self.shards = {number: line for number, line in self.shards.items() if number not in shards}
        self.manifest = None

    def close(self) -> None:
        """Let another process have it."""
        with contextlib.suppress(OSError):  # of a line that could not be written, which has been said
            self.handle.close()


def parsed(line: bytes) -> Optional[dict]:
    """The object of a whole line, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def listed_files(folder: str) -> list[str]:
    """Output files named in a folder's ledger; empty if it has none."""
    try:
        with open(os.path.join(folder, FILE), "rb") as handle:
            values = [parsed(line) for line in handle]
    except FileNotFoundError:
        return []
    return [value["file"] for value in values if value and "shard" in value]
