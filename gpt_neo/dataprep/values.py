"""JSON as documents: elements cut out of a stream without parsing it, and the text of one value."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, Optional, Union

from gpt_neo.dataprep.readers import Bad

NOT_JSON = "not valid JSON"
BETWEEN = re.compile(rb"[\s,]*")
STRUCTURE = re.compile(rb'["{}\[\],]')
IN_STRING = re.compile(rb'["\\\n]')
NEXT_ELEMENT = re.compile(rb"\n\s*(?=[{\]])")  # where reading can go on after an element that does not end
PAIRS = dict(zip(b"{[", b"}]"))
DEPTH = 3  # keys inside keys that a suggestion may have
# Keys whose texts say what something is: a chat of short turns has longer ones there.
LABELS = "role from type name id uuid url link title source lang language date license split hash".split()
SHOWN = 8  # keys of an object that a message names


class Cutter:
    """Cuts values out of bytes as they come: those that stand one after another, and the elements of arrays.

    Only strings and brackets are followed, so that what is wrong inside a value costs that value alone: where a string
    does not end in its line, or another bracket closes than was opened, the next line that begins with a bracket begins
    another value.

    Attributes:
      inside: whether an array is open.
      start: where the value begins that has not ended; None between values.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.inside = self.quoted = self.lost = False
        self.at, self.open = 0, bytearray()  # the brackets that are open
        self.start: Optional[int] = None

    def take(self) -> Optional[bytes]:
        """The next value, on one line; None if more bytes are needed."""
        if self.lost and not self.find_next():
            return None
        while self.start is None:
            found = BETWEEN.match(self.buffer, self.at)
            self.at = found.end() if found else self.at
            if self.at == len(self.buffer):
                return None
            sign = self.buffer[self.at : self.at + 1]
            if sign == b"]" or (sign == b"[" and not self.inside):
                self.inside = sign == b"["
                self.at += 1
            else:
                self.start = self.at
        end = self.end()
        if end is None:
            return None
        value = bytes(self.buffer[self.start : end]).replace(b"\n", b" ")
        del self.buffer[:end]
        self.begin()
        return value

    def begin(self) -> None:
        """Stand before the next value."""
        self.at, self.open, self.start, self.quoted = 0, bytearray(), None, False

    def end(self) -> Optional[int]:
        """Where the value ends; None if more bytes are needed."""
        while found := (IN_STRING if self.quoted else STRUCTURE).search(self.buffer, self.at):
            sign, self.at = found[0], found.end()
            if sign == b"\\":
                if self.at == len(self.buffer):
                    self.at -= 1
                    return None
                self.at += 1
            elif sign == b"\n":
                self.lost = True
                return found.start()
            elif sign == b'"':
                self.quoted = not self.quoted
                if not self.quoted and not self.open:
                    return self.at
            elif sign in b"{[":
                self.open += sign
            elif not self.open and sign in b",]":
                return found.start()
            elif sign in b"}]" and self.open:
                if PAIRS[self.open.pop()] != sign[0]:
                    self.lost = True
                    line = self.buffer.find(b"\n", self.start or 0)
                    return self.at if line < 0 else line
                if not self.open:
                    return self.at
        self.at = len(self.buffer)
        return None

    def find_next(self) -> bool:
        """Go on at the next line that begins with a bracket; whether there is one."""
        del self.buffer[: self.start or 0]
        found = NEXT_ELEMENT.search(self.buffer)
        self.lost = not found
        if found:
            del self.buffer[: found.end()]
        else:
            line = self.buffer.rfind(b"\n")
            del self.buffer[: line if line >= 0 else len(self.buffer)]
        self.begin()
        return not self.lost


def is_lines(head: bytes) -> bool:
    """Whether JSON that does not begin with an array is a value a line: some line of its beginning is an object."""
    lines = head.split(b"\n")
    if len(lines) == 1:
        return True
    for line in lines:
        if line.startswith(b"{"):
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                continue
            return True
    return not head.startswith(b"{")


