"""Which tokens go into which output file: arithmetic on the sizes of the units, for any number of workers. Pure.

The tokens of all units in order are one stream. In chunk mode output file k holds the k-th run of `files_per` records
of that stream, in document mode the k-th run of `files_per` documents. An extent is a number of tokens or of documents.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A piece of a unit's stream: from `start` to `stop` of its tokens (documents, in document mode)."""

    unit: int
    start: int
    stop: int


class Shard(NamedTuple):
    """One output file.

    Attributes:
      fill: tokens added at the end of its last record.
    """

    number: int
    records: int
    parts: tuple[Part, ...]
    fill: int = 0


class Packing:
    """Takes the extents of the units in order and gives out files as they become complete."""

    def __init__(self, record: int, files_per: int) -> None:
        """
        Args:
          record: extent of one record: tokens of a chunk, or 1 document.
          files_per: records per file.
        """
        self.record, self.files_per = record, files_per
        self.shards = self.waiting = 0
        self.parts: list[Part] = []

    def add(self, unit: int, extent: int) -> list[Shard]:
        """Take the next unit; return the files that are complete with it."""
        whole, start, complete = self.record * self.files_per, 0, []
        while self.waiting + extent - start >= whole:
            stop = start + whole - self.waiting
            complete.append(self.shard(self.files_per, Part(unit, start, stop), 0))
            start = stop
        if start < extent:
            self.parts.append(Part(unit, start, extent))
            self.waiting += extent - start
        return complete

    def finish(self) -> list[Shard]:
        """The last file, which may have fewer records, the last of them filled up; none if nothing is left."""
        if not self.waiting:
            return []
        fill = -self.waiting % self.record
        return [self.shard((self.waiting + fill) // self.record, None, fill)]

    def shard(self, records: int, last: Part | None, fill: int) -> Shard:
        """Close the file that is waiting."""
        parts = self.parts + ([last] if last is not None and last.stop > last.start else [])
        made = Shard(self.shards, records, tuple(parts), fill)
        self.shards, self.parts, self.waiting = self.shards + 1, [], 0
        return made

    def first_needed(self) -> int | None:
        """The first unit so far that files still to come draw from; None if there is none."""
        return self.parts[0].unit if self.parts else None
