"""What a checkpoint holds, and whether it is sound: NaN, infinities, tensors of zeros, damaged bytes."""

from __future__ import annotations

import dataclasses
import os
from typing import Callable

import numpy as np

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import checkpoints_of, write_state
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.tensors import blocks, is_float
from gpt_neo.errors import CheckpointError

ALL_ZERO = "ALL ZERO"
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
        trouble = ALL_ZERO
    return Report(name, str(entry.dtype), entry.shape, entry.size, mean, std, largest, trouble)


def keep_sound(folder: str, fault: Callable[[str], str] = lambda prefix: "") -> str:
    """After a divergence: let the folder's state name the newest checkpoint whose numbers are all finite.

    A step whose loss was still a number may have put the first ones that are none into the weights.

    Args:
      fault: from a checkpoint to what else is wrong with it; "" where nothing is.

    Returns:
      a line for the person.
    """
    passed: list[str] = []
    for prefix in sorted(checkpoints_of(folder), key=step_of, reverse=True):
        name = os.path.basename(prefix)
        try:
            trouble = fault(prefix) or first_trouble(Bundle(prefix))
        except CheckpointError:
            trouble = "it is damaged"
        if not trouble:
            if passed:
                write_state(folder, prefix)
            return f"the last good checkpoint is {name}" + (f" ({'; '.join(passed)})" if passed else "")
        passed.append(f"{name} is not: {trouble}")
    return "there is no good checkpoint" + (f" ({'; '.join(passed)})" if passed else "")


def first_trouble(bundle: Bundle) -> str:
    """The first tensor that is damaged or holds NaN or infinities; "" without one."""
    for name in bundle.names():
        trouble = examine(bundle, name).trouble
        if trouble and trouble != ALL_ZERO:
            return f"{name} has {trouble}"
    return ""
