"""Weights stored as int8: what a product or a look-up does with them, one matrix at a time.

w ~ q * scale with q a whole number of -127 .. 127: one scale per output of a map, one per row of a table.
"""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.mtf_compat import tf

INT8 = "int8_weights"  # collection of (int8 tensor as it was read, float32 scale)


def stored_int8(tensor: Any) -> Optional[tuple]:
    """(int8 tensor of the weight's own shape, its scale) behind a weight, or None for one that is stored as floats."""
    stored = tf.get_collection(INT8)
    operation = getattr(tensor, "op", None)
    while stored and operation is not None and operation.type in ("Reshape", "Identity", "Cast"):
        source = operation.inputs[0]
        for raw, scale in stored:
            if source is raw:
                return raw, scale
        operation = source.op
    return None


def widened(raw: Any, dtype: Any, after: Any) -> Any:
    """The whole numbers in a float type, not made before `after` is there: else every matrix would be at once."""
    with tf.control_dependencies([after]):
        return tf.cast(tf.identity(raw), dtype)
