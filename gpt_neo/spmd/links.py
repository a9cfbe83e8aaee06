"""Time of the links between TPU chips in an optimised program, and how much of it hides behind work.

What the TPU compiler's text says of a collective:

- `all-reduce(...)` alone, or in a fusion of its own: work waits for it.
- in several fusions under one `chain_id`: begun in the first, it goes on beside the work of the others; the last waits.
- `...-start` and `...-done`, or a call to a SparseCore between `async-start` and `async-done`: it goes on beside what
  stands between them.
- `colors:2`: it goes around rings along two dimensions of the torus at once, a part of the data around each.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Optional

from gpt_neo.spmd.figures import crossings, cycles
from gpt_neo.spmd.hlo import COLLECTIVES, Instruction, Module, group_of


@dataclasses.dataclass(frozen=True)
class Links:
    """How the links of a chip are used. cores: of a chip. link: bytes/s of one link, one way. cycle: seconds of one of
    the compiler's cycles."""

    cores: int
    link: float
    cycle: float

    def times(self, module: Module) -> tuple[float, float]:
        """Seconds of a step that data is on its way between chips, and those that work waits for it."""
        taken, waited, elsewhere = 0.0, 0.0, begun(module)
        for within, times in module.parts():
            if any(within is module.computations[name] for name in elsewhere):
                continue
            transfers = self.transfers(module, within)
            taken += times * sum(transfer.seconds for transfer in transfers)
            waited += times * sum(max(0.0, transfer.seconds - transfer.beside) for transfer in transfers)
        return taken, waited

    def transfers(self, module: Module, within: dict[str, Instruction]) -> list[Transfer]:
        """Those of a computation, in the order in which they begin."""
        found: list[Transfer] = []
        chains: dict[str, Transfer] = {}
        waiting: dict[str, Transfer] = {}  # for their data
        under_way: dict[str, Transfer] = {}
        for each in within.values():
            seconds = cycles(each) * self.cycle
            source = each.operands[0] if each.operands else ""
            if source in waiting:
                under_way[each.name] = waiting.pop(source)
                continue
            if each.opcode.endswith("-done") and source in under_way:
                del under_way[source]
                continue
            held = held_by(module, each, within)
            if not held:
                hide(seconds, list(under_way.values()))
                continue
            chain = re.search(r'chain_id="(\d+)"', held.attributes)
            if each.opcode == "fusion" and chain:
                if chain[1] not in chains:
                    chains[chain[1]] = Transfer(self.seconds(held, each))
                    found.append(chains[chain[1]])
                chains[chain[1]].beside += seconds
                continue
            found.append(Transfer(self.seconds(held, each)))
            if each.opcode.endswith("-start"):
                (under_way if each.operands else waiting)[each.name] = found[-1]  # a SparseCore gets its data later
        return found

    def seconds(self, held: Collective, user: Instruction) -> float:
        """Of a collective: a link each way around a ring, along as many dimensions at once as it has colours."""
        colors = re.search(r"colors:(\d)", user.attributes + held.attributes)
        crossed = held.bytes * crossings(held.kind, held.group, self.cores)
        return crossed / (2 * int(colors[1] if colors else 1) * self.link)


@dataclasses.dataclass
class Transfer:
    """seconds: that it takes. beside: seconds of work while it is under way."""

    seconds: float
    beside: float = 0.0


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: as StableHLO has it. bytes: of the larger of what goes in and what comes out. group: cores, or pairs of
    them, as `crossings` takes them."""

    kind: str
    bytes: int
    group: list
    attributes: str


def begun(module: Module) -> set[str]:
    """Computations that run elsewhere once they are begun."""
    calls = (found for within in module.computations.values() for found in within.values())
    return {str(found.called("calls")) for found in calls if found.opcode == "async-start"}


def hide(seconds: float, transfers: list) -> None:
    """Work beside transfers: it hides one at a time, those that began first before others."""
    for transfer in transfers:
        share = min(seconds, max(0.0, transfer.seconds - transfer.beside))
        transfer.beside += share
        seconds -= share


def held_by(module: Module, found: Instruction, within: dict[str, Instruction]) -> Optional[Collective]:
    """The collective that an instruction is, or the first in what it calls; None without one.

    A sum of which only a part is kept is a reduce-scatter.
    """
    kind = found.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", found.attributes)
        numbers = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])] if pairs else []
        group = numbers or group_of(found.attributes)
        size = sum(within[name].bytes for name in found.operands) * (len(group) if kind == "all-gather" else 1)
        return Collective(kind.replace("-", "_"), size, group, found.attributes)
    if found.opcode not in ("fusion", "async-start", "custom-call"):
        return None
    called = re.search(r"called_computations=\{%?([\w.-]+)\}", found.attributes)
    inside = module.computations.get(called[1] if called else str(found.called("calls")), {})
    for each in inside.values():
        held = held_by(module, each, inside) if each.opcode != "fusion" else None
        if held:
            cut = held.kind == "all_reduce" and 2 * found.bytes < held.bytes and found.opcode == "fusion"
            return dataclasses.replace(held, kind="reduce_scatter") if cut else held
    return None
