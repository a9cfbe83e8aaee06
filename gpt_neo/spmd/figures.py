"""Counting what a program does: matrix products and collectives in its text, loops in full; cycles of the compiler."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from gpt_neo.spmd.hlo import Instruction, Module

TENSOR = re.compile(r"tensor<((?:\d+x)*)(\w+)>")
WIDTHS = {"f32": 4, "bf16": 2, "i32": 4, "ui32": 4, "f64": 8, "i64": 8, "i1": 1, "f16": 2}
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute")


@dataclasses.dataclass
class Work:
    """Of one core and step.

    flops: of matrix products. attention: those of them that kernels of attention make, which the compiler does not
    count. collectives: kind -> [count, bytes of the larger of what goes in and what comes out]. crossed: bytes that a
    chip, with all its cores, gives to its neighbour in the rings of chips that the collectives go around.
    """

    flops: float = 0.0
    attention: float = 0.0
    crossed: float = 0.0
    collectives: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(lambda: [0, 0]))


def work_of(text: str, trips: int, cores: int = 1, kernels: Mapping[str, int] = MappingProxyType({})) -> Work:
    """Products and collectives of a StableHLO text; the loop over microbatches runs `trips` times. One inside of it,
    over chunks of the head's tokens, counts once.

    Args:
      cores: of a chip; those of one have numbers that follow each other.
      kernels: FLOPs of functions that are called by name.
    """
    work = Work()
    for line, times in lines_with_counts(text, trips):
        if "stablehlo.dot" in line:
            work.flops += times * product_flops(line)
            continue
        call = re.search(r"\bcall @(\w+)\(", line)
        if call:
            work.attention += times * kernels.get(call[1], 0)
        match = re.search(r'"stablehlo\.(\w+)"', line)
        if match and match[1] in KINDS:
            entry = work.collectives[match[1]]
            size = max(size_of(found) for found in TENSOR.findall(line.rsplit(" : (", 1)[1]))
            entry[0] += times
            entry[1] += times * size
            work.crossed += times * size * crossings_of(match[1], line, cores)
    work.flops += work.attention
    return work


def crossings_of(kind: str, line: str, cores: int) -> float:
    """`crossings` of a line of StableHLO."""
    if kind == "collective_permute":
        (text,) = re.findall(r"source_target_pairs = dense<(\[\[.*?\]\])>", line)
        return crossings(kind, json.loads(text), cores)
    (text,) = re.findall(r"replica_groups = dense<\[(\[[\d, ]+\])", line)
    return crossings(kind, json.loads(text), cores)


def crossings(kind: str, group: Sequence, cores: int) -> float:
    """How often the bytes of a collective leave a chip, over all that its cores take part in.

    Around a ring of n chips 1/n stays where it is, and an all-reduce goes around twice. Cores of one chip that are in
    the same group share the way.

    Args:
      group: cores; of a permutation pairs of source and target.
      cores: of a chip.
    """
    if kind == "collective_permute":
        return cores * sum(source // cores != target // cores for source, target in group) / len(group)
    chips = {core // cores for core in group}
    shared = 1 if kind == "all_to_all" else len(group) / len(chips)
    return (2 if kind == "all_reduce" else 1) * (1 - 1 / len(chips)) * cores / shared


def lines_with_counts(text: str, trips: int) -> Iterator[tuple[str, int]]:
    """Lines, and how often each runs: those between a loop's head and the brace that closes it at its depth."""
    depth = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if depth is None and "= stablehlo.while(" in line:
            depth = indent
        elif depth is not None and indent <= depth + 1 and line.strip() == "}":
            depth = None
        yield line, 1 if depth is None else trips


def sizes_of(found: tuple) -> list[int]:
    """Dimensions of a tensor type."""
    return [int(size) for size in found[0].split("x") if size]


def size_of(found: tuple) -> int:
    """Bytes of a tensor type."""
    return math.prod(sizes_of(found)) * WIDTHS[found[1]]


def product_flops(line: str) -> int:
    """Two per multiplication: elements of the result times the length of what is summed over."""
    types = TENSOR.findall(line.rsplit(" : ", 1)[1])
    left, result = sizes_of(types[0]), sizes_of(types[-1])
    match = re.search(r"contracting_dims = \[([\d, ]*)\]", line)
    summed = [int(axis) for axis in match[1].split(",")] if match else [len(left) - 1]
    return 2 * math.prod(result) * math.prod(left[axis] for axis in summed)


def without_cost(compiled: str) -> int:
    """Calls in an optimised program that the compiler has no cost for, each counted once; in its sum of seconds each of
    them stands with -1, though they take no time: two arrays that lie one after the other are called one."""
    return compiled.count('custom_call_target="ConcatBitcast"')


def all_cycles(module: Module) -> tuple[int, int]:
    """Cycles of an optimised program with each loop run once, and with loops in full, by the estimate that the compiler
    has beside every fused operation."""
    parts = [(sum(map(cycles, within.values())), times) for within, times in module.parts()]
    return sum(count for count, _ in parts), sum(count * times for count, times in parts)


def cycles(found: Instruction) -> int:
    """The compiler's estimate for an instruction; 0 where it has none."""
    match = re.search(r'"estimated_cycles":"(\d+)"', found.attributes)
    return int(match[1]) if match else 0
