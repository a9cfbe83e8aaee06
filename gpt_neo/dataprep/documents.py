"""Documents out of units of work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional, Union

from gpt_neo.dataprep import streams
from gpt_neo.dataprep.readers import BROKEN_OFF, Bad, InputFile, find_sources, open_source
from gpt_neo.dataprep.streams import NOT_JSON, NOT_UTF8, Item, Items, Rules
from gpt_neo.dataprep.units import Unit, groups_of, units_of
from gpt_neo.errors import DataError, reason_of

PARAGRAPHS = "\n\n"  # lm_dataformat joins a list of paragraphs so
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
            yield Bad(source.path, "", 0, BROKEN_OFF, reason_of(error))


def segment_items(source: InputFile, start: int, stop: int, rules: Rules) -> Items:
    """Items of a part of a file."""
    if source.kind == "zip":
        yield from streams.zip_items(source, start, stop, rules)
    elif source.kind == "jsonl":
        yield streams.range_of_lines(source, start, stop)
    else:
        yield streams.range_of_text(source, start, stop)


def documents_of_item(item: Union[Item, Bad], rules: Rules) -> Found:
    """Documents of an item."""
    if isinstance(item, Bad):
        yield item
    elif isinstance(item.data, str):
        yield Document(item.data, item.path, item.noun, item.number, opens=item.opens, closes=item.closes)
    else:
        lines = item.data.split(b"\n")
        for number, line in enumerate(lines, item.number):
            if line and not line.isspace():
                place = (item.path, item.noun, number)
                yield document_of_line(line, place, item.counted_from, rules.text_key)


def document_of_line(line: bytes, place: tuple[str, str, int], counted_from: int, key: str) -> Union[Document, Bad]:
    """The document of one JSON line: an object with the text under a key, or the text itself."""
    try:
        record = json.loads(line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        return Bad(*place, NOT_UTF8, f"{error.reason} at byte {error.start} of the line", counted_from)
    except json.JSONDecodeError as error:
        return Bad(*place, NOT_JSON, error.msg, counted_from)
    except RecursionError:
        return Bad(*place, NOT_JSON, "nested too deeply", counted_from)
    text, set_name = record, None
    if isinstance(record, dict):
        text, meta = record.get(key), record.get("meta")
        set_name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        text = PARAGRAPHS.join(text)
    if not isinstance(text, str):
        return Bad(*place, f"expected an object with a string under {key!r}", "", counted_from)
    return Document(text, *place, counted_from, set_name if isinstance(set_name, str) else None)


def parquet_documents(source: InputFile, start: int, stop: int, rules: Rules) -> Found:
    """Documents of row groups: the column `text_key`, with The Pile's set name if there is a `meta`."""
    with open_source(source.path) as handle:
        opened = streams.parquet_file(handle)
        names = opened.schema_arrow.names
        if rules.text_key not in names:
            yield Bad(source.path, "", 0, f"no column {rules.text_key!r}", f"there are {', '.join(names)}")
            return
        columns = [rules.text_key, *(["meta"] if "meta" in names else [])]
        row = sum(opened.metadata.row_group(i).num_rows for i in range(start)) + 1
        for batch in opened.iter_batches(ROWS, row_groups=list(range(start, stop)), columns=columns):
            metas = batch.column(1).to_pylist() if len(columns) > 1 else [None] * batch.num_rows
            for text, meta in zip(batch.column(0).to_pylist(), metas):
                if isinstance(text, str):
                    set_name = meta.get("pile_set_name") if isinstance(meta, dict) else None
                    yield Document(text, source.path, "row", row, 0, set_name)
                else:
                    yield Bad(source.path, "row", row, f"expected a string in column {rules.text_key!r}")
                row += 1


def read_documents(inputs: Sequence[str], text_key: str = "text") -> Iterator[str]:
    """Every document of the inputs, or pieces of a long one, for those who need only the text.

    Raises:
      DataError: something cannot be read; names file and line.
    """
    sources, bad = find_sources(inputs)
    if bad:
        raise DataError(str(bad[0]))
    rules = Rules(text_key, split=True)
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
        with open_source(path) as handle:
            lines = place = 0
            for offset in offsets:
                while block := handle.read(min(streams.BLOCK, offset - place)):
                    lines, place = lines + block.count(b"\n"), place + len(block)
                before[path, offset] = lines
    return [
        found._replace(number=found.number + before.get((found.path, found.counted_from), 0), counted_from=0)
        for found in bad
    ]
