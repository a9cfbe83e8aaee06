"""The units of work: inputs cut into runs of documents of about UNIT_BYTES, the same for any number of workers.

Plain files are cut at byte offsets and read by the workers themselves; archives by members or row groups. What can only
be read from its beginning (compressed text, tar, stdin) is read here, and the unit carries its text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Union

from gpt_neo.dataprep import streams
from gpt_neo.dataprep.readers import BROKEN_OFF, STDIN, UNREADABLE, Bad, InputFile, open_source
from gpt_neo.dataprep.streams import Item, Rules
from gpt_neo.errors import reason_of

UNIT_BYTES = 8 << 20
MOST_FILES = 1000  # in one unit


class Segment(NamedTuple):
    """A part of an input file: bytes of a plain file, members of a zip, row groups of a parquet file."""

    source: InputFile
    start: int
    stop: int


class Unit(NamedTuple):
    """Work for one process, about a second of it.

    Attributes:
      group, part: its place: the part-th unit of a group of input files.
      last: of its group.
      stored: bytes of the input files that it stands for, as they are stored.
      segments: what the worker reads; or
      items: what has been read already.
    """

    group: int
    part: int
    last: bool
    stored: int
    segments: tuple[Segment, ...] = ()
    items: tuple[Union[Item, Bad], ...] = ()

    @property
    def number(self) -> int:
        """Names the unit; numbers rise with the order of the units."""
        return number_of(self.group, self.part)


def number_of(group: int, part: int) -> int:
    """Number of a unit by its place: known without those of other groups."""
    return (group << 24) + part


def groups_of(sources: Sequence[InputFile]) -> list[tuple[InputFile, ...]]:
    """Input files that share units (neighbouring small plain ones) or have some of their own."""
    groups: list[list[InputFile]] = []
    room = -1
    for source in sources:
        small = is_plain(source) and source.size <= UNIT_BYTES
        if small and room >= source.size and len(groups[-1]) < MOST_FILES:
            groups[-1].append(source)
            room -= source.size
        else:
            groups.append([source])
            room = UNIT_BYTES - source.size if small else -1
    return [tuple(group) for group in groups]


def is_plain(source: InputFile) -> bool:
    """Whether a file can be read from any place on."""
    return source.kind in ("text", "jsonl") and not source.compression and source.path != STDIN


def units_of(groups: Sequence[tuple[InputFile, ...]], rules: Rules, start: tuple[int, int] = (0, 0)) -> Iterator[Unit]:
    """Units in order, from the `start[1]`-th of the `start[0]`-th group on."""
    for number in range(start[0], len(groups)):
        group, part = groups[number], start[1] if number == start[0] else 0
        if len(group) > 1 or (is_plain(group[0]) and group[0].size <= UNIT_BYTES):
            if not part:
                segments = tuple(Segment(source, 0, source.size) for source in group)
                yield Unit(number, 0, True, sum(source.size for source in group), segments)
        elif is_plain(group[0]) and has_ranges(group[0], rules):
            yield from itertools.islice(plain_units(number, group[0], rules), part, None)
        elif group[0].kind in ("zip", "parquet"):
            yield from itertools.islice(archive_units(number, group[0]), part, None)
        else:
            yield from stream_units(number, group[0], rules, part)


def has_ranges(source: InputFile, rules: Rules) -> bool:
    """Whether a plain file can be read from any place on: not so another encoding, or a text of many documents."""
    if rules.encoding or (rules.split_on and source.kind == "text"):
        return False
    try:
        return not streams.is_marked(source)
    except OSError:
        return True  # whoever reads it will say so


def plain_units(group: int, source: InputFile, rules: Rules) -> Iterator[Unit]:
    """Units of a large file that can be read from any place on: ranges of bytes."""
    whole = source.kind == "text" and (not rules.split or (rules.skip_bad and not streams.can_be_cut(source)))
    starts = range(0, source.size, source.size if whole else UNIT_BYTES)
    for part, start in enumerate(starts):
        stop = min(start + starts.step, source.size)
        yield Unit(group, part, stop == source.size, stop - start, (Segment(source, start, stop),))


def archive_units(group: int, source: InputFile) -> Iterator[Unit]:
    """Units of a zip or parquet file: runs of members or row groups."""
    try:
        sizes = streams.zip_sizes(source) if source.kind == "zip" else streams.parquet_sizes(source)
    except streams.BROKEN_ARCHIVE as error:
        yield Unit(group, 0, True, source.size, items=(Bad(source.path, "", 0, BROKEN_OFF, reason_of(error)),))
        return
    cuts, scale = cuts_of(sizes), source.size / max(1, sum(sizes))
    for part, (start, stop) in enumerate(zip(cuts, cuts[1:])):
        stored = int(sum(sizes[start:stop]) * scale)
        yield Unit(group, part, stop == len(sizes), stored, (Segment(source, start, stop),))


def cuts_of(sizes: Sequence[int]) -> list[int]:
    """Indices that cut a list of sizes into runs of about UNIT_BYTES: 0, ..., len(sizes)."""
    cuts, size = [0], 0
    for index, more in enumerate(sizes):
        if size and size + more > UNIT_BYTES:
            cuts.append(index)
            size = 0
        size += more
    return [*cuts, len(sizes)] if sizes else [0, 0]


def stream_units(group: int, source: InputFile, rules: Rules, first: int) -> Iterator[Unit]:
    """Units of a file that is read here, from its beginning; those before `first` are read and passed over."""
    try:
        opened = open_source(source.path)
    except OSError as error:
        if not first:
            yield Unit(group, 0, True, source.size, items=(Bad(source.path, "", 0, UNREADABLE, reason_of(error)),))
        return
    with opened as handle:
        made, place = Unit(group, 0, False, 0), 0
        for part, items in enumerate(item_groups(streams.stream_items(source, handle, rules))):
            if part > first:
                yield made
            here = handle.tell() if source.path != STDIN else 0
            made, place = Unit(group, part, False, here - place, items=tuple(items)), here
        if made.part >= first:
            yield made._replace(last=True)


def item_groups(items: Iterable[Union[Item, Bad]]) -> Iterator[list[Union[Item, Bad]]]:
    """Group items to about UNIT_BYTES."""
    group: list[Union[Item, Bad]] = []
    size = 0
    for item in items:
        more = len(item.data) if isinstance(item, Item) else 0
        if group and size + more > UNIT_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += more
    if group:
        yield group
