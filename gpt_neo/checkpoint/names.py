"""File and variable names of checkpoints."""

from __future__ import annotations

import re

PREFIX = "model.ckpt-"
SLOT = re.compile(r"(/adam_[mv]|/lion_m|_slot_(v|vr|vc|m))$")


def is_slot(name: str) -> bool:
    """Whether a variable is an optimizer's memory (Adam or Adafactor) and no weight."""
    return SLOT.search(name) is not None


def step_of(path: str) -> int:
    """Step of `model.ckpt-<step>`, 0 where there is none."""
    tail = path.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0
