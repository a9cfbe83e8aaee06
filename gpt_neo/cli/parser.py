"""Command lines from dataclasses, as configs are: a field is a flag, its metadata the help and the bounds.

A field that is itself a dataclass is a group of flags. `parse` makes the dataclass of the words of a command line,
`words_of` the words of the dataclass.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Optional, TypeVar

from gpt_neo.errors import ConfigError, check_number

REQUIRED = dataclasses.MISSING
HIDDEN = argparse.SUPPRESS
T = TypeVar("T", bound="Options")
FORMER = {  # flags of older programs of this name
    "--use_gpt2_tokenizer": ": GPT-2's tokenizer is what it takes without --encoder_path"
}


def flag(
    default: Any,
    doc: str,
    low: Optional[float] = None,
    high: Optional[float] = None,
    above: Optional[float] = None,
    short: str = "",
    word: str = "",
    **given: Any,
) -> Any:
    """Declare a flag, called as its field.

    Args:
      default: `REQUIRED` where there is none; then a dataclass has the field before those with a default.
      doc: help; a default that is a number or text is added, unless it tells one itself.
      low, high: inclusive bounds of a number; above: a lower one that is not allowed itself.
      short: a second name, such as `-v`, or the spelling that help tells in the place of the field's.
      word: "also" if the value may be a word without its flag (in the order of the fields), "only" if it has to be.
      given: what argparse's `add_argument` takes besides: metavar, choices, nargs, const, action.
    """
    rules = {"doc": doc, "low": low, "high": high, "above": above, "short": short, "word": word, "given": given}
    return dataclasses.field(default=default, metadata=rules)


def group(options: type, title: str = "", words: bool = True, docs: Optional[dict[str, str]] = None) -> Any:
    """Declare a group of flags.

    Args:
      title: of its own in the help.
      words: whether its values may be given without their flags, where a field says so.
      docs: other help for flags of it; `HIDDEN` for one that the command takes only to say why it cannot.
    """
    return dataclasses.field(default_factory=options, metadata={"title": title, "words": words, "docs": docs or {}})


class Options:
    """Base of dataclasses of flags: numbers out of their bounds are refused, wherever they come from."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
          ConfigError: names flag, value and what is allowed.
        """
        kinds = types_of(typing.cast(Any, type(self)))
        for field in dataclasses.fields(typing.cast(Any, self)):
            value, rules, kind = getattr(self, field.name), field.metadata, kinds[field.name]
            if value is not None and kind in (int, float):
                check_number(field.name, value, kind)
            low, high, above = (rules.get(key) for key in ("low", "high", "above"))
            if value is None or (low, high, above) == (None, None, None):
                continue
            inside = (low is None or low <= value) and (high is None or value <= high)
            if not (math.isfinite(value) and inside and (above is None or above < value)):
                least = f"more than {above}" if above is not None else f"at least {low}"
                bounds = least if high is None else f"{least} and at most {high}" if low is None else f"{low} to {high}"
                raise ConfigError(f"--{field.name} is {value}; expected {bounds}")

    def given(self) -> list[str]:
        """Names of the flags that are not at their defaults."""
        fields = dataclasses.fields(typing.cast(Any, self))
        return [field.name for field in fields if getattr(self, field.name) != field.default]


@functools.cache
def types_of(options: type) -> dict[str, Any]:
    """Type of each field, without Optional."""
    hints = typing.get_type_hints(options)
    return {name: next((a for a in typing.get_args(h) if a is not type(None)), h) for name, h in hints.items()}


def flags_of(options: type) -> Iterator[dataclasses.Field]:
    """The flags of a dataclass and of its groups, in order."""
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(types_of(options)[field.name]):
            yield from flags_of(types_of(options)[field.name])
        else:
            yield field


class Parser(argparse.ArgumentParser):
    """A parser of the flags of a dataclass.

    Args:
      options: the dataclass; its docstring is the description.
      words: whether values may be given without their flags, where a field says so.
    """

    def __init__(self, options: type, prog: str, words: bool = True) -> None:
        super().__init__(prog=prog, description=options.__doc__, argument_default=argparse.SUPPRESS)
        self.options, self.words = options, words
        self.also: list[str] = []  # flags whose values may be words
        self.add_flags(self, options, words, {})

    def add_flags(self, place: Any, options: type, words: bool, docs: dict[str, str]) -> None:
        """Declare the flags of a dataclass, those of its groups under their titles."""
        for field in dataclasses.fields(options):
            kind, rules = types_of(options)[field.name], field.metadata
            if dataclasses.is_dataclass(kind):
                inside = self.add_argument_group(rules["title"]) if rules.get("title") else place
                words_too = words and rules.get("words", True)
                self.add_flags(inside, typing.cast(type, kind), words_too, rules.get("docs", {}))
            else:
                self.add_flag(place, field, kind, words, docs.get(field.name, rules["doc"]))

    def add_flag(self, place: Any, field: dataclasses.Field, kind: Any, words: bool, doc: str) -> None:
        """Declare one flag, or word."""
        rules, default = field.metadata, field.default
        shown = f"{default:g}" if isinstance(default, float) else default
        told = isinstance(default, (int, float, str)) and kind is not bool and "(default:" not in doc and doc != HIDDEN
        given = {"help": doc + (f" (default: {shown})" if told else ""), **rules["given"]}
        if kind is bool:
            given.setdefault("action", "store_true")
        elif kind in (int, float):
            given.update(type=kind, metavar=given.get("metavar", "N"))
        if rules["word"] == "only":
            place.add_argument(field.name, **given)
            return
        also = words and bool(rules["word"])
        if also:
            self.also.append(field.name)
            self.add_argument(word_of(field.name), nargs="?", metavar=given["metavar"], help=f"as --{field.name}")
        names = [*filter(None, [rules["short"]]), name_of(field)]
        if rules["short"].startswith("--"):  # help tells one of two spellings: both are too long for a line
            place.add_argument(names.pop(), dest=field.name, **{**given, "help": HIDDEN})
        place.add_argument(*names, dest=field.name, required=field.default is REQUIRED and not also, **given)

    def made(self, argv: Sequence[str]) -> Any:
        """The dataclass that a command line says.

        Raises:
          ConfigError: a number is out of its bounds.
          SystemExit: after help (0), or an error in the words (2).
        """
        read = self.parse_known_intermixed_args if self.words else self.parse_known_args
        found, rest = read(list(argv))
        if rest:
            self.refuse(rest)
        values = vars(found)
        words = [values.pop(word_of(name)) for name in self.also if word_of(name) in values]
        free = [name for name in self.also if name not in values]
        if len(words) > len(free):
            self.refuse(words[len(free) :])
        values.update(zip(free, words))
        missing = [
            field.name for field in flags_of(self.options) if field.default is REQUIRED and field.name not in values
        ]
        if missing:
            self.error(f"the following arguments are required: --{missing[0]}")
        return filled(self.options, values)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """End with the words that mean nothing, and the nearest flag."""
        known = [name_of(field) for field in flags_of(self.options) if field.metadata["word"] != "only"]
        near = difflib.get_close_matches(words[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        hint = FORMER.get(words[0], hint)
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")


def name_of(field: dataclasses.Field) -> str:
    """A flag as it is typed; a field whose name would be a word of Python ends in _."""
    return f"--{field.name.rstrip('_')}"


def word_of(name: str) -> str:
    """Where argparse keeps a value that was given without its flag; no flag can be called so."""
    return f"{name} word"


def filled(options: type, values: dict) -> Any:
    """A dataclass with these values of its flags, and of those of its groups."""
    made: dict = {}
    for field in dataclasses.fields(options):
        kind = types_of(options)[field.name]
        if dataclasses.is_dataclass(kind):
            made[field.name] = filled(typing.cast(type, kind), values)
        elif field.name in values:
            value = values[field.name]
            made[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**made)


def parse(options: type[T], argv: Sequence[str], prog: str, words: bool = True) -> T:
    """The options that a command line says; see `Parser`."""
    return Parser(options, prog, words).made(argv)


def words_of(options: Any) -> list[str]:
    """The command line that says these options: flags of what is not at its default."""
    words: list[str] = []
    for field in dataclasses.fields(options):
        value, rules = getattr(options, field.name), field.metadata
        if dataclasses.is_dataclass(value):
            words += words_of(value)
        elif value == field.default:
            continue
        elif rules["given"].get("action") == "append":
            words += [f"{name_of(field)}={text}" for text in value]
        elif isinstance(value, tuple):
            words += [name_of(field), *value]
        elif isinstance(value, bool):
            words.append(name_of(field))
        else:
            words.append(f"{name_of(field)}={value}")
    return words
