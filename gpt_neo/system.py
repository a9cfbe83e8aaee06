"""What differs between ways of installing the package."""

from __future__ import annotations

import os

PACKAGE = os.path.dirname(os.path.abspath(__file__))
CLONE = os.path.dirname(PACKAGE)


def shipped(name: str) -> str:
    """Path of a file or folder that comes with the package: a wheel has it inside of the package, a clone beside it."""
    inside = os.path.join(PACKAGE, name)
    return inside if os.path.exists(inside) else os.path.join(CLONE, name)
