"""XLA's optimised program, read from its text: what runs as one kernel, how often, what it multiplies and moves.

An HLO module is a list of computations, an instruction a line:

    %name = f32[4,8]{1,0} opcode(%operand, ...), attribute=..., calls=%other_computation

An instruction of the entry (or of a loop's body) is one kernel: a fusion with all that its computation does, or what is
left alone. Nothing inside of a fusion passes through the device's memory.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np

from gpt_neo.errors import DeviceError

ARRAY = re.compile(r"\b(pred|bf16|[fscu]\d+\w*)\[([\d,]*)\]")
HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
NAMES = re.compile(r"%([\w.-]+)")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Names for what is in memory already, and ends of what was counted at its beginning.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"}
FREE |= {"replica-id", "async-update", "async-done", "copy-done", *(f"{name}-done" for name in COLLECTIVES)}
CALLING = {"while", "conditional", "call", "async-start"}  # what they call runs
ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}  # calls of cuDNN, and products in each
TAKING = ("slice", "dynamic-slice", "gather")  # read of their first operand only what they return
WRITING = ("dynamic-update-slice", "scatter")  # change a part of their first operand in its place


@dataclasses.dataclass(frozen=True)
class Instruction:
    """arrays: (type, dimensions) of the result, several for a tuple. attributes: what follows the operands."""

    name: str
    arrays: tuple
    opcode: str
    operands: tuple
    attributes: str

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(math.prod(dims) * width_of(kind) for kind, dims in self.arrays)

    def called(self, word: str) -> Optional[str]:
        """The computation that an attribute names."""
        match = re.search(rf"\b{word}=%?([\w.-]+)", self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What runs at once, `times` a step. flops: of matrix products, by the type that they are made in (bf16, f16, tf32,
    f32, ...). bytes: read from and written to the device's memory. sent: bytes over the links, of a core."""

    instruction: Instruction
    times: int
    flops: dict
    bytes: int
    sent: float


