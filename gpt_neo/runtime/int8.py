"""Loading a checkpoint into int8 weights."""

from __future__ import annotations

import numpy as np

from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.config.network import SCALED, variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.parameters import Storage, int8

SMALLEST = 1 << 12  # numbers; a smaller matrix stays as it is


def scaled_axes(model: ModelConfig) -> dict[str, int]:
    """Name of every weight that is stored as int8 -> the axis that shares a scale: the embedding width of a table, the
    inputs of a map."""
    return {
        name: int(variable.role == "table")
        for name, variable in variables_of(model).items()
        if variable.role in SCALED and variable.size >= SMALLEST
    }


def int8_storage(model: ModelConfig) -> Storage:
    """How the weights of such a network are stored."""
    return int8(scaled_axes(model))


def load_int8(session: tf.Session, checkpoint: str, model: ModelConfig) -> list[str]:
    """Quantize a checkpoint into the session's variables, one tensor at a time.

    Returns:
      notes on what was done on the way.

    Raises:
      CheckpointError: it does not fit, or is damaged.
    """
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    fit = fit_checkpoint(checkpoint, {name: weight.shape for name, weight in variables_of(model).items()})
    feeds, assigns, axes = {}, [], scaled_axes(model)

    def put(name: str, value: np.ndarray) -> None:
        feeds[variables[name].initializer.inputs[1]] = value
        assigns.append(variables[name].initializer)

    for name in variables_of(model):
        if name in axes:
            for part, value in zip(("int8", "scale"), quantize(fit.value(name, np.dtype(np.float32)), axes[name])):
                put(f"{name}/{part}", value)
        else:
            put(name, fit.value(name, variables[name].dtype.base_dtype.as_numpy_dtype))
    session.run(assigns, feeds)
    return list(fit.notes)


def quantize(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 of the weight's shape, and float32 scales along the other axis: symmetric, the largest value is 127."""
    scale = np.abs(weight).max(axis) / 127
    safe = np.where(scale > 0, scale, 1.0).astype(np.float32)
    wide = safe[:, np.newaxis] if axis else safe
    return np.clip(np.rint(weight / wide), -127, 127).astype(np.int8), safe
