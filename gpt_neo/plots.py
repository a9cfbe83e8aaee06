"""Pictures of matplotlib (extra `plot`), as files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from gpt_neo.errors import DataError, reason_of
from gpt_neo.system import how_to_install


@contextlib.contextmanager
def picture(path: str, flag: str, rows: int = 1, columns: int = 1, size: tuple = (8, 4.5)) -> Iterator[Any]:
    """Axes [rows, columns] to draw on; the PNG is written when the block ends.

    Args:
      flag: what asked for it, for errors.
      size: of the whole, in inches.

    Raises:
      DataError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        with no_backend_named():
            from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(f"{flag} needs the extra plot: {how_to_install('plot')}") from error
    figure = Figure(figsize=size, layout="constrained")  # not pyplot's, which are the whole process's
    yield figure.subplots(rows, columns, squeeze=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"{flag} {path}: cannot be written: {reason_of(error)}") from error


@contextlib.contextmanager
def no_backend_named() -> Iterator[None]:
    """For the import of matplotlib: a notebook names, for all that it starts, a backend that only its own Python has.
    Pictures that go into files need none."""
    named = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