def width_of(kind: str) -> int:
    """Bytes of an element; a type of less than a byte takes one."""
    digits = re.search(r"\d+", kind)
    return max(1, int(digits[0]) // 8) if digits else 1


def arrays_of(text: str) -> tuple:
    """(type, dimensions) of each array of a type."""
    return tuple((kind, tuple(map(int, dims.split(","))) if dims else ()) for kind, dims in ARRAY.findall(text))


def closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` is closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise DeviceError(f"an instruction of the compiled program cannot be read: {text[:200]}")


def instruction_of(line: str) -> Instruction:
    """An instruction from its line."""
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    start = rest.index("(", end)
    last = closing(rest, start)
    operands = () if rest[end:start] == " constant" else tuple(NAMES.findall(rest[start:last]))
    return Instruction(name.lstrip("%"), arrays_of(rest[:end]), rest[end:start].strip(), operands, rest[last + 1 :])


class Module:
    """Computations by name, each a dictionary of instructions by name, the last of which is its result.

    trips: how often a loop runs that does not say it.

    Raises:
      DeviceError: the text is not that of an HLO module.
    """

    def __init__(self, text: str, trips: int) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.entry, self.trips = "", trips
        current = ""
        for line in text.splitlines():
            head = HEAD.match(line)
            if head:
                current = head[2]
                self.computations[current] = {}
                self.entry = current if head[1] else self.entry
            elif line.startswith(" ") and " = " in line and current:
                found = instruction_of(line)
                self.computations[current][found.name] = found
                if line.lstrip().startswith("ROOT "):
                    self.roots[current] = found
        if not self.entry:
            raise DeviceError("the compiled program has no entry")

    def parts(self, name: str = "", times: int = 1) -> Iterator[tuple[dict[str, Instruction], int]]:
        """The computations whose instructions run by themselves, and how often: the entry, the bodies of loops, all
        branches, what is called. Those of fusions are not among them."""
        within = self.computations[name or self.entry]
        yield within, times
        for found in within.values():
            if found.opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', found.attributes)
                yield from self.parts(str(found.called("body")), times * int(trips[1] if trips else self.trips))
            elif found.opcode == "conditional":
                branches = re.search(r"branch_computations=\{(.*?)\}", found.attributes)
                named = branches[1] if branches else " ".join(re.findall(r"\w+_computation=(%\S+)", found.attributes))
                for branch in NAMES.findall(named):
                    yield from self.parts(branch, times)
            elif found.opcode in ("call", "async-start"):
                yield from self.parts(str(found.called("to_apply") or found.called("calls")), times)

    def kernels(self) -> Iterator[Kernel]:
        """What runs, as often as it does; all branches."""
        for within, times in self.parts():
            for found in within.values():
                if found.opcode.removesuffix("-start") in COLLECTIVES:
                    yield Kernel(found, times, {}, 0, self.sent(found, within))
                elif found.opcode not in FREE and found.opcode not in CALLING:
                    yield Kernel(found, times, self.flops(found, within), self.bytes(found, within), 0.0)

    def flops(self, found: Instruction, within: dict[str, Instruction]) -> dict:
        """FLOPs of the products in an instruction, by the type that they are made in."""
        total: dict = collections.Counter()
        if found.opcode == "fusion":
            inside = self.computations[str(found.called("calls"))]
            for each in inside.values():
                total.update(self.flops(each, inside))
        elif found.opcode == "dot":
            kind, dims = within[found.operands[0]].arrays[0]
            summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", found.attributes)
            length = math.prod(dims[int(axis)] for axis in summed[1].split(",") if axis) if summed else 1
            exact = "highest" in found.attributes or "high," in found.attributes
            kind = "tf32" if kind == "f32" and not exact else kind
            total[kind] += 2 * length * math.prod(found.arrays[0][1])
        elif found.opcode == "custom-call":
            kind, dims = within[found.operands[0]].arrays[0] if found.operands else ("", ())
            total[kind] += attention_flops(found.attributes, dims)
        return total

    def bytes(self, found: Instruction, within: dict[str, Instruction]) -> int:
        """Bytes that an instruction reads and writes: each operand once, of a slice only what is taken, of an update in
        place only what is written."""
        if found.opcode != "fusion":
            return self.read(found.operands, [found], within) + self.written(found, within)
        name = str(found.called("calls"))
        inside = self.computations[name]
        parameters = [each.name for each in inside.values() if each.opcode == "parameter"]
        return self.read(parameters, list(inside.values()), inside) + self.written(self.roots[name], inside)

    def read(self, names: Sequence[str], users: Sequence[Instruction], within: dict[str, Instruction]) -> int:
        """Bytes that some instructions read of arrays."""
        total = 0
        for name in dict.fromkeys(names):
            whole, part = within[name].bytes, 0
            for user in users:
                if name not in user.operands:
                    continue
                first = user.operands[0] == name and name not in user.operands[1:]
                if first and user.opcode in TAKING:
                    part += user.bytes
                elif first and user.opcode == "scatter":
                    part += within[user.operands[-1]].bytes  # it adds to what is there
                elif not (first and user.opcode == "dynamic-update-slice"):
                    part = whole
                    break
            total += min(part, whole)
        return total

    def written(self, root: Instruction, within: dict[str, Instruction]) -> int:
        """Bytes of a result."""
        if root.opcode == "tuple":
            return sum(self.written(within[name], within) for name in root.operands)
        if root.opcode == "bitcast":
            return self.written(within[root.operands[0]], within)
        if root.opcode in WRITING:
            return within[root.operands[1 if root.opcode == "dynamic-update-slice" else -1]].bytes
        return root.bytes

    def sent(self, found: Instruction, within: dict[str, Instruction]) -> float:
        """Bytes that a core gives to its neighbour in the ring of its group (Thakur, Rabenseifner, Gropp, "Optimization
        of collective communication operations in MPICH", 2005): with n cores 2 (n - 1) / n of what is summed,
        (n - 1) / n of what is scattered or exchanged, n - 1 times what is gathered."""
        size = sum(within[name].bytes for name in found.operands)
        kind = found.opcode.removesuffix("-start")
        if kind == "collective-permute":
            return float(size)
        count = group_size(found.attributes)
        share = {"all-reduce": 2 * (count - 1) / count, "all-gather": count - 1.0}.get(kind, (count - 1) / count)
        return size * share


def attention_flops(attributes: str, dims: tuple) -> int:
    """FLOPs of cuDNN's fused attention of q [batch, sequence, heads, features], causal with a window or none: what is
    masked is not computed. The backward pass makes the scores again. 0 for other calls."""
    match = re.search(r'custom_call_target="([^"]+)"', attributes)
    if not match or match[1] not in ATTENTION:
        return 0
    batch, length, heads, features = dims
    window = re.search(r'"sliding_window_length": ?"?(\d+)', attributes)
    span = int(window[1]) if window and int(window[1]) else length
    pairs = sum(min(query + 1, span) for query in range(length))
    return ATTENTION[match[1]] * 2 * batch * heads * features * pairs


def group_size(attributes: str) -> int:
    """Cores of a group."""
    return len(group_of(attributes))


def group_of(attributes: str) -> list[int]:
    """The first group of cores of a collective: {{0,1},{2,3}} lists them; [2,2]<=[4] are so many groups of so many,
    counted in their order, [2,2]<=[2,2]T(1,0) in that of the transposed numbers.

    Raises:
      DeviceError: there are none.
    """
    match = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?)", attributes)
    if not match:
        raise DeviceError(f"a collective of the compiled program names no groups: {attributes[:200]}")
    if match[1]:
        return [int(core) for core in match[1].split(",")]
    dims = [int(size) for size in match[4].split(",")]
    order = [int(axis) for axis in match[5].split(",")] if match[5] else range(len(dims))
    return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(-1, int(match[3]))[0].tolist()
