"""Reading checkpoints in TensorFlow's V2 format, and holding them against a graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf

SLOT_SUFFIXES = ("/adam_m", "/adam_v", "/lion_m", "_slot_v", "_slot_vr", "_slot_vc", "_slot_m")


def latest_checkpoint(folder: str) -> Optional[str]:
    """Newest checkpoint of a folder, or None.

    The state file may name paths of the machine that trained: the file name alone counts then.
    """
    found = tf.train.latest_checkpoint(folder)
    if found:
        return found
    prefixes = {path[: -len(".index")] for path in tf.io.gfile.glob(os.path.join(folder, "model.ckpt-*.index"))}
    return max(prefixes, key=step_of) if prefixes else None


def step_of(path: str) -> int:
    """Step of `model.ckpt-<step>`, 0 where there is none."""
    tail = path.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0


def open_checkpoint(path: str) -> Any:
    """A reader of a checkpoint.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    try:
        return tf.train.load_checkpoint(path)
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error


def check_shapes(path: str, wanted: Mapping[str, Sequence[int]]) -> Any:
    """Hold a checkpoint against the variables of a graph; return its reader.

    Raises:
      CheckpointError: a table of the variables that are missing or of another shape.
    """
    reader = open_checkpoint(path)
    found = reader.get_variable_to_shape_map()
    rows = []
    for name in sorted(wanted):
        if name not in found:
            rows.append((name, "missing", list(wanted[name])))
        elif list(found[name]) != list(wanted[name]):
            rows.append((name, found[name], list(wanted[name])))
    if rows:
        shown = "; ".join(f"{name}: checkpoint {has}, config {wants}{hint(name)}" for name, has, wants in rows[:8])
        more = f"; and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise CheckpointError(f"{path} does not fit the config in {len(rows)} variable(s): {shown}{more}")
    return reader


def hint(name: str) -> str:
    """The config key that most likely explains a mismatch."""
    if name.endswith(SLOT_SUFFIXES):
        return " (a checkpoint without slots of this optimizer?)"
    keys = {"wte": "n_vocab, n_embd", "wpe": "n_ctx, n_embd", "c_fc": "n_embd", "attn": "n_embd", "norm": "n_embd"}
    for part, key in keys.items():
        if part in name:
            return f" (key {key})"
    return ""