def parsed(line: bytes) -> tuple[Any, str, str]:
    """The value of a line; or None, the reason why there is none, and the rest of it."""
    try:
        return json.loads(line.decode("utf-8")), "", ""
    except UnicodeDecodeError as error:
        return None, "not UTF-8", f"{error.reason} at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return None, NOT_JSON, error.msg
    except RecursionError:
        return None, NOT_JSON, "nested too deeply"
    except ValueError:  # Python's own limit on numbers
        return None, NOT_JSON, "a number of more than 4,300 digits"


def text_of(record: Any, key: str) -> Optional[str]:
    """The text of a value: under a key, or the value itself; paragraphs are joined as lm_dataformat does."""
    text = under(record, key) if isinstance(record, dict) else record
    if isinstance(text, list) and text and all(isinstance(paragraph, str) for paragraph in text):
        text = "\n\n".join(text)
    if text == []:
        text = ""
    if isinstance(text, bytes):  # of a table; JSON has none
        with contextlib.suppress(UnicodeDecodeError):
            text = text.decode("utf-8")
    return text if isinstance(text, str) else None


def under(record: Any, key: str) -> Any:
    """What is under a key; `a.b` is also key b of what is under a, or of each element of a list there."""
    if isinstance(record, list):
        return [under(element, key) for element in record]
    if not isinstance(record, dict):
        return None
    if key in record:
        return record[key]
    first, _, rest = key.partition(".")
    return under(record[first], rest) if rest and first in record else None


def no_text(place: tuple[str, str, int], counted_from: int, record: Any, key: str) -> Bad:
    """A value without a text, with the key that may be meant."""
    return Bad(*place, f"expected an object with a string under {key!r}", advice_on(record, key), counted_from)


def advice_on(record: Any, key: str) -> str:
    """What stands in a value in the place of a text, and the key that may be meant."""
    if not isinstance(record, dict):
        return ""
    if key in record:
        return f"it is {json.dumps(record[key], default=str, ensure_ascii=False)[:40]}" + suggestion(record, key)
    keys = ", ".join(repr(name[:40]) for name in list(record)[:SHOWN]) + (", ..." if len(record) > SHOWN else "")
    there = f"its keys are {keys}" if keys else "it is empty"
    return there + suggestion(record, key)


def suggestion(record: dict, key: str) -> str:
    """The key that may be meant, to follow what is there; empty where an object has no text."""
    texts = {path: size for path, size in texts_in(record) if path != key and not path.startswith("meta.")}
    best = max(texts, key=lambda path: (path.rsplit(".", 1)[-1].lower() not in LABELS, texts[path])) if texts else ""
    return f"; --text_key {best!r} takes its longest text" if best else ""


def texts_in(record: dict, before: str = "", depth: int = DEPTH) -> Iterator[tuple[str, int]]:
    """(key, characters) of the texts in an object, those of lists of messages together."""
    for name, value in record.items():
        path = before + name
        if isinstance(value, (str, bytes)):
            yield path, len(value)
        elif isinstance(value, dict) and depth > 1:
            yield from texts_in(value, f"{path}.", depth - 1)
        elif isinstance(value, list) and value:
            if all(isinstance(part, str) for part in value):
                yield path, sum(map(len, value))
            elif depth > 1 and isinstance(value[0], dict):
                for inner, _ in texts_in(value[0], f"{path}.", 1):
                    parts = under(record, inner[len(before) :])
                    if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
                        yield inner, sum(map(len, parts))


def document_values(line: bytes, place: tuple[str, str, int], counted_from: int, key: str) -> Union[tuple, Bad]:
    """(text, The Pile's name of the set or None) of a JSON line, or what is wrong with it."""
    record, reason, detail = parsed(line)
    if reason:
        return Bad(*place, reason, detail, counted_from)
    text = text_of(record, key)
    if text is None:
        return no_text(place, counted_from, record, key)
    return text, set_of(record.get("meta")) if isinstance(record, dict) else None


def set_of(meta: Any) -> Optional[str]:
    """The Pile's name of a set, of the value under `meta`."""
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else None
