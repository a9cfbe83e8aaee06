"""What a checkpoint holds, and whether it is sound: NaN, infinities, tensors of zeros, damaged bytes."""

from __future__ import annotations

import dataclasses

import numpy as np

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.tensors import blocks, is_float
from gpt_neo.errors import CheckpointError

# Variables that start at 0 and may still be there.
ZERO_AT_FIRST = ("/b", "_b", "bias", "rezero_1/g", "rezero_2/g", "adam_m", "adam_v")


@dataclasses.dataclass(frozen=True)
class Report:
    """One tensor. mean, std and largest (absolute value) are of its finite numbers; trouble is empty if it is sound."""

    name: str
    dtype: str
    shape: tuple
    size: int
    mean: float = 0.0
    std: float = 0.0
    largest: float = 0.0
    trouble: str = ""


def examine(bundle: Bundle, name: str) -> Report:
    """Read a tensor once, in blocks."""
    entry = bundle.entries[name]
    try:
        array = bundle.read(name)
    except CheckpointError as error:
        return Report(name, str(entry.dtype), entry.shape, entry.size, trouble=f"DAMAGED: {error}")
    bad = total = 0
    first = second = largest = 0.0
    for block in blocks(array):
        numbers = block.astype(np.float64).ravel()
        finite = np.isfinite(numbers)
        bad += int(numbers.size - finite.sum())
        numbers = numbers[finite]
        total += numbers.size
        first, second = first + float(numbers.sum()), second + float((numbers**2).sum())
        largest = max(largest, float(np.abs(numbers).max(initial=0.0)))
    mean = first / max(1, total)
    std = max(0.0, second / max(1, total) - mean**2) ** 0.5
    trouble = f"{bad:,} NaN OR INFINITE" if bad else ""
    if not bad and largest == 0.0 and total and is_float(entry.dtype) and not name.endswith(ZERO_AT_FIRST):
        trouble = "ALL ZERO"
    return Report(name, str(entry.dtype), entry.shape, entry.size, mean, std, largest, trouble)
