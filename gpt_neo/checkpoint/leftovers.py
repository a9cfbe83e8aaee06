"""What a killed or failed save leaves behind, and nothing else: found by name, and removed before a run goes on."""

from __future__ import annotations

import contextlib
import os
import re

from gpt_neo.checkpoint.names import PREFIX
from gpt_neo.config.folders import BEST
from gpt_neo.storage import tensorflow as files

# Names under which TensorFlow and this package write what is to become a checkpoint, a state file or a record.
UNFINISHED = (
    re.escape(PREFIX) + r"\d+\.(?:data-\d+-of-\d+|index|meta)\.tempstate\w*",
    re.escape(PREFIX) + r"\d+_temp(?:_\w+)?",
    r"(?:checkpoint|graph\.pbtxt|" + re.escape(PREFIX) + r"\d+\.(?:data-\d+-of-\d+|index|meta|json))\.?\d*\.?tmp\w*",
    r"\.writable(?:\.\w+)?",
    r"\..+\.\d+-[0-9a-f]{8}\.writing",
)
PART = re.compile("(" + re.escape(PREFIX) + r"\d+)\.(?:data-\d+-of-\d+|meta|json)")  # of a checkpoint with an index


def remove_leftovers(folder: str) -> list[str]:
    """Remove unfinished files and parts of checkpoints that have no index, as a kill in the middle of saving, or of
    deleting an old one, leaves them, also in its `best/`. Only for the run that has the folder's lock.

    Returns:
      the names removed, those of `best/` with it.
    """
    best = os.path.join(folder, BEST)
    beside = [os.path.join(BEST, name) for name in unfinished(best)] if os.path.isdir(best) else []
    removed = []
    for name in [*unfinished(folder), *beside]:
        with contextlib.suppress(OSError):
            files.delete(os.path.join(folder, name))
            removed.append(name)
    return removed


def unfinished(folder: str) -> list[str]:
    """Names of what is no whole checkpoint, and will be none."""
    names = files.names(folder)
    indexed = {name[: -len(".index")] for name in names if name.endswith(".index")}
    return [
        name
        for name in names
        if ((part := PART.fullmatch(name)) and part[1] not in indexed)
        or any(re.fullmatch(pattern, name) for pattern in UNFINISHED)
    ]
