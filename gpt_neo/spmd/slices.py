"""Where the slices of a program's variables lie among its cores. For both sides of a worker: no packages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Spans = tuple  # of (first, end) for every dimension


def spans_of(description: Mapping, name: str, core: int) -> Spans:
    """What a core has of a variable, or reads of a batch."""
    about = description["variables"].get(name) or description["batch"][name]
    place, rest = {}, core
    for axis, size in reversed(description["mesh"]):
        place[axis], rest = rest % size, rest // size
    sizes = dict(description["mesh"])
    spans = []
    for length, axis in zip(about["shape"], about["axes"]):
        count = length // sizes[axis] if axis else length
        first = place[axis] * count if axis else 0
        spans.append((first, first + count))
    return tuple(spans)


def holders(description: Mapping, name: str, cores: Iterable[int]) -> dict[Spans, list[int]]:
    """The different slices that some cores have of a variable, each with those of the cores that have it."""
    found: dict[Spans, list[int]] = {}
    for core in cores:
        found.setdefault(spans_of(description, name, core), []).append(core)
    return found


def around(description: Mapping, name: str, cores: Iterable[int]) -> Spans:
    """The smallest part of a batch that has all that some cores read of it."""
    every = zip(*(spans_of(description, name, core) for core in cores))
    return tuple((min(first for first, _ in spans), max(end for _, end in spans)) for spans in every)


def cut(array: Any, spans: Spans) -> Any:
    """A slice of a whole array."""
    return array[tuple(slice(first, end) for first, end in spans)]


def part_key(core: int, name: str) -> str:
    """What a message calls the slice of a core."""
    return f"{core}/{name}"


def part_of(key: str) -> tuple[int, str]:
    """Core and variable of a `part_key`."""
    core, _, name = key.partition("/")
    return int(core), name


def uneven(owners: Iterable[int]) -> str:
    """What is wrong where hosts do not have as many devices each; "" where all is well.

    Args:
      owners: the host of every device.
    """
    counts = sorted(Counter(owners).items())
    if len({count for _, count in counts}) < 2:
        return ""
    told = ", ".join(f"host {host} has {count}" for host, count in counts)
    return f"hosts need as many devices each, and the same command ({told})"
