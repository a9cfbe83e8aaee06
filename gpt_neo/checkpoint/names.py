"""File and variable names of checkpoints."""

from __future__ import annotations

from gpt_neo.config.optimizers import owner_of

PREFIX = "model.ckpt-"


def is_slot(name: str) -> bool:
    """Whether a variable is an optimizer's memory and no weight."""
    return owner_of(name) is not None


def step_of(path: str) -> int:
    """Step of `model.ckpt-<step>`, 0 where there is none."""
    tail = path.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0
