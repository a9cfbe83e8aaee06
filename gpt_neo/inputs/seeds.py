"""Seeds for stateless random operations: a draw is a function of what it is for, not of what came before."""

from __future__ import annotations

import hashlib


def salt(seed: int, *purpose: object) -> int:
    """A number from 0 to 2**62 - 1 that belongs to a run's seed and a purpose."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2
