"""How long a compiled program takes on a card at best: Williams, Waterman, Patterson, "Roofline: an insightful visual
performance model for multicore architectures", 2009, for each of its kernels."""

from __future__ import annotations

import collections
import re

from gpt_neo.spmd.gpus import Card
from gpt_neo.spmd.hlo import Kernel, Module

LONGEST = 8


def roofline(text: str, trips: int, card: Card) -> dict:
    """Time and work of a device and step, from the text of the optimised program.

    A kernel takes the larger of its products at the card's peak for their type and its bytes at the bandwidth of the
    memory. Kernels run one after the other, and so do the collectives: nothing of them is hidden behind other work.
    Starting a kernel takes no time, nor does anything but products and memory, and cache holds nothing from one kernel
    to the next.

    Args:
      trips: how often a loop runs that does not say it.

    Returns:
      flops: of matrix products. bytes: of memory traffic. link_bytes: what a device gives to its neighbour in a ring.
      kernel_seconds, link_seconds, and seconds, their sum. longest: the kernels that take longest, those alike as one,
      each {name, makes, times, flops, bytes, seconds}.
    """
    alike: dict = collections.defaultdict(lambda: [0, 0, 0, 0.0])
    sent = 0.0
    for kernel in Module(text, trips).kernels():
        sent += kernel.times * kernel.sent
        row = alike[described(kernel)]
        row[0] += kernel.times
        row[1] += kernel.times * sum(kernel.flops.values())
        row[2] += kernel.times * kernel.bytes
        row[3] += kernel.times * seconds_of(kernel, card)
    rows = [
        {"name": name, "makes": makes, "times": times, "flops": flops, "bytes": size, "seconds": seconds}
        for (name, makes), (times, flops, size, seconds) in alike.items()
    ]
    flops, size, seconds = (sum(row[key] for row in rows) for key in ("flops", "bytes", "seconds"))
    return {
        "flops": flops,
        "bytes": size,
        "link_bytes": sent,
        "kernel_seconds": seconds,
        "link_seconds": sent / card.links,
        "seconds": seconds + sent / card.links,
        "longest": sorted(rows, key=lambda row: -row["seconds"])[:LONGEST],
    }


def seconds_of(kernel: Kernel, card: Card) -> float:
    """Of one run of a kernel, without its collectives."""
    products = sum(card.seconds(kind, flops) for kind, flops in kernel.flops.items())
    return max(products, kernel.bytes / card.bandwidth)


def described(kernel: Kernel) -> tuple[str, str]:
    """The kernel's name without its number, and what it makes."""
    arrays = [f"{kind}[{','.join(map(str, dims))}]" for kind, dims in kernel.instruction.arrays]
    shown = arrays[0] if len(arrays) == 1 else f"{arrays[0]} and {len(arrays) - 1} more"
    return re.sub(r"[.\d]+$", "", kernel.instruction.name), shown
