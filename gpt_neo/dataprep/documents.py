"""Documents out of units of work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional, Union

from gpt_neo.dataprep import streams
from gpt_neo.dataprep.readers import BROKEN_OFF, UNREADABLE, Bad, InputFile, find_sources, open_source
from gpt_neo.dataprep.streams import Item, Items, Rules
from gpt_neo.dataprep.units import Unit, groups_of, units_of
from gpt_neo.dataprep.values import document_values, no_text, set_of, suggestion, text_of
from gpt_neo.errors import DataError, reason_of

ROWS = 256  # of a parquet file read at once
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Document(NamedTuple):
    """A text, or a piece of one, and where it stands.

    Attributes:
      set_name: The Pile's name of the set it belongs to.
    """

    text: str
    path: str
    noun: str = ""
    number: int = 0
    counted_from: int = 0
    set_name: Optional[str] = None
    opens: bool = True
    closes: bool = True

    @property
    def place(self) -> str:
        """Where it stands, for people; the line is not told where those before it were not counted."""
        return str(Bad(self.path, self.noun, 0 if self.counted_from else self.number, "")).removesuffix(": ")

    def bad(self, reason: str) -> Bad:
        """This document as one that cannot be used."""
        return Bad(self.path, self.noun, self.number, reason, counted_from=self.counted_from)


Found = Iterator[Union[Document, Bad]]


def documents_of(unit: Unit, rules: Rules) -> Found:
    """Documents of a unit in order, and the places where there is something else."""
    for item in unit.items:
        yield from documents_of_item(item, rules)
    for source, start, stop in unit.segments:
        try:
            if source.kind == "parquet":
                yield from parquet_documents(source, start, stop, rules)
                continue
            for item in segment_items(source, start, stop, rules):
                yield from documents_of_item(item, rules)
        except streams.BROKEN_ARCHIVE as error:
            reason = BROKEN_OFF if source.kind in ("zip", "parquet") else UNREADABLE
            yield Bad(source.path, "", 0, reason, reason_of(error))


def segment_items(source: InputFile, start: int, stop: int, rules: Rules) -> Items:
    """Items of a part of a file."""
    if source.kind == "zip":
        yield from streams.zip_items(source, start, stop, rules)
    else:
        yield from streams.plain_items(source, start, stop, rules)


def documents_of_item(item: Union[Item, Bad], rules: Rules) -> Found:
    """Documents of an item. Whatever is wrong with one costs that one alone."""
    if isinstance(item, Bad):
        yield item
    elif isinstance(item.data, str):
        yield Document(item.data, item.path, item.noun, item.number, opens=item.opens, closes=item.closes)
    else:
        for place, line in lines_of(item):
            found = document_values(line, place, item.counted_from, rules.text_key)
            if isinstance(found, Bad):
                yield found
            else:
                yield from texts_of(found[0], found[1], place, item.counted_from, rules)


def lines_of(item: Item) -> Iterator[tuple[tuple[str, str, int], bytes]]:
    """((path, noun, number), JSON) of the lines or elements of an item of a JSON file, but for blank ones."""
    assert isinstance(item.data, bytes)
    for number, line in enumerate(item.data.split(b"\n"), item.number):
        line = line.removeprefix(BYTE_ORDER_MARK)  # files that were joined have it in the middle
        if line and not line.isspace():
            yield (item.path, item.noun, number), line


def texts_of(text: str, set_name: Optional[str], place: tuple[str, str, int], start: int, rules: Rules) -> Found:
    """A document as it is, or those between the marks in it; blank ones are none of these."""
    if not rules.split_on or rules.split_on not in text:
        yield Document(text, *place, start, set_name)
        return
    for part in text.split(rules.split_on):
        if part.strip():
            yield Document(part.strip(), *place, start, set_name)


def parquet_documents(source: InputFile, start: int, stop: int, rules: Rules) -> Found:
    """Documents of row groups: the column `text_key`, with The Pile's set name if there is a `meta`."""
    with open_source(source.path) as handle:
        opened = streams.parquet_file(handle)
        names, key = opened.schema_arrow.names, rules.text_key
        column = key if key in names else key.partition(".")[0]
        if column not in names:
            first: dict = next((batch.to_pylist()[0] for batch in opened.iter_batches(1) if batch.num_rows), {})
            there = f"there are {', '.join(map(repr, names))}{suggestion(first, key)}"
            yield Bad(source.path, "", 0, f"no column {key!r}", there)
            return
        columns = [column, *(["meta"] if "meta" in names and column != "meta" else [])]
        row = sum(opened.metadata.row_group(i).num_rows for i in range(start)) + 1
        for batch in opened.iter_batches(ROWS, row_groups=list(range(start, stop)), columns=columns):
            for record in batch.to_pylist():
                text, place = text_of(record, key), (source.path, "row", row)
                if text is None:
                    yield no_text(place, 0, record, key)._replace(reason=f"expected a string in column {key!r}")
                else:
                    yield from texts_of(text, set_of(record.get("meta")), place, 0, rules)
                row += 1


def read_documents(
    inputs: Sequence[str], text_key: str = "text", encoding: str = "", split: bool = True
) -> Iterator[str]:
    """Every document of the inputs, or with `split` pieces of a long one, for those who need only the text.

    Raises:
      DataError: something cannot be read; names file and line.
    """
    sources, bad = find_sources(inputs)
    if bad:
        raise DataError(str(bad[0]))
    rules = Rules(text_key, split, encoding=encoding)
    for unit in units_of(groups_of(sources), rules):
        for found in documents_of(unit, rules):
            if isinstance(found, Bad):
                raise DataError(str(with_lines([found])[0]))
            yield found.text


def with_lines(bad: Sequence[Bad]) -> list[Bad]:
    """The same with lines counted from the beginning of the file; reads each file once, up to the last such place."""
    before: dict[tuple[str, int], int] = {}
    for path in {found.path for found in bad if found.counted_from}:
        offsets = sorted({found.counted_from for found in bad if found.path == path})
        lines = place = 0
        with contextlib.suppress(OSError, DataError), open_source(path) as handle:  # else told without a line
            for offset in offsets:
                while block := handle.read(min(streams.BLOCK, offset - place)):
                    lines, place = lines + block.count(b"\n"), place + len(block)
                before[path, offset] = lines
    return [with_line(found, before.get((found.path, found.counted_from))) for found in bad]


def with_line(found: Bad, before: Optional[int]) -> Bad:
    """The same with its line counted from the beginning of the file, if the lines before it are known."""
    if not found.counted_from:
        return found
    return found._replace(number=0 if before is None else found.number + before, counted_from=0)
